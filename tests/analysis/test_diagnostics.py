"""Residuals, predictive checks and individual curves against their definitions by numpy and scipy, and on
data that the model itself has drawn."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import linalg, optimize

from medcm_cli.analysis.diagnostics import (
    PERCENTILES,
    Diagnosis,
    cwres,
    diagnose,
    predictive_check,
    simulations,
)
from medcm_cli.analysis.diagnostics import _curves as curves_of
from medcm_cli.data import Population, read_events
from medcm_cli.data.edit import on_grid
from medcm_cli.haemophilia import virtual as simulate
from medcm_cli.haemophilia.virtual import Settings, write_study
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk import one_compartment
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.job import Job
from medcm_cli.study.restore import Restored, restore
from tests.helpers import at_eta, configuration, dense_omega, make_population, sd_of, slopes, with_error

STREAM = Stream(5, 1, 1)


def own_data(model: Model, subjects: int, **options: Any) -> tuple[dict[str, torch.Tensor], Population]:
    """Values, and subjects whose levels the model has drawn."""
    values = model.init([STREAM], torch.float64)
    population = make_population(subjects, 1, **options)
    drawn = simulations(model, values, population, Stream(6, 1, 1), 1)
    return values, replace(population, dv=drawn * population.observed)


@pytest.mark.parametrize("error", ["additive", "combined"])
def test_cwres_is_its_definition(model: Model, error: str) -> None:
    model = with_error(model, error)
    values, population = own_data(model, 4, ragged=True)
    found = cwres(model, values, population)[:, 0, :, 0].numpy()
    omega, dv = dense_omega(values, 0), population.dv[:, 0, :, 0].numpy()
    for subject in range(4):
        seen = population.observed[:, 0, subject, 0].numpy() > 0

        def prediction(eta: np.ndarray, subject: int = subject, seen: np.ndarray = seen) -> np.ndarray:
            everyone = np.tile(eta[:, None, None], (1, 4, 1))
            return np.asarray(at_eta(model, values, population, everyone)[seen, subject, 0])

        def minimised(eta: np.ndarray, subject: int = subject, seen: np.ndarray = seen) -> float:
            f = prediction(eta)
            sd = sd_of(model, values, f, 0) * np.ones_like(f)
            misfit = ((dv[seen, subject] - f) / sd) ** 2 + 2 * np.log(sd)
            return float(misfit.sum() + eta @ np.linalg.solve(omega, eta))

        eta = optimize.minimize(
            minimised,
            np.zeros(2),
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000},
        ).x
        g = slopes(model, values, population, np.tile(eta[:, None, None], (1, 4, 1)))[:, seen, subject, 0].T
        f = prediction(eta)
        sd = sd_of(model, values, f, 0) * np.ones_like(f)
        covariance = g @ omega @ g.T + np.diag(sd**2)
        expected = np.linalg.solve(linalg.sqrtm(covariance), dv[seen, subject] - (f - g @ eta))
        np.testing.assert_allclose(found[seen, subject], expected, rtol=1e-4, atol=1e-4)
        assert (found[~seen, subject] == 0).all()


@pytest.mark.parametrize("error", ["additive", "combined"])
def test_cwres_of_a_right_model_are_standard_and_uncorrelated(model: Model, error: str) -> None:
    model = with_error(model, error)
    values, population = own_data(model, 600)
    white = cwres(model, values, population)[:, 0, :, 0].numpy()  # (3, N)
    n = white.size
    assert abs(white.mean()) < 4 / np.sqrt(n)
    assert abs(white.var() - 1) < 4 * np.sqrt(2 / n)
    assert np.abs(np.corrcoef(white) - np.eye(3)).max() < 4 / np.sqrt(white.shape[1])


def test_cwres_show_a_wrong_model(model: Model) -> None:
    """Twice the error that the model thinks."""
    values, population = own_data(model, 300)
    wrong = {**values, "sigma": torch.log(torch.expm1(torch.log1p(torch.exp(values["sigma"])) / 2))}
    assert cwres(model, wrong, population).var() > 2


def test_cwres_leave_a_censored_observation_out(model: Model) -> None:
    values, population = own_data(model, 5)
    censored = torch.zeros_like(population.dv)
    censored[2] = 1
    found = cwres(model, values, replace(population, censored=censored))
    assert (found[2] == 0).all()
    assert (found[:2] != 0).all()


def test_simulated_levels_have_the_moments_of_the_model(model: Model) -> None:
    """At small omega, those of the model linearised at zero."""
    values, population = own_data(model, 3)
    values["omega"] = torch.full_like(values["omega"], -4.0)
    drawn = simulations(model, values, population, STREAM, 4000)[..., 0].numpy()  # (T, S, N)
    zero = np.zeros((2, 3, 1))
    f, g = at_eta(model, values, population, zero)[..., 0], slopes(model, values, population, zero)[..., 0]
    sigma = float(np.log1p(np.exp(values["sigma"][0, 0].numpy())))
    variance = np.einsum("ktn,kl,ltn->tn", g, dense_omega(values, 0), g) + sigma**2
    np.testing.assert_allclose(drawn.mean(1), f, atol=4 * sigma / np.sqrt(4000) * 1.2)
    np.testing.assert_allclose(drawn.var(1), variance, rtol=4 * np.sqrt(2 / 4000))


def test_predictive_check_is_calibrated(model: Model) -> None:
    """Of data that the model has drawn, nine tenths of the percentiles lie inside their 90 % intervals."""
    values, population = own_data(model, 80)
    drawn = simulations(model, values, population, STREAM, 310)[..., 0].permute(1, 2, 0).flatten(1).numpy()
    time = population.time[:, 0, :, 0].T.flatten().numpy()
    typical = model.predict(model.typical(values, population), population)[:, 0, :, 0].T.flatten().numpy()
    simulated, observed = drawn[:250], drawn[250:]
    checks = pd.concat([predictive_check(time, dv, typical, simulated) for dv in observed])
    inside = (checks["observed"] >= checks["low"]) & (checks["observed"] <= checks["high"])
    assert abs(inside.groupby(checks["percentile"]).mean() - 0.9).max() < 0.06
    assert abs(inside.mean() - 0.9) < 0.04


def test_predictive_check_by_hand() -> None:
    """Levels times the bin's median typical prediction over their own; two groups of times, two bins."""
    generator = np.random.default_rng(1)
    time = np.r_[generator.uniform(3, 5, 30), generator.uniform(23, 25, 30)]
    typical = generator.uniform(20, 80, 60)
    dv, simulated = generator.uniform(10, 90, 60), generator.uniform(10, 90, (200, 60))
    check = predictive_check(time, dv, typical, simulated)
    for rows in (np.arange(30), np.arange(30, 60)):
        part = check[check["time"] == np.median(time[rows])]
        factor = np.median(typical[rows]) / typical[rows]
        assert part["percentile"].tolist() == list(PERCENTILES)
        np.testing.assert_allclose(part["observed"], np.percentile(dv[rows] * factor, [5, 50, 95]))
        each = np.percentile(simulated[:, rows] * factor, [5, 50, 95], axis=1)
        for name, percentile in (("low", 5), ("median", 50), ("high", 95)):
            np.testing.assert_allclose(part[name], np.percentile(each, percentile, axis=1))
        assert (part["from"].iloc[0], part["to"].iloc[0]) == (time[rows].min(), time[rows].max())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Restored, Diagnosis]]:
    """A short fit by each objective, of a fold in which some subjects were drawn twice."""
    root = tmp_path_factory.mktemp("diagnosed")
    write_study(root / "data", Settings(n=30, folds=1, fold_size=20))
    for objective in ("mse", "foce", "vi"):
        choices = (f"objective={objective}", "epochs=20", "checkpoint_every=10", "tail=0", "fold=1")
        job = Job.build(configuration(root / "data", root / "outputs", *choices))
        job.run(list(job.plan().records.values()))
    batches = restore(finished([root / "outputs"]))
    return {batch.records[0].address.objective: (batch, diagnose(batch)) for batch in batches}


