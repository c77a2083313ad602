"""Arithmetic on parameters that is written as text, with its derivatives. Text is data: it is parsed, and
never run as code."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medcm_cli.errors import InputError

Number = Tensor | float
_OPERATORS: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "exp": (torch.exp, math.exp),
    "log": (torch.log, math.log),
    "sqrt": (torch.sqrt, math.sqrt),
}
"""Of tensors, and of plain numbers."""
_DEEPEST = 50


@dataclass(frozen=True)
class Expression:
    """``text``, of ``names``."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr

    def value(self, z: Mapping[str, Number]) -> Number:
        """At the parameters ``z``, of their shape."""
        return _value(self.tree, z)

    def slope(self, z: Mapping[str, Number], tangents: Mapping[str, Number]) -> tuple[Number, Number]:
        """Its value, and how fast it changes where parameters change by ``tangents``, 0 of those without."""
        return _dual(self.tree, z, tangents)


def parsed(where: str, text: object) -> Expression:
    """:param where: the option's name. :raises InputError: what is no arithmetic of parameters."""
    expected = "expected arithmetic of parameters, as in KE * V1, with + - * / **, exp, log and sqrt"
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str):
        raise InputError(f"{where} is {text!r}; {expected}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        fault = _fault(tree, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"{where} is {text!r}; {expected}") from None
    if fault:
        raise InputError(f"{where} is {text!r}: {fault}; {expected}")
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called]
    return Expression(text.strip(), tuple(dict.fromkeys(names)), tree)


def _fault(node: ast.AST, depth: int) -> str:
    """What is not allowed below a node, in words; empty where all is."""
    if depth > _DEEPEST:
        return "is too deep"
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _fault(node.left, depth + 1) or _fault(node.right, depth + 1)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _fault(node.operand, depth + 1)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        one = len(node.args) == 1 and not node.keywords
        return _fault(node.args[0], depth + 1) if one else f"{node.func.id} takes one number"
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return "" if not isinstance(node.value, bool) else "has no number"
    return "" if isinstance(node, ast.Name) else f"{ast.unparse(node)!r} is not understood"


def _value(node: ast.expr, z: Mapping[str, Number]) -> Number:
    return _dual(node, z, {})[0]


def _dual(node: ast.expr, z: Mapping[str, Number], tangents: Mapping[str, Number]) -> tuple[Number, Number]:
    """Value and tangent; a tangent of 0.0 is of what does not move."""
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int | float)
        return float(node.value), 0.0
    if isinstance(node, ast.Name):
        return z[node.id], tangents.get(node.id, 0.0)
    if isinstance(node, ast.UnaryOp):
        value, tangent = _dual(node.operand, z, tangents)
        return (-value, -tangent) if isinstance(node.op, ast.USub) else (value, tangent)
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        inner, tangent = _dual(node.args[0], z, tangents)
        value = _called(node.func.id, inner)
        outer: dict[str, Callable[[], Number]] = {
            "exp": lambda: value * tangent,
            "log": lambda: tangent / inner,
            "sqrt": lambda: 0.5 * tangent / value,
        }
        return value, outer[node.func.id]() if _moves(tangent) else 0.0
    assert isinstance(node, ast.BinOp)
    return _of_two(node, _dual(node.left, z, tangents), _dual(node.right, z, tangents))


def _of_two(
    node: ast.BinOp, left: tuple[Number, Number], right: tuple[Number, Number]
) -> tuple[Number, Number]:
    (a, da), (b, db) = left, right
    value = _OPERATORS[type(node.op)](a, b)
    if not _moves(da) and not _moves(db):
        return value, 0.0
    if isinstance(node.op, ast.Add):
        return value, da + db
    if isinstance(node.op, ast.Sub):
        return value, da - db
    if isinstance(node.op, ast.Mult):
        return value, da * b + a * db
    if isinstance(node.op, ast.Div):
        return value, (da - value * db) / b
    base = b * a ** (b - 1) * da if _moves(da) else 0.0
    return value, base + (value * _called("log", a) * db if _moves(db) else 0.0)


def _called(name: str, number: Number) -> Number:
    of_tensors, of_numbers = _FUNCTIONS[name]
    return of_tensors(number) if isinstance(number, Tensor) else of_numbers(number)


def _moves(tangent: Number) -> bool:
    return isinstance(tangent, Tensor) or tangent != 0


Dimensions = Mapping[str, int]


def units_of(expression: Expression, unit: str, known: Mapping[str, str]) -> dict[str, str]:
    """The units of the parameters of an expression that has ``unit``, as far as they follow from it and the
    ``known`` ones: name -> unit, such as ``1/{time}``."""
    found = {name: _dimensions(text) for name, text in known.items()}
    _settle(expression.tree, _dimensions(unit), found)
    return {name: _written(found[name]) for name in expression.names if name in found}


def _settle(node: ast.expr, wanted: Dimensions | None, found: dict[str, Dimensions]) -> None:
    """Give names below a node, which has the unit ``wanted``, theirs."""
    if wanted is None or isinstance(node, ast.Constant | ast.Call):
        return
    if isinstance(node, ast.Name):
        found.setdefault(node.id, wanted)
    elif isinstance(node, ast.UnaryOp):
        _settle(node.operand, wanted, found)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        _settle(node.left, wanted, found)
        _settle(node.right, wanted, found)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        sign = 1 if isinstance(node.op, ast.Mult) else -1
        left, right = _unit(node.left, found), _unit(node.right, found)
        if right is not None:
            _settle(node.left, _product(wanted, right, -sign), found)
        elif left is not None:
            _settle(node.right, _product(_product({}, wanted, sign), left, -sign), found)


def _unit(node: ast.expr, found: Mapping[str, Dimensions]) -> Dimensions | None:
    """The unit of a node whose parts all have one."""
    if isinstance(node, ast.Constant | ast.Call):
        return {}
    if isinstance(node, ast.Name):
        return found.get(node.id)
    if isinstance(node, ast.UnaryOp):
        return _unit(node.operand, found)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        return _unit(node.left, found) or _unit(node.right, found)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        left, right = _unit(node.left, found), _unit(node.right, found)
        if left is None or right is None:
            return None
        return _product(left, right, 1 if isinstance(node.op, ast.Mult) else -1)
    return None


def _product(left: Dimensions, right: Dimensions, power: int) -> Dimensions:
    found = {name: left.get(name, 0) + power * right.get(name, 0) for name in {**left, **right}}
    return {name: exponent for name, exponent in found.items() if exponent}


def _dimensions(unit: str) -> Dimensions:
    above, *below = unit.split("/")
    parts = [(name, 1) for name in above.split() if name not in ("1", "-")]
    found: Dimensions = {}
    for name, power in (*parts, *((name, -1) for name in below)):
        found = _product(found, {name: power}, 1)
    return found


def _written(dimensions: Dimensions) -> str:
    def side(sign: int) -> list[str]:
        return [
            name if abs(power) == 1 else f"{name}^{abs(power)}"
            for name, power in dimensions.items()
            if power * sign > 0
        ]

    if not dimensions:
        return "-"
    return "/".join([" ".join(side(1)) or "1", *side(-1)])
