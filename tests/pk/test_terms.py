"""Terms of a rate that are learned: their bounds, their gradients, and that each fit has its own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk import OdeModel, Schedule, learned_elimination_rate, sensitivities, solve, with_given
from medcm_cli.pk.neural import ACTIVATIONS, Term

F64 = torch.float64
STREAMS = [Stream(0, 1, 1), Stream(0, 1, 2), Stream(0, 2, 1)]
INPUTS = (("x", 2.0), ("y", 10.0))


def weights_of(term: Term, fits: int = 2, seed: int = 0) -> list[Tensor]:
    """Not those of the beginning, where the last are 0: (out, in + 1, 1, 1, B)."""
    g = torch.Generator().manual_seed(seed)
    begun = term.init(STREAMS[:fits], F64)
    return [
        (value + torch.randn(value.shape, generator=g, dtype=F64))[..., None, None, :]
        for value in begun.values()
    ]


@pytest.mark.parametrize("hidden", [(3,), (4, 3), (5, 2, 3)])
@pytest.mark.parametrize("count", [1, 2])
def test_a_term_is_that_network(hidden: tuple[int, ...], count: int) -> None:
    """Written out, for each subject and fit."""
    term = Term("f", INPUTS[:count], hidden)
    weights = weights_of(term)
    x = torch.rand(count, 7, 3, 4, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    got = term(weights, *x)
    for place in np.ndindex(7, 3, 4, 2):
        inner = np.array([float(x[i][place]) / INPUTS[i][1] for i in range(count)])
        for depth, weight in enumerate(weights):
            matrix = weight[:, :, 0, 0, place[-1]].numpy()
            inner = matrix[:, :-1] @ (np.tanh(inner) if depth else inner) + matrix[:, -1]
        assert float(got[place]) == pytest.approx(1.0 + inner[0], rel=1e-12)


@pytest.mark.parametrize(
    ("least", "most", "initial"),
    [(None, None, 0.0), (None, None, -2.0), (0.0, None, 0.3), (None, 5.0, 4.0), (-1.0, 2.0, 1.5)],
)
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bounds_and_the_beginning(
    least: float | None, most: float | None, initial: float, anchored: bool, activation: str
) -> None:
    term = Term("f", INPUTS[:1], (8,), activation, least, most, initial, anchored)
    x = torch.linspace(0, 1e3, 50, dtype=F64).view(1, -1, 1)
    begun = [value[..., None, None, :] for value in term.init(STREAMS, F64).values()]
    torch.testing.assert_close(term(begun, x), torch.full((1, 50, 3), initial, dtype=F64))
    wild = term([3 * weight for weight in weights_of(term)], x)
    assert least is None or bool((wild >= least).all())
    assert most is None or bool((wild <= most).all())
    assert float(wild.std()) > 0
    if anchored:
        torch.testing.assert_close(wild[:, 0], torch.full((1, 2), initial, dtype=F64))


OPTIONS: dict[str, Any] = {"inputs": {"concentration": 300.0}, "least": 0, "hidden": [4], "anchored": True}
PK = OdeModel(
    learned_elimination_rate,
    ("CL", "V1"),
    ("central",),
    terms={"elimination": OPTIONS},
    amount_per_level=1.0,
    rtol=1e-10,
    atol=1e-10,
)


def batch(fits: int) -> tuple[Schedule, dict[str, Tensor]]:
    """Two subjects, one of whom has a dose more: some intervals are of one alone."""
    zero = torch.zeros(1, 1, 2, fits, dtype=F64)
    hours = torch.cat([zero + 1, zero + 5, zero + 20])
    start = torch.cat([zero, torch.stack([zero[0, :, 0] + 3, zero[0, :, 1] + 30], 1)[None]])
    schedule = Schedule.build(hours, start, start * 0, start * 0 + 1500)
    z = {"CL": torch.full((1, 2, fits), 0.5, dtype=F64), "V1": torch.full((1, 2, fits), 2.0, dtype=F64)}
    g = torch.Generator().manual_seed(5)
    for name, value in PK.init(STREAMS[:fits], F64).items():
        z[name] = value + 0.5 * torch.randn(value.shape, generator=g, dtype=F64)
    return schedule, z


def test_a_learned_rate_equals_scipy() -> None:
    schedule, z = batch(2)
    got = solve(PK, schedule, z)
    (term,) = PK.right_side.terms
    for fit in range(2):
        weights = [z[name][..., None, None, fit : fit + 1] for name in term.weights]

        def right(t: float, y: np.ndarray, weights: list[Tensor] = weights) -> np.ndarray:
            del t
            factor = float(term(weights, torch.full((1, 1, 1), y[0] / 2.0, dtype=F64)))
            return np.asarray(-0.5 / 2.0 * factor * y)

        options: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10, "method": "DOP853"}
        early = solve_ivp(right, (0, 3), [1500.0], t_eval=[1, 3], **options).y[0]
        late = solve_ivp(right, (3, 20), [early[1] + 1500], t_eval=[5, 20], **options).y[0]
        np.testing.assert_allclose(got[:, 0, 0, fit], np.array([early[0], *late]) / 2, rtol=1e-7)


@pytest.mark.parametrize(
    ("method", "adjoint"),
    [
        ("tsit5", False),
        pytest.param("kvaerno5", False, marks=pytest.mark.slow),
        pytest.param("dopri5", False, marks=pytest.mark.slow),
        pytest.param("dopri5", True, marks=pytest.mark.slow),
    ],
)
def test_weights_have_gradients(method: str, adjoint: bool) -> None:
    """Against differences, of predictions and, where they are those of the steps, of sensitivities."""
    own = method == "tsit5"
    pk, (schedule, z) = replace(PK, method=method, adjoint=adjoint), batch(2)
    pk = replace(pk, rtol=1e-9, atol=1e-9)

    def value(at: dict[str, Tensor]) -> Tensor:
        if not own:
            return solve(pk, schedule, at).square().sum() / 1e4
        prediction, slopes = sensitivities(pk, schedule, at, ("CL", "V1"))
        return (prediction.square().sum() + torch.stack(slopes).square().sum()) / 1e4

    g = torch.Generator().manual_seed(1)
    way = {
        name: torch.randn(tensor.shape, generator=g, dtype=F64) * tensor.abs() for name, tensor in z.items()
    }
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in z.items()}
    grads = torch.autograd.grad(value(leaves), [*leaves.values()])
    along = sum((grad * to).sum() for grad, to in zip(grads, way.values(), strict=True))
    ends = [
        value({name: tensor + by * 1e-3 * way[name] for name, tensor in z.items()}).detach()
        for by in (1, -1, 2, -2)
    ]
    wanted = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / 12e-3
    torch.testing.assert_close(along, wanted, rtol=1e-6, atol=1e-7)


def test_fits_do_not_share_weights() -> None:
    schedule, z = batch(2)
    alone, own = batch(1)
    own = {name: value[..., :1] for name, value in z.items()}
    both = {name: value.clone().requires_grad_() for name, value in z.items()}
    prediction = solve(PK, schedule, both)
    torch.testing.assert_close(prediction[..., :1], solve(PK, alone, own), rtol=1e-7, atol=0)
    grads = torch.autograd.grad(prediction[..., 0].sum(), list(both.values()))
    assert all(float(grad[..., 1].abs().sum()) == 0 for grad in grads)


def test_weights_follow_from_the_seed_of_a_fit() -> None:
    one, other = (PK.init(streams, F64) for streams in (STREAMS, STREAMS[::-1]))
    for name, value in one.items():
        assert torch.equal(value, other[name].flip(-1))
    first = one["pk.elimination.layer_1"]
    assert not torch.equal(first[..., 0], first[..., 1])


def test_a_model_with_given_parameters_has_its_terms() -> None:
    schedule, z = batch(2)
    given = with_given(PK, {"CL": "KE * V1"})
    values = given.init(STREAMS[:2], F64)
    assert list(given.weights(values)) == list(values) == list(PK.init(STREAMS[:2], F64))
    own = {**{name: value for name, value in z.items() if name != "CL"}, "KE": z["CL"] / z["V1"]}
    torch.testing.assert_close(solve(given, schedule, own), solve(PK, schedule, z))


def exchange(t: Tensor, a: Any, p: Any, f: Any) -> dict[str, Tensor]:
    """From one compartment to the other and back, by a learned amount per hour."""
    del t
    flow = f.uptake(a.central / p.V1, a.tissue / p.V1) * a.central - p.K * a.tissue
    return {"central": -flow, "tissue": flow}


def test_what_leaves_one_compartment_is_in_the_other() -> None:
    options = {"inputs": {"in": 100.0, "out": 100.0}, "hidden": [6, 6], "least": 0, "initial": 0.2}
    hours = torch.tensor([0.5, 4.0, 30.0], dtype=F64).view(3, 1, 1, 1)
    zero = torch.zeros(1, 1, 1, 1, dtype=F64)
    schedule = Schedule.build(hours, zero, zero + 1, zero + 1000)
    z = {"V1": zero[0] + 3, "K": zero[0] + 0.1}
    levels = []
    for observed in ("central", "tissue"):
        pk = OdeModel(
            exchange, ("V1", "K"), ("central", "tissue"), observed=observed, terms={"uptake": options}
        )
        weights = {name: 2 * value + 0.3 for name, value in pk.init(STREAMS[:1], F64).items()}
        levels.append(solve(replace(pk, amount_per_level=1.0), schedule, {**z, **weights}) * 3)
        assert bool((levels[-1] > 0).all())
    given = 1000 * hours.clamp(max=1)
    torch.testing.assert_close(levels[0] + levels[1], given, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": {}}, "pk.terms.elimination.inputs is {}"),
        ({"inputs": {"c": 0}}, "pk.terms.elimination.inputs.c is 0; expected a number above 0"),
        ({"inputs": {"c": 1, "d": 1}}, "learned term elimination is given 1 inputs; expected c, d"),
        ({"hidden": []}, "pk.terms.elimination.hidden is []"),
        ({"hidden": [0]}, "pk.terms.elimination.hidden"),
        ({"activation": "relu"}, "pk.terms.elimination.activation is 'relu'; expected one of tanh"),
        ({"initial": 0.0}, "pk.terms.elimination.initial is 0; expected a number between least and most"),
        ({"anchored": 1}, "pk.terms.elimination.anchored is 1; expected true or false"),
        ({"width": 3}, "pk.terms.elimination: option is 'width'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(PK, terms={"elimination": {**OPTIONS, **options}})
    assert message in str(caught.value)