def test_each_subject_once_but_in_the_etas(fitted: dict[str, tuple[Restored, Diagnosis]]) -> None:
    restored, diagnosis = fitted["vi"]
    rows = restored.problem.folds[1].train
    assert len(np.unique(rows)) < len(rows)
    ids = np.array(restored.problem.events.ids)
    assert diagnosis.etas["subject"].tolist() == ids[rows].tolist()
    assert set(diagnosis.observations["subject"]) == set(ids[rows])
    assert len(diagnosis.observations) == 3 * len(np.unique(rows))


def test_levels_are_those_of_the_file(fitted: dict[str, tuple[Restored, Diagnosis]]) -> None:
    restored, diagnosis = fitted["vi"]
    file = (
        pd.read_parquet(restored.records[0].data["source"])
        .dropna(subset=["dv"])
        .rename(columns={"id": "subject"})
    )
    both = diagnosis.observations.merge(file, on="subject", suffixes=("", "_file"))
    both = both[np.isclose(both["time"], both["time_file"])]
    assert len(both) == len(diagnosis.observations)
    np.testing.assert_allclose(both["dv"], 100 * both["dv_file"], rtol=1e-5)


def test_etas_are_those_of_the_run_folder(fitted: dict[str, tuple[Restored, Diagnosis]]) -> None:
    for objective in ("foce", "vi"):
        restored, diagnosis = fitted[objective]
        written = pd.read_parquet(restored.folders[0] / "random_effects.parquet")
        np.testing.assert_allclose(diagnosis.etas["CL"], written["eta_1"], atol=1e-4)
        np.testing.assert_allclose(diagnosis.etas["V1"], written["eta_2"], atol=1e-4)
        last = pd.read_parquet(restored.folders[0] / "history.parquet").iloc[-1]
        assert diagnosis.omega == pytest.approx({"CL": last["omega_1"], "V1": last["omega_2"]}, rel=1e-4)


