"""Arithmetic written down: expressions of one trajectory's numbers, simplified as they are made, and their
derivatives.

``fixed`` expressions depend on nothing that changes within an interval. Every product keeps its fixed factors
together, in front, so that they can be computed once.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Node:
    """``op`` of ``args``; of an input or a number, what it is called or is, and of clamp its two ends, is
    ``value``. Two that are alike are one object."""

    op: str
    args: tuple["Node", ...]
    value: object
    fixed: bool


@functools.lru_cache(maxsize=2**16)
def _node(op: str, args: tuple[Node, ...], value: object = None, fixed: bool = True) -> Node:
    return Node(op, args, value, fixed and all(arg.fixed for arg in args))


def number(value: float) -> Node:
    """A number."""
    return _node("number", (), float(value))


def given(name: str, fixed: bool) -> Node:
    """An input."""
    return _node("input", (), name, fixed)


ZERO, ONE = number(0), number(1)


def number_of(node: Node) -> float | None:
    """What a number is, None of anything else."""
    return node.value if isinstance(node.value, float) else None


def parted(node: Node) -> tuple[Node, Node]:
    """Its fixed factor and the rest."""
    if node.fixed:
        return node, ONE
    if node.op == "mul" and node.args[0].fixed:
        return node.args[0], node.args[1]
    return ONE, node


def _both(op: str, x: Node, y: Node) -> Node:
    if x is ONE or y is ONE:
        return y if x is ONE else x
    a, b = number_of(x), number_of(y)
    if a is not None and b is not None:
        return number(a * b)
    return _node(op, (y, x) if b is not None else (x, y))


def mul(x: Node, y: Node) -> Node:
    """x y."""
    (f, c), (g, d) = parted(x), parted(y)
    if f is ZERO or g is ZERO:
        return ZERO
    return _both("mul", _both("mul", f, g), _both("mul", c, d))


def neg(x: Node) -> Node:
    """-x."""
    return mul(number(-1), x)


def add(x: Node, y: Node) -> Node:
    """x + y; multiples of one thing become one."""
    if x is ZERO or y is ZERO:
        return y if x is ZERO else x
    a, b = number_of(x), number_of(y)
    if a is not None and b is not None:
        return number(a + b)
    (f, c), (g, d) = (_counted(x), _counted(y)) if x.fixed and y.fixed else (parted(x), parted(y))
    if c is d and c is not ONE:
        return mul(add(f, g), c)
    return _node("add", (x, y))


def _counted(node: Node) -> tuple[Node, Node]:
    """Of a fixed one, its factor that is a number, and the rest."""
    if node.op == "mul" and node.args[0].op == "number":
        return node.args[0], node.args[1]
    return ONE, node


def sub(x: Node, y: Node) -> Node:
    """x - y."""
    return add(x, neg(y))


def reciprocal(x: Node) -> Node:
    """1 / x."""
    value = number_of(x)
    if value:
        return number(1 / value)
    return _node("reciprocal", (x,))


def div(x: Node, y: Node) -> Node:
    """x / y."""
    (f, c), (g, d) = parted(x), parted(y)
    fixed = mul(f, reciprocal(g))
    if c is d:
        return fixed
    if d is ONE:
        return mul(fixed, c)
    return mul(fixed, reciprocal(d) if c is ONE else _node("div", (c, d)))


def power(x: Node, y: Node) -> Node:
    """x to the power y."""
    value = number_of(y)
    if value == 2:
        return mul(x, x)
    if value is not None and value in (0, 1, -1):
        return reciprocal(x) if value < 0 else ONE if value == 0 else x
    return _node("pow", (x, y))


def unary(op: str, x: Node) -> Node:
    """A function of ``_SLOPES``."""
    return _node(op, (x,))


def compared(op: str, x: Node, y: Node) -> Node:
    """Whether x lt, le, gt or ge y."""
    return _node(op, (x, y))


def where(condition: Node, x: Node, y: Node) -> Node:
    """x where that is, else y."""
    return x if x is y else _node("where", (condition, x, y))


def clamp(x: Node, low: float | None, high: float | None) -> Node:
    """x, no less and no more than these."""
    return _node("clamp", (x,), (low, high))


_SLOPES: dict[str, Callable[[Node, Node], Node]] = {  # of the argument, and the function's own value
    "exp": lambda _, own: own,
    "log": lambda x, _: reciprocal(x),
    "log1p": lambda x, _: reciprocal(add(ONE, x)),
    "expm1": lambda _, own: add(ONE, own),
    "sqrt": lambda _, own: div(number(0.5), own),
    "reciprocal": lambda _, own: neg(mul(own, own)),
    "tanh": lambda _, own: sub(ONE, mul(own, own)),
    "sigmoid": lambda _, own: mul(own, sub(ONE, own)),
    "sin": lambda x, _: unary("cos", x),
    "cos": lambda x, _: neg(unary("sin", x)),
}
FUNCTIONS = frozenset(_SLOPES)


@functools.lru_cache(maxsize=2**16)
def reads(node: Node, wrt: Node) -> bool:
    """Whether one is in the other."""
    return node is wrt or any(reads(arg, wrt) for arg in node.args)


@functools.lru_cache(maxsize=2**16)
def derivative(node: Node, wrt: Node) -> Node:
    """By an input; at a kink as torch has it."""
    if node is wrt:
        return ONE
    if not reads(node, wrt) or node.op in ("lt", "le", "gt", "ge"):
        return ZERO
    return _chained(node, [derivative(arg, wrt) for arg in node.args])


def _chained(node: Node, slopes: list[Node]) -> Node:
    """The derivative of an operation, from those of its arguments."""
    args = node.args
    if node.op == "add":
        return add(*slopes)
    if node.op == "mul":
        return add(mul(slopes[0], args[1]), mul(args[0], slopes[1]))
    if node.op == "div":
        return div(sub(slopes[0], mul(node, slopes[1])), args[1])
    if node.op == "where":
        return where(args[0], *slopes[1:])
    if node.op == "clamp":
        return _inside(node, slopes[0])
    if node.op == "pow":
        return _of_power(node, *slopes)
    return mul(_SLOPES[node.op](args[0], node), slopes[0])


def _inside(node: Node, slope: Node) -> Node:
    """Of clamp: 0 beyond its ends."""
    assert isinstance(node.value, tuple)
    for op, end in zip(("ge", "le"), node.value, strict=True):
        slope = slope if end is None else where(compared(op, node.args[0], number(end)), slope, ZERO)
    return slope


def _of_power(node: Node, by_base: Node, by_exponent: Node) -> Node:
    base, exponent = node.args
    first = mul(mul(exponent, power(base, sub(exponent, ONE))), by_base)
    if by_exponent is ZERO:
        return first
    # 0 to a power above 0 stays 0.
    of_exponent = where(compared("le", base, ZERO), ZERO, mul(node, unary("log", base)))
    return add(first, mul(of_exponent, by_exponent))


def scaled(by: Node, node: Node) -> Node:
    """``by``, which is fixed, times ``node``: into its terms, where each has a fixed factor anyway."""
    whole = dict[Node, Node]()
    if _gathered(node, by, whole) > len(whole):  # what was multiplied out has become less
        return functools.reduce(add, (mul(factor, core) for core, factor in whole.items()))
    if node.op == "add" and not node.fixed and all(map(_takes, node.args)):
        return add(*(scaled(by, arg) for arg in node.args))
    return mul(by, node)


def _takes(node: Node) -> bool:
    if node.op == "add" and not node.fixed:
        return all(map(_takes, node.args))
    return node.fixed or (node.op == "mul" and node.args[0].fixed)


def _gathered(node: Node, factor: Node, into: dict[Node, Node]) -> int:
    """How many terms ``factor`` times ``node`` has; ``into``: what each thing in them is multiplied by."""
    own, core = parted(node)
    if core.op == "add" and _takes(core):
        return sum(_gathered(term, mul(factor, own), into) for term in core.args)
    into[core] = add(into.get(core, ZERO), mul(factor, own))
    return 1


def fixed_in(nodes: tuple[Node, ...]) -> list[Node]:
    """What is fixed in them, each as large as it can be, without numbers."""
    found = dict[Node, None]()
    seen = set[Node]()

    def look(node: Node) -> None:
        if node in seen:
            return
        seen.add(node)
        if node.fixed:
            if node.op != "number":
                found[node] = None
            return
        for arg in node.args:
            look(arg)

    for node in nodes:
        look(node)
    return list(found)


_MADE: dict[str, Callable[..., Node]] = {
    "add": add,
    "mul": mul,
    "div": div,
    "pow": power,
    "where": where,
    "reciprocal": reciprocal,
}


def replaced(node: Node, by: dict[Node, Node]) -> Node:
    """With inputs or other parts of it replaced; ``by`` is filled with what was found on the way."""
    if node in by or not node.args:
        return by.get(node, node)
    args = tuple(replaced(arg, by) for arg in node.args)
    made = _MADE.get(node.op)
    by[node] = _node(node.op, args, node.value) if made is None else made(*args)
    return by[node]
