"""Nothing that is padded counts, or makes a loss or a gradient no number: a table of subjects that are as
unlike each other as a table allows, against each of them alone, who has no padding."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.data import EventTable, Format, Population, read_events
from medcm_cli.data.edit import part
from medcm_cli.model import (
    CombinedVariancesError,
    CovariateNetwork,
    ErrorModel,
    LogNormalError,
    Model,
    PowerError,
    RandomEffects,
    ResidualError,
    StudentError,
)
from medcm_cli.objectives import Fo, Foce, Mse, Objective, State, Vi
from medcm_cli.pk import PkModel, one_compartment, two_compartment
from tests.helpers import COVARIATES, ERRORS, F64, MULTI_BRANCH, STREAMS

# An observation that follows a dose by little, resets, a steady state seen at its very time, additional doses
# seen at theirs, an infusion under way, a limit; "none" has no observation, and is left out.
HEADER = "id,time,evid,amt,rate,addl,ii,ss,dv,cens,wt,vwf"
ROWS = """
many,0,1,2000,0,0,0,0,.,0,80,90
many,0.5,0,.,0,0,0,0,0.8,0,80,90
many,4,0,.,0,0,0,0,0.5,0,80,90
many,9,0,.,0,0,0,0,0.3,0,80,110
many,24,0,.,0,0,0,0,0.2,0,80,110
many,30,0,.,0,0,0,0,0.1,0,80,110
many,31,0,.,0,0,0,0,0.1,0,80,110
reset,0,1,1500,0,0,0,0,.,0,60,120
reset,5,0,.,0,0,0,0,0.4,0,60,120
reset,10,3,.,0,0,0,0,.,0,60,120
reset,12,1,1000,0,0,0,0,.,0,60,120
reset,20,0,.,0,0,0,0,0.2,0,60,150
reset,0,4,900,300,0,0,0,.,0,60,150
reset,2,0,.,0,0,0,0,0.2,0,60,150
steady,0,1,1200,400,0,12,1,.,0,95,70
steady,0,0,.,0,0,0,0,0.3,0,95,70
steady,6,0,.,0,0,0,0,0.4,0,95,75
added,0,1,1000,0,3,8,0,.,0,70,100
added,8,0,.,0,0,0,0,0.3,0,70,100
added,16,0,.,0,0,0,0,0.35,0,70,100
single,0,1,1800,60,0,0,0,.,0,50,60
single,7,0,.,0,0,0,0,0.2,0,50,60
limit,0,1,1000,0,0,0,0,.,0,75,130
limit,3,0,.,0,0,0,0,0.4,0,75,130
limit,20,0,.,0,0,0,0,0.25,1,75,130
limit,40,0,.,0,0,0,0,0.25,1,75,130
none,0,1,1000,0,0,0,0,.,0,75,130
"""
MODELS: dict[str, tuple[PkModel, list[str], str]] = {
    "iv": (two_compartment(), ["Q", "V2"], "first"),
    "iv, by record": (two_compartment(), ["Q", "V2"], "record"),
    "oral": (one_compartment(absorption=True, lag={1: "LAG"}), ["KA", "LAG"], "first"),
}
OBJECTIVES: dict[str, Objective] = {
    "mse": Mse(),
    "fo": Fo(),
    "foce": Foce(mode_tolerance=1e-9),
    "foce, implicit": Foce(mode_tolerance=1e-9, mode_gradient="implicit"),
    "foce, linearised": Foce(mode_tolerance=1e-9, formulation="linearised"),
    "vi": Vi(),
    "vi, standard": Vi(estimator="standard", family="mean_field"),
    "vi, entropy": Vi(estimator="entropy"),
    "vi, mixture": Vi(family="mixture"),
    "vi, flow": Vi(family="flow"),
    "vi, variational": Vi(population="variational"),
}
OTHERS: dict[str, ErrorModel] = {
    "combined_variances": CombinedVariancesError(),
    "power": PowerError(),
    "log_normal": LogNormalError(),
    "student_t": StudentError(("additive", "proportional")),
}
UNCENSORED = ("fo", "foce, linearised")


def table(folder: Path, over_time: str, limits: bool) -> EventTable:
    rows = ROWS if limits else "\n".join(line for line in ROWS.splitlines() if not line.startswith("limit"))
    (folder / "events.csv").write_text(HEADER + rows)
    how = Format(over_time={"vwf": over_time})
    events = read_events(folder / "events.csv", {"weight": "wt", "vwf": "vwf"}, how)
    assert events.left_out == ("none",)
    return events


def made(name: str, error: str) -> tuple[Model, dict[str, Tensor]]:
    """A model and plausible values of two fits."""
    pk, others, _ = MODELS[name]
    initial = {"Q": 0.15, "V2": 0.8, "KA": 0.7, "LAG": 0.2}
    network = CovariateNetwork.build(MULTI_BRANCH, others, COVARIATES, {key: initial[key] for key in others})
    residual = OTHERS[error] if error in OTHERS else ResidualError(ERRORS[error])
    model = Model(network, pk, RandomEffects(("CL", "V1")), residual)
    values = network.init(STREAMS, F64)
    values["weight.heads.bias"] = torch.tensor([[0.4, 0.3], [2.0, 2.1]], dtype=F64)
    values["vwf.heads.bias"] = torch.full((1, 2), -1.5, dtype=F64)
    return model, values


def sliced(values: Mapping[str, Tensor], own: tuple[str, ...], n: int, b: int) -> dict[str, Tensor]:
    """Of one subject of one fit."""
    return {k: v[..., n : n + 1, b : b + 1] if k in own else v[..., b : b + 1] for k, v in values.items()}


def loss_of(
    objective: Objective, model: Model, population: Population, state: State, noise: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sums over subjects, (B,), and their gradients."""
    trained = {name: value.detach().clone().requires_grad_() for name, value in state.trained.items()}
    with torch.no_grad():
        state = objective.refresh(model, population, state)
    loss = objective.loss(model, population, replace(state, trained=trained), noise)
    loss = loss * objective.divisor(population)
    found = torch.autograd.grad(loss.sum(), list(trained.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(trained, found, strict=True))


CASES = [("iv", name, error) for name in OBJECTIVES for error in ERRORS]
CASES += [("iv", name, error) for name in ("fo", "foce", "vi") for error in OTHERS]
CASES += [("oral", name, "proportional") for name in OBJECTIVES]
CASES += [("iv, by record", name, "proportional") for name in ("mse", "fo", "vi")]


# Of these objectives modes are found like those of foce, which has every case.
LONG = [
    *(
        ("iv", name, error)
        for name in ("foce, implicit", "foce, linearised")
        for error in ("additive", "combined")
    ),
    ("oral", "foce, linearised", "proportional"),
]


@pytest.mark.parametrize(
    ("of_model", "name", "error"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case in LONG)) for case in CASES],
)
def test_a_table_is_the_sum_of_its_subjects(tmp_path: Path, of_model: str, name: str, error: str) -> None:
    """Two fits, of which the second has fewer subjects, so that whole subjects are padded too."""
    objective = OBJECTIVES[name]
    model, values = made(of_model, error)
    events = table(tmp_path, MODELS[of_model][2], limits=name not in UNCENSORED)
    count = len(events.ids)
    folds = [np.arange(count), np.array([3, 1, 4])]
    everyone = Population.from_events(events, F64)
    population = everyone.select(folds)
    assert population.ragged
    state = objective.init(model, population, STREAMS, F64)
    state.trained.update(values)
    shape = objective.noise_shape(model, population)
    noise = None
    if shape is not None:
        drawn = np.random.default_rng(0).standard_normal((*shape, 2))
        drawn[2:] = drawn[2:, :, :1]  # of the fit, and not of its subjects
        noise = torch.from_numpy(drawn)
    loss, gradients = loss_of(objective, model, population, state, noise)
    assert loss.isfinite().all()
    for b, numbers in enumerate(folds):
        total, of_fit = torch.zeros(1, dtype=F64), dict[str, Tensor]()
        for n, number in enumerate(numbers):
            alone = Population.from_events(part(events, np.array([number])), F64)
            assert not alone.ragged
            own = State(
                sliced(state.trained, state.per_subject, n, b),
                sliced(state.carried, state.per_subject, n, b),
                state.per_subject,
            )
            mine = None if noise is None else noise[..., n : n + 1, b : b + 1]
            value, slopes = loss_of(objective, model, alone, own, mine)
            total = total + value
            for key, slope in slopes.items():
                if key in state.per_subject:
                    torch.testing.assert_close(
                        gradients[key][..., n : n + 1, b : b + 1], slope, rtol=1e-7, atol=1e-7
                    )
                else:
                    of_fit[key] = of_fit.get(key, torch.zeros(())) + slope
        torch.testing.assert_close(loss[b : b + 1], total, rtol=1e-9, atol=1e-9)
        for key, slope in of_fit.items():
            torch.testing.assert_close(gradients[key][..., b : b + 1], slope, rtol=1e-7, atol=1e-7)
        for key in set(gradients) & set(state.per_subject):
            assert not gradients[key][..., len(numbers) :, b].any()