def test_without_random_effects_there_are_plain_residuals(
    fitted: dict[str, tuple[Restored, Diagnosis]],
) -> None:
    _, diagnosis = fitted["mse"]
    seen = diagnosis.observations
    assert not diagnosis.mixed
    np.testing.assert_allclose(seen["residual"], seen["dv"] - seen["typical"])
    assert seen["individual"].isna().all()


def test_curves_are_levels_of_the_model(fitted: dict[str, tuple[Restored, Diagnosis]]) -> None:
    """Typical, by the simulator's own call of the compartment model; bands, by drawing again."""
    restored, diagnosis = fitted["vi"]
    values, model = restored.state.trained, restored.problem.model
    file = pd.read_parquet(restored.records[0].data["source"])
    written = pd.read_parquet(restored.folders[0] / "random_effects.parquet")
    zeta = {
        name: value.double().numpy() for name, value in model.typical(values, restored.population).items()
    }
    generator = np.random.default_rng(2)
    rows = restored.problem.folds[1].train
    for place in (0, 3):
        subject = restored.problem.events.ids[rows[place]]
        dose = file[(file["id"] == subject) & file["amt"].gt(0)].iloc[0]
        curve = diagnosis.curves[diagnosis.curves["subject"] == subject]
        time = curve["time"].to_numpy(copy=True)
        given = (np.array([[dose[name]]]) for name in ("time", "duration", "amt"))
        start, duration, amount = given
        one = {n: np.array([v[0, place, 0] if v.ndim == 3 else v[0]]) for n, v in zeta.items()}
        expected = 100 * simulate.levels(time[:, None], start, duration, amount, one)[:, 0]
        np.testing.assert_allclose(curve["typical"], expected, rtol=1e-3, atol=1e-3)
        row = written.iloc[place]
        covariance = [[row["cov_11"], row["cov_21"]], [row["cov_21"], row["cov_22"]]]
        # The same subject may have been drawn twice: the first has the curve.
        assert list(rows).index(rows[place]) == place
        eta = generator.multivariate_normal([row["eta_1"], row["eta_2"]], covariance, 4000)
        many = {n: np.full(4000, v[0]) for n, v in one.items()}
        many = {**many, "CL": many["CL"] * np.exp(eta[:, 0]), "V1": many["V1"] * np.exp(eta[:, 1])}
        at = np.array([10, 30, 50])
        given = (np.full((1, 4000), part[0, 0]) for part in (start, duration, amount))
        start, duration, amount = given
        drawn = 100 * simulate.levels(np.repeat(time[at][:, None], 4000, 1), start, duration, amount, many)
        spread = drawn.std(1)
        for name, quantile in (("low_90", 0.05), ("low_50", 0.25), ("median", 0.5), ("high_90", 0.95)):
            error = np.abs(curve[name].to_numpy()[at] - np.quantile(drawn, quantile, axis=1))
            assert (error < 0.45 * spread).all(), name  # four standard errors of a 5 % quantile of 500 draws


