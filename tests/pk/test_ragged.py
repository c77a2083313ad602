"""Groups of subjects by their numbers of doses, and doses cut at the observations."""

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.pk import (
    Ragged,
    Schedule,
    one_compartment,
    sensitivities,
    solve,
    three_compartment,
    two_compartment,
)
from medcm_cli.pk.pieces import pieces_of
from medcm_cli.pk.ragged import groups_of

F64 = torch.float64
TYPICAL = {"CL": 1.5, "V1": 9.0, "Q": 1.2, "V2": 20.0, "Q3": 0.8, "V3": 150.0}
MODELS = {"one": one_compartment(), "two": two_compartment(), "three": three_compartment()}


def pump(doses: int, observations: int, seed: int = 0, subjects: int = 2) -> list[Tensor]:
    """Rates that change again and again, some overlapping, doses given at once and nothing at all among
    them, the last of all after the last observation."""
    g = torch.Generator().manual_seed(seed)

    def uniform(count: int) -> Tensor:
        return torch.rand(count, 1, subjects, 1, generator=g, dtype=F64)

    start = (60 * uniform(doses)).sort(0).values
    duration = 3 * uniform(doses) * (uniform(doses) > 0.3)
    amount = 500 * uniform(doses) * (uniform(doses) > 0.1)
    time = (55 * uniform(observations)).sort(0).values
    time[2] = start[doses // 2] + duration[doses // 2]  # at the end of a dose,
    time[4] = start[doses // 3]  # at the beginning of one
    return [time.sort(0).values, start, duration, amount]


def values(subjects: int, samples: int = 2, fits: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    shape = samples, subjects, fits
    return {n: v * torch.exp(0.3 * torch.randn(shape, generator=g, dtype=F64)) for n, v in TYPICAL.items()}


def of(pk: str, z: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: z[name] for name in MODELS[pk].parameters}


@pytest.mark.parametrize("name", MODELS)
def test_doses_cut_at_the_observations_are_the_sum_over_doses(name: str) -> None:
    """With the sum over all pairs, and its derivatives."""
    given = pump(40, 15)
    cut, pairs = Schedule.build(*given, group=True), Schedule.build(*given)
    assert cut.pieces is not None
    pairs = Schedule(**{**vars(pairs), "width": None})
    z = of(name, values(2))
    wrt = list(z)
    level, columns = sensitivities(MODELS[name], cut, z, wrt)
    wanted, slopes = sensitivities(MODELS[name], pairs, z, wrt)
    torch.testing.assert_close(level, wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(solve(MODELS[name], cut, z), wanted, rtol=1e-12, atol=1e-14)
    for got, want in zip(columns, slopes, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


def test_as_many_pieces_as_doses_and_observations() -> None:
    time, start, duration, amount = pump(300, 20)
    pieces = pieces_of(time, start, torch.full_like(duration, 0.1), amount)
    assert len(pieces.width) <= 300 + 20
    given = torch.where(start + 0.1 <= time[-1], amount, 0).sum(0)
    whole = pieces.inflow.sum(0)
    assert bool((whole >= given - 1e-9).all())
    assert bool((whole <= amount.sum(0) + 1e-9).all())
    none = pieces_of(time, start + 100, duration, amount)
    assert none.inflow.shape == (1, 1, 2, 1)
    assert not none.inflow.any()


def test_groups_cost_less_than_padding_to_the_longest() -> None:
    doses = np.r_[np.full(700, 3), np.full(60, 90), 1345]
    groups = groups_of(doses, np.full(len(doses), 15))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(doses)))
    padded = sum(len(own) * doses[own].max() for own in groups)
    assert padded == doses.sum()
    assert len(groups) == 3
    again = groups_of(np.tile(doses, 10), np.full(10 * len(doses), 15))
    assert [len(own) for own in again] == [10 * len(own) for own in groups]


@pytest.mark.parametrize("doses", [[1] * 500, list(range(5, 16)) * 6, [30] * 500 + [45], [1345]])
def test_lengths_that_are_nearly_equal_stay_together(doses: list[int]) -> None:
    (only,) = groups_of(np.array(doses), np.full(len(doses), 10))
    assert only.tolist() == list(range(len(doses)))


def grouped() -> tuple[Ragged, list[tuple[list[int], Schedule]]]:
    """Six subjects, neither in the order of their groups nor with as many observations."""
    parts = [
        ([1, 4, 5], Schedule.build(*pump(6, 7, 0, 3), group=True)),
        ([2], Schedule.build(*pump(60, 12, 1, 1), group=True)),
        ([0, 3], Schedule.build(*pump(25, 9, 2, 2), group=True)),
    ]
    return Ragged.join([(np.array(own), schedule) for own, schedule in parts], 12), parts


# Subjects of three fits: as they are, some twice, and a fit that has nobody of two of the groups.
CHOSEN = {
    "all": [[0, 1, 2, 3, 4, 5]],
    "some": [[5, 2, 2], [0, 3, 1], [4, 4, 1]],
    "of one group": [[4, 1], [1, 5]],
}


@pytest.mark.parametrize("chosen", CHOSEN.values(), ids=CHOSEN)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "again"])
def test_every_subject_is_where_it_was(chosen: list[list[int]], twice: bool) -> None:
    ragged, parts = grouped()
    alone = {n: schedule.at(torch.tensor([[k]])) for own, schedule in parts for k, n in enumerate(own)}
    index = torch.tensor(chosen).T
    ragged = ragged.at(index)
    if twice:  # as minibatches of selected subjects are
        order = torch.arange(len(index) - 1, -1, -1)[:, None].expand(-1, index.shape[1])
        ragged, index = ragged.at(order), index.gather(0, order)
    z = of("two", values(len(index), 2, index.shape[1]))
    z["CL"].requires_grad_()
    z["Q"] = torch.full((index.shape[1],), 1.2, dtype=F64)  # a value of each fit
    level, columns = sensitivities(MODELS["two"], ragged, z, ["CL", "V1"])
    assert level.shape == (12, 2, *index.shape)
    for n in range(index.shape[0]):
        for fit in range(index.shape[1]):
            own = alone[int(index[n, fit])]
            here = {name: v[..., fit : fit + 1] for name, v in z.items()}
            here = {name: v[:, n : n + 1] if v.ndim > 1 else v for name, v in here.items()}
            want, slopes = sensitivities(MODELS["two"], own, here, ["CL", "V1"])
            for got, wanted in zip([level, *columns], [want, *slopes], strict=True):
                seen = got[: len(wanted), :, n : n + 1, fit : fit + 1]
                torch.testing.assert_close(seen, wanted, rtol=1e-11, atol=1e-13)
                assert bool((got[len(wanted) :, :, n, fit] == got[len(wanted) - 1, :, n, fit]).all())
    (gradient,) = torch.autograd.grad(level.sum(), z["CL"])
    assert bool(gradient.isfinite().all())
