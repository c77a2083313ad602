"""An interval between events by the solver of medcm: its steps, its derivatives, and what does not touch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.pk.change import Right
from medcm_cli.pk.interval import follow, follow_with
from medcm_cli.pk.stages import Call, How
from medcm_cli.pk.steps import Control
from medcm_cli.pk.tableaux import TABLEAUX, Tableau

F64 = torch.float64
METHODS = pytest.mark.parametrize("method", ["tsit5", "kvaerno5"])


@pytest.mark.parametrize("tableau", TABLEAUX.values(), ids=TABLEAUX)
def test_conditions_of_order(tableau: Tableau) -> None:
    """Of quadrature, to order 5 and, embedded, to order 4; and of the matrix, to order 3."""
    size = len(tableau.nodes)
    a = np.zeros((size, size))
    for i, row in enumerate(tableau.rows):
        a[i, : len(row)] = row
        a[i, i] = tableau.diagonal if i else 0
    b, c = np.zeros(size), np.array(tableau.nodes)
    b[: tableau.used] = tableau.weights
    embedded = b - np.array(tableau.error)
    np.testing.assert_allclose(a.sum(1), c, atol=1e-14)
    for weights, order in ((b, 5), (embedded, 4)):
        for power in range(order):
            assert weights @ c**power == pytest.approx(1 / (power + 1), abs=1e-13)
        assert weights @ a @ c == pytest.approx(1 / 6, abs=1e-13)
        assert weights @ a @ c**2 == pytest.approx(1 / 12, abs=1e-13)
        assert weights @ a @ a @ c == pytest.approx(1 / 24, abs=1e-13)
    assert b @ a @ a @ a @ c == pytest.approx(1 / 120, abs=1e-13)
    assert abs(embedded @ c**4 - 1 / 5) > 1e-4


def swinging(t: Tensor, amounts: Tensor, z: Mapping[str, Tensor]) -> Tensor:
    """Saturable from the first compartment to the second, which decays at a rate that swings in time."""
    moved = z["VM"] * amounts[0] / (z["KM"] + amounts[0])
    return torch.stack([-moved, moved - z["K"] * (1 + torch.sin(t) / 2) * amounts[1]])


RIGHT = Right(swinging, ("VM", "KM", "K"))


def inputs(seed: int = 0, subjects: int = 2) -> list[Tensor]:
    """Amounts, left, width, VM, KM, K and inflow."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(2, 1, subjects, 1), *[(1, subjects, 1)] * 5, (2, 1, subjects, 1)]
    scale = (3.0, 1.0, 0.4, 2.0, 1.0, 0.6, 1.0)
    return [
        ((0.5 + torch.rand(shape, generator=g, dtype=F64)) * size).requires_grad_()
        for shape, size in zip(shapes, scale, strict=True)
    ]


def call(method: str, moves: Sequence[tuple[int, int]] = (), tolerance: float = 1e-9) -> Call:
    return Call(RIGHT, How(Control(TABLEAUX[method], tolerance, tolerance)), True, tuple(moves))


def differentiated(value: Callable[..., Tensor], given: Sequence[Tensor]) -> None:
    """The gradient against differences along one direction, and the gradient of that likewise."""
    g = torch.Generator().manual_seed(7)
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    along = [torch.randn(leaf.shape, generator=g, dtype=F64) for leaf in leaves]

    def first(at: Sequence[Tensor], create_graph: bool) -> Tensor:
        slopes = torch.autograd.grad(value(*at), list(at), create_graph=create_graph)
        return torch.stack([(slope * by).sum() for slope, by in zip(slopes, along, strict=True)]).sum()

    slope = first(leaves, create_graph=True)
    curved = torch.autograd.grad(slope, leaves)
    curve = torch.stack([(of * by).sum() for of, by in zip(curved, along, strict=True)]).sum()
    step = 1e-5
    up, down = (
        [(leaf + sign * step * by).detach().requires_grad_() for leaf, by in zip(leaves, along, strict=True)]
        for sign in (1, -1)
    )
    torch.testing.assert_close(first(leaves, create_graph=False), slope, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((value(*up) - value(*down)) / (2 * step), slope, rtol=1e-6, atol=1e-6)
    ends = first(up, create_graph=False) - first(down, create_graph=False)
    torch.testing.assert_close(ends / (2 * step), curve, rtol=1e-5, atol=1e-5)


@METHODS
def test_gradients_of_an_interval_and_their_own(method: str) -> None:
    """By amounts, the interval itself, parameters and inflow."""

    def value(*given: Tensor) -> Tensor:
        return follow(call(method), given[0], given[1:]).square().sum()

    differentiated(value, inputs())


MOVES = ((0, 1), (0, 2), (0, 5), (1, 0), (1, 3), (1, 1))
"""The first tangent moves the width, VM and the inflow, the second the left end, KM and the width."""


def moved(given: Sequence[Tensor], seed: int = 5) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(given[1 + p].shape, generator=g, dtype=F64).requires_grad_() for _, p in MOVES]