def test_curves_reach_from_the_first_record_to_the_last(
    fitted: dict[str, tuple[Restored, Diagnosis]],
) -> None:
    _, diagnosis = fitted["foce"]
    last = diagnosis.observations.groupby("subject")["time"].max()
    ends = diagnosis.curves.groupby("subject")["time"].agg(["min", "max"])
    np.testing.assert_allclose(ends["min"], 0, atol=1e-9)
    np.testing.assert_allclose(ends["max"], last, rtol=1e-5)
    bands = diagnosis.curves[["low_90", "low_50", "median", "high_50", "high_90"]].to_numpy()
    assert (np.diff(bands, axis=1) >= 0).all()


def test_a_regimen_with_resets_has_a_curve_for_each_segment(model: Model, tmp_path: Path) -> None:
    """The grid goes through every segment in the file's time, and its ends are observations of the file."""
    path = tmp_path / "events.csv"
    path.write_text(
        "id,time,evid,amt,duration,dv,wt,vwf\n"
        "a,0,1,2000,0.5,.,70,100\na,6,0,.,.,0.4,70,100\na,12,1,1000,0.5,.,70,100\na,20,0,.,.,0.3,70,100\n"
        "a,0,4,500,0.5,.,70,100\na,9,0,.,.,0.1,70,100\n"
        "b,0,1,2000,0.5,.,60,90\nb,6,0,.,.,0.4,60,90\n"
    )
    events = read_events(path, {"weight": "wt", "vwf": "vwf"})
    table, grid = on_grid(events, 60)
    ends = grid.groupby(["subject", "segment"])["time"].agg(["min", "max"])
    np.testing.assert_allclose(ends.to_numpy(), [[0, 20], [0, 9], [0, 6]], atol=1e-9)
    population, given = (Population.from_events(one, torch.float64) for one in (table, events))
    assert int(population.observed.sum()) == len(grid)
    values = model.init([STREAM], torch.float64)
    curve, levels = (
        model.predict(model.typical(values, one), one)[:, 0, :, 0].T[one.observed[:, 0, :, 0].T > 0].numpy()
        for one in (population, given)
    )
    last = grid.assign(level=curve).groupby(["subject", "segment"])["level"].last()
    np.testing.assert_allclose(last, levels[[1, 2, 3]], rtol=1e-6)


