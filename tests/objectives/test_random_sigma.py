"""A random effect of the residual error: subjects whose sds are exp(eta) times the population's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import (
    CovariateNetwork,
    Model,
    RandomEffects,
    ResidualError,
)
from medcm_cli.objectives import Agq, Fo, Foce, Focei, Laplace
from medcm_cli.objectives.conditional import Conditional
from medcm_cli.objectives.modes import find_modes, laplace_covariance
from medcm_cli.patients.prediction import predict
from medcm_cli.pk import two_compartment
from medcm_cli.study.job import Job
from tests.helpers import ERROR_MODELS, F64, STREAMS, configuration, make_population

SUBJECTS, FITS = 5, 2


def model_of(error: str, names: tuple[str, ...] = ("CL", "V1", "sigma")) -> Model:
    typical = {"CL": 0.2, "V1": 3.0, "Q": 0.1, "V2": 1.0}
    network = CovariateNetwork.build([], list(typical), {}, typical)
    return Model(network, two_compartment(), RandomEffects(names), ERROR_MODELS[error])


def population_of(censored: bool) -> Population:
    population = make_population(SUBJECTS, FITS, ragged=True)
    if not censored:
        return population
    low, high = population.dv < 0.1, population.dv > 0.55
    marks = ((low | high) & (population.observed > 0)).to(F64)
    return replace(population, censored=marks, above=high.to(F64) * marks)


def values_of(model: Model) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = model.init(STREAMS, F64)
    values = {n: v + 0.1 * torch.randn(v.shape, generator=generator, dtype=F64) for n, v in values.items()}
    return {**values, "omega": torch.full((len(model.random_effects.names), FITS), -0.8, dtype=F64)}


@pytest.mark.parametrize("error", ERROR_MODELS)
def test_every_sd_is_so_many_times_the_populations(error: str) -> None:
    model, population = model_of(error), population_of(censored=False)
    values = values_of(model)
    eta = [torch.full((1, SUBJECTS, FITS), value, dtype=F64) for value in (0.1, -0.2, 0.7)]
    own = model.of_subjects(values, eta)
    sigmas, of_all = model.error.sigmas(own), model.error.sigmas(values)
    for name, sigma in of_all.items():
        want = sigma if name == "exponent" else sigma * np.exp(0.7)
        torch.testing.assert_close(sigmas[name].expand(1, SUBJECTS, FITS)[0, 0], want)
    level = model.predict(model.typical(values, population), population, eta)
    white = model.error.white(own, level, model.error.draw(own, level, 0.8))
    torch.testing.assert_close(white, torch.full_like(white, 0.8))


@pytest.mark.parametrize("censored", [False, True])
@pytest.mark.parametrize("error", ERROR_MODELS)
def test_modes_are_those_of_the_density(error: str, censored: bool) -> None:
    model, population = model_of(error), population_of(censored)
    values = values_of(model)
    start = [torch.zeros(1, SUBJECTS, FITS, dtype=F64)] * 3
    modes = find_modes(model, values, population, start, 1e-9, 300)
    assert bool(modes.converged.all())
    eta = [e.clone().requires_grad_() for e in modes.eta]
    density = model.log_joint(values, model.typical(values, population), population, eta)
    for slope in torch.autograd.grad(density.sum(), eta):
        assert float(slope.abs().amax()) < 1e-5
    covariance = laplace_covariance(model, values, population, modes.eta)
    assert bool((torch.linalg.eigvalsh(covariance.permute(2, 3, 0, 1)) > 0).all())


def test_the_information_is_the_expected_one() -> None:
    """Of combined errors and correlated random effects: the mean of the observed Hessian over data drawn at
    eta, by dual quadrature of each observation, since it is quadratic and linear in the white residuals."""
    model, population = model_of("combined"), population_of(censored=False)
    values = values_of(model)
    eta = [torch.full((1, SUBJECTS, FITS), value, dtype=F64) for value in (0.1, -0.2, 0.3)]
    own, zeta = model.of_subjects(values, eta), model.typical(values, population)
    level = model.predict(zeta, population, eta)
    hessian = torch.zeros(3, 3, SUBJECTS, FITS, dtype=F64)
    for sign in (1.0, -1.0):  # the mean of e is 0 and of e^2 is 1, and the Hessian has no higher power
        drawn = replace(population, dv=model.error.draw(own, level, sign).detach())
        leaves = [e.clone().requires_grad_() for e in eta]
        density = model.log_joint(values, zeta, drawn, leaves).sum()
        slopes = torch.autograd.grad(density, leaves, create_graph=True)
        for i, slope in enumerate(slopes):
            for j, second in enumerate(torch.autograd.grad(slope.sum(), leaves, retain_graph=True)):
                hessian[i, j] -= 0.5 * second[0]
    found = laplace_covariance(model, values, population, eta)
    information = torch.linalg.inv(found.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)
    torch.testing.assert_close(information, hessian, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("objective", "within"),
    [(Foce(mode_tolerance=1e-9), 0.1), (Focei(), 0.1), (Laplace(), 0.1), (Agq(nodes=15), 1e-6)],
)
def test_it_is_integrated_out(objective: Conditional, within: float) -> None:
    """Laplace's error falls as 1 / observations. Of predictions that are known, sigma alone
    varies, and each subject has 60 observations."""
    error = ResidualError(("additive",), fixed={"additive": 0.1})
    effects = RandomEffects(("sigma",), fixed=[[0.16]])
    model = replace(model_of("additive"), error=error, random_effects=effects)
    few, count = make_population(3, 1), 60
    population = replace(few, ragged=False)
    generator = np.random.default_rng(4)
    values = model.init(STREAMS[:1], F64)
    level = model.predict(model.typical(values, few), few).detach()
    times = -(-count // len(level))
    level = level.repeat(times, 1, 1, 1)
    own = np.exp(0.4 * generator.standard_normal(3))
    dv = level + 0.1 * torch.from_numpy(own)[:, None] * torch.from_numpy(
        generator.standard_normal(tuple(level.shape))
    )
    many = replace(
        population, dv=dv, observed=torch.ones_like(dv), time=population.time.repeat(times, 1, 1, 1)
    )

    class Known(Model):
        def predict(self, *_: Any) -> Tensor:
            return level

        def linearise(self, *_: Any) -> tuple[Tensor, list[Tensor]]:
            return level, [torch.zeros_like(level)]

    known = Known(model.network, model.pk, effects, error)
    state = objective.init(known, many, STREAMS[:1], F64)
    state = objective.refresh(known, many, replace(state, trained=values))
    found = objective.loss(known, many, state, None)
    nodes = np.linspace(-8, 8, 4001)  # the trapezoidal rule of what vanishes at its ends
    weights = np.exp(-nodes * nodes / 2)
    want = 0.0
    for subject in range(3):
        residual = (dv - level)[:, 0, subject, 0].numpy()
        sds = 0.1 * np.exp(0.4 * nodes)
        logs = np.sum(stats.norm.logpdf(residual[:, None], 0, sds), 0)
        total = np.log((weights / weights.sum() * np.exp(logs - logs.max())).sum()) + logs.max()
        want += -2 * total - len(residual) * np.log(2 * np.pi)
    assert float(found.detach()) == pytest.approx(want, abs=within)


def test_gradients_follow_the_modes() -> None:
    model, population = model_of("combined"), population_of(censored=False)
    objective = Foce(mode_gradient="implicit", mode_tolerance=1e-11, mode_iterations=300)
    state = objective.init(model, population, STREAMS, F64)
    state = replace(state, trained=values_of(model))

    def loss(values: dict[str, Tensor]) -> Tensor:
        now = objective.refresh(model, population, replace(state, trained=values))
        return objective.loss(model, population, now, None).sum()

    leaves = {name: value.clone().requires_grad_() for name, value in state.trained.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()))
    for name in ("omega", "sigma"):
        gradient = found[list(leaves).index(name)]
        step = 1e-5 * torch.ones_like(gradient)
        with torch.no_grad():
            up, down = (loss({**state.trained, name: state.trained[name] + s * step}) for s in (1, -1))
        assert float(gradient.sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("objective", [Fo(), Foce(formulation="linearised"), Foce(formulation="nonmem")])
def test_linear_objectives_say_why_not(objective: Fo | Foce) -> None:
    with pytest.raises(InputError, match="random_effects has sigma, which moves no prediction"):
        objective.init(model_of("additive"), population_of(False), STREAMS, F64)


@pytest.mark.parametrize("objective", ["foce", "vi"])
def test_a_fit_finds_who_is_measured_well(objective: str, tmp_path: Path) -> None:
    """Half of the patients have a third of the others' residual sd."""
    generator, rows = np.random.default_rng(2), []
    for patient in range(1, 17):
        of = {"ID": patient}
        rows.append({**of, "TIME": 0.0, "AMT": 100.0, "EVID": 1})
        sd = 0.3 if patient % 2 else 0.1
        for time in np.linspace(0.5, 24, 12):
            dv = 2 * np.exp(-0.08 * time + sd * generator.standard_normal())
            rows.append({**of, "TIME": time, "DV": dv, "EVID": 0})
    pd.DataFrame(rows).to_csv(tmp_path / "events.csv", index=False)
    options = [
        *("dataset=table", "dataset.name=mine", "split=all", "network=equations", "pk=one_compartment"),
        *("dataset.units={time: h, amount: mg, level: mg/L}", "error=log_normal", "dtype=float64"),
        *(
            "network.equations={CL: {typical: 4}, V1: {typical: 50}}",
            "omega=diagonal",
            "dataset.covariates={}",
        ),
        *("random_effects=[CL,sigma]", f"objective={objective}", "learning_rate=0.1", "epochs=60"),
    ]
    job = Job.build(configuration(tmp_path / "events.csv", tmp_path / "outputs", *options))
    (record,) = job.run(list(job.plan().records.values()))
    assert record.status == "complete"
    (path,) = (tmp_path / "outputs").glob("**/random_effects.parquet")
    eta = pd.read_parquet(path)["eta_2"].to_numpy()
    assert eta[::2].min() > eta[1::2].max() - 0.2
    assert eta[::2].mean() - eta[1::2].mean() > 0.4
    found = predict(tmp_path / "outputs" / "default", tmp_path / "events.csv", times=[0, 4, 8], draws=64)
    curve = found.curve[found.curve["time"] == 4].set_index("patient")
    width = np.log(curve["measured_upper_90"] / curve["measured_lower_90"])
    assert float(width[[str(n) for n in range(1, 17, 2)]].mean()) > 1.5 * float(
        width[[str(n) for n in range(2, 17, 2)]].mean()
    )


def test_the_mode_is_scipys() -> None:
    model, population = model_of("combined", ("sigma",)), population_of(censored=True)
    values = {**values_of(model), "omega": torch.full((1, FITS), -0.5, dtype=F64)}
    start = [torch.zeros(1, SUBJECTS, FITS, dtype=F64)]
    modes = find_modes(model, values, population, start, 1e-10, 200)
    zeta = model.typical(values, population)
    for n in range(SUBJECTS):

        def value(x: float, n: int = n) -> float:
            eta = [torch.full((1, SUBJECTS, FITS), x, dtype=F64)]
            return -float(model.log_joint(values, zeta, population, eta)[0, n, 0])

        best = optimize.minimize_scalar(value, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
        assert float(modes.eta[0][0, n, 0]) == pytest.approx(best.x, abs=1e-5)