@METHODS
def test_tangents_are_derivatives_along_them(method: str) -> None:
    given = inputs()
    turns = moved(given)
    tangents = torch.randn(2, 2, 1, 2, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    with torch.no_grad():
        end, found = follow_with(call(method, MOVES), given[0], tangents, given[1:], turns)
        torch.testing.assert_close(end, follow(call(method), given[0], given[1:]), rtol=0, atol=1e-12)
        step = 1e-5
        for k in range(2):
            ends = []
            for sign in (1, -1):
                there = [tensor.clone() for tensor in given]
                there[0] += sign * step * tangents[:, k]
                for (number, p), turn in zip(MOVES, turns, strict=True):
                    there[1 + p] += sign * step * turn if number == k else 0
                ends.append(follow(call(method, tolerance=1e-12), there[0], there[1:]))
            torch.testing.assert_close(found[:, k], (ends[0] - ends[1]) / (2 * step), rtol=0, atol=1e-6)


@METHODS
def test_steps_side_by_side_are_those_one_by_one(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tangents, and gradients of them; with several pieces of an interval."""
    monkeypatch.setattr("medcm_cli.pk.stages._ELEMENTS", 200)
    found = []
    for small in (0, 10**9):
        monkeypatch.setattr("medcm_cli.pk.tangents._SMALL", small)
        given = inputs()
        turns = moved(given)
        tangents = torch.ones(2, 2, 1, 2, 1, dtype=F64).requires_grad_()
        with torch.no_grad():
            alone = follow_with(call(method, MOVES), given[0], tangents, given[1:], turns)
        both = follow_with(call(method, MOVES), given[0], tangents, given[1:], turns)
        torch.testing.assert_close(both, alone, rtol=0, atol=0)
        torch.stack([of.square().sum() for of in both]).sum().backward()
        found.append([*both, *(leaf.grad for leaf in (*given, tangents, *turns))])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@METHODS
def test_gradients_of_tangents_and_their_own(method: str) -> None:
    given = inputs()
    tangents = torch.randn(2, 2, 1, 2, 1, generator=torch.Generator().manual_seed(1), dtype=F64)

    def value(*at: Tensor) -> Tensor:
        end, turned = follow_with(call(method, MOVES), at[0], at[1], at[2:8], at[8:])
        return end.square().sum() + turned.square().sum()

    differentiated(value, [given[0], tangents, *given[1:], *moved(given)])


def test_where_there_is_no_way_others_go_theirs() -> None:
    """Parameters that are no numbers, and an explosion, in two of four trajectories."""

    def rate(t: Tensor, amounts: Tensor, z: Mapping[str, Tensor]) -> Tensor:
        del t
        return z["K"] * amounts**3 - amounts

    right, unit = Right(rate, ("K",)), torch.ones(1, 1, 4, dtype=F64)
    k = torch.tensor([0.1, torch.nan, 1e3, 0.2], dtype=F64).view(1, 1, 4).requires_grad_()
    here = Call(right, How(Control(TABLEAUX["tsit5"], 1e-8, 1e-8)), False)
    end = follow(here, unit[None], [0 * unit, unit, k])
    assert end.isfinite().flatten().tolist() == [True, False, False, True]
    end[..., [0, 3]].sum().backward()
    alone = k.detach()[..., [0, 3]].requires_grad_()
    pair = torch.ones(1, 1, 2, dtype=F64)
    own = follow(here, pair[None], [0 * pair, pair, alone])
    own.sum().backward()
    torch.testing.assert_close(end[..., [0, 3]], own, rtol=1e-7, atol=1e-8)
    assert k.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(k.grad[..., [0, 3]], alone.grad, rtol=1e-6, atol=1e-8)
    assert k.grad[..., 1:3].abs().sum() == 0


def test_stages_that_were_not_kept_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for kept in (2**28, 0):
        monkeypatch.setattr("medcm_cli.pk.steps.KEPT", kept)
        for method in TABLEAUX:
            given = inputs()
            follow(call(method), given[0], given[1:]).square().sum().backward()
            found.append([tensor.grad for tensor in given])
    for one, other in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