def test_curves_turn_where_the_model_has_doses_begin_and_end(tmp_path: Path) -> None:
    """F of 1.5 stretches 1000 at 100/h to 15 h, a duration of 3 h, and one dose given at once, each after a
    lag of 2.137 h, at which times rounding must not hide a dose."""
    rows = (
        "1,0,1,1000,100,.",
        "1,40,0,.,.,1",
        "2,5,1,500,-2,.",
        "2,20,0,.,.,1",
        "2,24,1,500,0,.",
        "2,40,0,.,.,1",
    )
    (tmp_path / "events.csv").write_text("id,time,evid,amt,rate,dv\n" + "\n".join(rows) + "\n")
    events = read_events(tmp_path / "events.csv", {})
    typical = {"CL": 0.2, "V1": 3.0, "LAG": 2.137, "F": 1.5, "D": 3.0}
    pk = one_compartment(lag={1: "LAG"}, bioavailability={1: "F"}, durations={1: "D"})
    network = CovariateNetwork.build([], list(typical), {}, typical)
    model = Model(network, pk, RandomEffects(("CL",)), ResidualError(("additive",)))
    everyone = Population.from_events(events, torch.float64)
    problem = SimpleNamespace(events=events, dtype=torch.float64, model=model, everyone=everyone)
    restored: Any = SimpleNamespace(problem=problem, estimates=model.init([STREAM], torch.float64))
    found = curves_of(restored, np.arange(2), None, 1.0)
    for subject, begin, end, peak in (("1", 0, 15, 1500), ("2", 5, 8, 750), ("2", 24, 24, 750)):
        curve = found[found["subject"] == subject].set_index("time")["typical"]
        times, k, hours = curve.index.to_numpy() - 2.137, 0.2 / 3, end - begin
        mean = -np.expm1(-k * hours) / (k * hours) if hours else 1.0
        # Of the dose 16 h before.
        rest = 750 * -np.expm1(-k * 3) / (k * 3) * np.exp(-k * 16) if begin == 24 else 0.0
        assert np.abs(times - begin + 1e-3).min() < 1e-9
        assert np.abs(times - begin).min() < 1e-9
        top = curve.to_numpy()[(times >= begin - 1e-9) & (times < end + 5)].max()
        assert top == pytest.approx((rest + peak * mean) / 3 / 1000, rel=1e-6)


@pytest.mark.parametrize(("every", "count"), [(24.0, 8), (168.0, 4), (12.0, 60), (1440.0, 1)])  # h
def test_a_curve_follows_absorption_after_every_dose(tmp_path: Path, every: float, count: int) -> None:
    """Joined by straight lines, it has every peak of the closed form, and is near it all along."""
    first, last = f"1,0,1,100,.,{every:g},{count - 1}", f"1,{every * count:g},0,.,1,.,."
    (tmp_path / "events.csv").write_text(f"id,time,evid,amt,dv,ii,addl\n{first}\n{last}\n")
    events = read_events(tmp_path / "events.csv", {})
    typical = {"KA": 1.2, "CL": 2.0, "V1": 30.0}
    network = CovariateNetwork.build([], list(typical), {}, typical)
    model = Model(
        network,
        one_compartment(absorption=True, amount_per_level=1.0),
        RandomEffects(("CL",)),
        ResidualError(("additive",)),
    )
    everyone = Population.from_events(events, torch.float64)
    problem = SimpleNamespace(events=events, dtype=torch.float64, model=model, everyone=everyone)
    restored: Any = SimpleNamespace(problem=problem, estimates=model.init([STREAM], torch.float64))
    curve = curves_of(restored, np.arange(1), None, 1.0)
    ka, k = 1.2, 2.0 / 30

    def closed(time: np.ndarray) -> np.ndarray:
        since = time[:, None] - every * np.arange(count)
        each = np.where(since >= 0, np.exp(-k * since.clip(0)) - np.exp(-ka * since.clip(0)), 0)
        return np.asarray(100 / 30 * ka / (ka - k) * each.sum(1))

    for dose in {0, count // 2, count - 1}:
        time = every * dose + np.linspace(0, min(every, 48), 4001)
        exact = closed(time)
        found = np.interp(time, curve["time"], curve["typical"])
        assert found.max() == pytest.approx(exact.max(), rel=5e-3 if count < 50 else 0.02)
        assert abs(found - exact).max() < 0.06 * exact.max()
    assert len(curve) < 60 + count * 33 + 10
