"""Expressions as operations of torch, each done once."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk.symbols import Node, number_of, reads


class _Operation(NamedTuple):
    function: Callable[..., Tensor]
    places: tuple[int, ...]
    more: tuple[Any, ...]
    options: dict[str, Any]


class Program:
    """What ``outputs`` come to, from tensors by the names of their ``inputs``; a number is given as it is.

    :param whole: inputs that have all the dimensions of the outputs.
    """

    def __init__(self, outputs: Sequence[Node], whole: Sequence[Node] = ()) -> None:
        self.uses = Counter[Node]()
        for node in outputs:
            self._count(node)
        self.inputs = [str(node.value) for node in self.uses if node.op == "input"]
        self.place = {node: i for i, node in enumerate(n for n in self.uses if n.op == "input")}
        self.operations = list[_Operation]()
        for node in outputs:
            if node.op != "number":
                self._emit(node)
        self.outputs: list[int | float] = [
            self.place[node] if (value := number_of(node)) is None else value for node in outputs
        ]
        made = {self.place[node]: i for i, node in enumerate(outputs) if any(reads(node, of) for of in whole)}
        begin = len(self.inputs)
        self.final = [
            None if operation.function in _WITHOUT_OUT else made.get(begin + i)
            for i, operation in enumerate(self.operations)
        ]

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor | float]:
        """Differentiable."""
        values = [inputs[name] for name in self.inputs]
        for function, places, more, options in self.operations:
            values.append(function(*[values[place] for place in places], *more, **options))
        return [of if isinstance(of, float) else values[of] for of in self.outputs]

    def into(self, inputs: Mapping[str, Tensor], out: Sequence[Tensor]) -> None:
        """The same, put there: nothing has a gradient."""
        self._run([inputs[name] for name in self.inputs], out)

    def bound(
        self, fixed: Mapping[str, Tensor], names: Sequence[str]
    ) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
        """``into`` with some inputs ``fixed``, as a function of those of these ``names``, in their order, and
        of where to put it."""
        places = [(self.inputs.index(name), i) for i, name in enumerate(names) if name in self.inputs]
        known = [fixed.get(name) for name in self.inputs]

        def run(given: Sequence[Tensor], out: Sequence[Tensor]) -> None:
            values = known.copy()
            for place, i in places:
                values[place] = given[i]
            self._run(values, out)

        return run

    def _run(self, values: list[Any], out: Sequence[Tensor]) -> None:
        for (function, places, more, options), final in zip(self.operations, self.final, strict=True):
            given = [values[place] for place in places]
            if final is None:
                values.append(function(*given, *more, **options))
            else:
                values.append(function(*given, *more, **options, out=out[final]))
        for there, of in zip(out, self.outputs, strict=True):
            if isinstance(of, float):
                there.fill_(of)
            elif values[of] is not there:
                there.copy_(values[of])

    def _count(self, node: Node) -> None:
        self.uses[node] += 1
        if self.uses[node] == 1:
            for arg in node.args:
                self._count(arg)

    def _add(
        self,
        node: Node,
        function: Callable[..., Tensor],
        args: Sequence[Node],
        *more: Any,
        **options: Any,
    ) -> None:
        places = tuple(self._emit(arg) for arg in args)
        self.place[node] = len(self.inputs) + len(self.operations)
        self.operations.append(_Operation(function, places, more, options))

    def _emit(self, node: Node) -> int:
        if node not in self.place:
            numbers = [arg.value for arg in node.args if arg.op == "number"]
            args = [arg for arg in node.args if arg.op != "number"]
            if node.op == "add":
                self._sum(node)
            elif node.op == "where":
                self._choice(node)
            elif node.op == "pow" and node.args[0].op == "number":
                self._add(node, _power_of, args, *numbers)
            elif node.op == "clamp":
                self._add(node, torch.clamp, args, *node.value)  # type: ignore[misc]
            elif node.op in _SWAPPED and node.args[0].op == "number":
                self._add(node, getattr(torch, _SWAPPED[node.op]), args, *numbers)
            else:
                self._add(node, getattr(torch, node.op), args, *numbers)
        return self.place[node]

    def _sum(self, node: Node) -> None:
        """With a product that nothing else needs in the same operation."""
        first, second = node.args
        if first.op == "number":
            first, second = second, first
        if second.op == "number":
            self._add(node, torch.add, [first], second.value)
            return
        if not self._alone(second) and self._alone(first):
            first, second = second, first
        if not self._alone(second):
            self._add(node, torch.add, [first, second])
        elif second.args[0].op == "number":
            self._add(node, torch.add, [first, second.args[1]], alpha=second.args[0].value)
        else:
            self._add(node, torch.addcmul, [first, *second.args])

    def _alone(self, node: Node) -> bool:
        return node.op == "mul" and self.uses[node] == 1 and node not in self.place

    def _choice(self, node: Node) -> None:
        condition, first, second = node.args
        if first.op == second.op == "number":
            like = next(place for place in self.uses if place.op == "input")
            self._add(node, _either, [condition, like], first.value, second.value)
        elif first.op == "number":
            self._add(node, _number_where, [condition, second], first.value)
        elif second.op != "number":
            self._add(node, torch.where, [condition, first, second])
        else:
            self._add(node, torch.where, [condition, first], second.value)


def _power_of(x: Tensor, base: float) -> Tensor:
    return torch.pow(base, x)


def _number_where(condition: Tensor, other: Tensor, value: float) -> Tensor:
    return torch.where(condition, value, other)


def _either(condition: Tensor, like: Tensor, value: float, other: float) -> Tensor:
    return torch.where(condition, like.new_tensor(value), other)


_SWAPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_WITHOUT_OUT = (_power_of, _number_where, _either, torch.where)
