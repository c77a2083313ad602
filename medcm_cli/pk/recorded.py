"""What a rate function does, as expressions: it is shown numbers, and torch tells its operations."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk import symbols
from medcm_cli.pk.rates import Written, parameters_of, record
from medcm_cli.pk.symbols import Node
from medcm_cli.pk.trial import points

Make = Callable[..., Node]


def _swapped(make: Make) -> Make:
    return lambda x, y: make(y, x)


def _function(name: str) -> Make:
    return lambda x: symbols.unary(name, x)


def _comparison(name: str) -> Make:
    return lambda x, y: symbols.compared(name, x, y)


_TWO: dict[str, Make] = {
    "add": symbols.add,
    "sub": symbols.sub,
    "mul": symbols.mul,
    "div": symbols.div,
    "pow": symbols.power,
}
_MADE: dict[str, Make] = {
    **_TWO,
    **{f"__{name}__": make for name, make in _TWO.items()},
    **{f"__r{name}__": _swapped(make) for name, make in _TWO.items()},
    **{name: _function(name) for name in symbols.FUNCTIONS},
    **{name: _comparison(name) for name in ("lt", "le", "gt", "ge")},
    **{f"__{name}__": _comparison(name) for name in ("lt", "le", "gt", "ge")},
    "__truediv__": symbols.div,
    "__rtruediv__": _swapped(symbols.div),
    "true_divide": symbols.div,
    "subtract": symbols.sub,
    "multiply": symbols.mul,
    "divide": symbols.div,
    "rsub": _swapped(symbols.sub),
    "neg": symbols.neg,
    "__neg__": symbols.neg,
    "square": lambda x: symbols.mul(x, x),
    "reciprocal": symbols.reciprocal,
    "where": symbols.where,
}


class _Recorder(torch.overrides.TorchFunctionMode):
    """``nodes``: of each tensor by its id, what it is; ``sound``: whether all operations are known."""

    def __init__(self, inputs: Sequence[tuple[Tensor, Node]]) -> None:
        super().__init__()
        self.kept = [tensor for tensor, _ in inputs]  # an id is a tensor's own as long as that is there
        self.nodes = {id(tensor): node for tensor, node in inputs}
        self.sound = True

    def __torch_function__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        found = function(*given, **(options or {}))
        node = self._made(getattr(function, "__name__", ""), given, options or {})
        if node is None or not isinstance(found, Tensor):
            self.sound = False
        else:
            self.kept.append(found)
            self.nodes[id(found)] = node
        return found

    def of(self, value: Any) -> Node | None:
        """What a value is."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return symbols.number(value)
        return self.nodes.get(id(value))

    def _made(self, name: str, given: Sequence[Any], options: dict[str, Any]) -> Node | None:
        if name == "clamp":
            names = dict(zip(("min", "max"), given[1:], strict=False)) | options
            ends = [names.get(end) for end in ("min", "max")]
            first = self.of(given[0])
            plain = all(end is None or isinstance(end, int | float) for end in ends)
            return symbols.clamp(first, *ends) if first is not None and plain else None
        args = [self.of(value) for value in given]
        if name not in _MADE or options or None in args:
            return None
        try:
            return _MADE[name](*args)
        except TypeError:  # another number of arguments
            return None


def rows(
    written: Written, time: Node, amounts: Sequence[Node], parameters: Sequence[Node]
) -> list[Node] | None:
    """The rate of each state, of ``time``, ``amounts`` and ``parameters``; None where it does what is not
    known here."""
    if written.terms:
        return None
    t, a, z = points(len(written.states), written.parameters, 0)
    a_rows = a.unbind(0)
    pairs = [(t, time), *zip(a_rows, amounts, strict=True)]
    pairs += zip((z[name] for name in written.parameters), parameters, strict=True)
    recorder = _Recorder(pairs)
    with recorder:
        found = written.function(
            t, record("State", written.states)(*a_rows), parameters_of(written.parameters, z)
        )
    each = [recorder.of(found[state]) for state in written.states]
    made = [node for node in each if node is not None]
    return made if recorder.sound and len(made) == len(each) else None
