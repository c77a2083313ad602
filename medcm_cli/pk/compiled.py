"""Steps of an explicit method as one loop in machine code, by torch.compile and a C++ compiler: those of
``medcm_cli.pk.steps``, and their gradients those of ``medcm_cli.pk.adjoint``, to rounding."""

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk.change import Right
from medcm_cli.pk.formula import Formula
from medcm_cli.pk.rates import Written, record
from medcm_cli.pk.steps import March, Path
from medcm_cli.pk.tableaux import Tableau

Parts = tuple[Tensor, ...]


def check_compiler() -> None:
    """:raises InputError: there is no C++ compiler, or not the one that CXX names."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise InputError(
            f"batch.compile=true needs a C++ compiler, and there is no {name} (CXX); leave it out"
        )


class _Where(NamedTuple):
    """Of M trajectories: times and parameters (M,) each, and what runs into each of C compartments."""

    left: Tensor
    width: Tensor
    values: Parts
    inflow: Parts


class _Steps(NamedTuple):
    """(amounts (C, M), begin and length of a step, ``_Where``, ...) -> what is there at its end, and of its
    errors, in tolerances, the sum of squares and the largest; or, from a gradient by the end and those so
    far, gradients by amounts and all of ``_Where``."""

    ahead: Callable[..., tuple[Tensor, Tensor, Tensor]]
    back: Callable[..., tuple[Tensor, _Where]]


@functools.lru_cache(maxsize=16)
def _steps_of(right: Right, tableau: Tableau) -> _Steps:
    """Compiled when they are first called, for each type of numbers and whether anything runs in."""
    change = _by_function(right) if right.formula is None else _by_formula(right, right.formula)

    def step(begin: Tensor, h: Tensor, x: Parts, where: _Where) -> tuple[Parts, Parts]:
        """What is there at the end, and the error."""
        wide = h if right.formula is not None else h * where.width
        stages, end = [change(begin, x, where)], x
        for node, row in zip(tableau.nodes[1:], tableau.rows[1:], strict=True):
            end = tuple(x[n] + wide * _sum(row, stages, n) for n in range(len(x)))
            stages.append(change(begin + node * h, end, where))
        return end, tuple(wide * _sum(tableau.error, stages, n) for n in range(len(x)))

    def ahead(
        x: Tensor, begin: Tensor, h: Tensor, where: _Where, rtol: Tensor, atol: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = x.unbind(0)
        end, error = step(begin, h, parts, where)
        square, most = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
        for before, after, off in zip(parts, end, error, strict=True):
            ratio = off.abs() / (torch.maximum(before.abs(), after.abs()) * rtol + atol)
            square, most = square + ratio * ratio, torch.maximum(most, ratio)
        return torch.stack(end), square, most

    def back(
        x: Tensor, begin: Tensor, h: Tensor, where: _Where, bar: Tensor, so_far: _Where
    ) -> tuple[Tensor, _Where]:
        def ends(x: Parts, where: _Where) -> Parts:
            return step(begin, h, x, where)[0]

        pulled = torch.func.vjp(ends, x.unbind(0), where)[1]
        by_x, by = pulled(bar.unbind(0))
        added = (
            tuple(a + b for a, b in zip(*both, strict=True)) for both in zip(so_far[2:], by[2:], strict=True)
        )
        return torch.stack(by_x), _Where(so_far.left + by[0], so_far.width + by[1], *added)

    # Coefficients of the method are numbers of the code, and not given anew to every call.
    torch._dynamo.config.specialize_float = True
    options: dict[str, Any] = {"dynamic": True, "fullgraph": True}
    return _Steps(torch.compile(ahead, **options), torch.compile(back, **options))


Change = Callable[[Tensor, Sequence[Tensor], _Where], list[Tensor]]
"""Of s, the C amounts and where: how they change."""


def _by_formula(right: Right, formula: Formula) -> Change:
    program, names = formula.whole, formula.names
    tensors = [str(node.value) for node in formula.tensors]

    def change(s: Tensor, amounts: Sequence[Tensor], where: _Where) -> list[Tensor]:
        inputs = dict(zip(tensors, [where.left, where.width, *where.values], strict=True))
        inputs |= dict(zip(names, amounts, strict=True))
        if right.timed:
            inputs["place"] = s
        return _rows(program(inputs), amounts[0], where)

    return change


def _by_function(right: Right) -> Change:
    """The amount in each hour."""
    written = right.rate
    assert isinstance(written, Written)
    state, named = record("State", written.states), record("Parameters", written.parameters)
    places = [right.names.index(name) for name in written.parameters]

    def change(s: Tensor, amounts: Sequence[Tensor], where: _Where) -> list[Tensor]:
        time = where.left + s * where.width if right.timed else where.left
        found = written.function(time, state(*amounts), named(*(where.values[place] for place in places)))
        return _rows([found[name] for name in written.states], amounts[0], where)

    return change


def _rows(found: Sequence[Any], like: Tensor, where: _Where) -> list[Tensor]:
    rows = [row + torch.zeros_like(like) for row in found]
    return [row + into for row, into in zip(rows, where.inflow, strict=True)] if where.inflow else rows


def _sum(weights: Sequence[float], stages: Sequence[Sequence[Tensor]], n: int) -> Tensor:
    terms = [weight * stage[n] for weight, stage in zip(weights, stages, strict=False) if weight]
    return functools.reduce(torch.add, terms)


def _own(values: Tensor) -> Tensor:
    """(C, M), and no view, of which each kind would be compiled for anew."""
    return values.flatten(1).clone()


class CompiledMarch(March):
    """A march whose steps are compiled; of each it keeps where it begins."""

    def __init__(self, right: Right, *given: Any) -> None:
        super().__init__(right, *given)
        self.steps, self.most_kept = _steps_of(right, self.tableau), 0
        shape = self.x.shape[1:]

        def flat(values: Tensor) -> Tensor:
            return values.expand(*values.shape[:-3], *shape).flatten(-3).clone()

        inflow = () if self.where.inflow is None else tuple(map(flat, self.where.inflow))
        values = tuple(flat(value) for value in self.where.values)
        self.within = self.x.new_tensor(self.control.rtol), self.x.new_tensor(self.control.atol)
        self.flat_where = _Where(flat(self.where.left), flat(self.where.width), values, inflow)

    def step(self, s: float, h: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The end alone."""
        moments = (x.new_tensor(s), x.new_tensor(h))
        end, square, most = self.steps.ahead(_own(x), *moments, self.flat_where, *self.within)
        end, self.square, self.most = end.view_as(x), square.view(x.shape[1:]), most.view(x.shape[1:])
        if self.lost is not None:
            end = end.masked_fill(self.lost, 0)
            self.square, self.most = (of.masked_fill(self.lost, 0) for of in (self.square, self.most))
        self.at_end = end.abs()
        return end[None], None

    def _ratios(self, end: Tensor, h: float) -> Tensor:
        del end, h
        return self.most

    def _size_at(self, end: Tensor, h: float) -> float:
        del end, h
        largest = float(self.most.amax())
        if self.control.largest:
            return largest
        return self._of_fits(self.square[None], largest)

    def gradients(
        self, path: Path, bar: Tensor, shapes: Sequence[torch.Size], between: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """By the amounts at the beginning and by the tensors of ``Where``, of these ``shapes``, from that by
        the end, and those by what is there after each step ``between``."""
        lost = None if self.lost is None else self.lost.flatten()
        # A tensor in two places would be compiled for anew.
        flat, where = _own(bar), self.flat_where
        by = _Where(
            torch.zeros_like(where.left),
            torch.zeros_like(where.width),
            tuple(map(torch.zeros_like, where.values)),
            tuple(map(torch.zeros_like, where.inflow)),
        )
        for number, (s, h) in reversed([*enumerate(path.steps)]):
            x = path.stages[number]
            flat, by = self.steps.back(_own(x), x.new_tensor(s), x.new_tensor(h), where, flat, by)
            if between and number:
                flat = flat + between[number - 1].flatten(1)
            if lost is not None:
                flat = flat.masked_fill(lost, 0)
        inflow = [torch.stack(by.inflow)] if by.inflow else []
        each = [
            of.view(*of.shape[:-1], *bar.shape[1:]).sum_to_size(shape)
            for of, shape in zip([by.left, by.width, *by.values, *inflow], shapes, strict=True)
        ]
        return flat.view_as(bar), each
