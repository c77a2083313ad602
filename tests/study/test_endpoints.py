"""Several endpoints of one model: what is read, predicted, fitted and written of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.runs.units import named_in
from medcm_cli.study.job import Job
from medcm_cli.study.restore import restore
from tests.helpers import configuration

HERE = "tests.study.test_endpoints"
TRUE = {"KA": 1.0, "CL": 2.0, "V1": 20.0, "E0": 80.0, "KOUT": 0.2, "C50": 1.5}


def rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """A drug by mouth that inhibits the formation of a response."""
    del t
    kept = p.C50 / (p.C50 + a.central / p.V1)
    return {
        "depot": -p.KA * a.depot,
        "central": p.KA * a.depot - p.CL / p.V1 * a.central,
        "response": p.KOUT * (p.E0 * kept - a.response),
    }


def at_rest(p: Any) -> dict[str, Tensor]:
    return {"response": p.E0}


def both(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """What is measured, by name."""
    del t
    return {"cp": a.central / p.V1, "fall": p.E0 - a.response}


PK = (
    "pk=two_compartment_ode",
    f"pk.rate.path={HERE}.rate",
    f"pk.start={{_target_: hydra.utils.get_method, path: {HERE}.at_rest}}",
    "pk.compartments=[depot,central,response]",
    "pk.observed=central",
    f"pk.parameters=[{','.join(TRUE)}]",
)
OUTPUT = f"pk.output={{_target_: hydra.utils.get_method, path: {HERE}.both}}"
BOTH = (
    "endpoints={cp: {dvid: 1, error: proportional, unit: mg/L, size: 2}, "
    "pca: {dvid: 2, output: response, error: additive, unit: '%', size: 50}}"
)


def truth(times: np.ndarray, dose: float) -> np.ndarray:
    """Concentration and response by scipy, (2, T)."""
    k = TRUE

    def slope(_: float, a: np.ndarray) -> list[float]:
        kept = k["C50"] / (k["C50"] + a[1] / k["V1"])
        flow = k["KA"] * a[0]
        return [-flow, flow - k["CL"] / k["V1"] * a[1], k["KOUT"] * (k["E0"] * kept - a[2])]

    found = solve_ivp(slope, (0, 60), [dose, 0, k["E0"]], t_eval=times, rtol=1e-10, atol=1e-10).y
    return np.stack([found[1] / k["V1"], found[2]])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients; both endpoints at some times, one of them at others, in no order."""
    rows = []
    for patient, dose in enumerate((50.0, 100.0, 100.0, 150.0, 200.0, 80.0), 1):
        rows.append({"id": patient, "time": 0.0, "amt": dose, "evid": 1, "dvid": 1})
        times = np.array([1.0, 4.0, 12.0, 30.0])[: 3 + patient % 2]
        level, response = truth(times, dose) * (1 + 0.05 * np.sin(np.arange(len(times)) + patient))
        for time, cp, pca in zip(times, level, response, strict=True):
            rows.append({"id": patient, "time": time, "dv": pca, "evid": 0, "dvid": 2})
            rows += [{"id": patient, "time": time, "dv": cp, "evid": 0, "dvid": 1}] if time < 20 else []
    path = tmp_path_factory.mktemp("endpoints") / "events.csv"
    pd.DataFrame(rows).assign(kind=lambda f: f["dvid"].map({1: "plasma", 2: "effect"})).to_csv(
        path, index=False
    )
    return path


def built(table: Path, outputs: Path, *options: str) -> Job:
    """A job of this model; options come last."""
    initial = ", ".join(f"{name}: {value}" for name, value in TRUE.items())
    base = [
        *("dataset=table", "dataset.name=pd", "dataset.covariates={}", "network=none", "split=all", *PK),
        "dataset.units={time: h, amount: mg, level: mg/L}",
        f"network.global_parameters=[{','.join(TRUE)}]",
        f"network.initial={{{initial}}}",
        *("random_effects=[CL,E0]", "omega=diagonal", "error=endpoints", BOTH, "dtype=float64"),
        *(
            "epochs=2",
            "checkpoint_every=1",
            "dataset.predose_observations=keep",
            "pk.rtol=1e-8",
            "pk.atol=1e-8",
        ),
    ]
    chosen = {option.partition("=")[0] for option in options}
    kept = [option for option in base if option.partition("=")[0] not in chosen]
    return Job.build(configuration(table, outputs, *kept, *options))


def typical(job: Job) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Typical predictions at the true parameters of what is observed, which endpoint it is, and its dose."""
    everyone = job.problem.everyone
    zeta = {name: torch.tensor([value], dtype=torch.float64) for name, value in TRUE.items()}
    events = job.problem.events
    seen = job.problem.model.predict(zeta, everyone)[:, 0, :, 0].T[(everyone.observed[:, 0, :, 0] > 0).T]
    own = ~events.is_dose
    dose = np.zeros(len(events.ids))
    dose[events.subject[events.is_dose]] = events.amount[events.is_dose]
    return seen, events.endpoint[own], dose[events.subject[own]]


def test_each_observation_is_predicted_by_its_own_output(table: Path, tmp_path: Path) -> None:
    job = built(table, tmp_path)
    found, endpoint, dose = typical(job)
    times = job.problem.events.time[~job.problem.events.is_dose]
    for place, value in enumerate(found.tolist()):
        expected = truth(times[place : place + 1], float(dose[place]))[endpoint[place], 0]
        assert value == pytest.approx(expected, rel=1e-5)
    assert set(endpoint.tolist()) == {0, 1}


def test_a_function_gives_several_outputs_by_name(table: Path, tmp_path: Path) -> None:
    whole, _, _ = typical(built(table, tmp_path))
    named = BOTH.replace("dvid: 1,", "dvid: 1, output: cp,").replace("output: response", "output: fall")
    found, endpoint, _ = typical(built(table, tmp_path, OUTPUT, named))
    expected = torch.where(torch.from_numpy(endpoint == 1), TRUE["E0"] - whole, whole)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"pk has the outputs cp, fall; .*endpoints"):
        built(table, tmp_path, OUTPUT, "endpoints=null", "error=additive", "dataset.keep={dvid: [1]}")


def test_sensitivities_are_those_of_each_output(table: Path, tmp_path: Path) -> None:
    model = (job := built(table, tmp_path)).problem.model
    zeta = {name: torch.tensor([value], dtype=torch.float64) for name, value in TRUE.items()}
    everyone = job.problem.everyone
    _, columns = model.linearise(zeta, everyone)
    for name, column in zip(("CL", "E0"), columns, strict=True):
        high, low = (model.predict({**zeta, name: zeta[name] * np.exp(by)}, everyone) for by in (1e-3, -1e-3))
        difference = (high - low) / 2e-3
        torch.testing.assert_close(column, difference, rtol=1e-3, atol=1e-3)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vi", "fo", "foce")]


@pytest.mark.parametrize("objective", ["mse", *SLOW])
def test_all_objectives_fit_both_and_say_the_unit_of_each(
    table: Path, tmp_path: Path, objective: str
) -> None:
    job = built(table, tmp_path, f"objective={objective}")
    (record,) = job.run(list(job.plan().records.values()))
    assert record.status == "complete"
    folder = record.address.folder(tmp_path)
    history = pyarrow.parquet.read_table(folder / "history.parquet")
    units = named_in(history.schema)
    assert (units["rmse"], units["rmse_cp"], units["rmse_pca"]) == ("mg/L", "mg/L", "%")
    if objective == "mse":
        assert units["objective_value"] == "-"
        return
    assert (units["sigma_proportional_cp"], units["sigma_additive_pca"]) == ("-", "%")
    (restored,) = restore([(folder, record)], trust=True)
    assert restored.problem.model.error.names == ["sigma_proportional_cp", "sigma_additive_pca"]


def test_mse_is_the_mean_of_squares_relative_to_sizes(table: Path, tmp_path: Path) -> None:
    job = built(table, tmp_path, "objective=mse")
    everyone, model = job.problem.everyone, job.problem.model
    found, endpoint, _ = typical(job)
    dv = job.problem.events.dv[~job.problem.events.is_dose]
    expected = np.mean(((found.numpy() - dv) / np.where(endpoint == 1, 50.0, 2.0)) ** 2)
    zeta = {name: torch.tensor([value], dtype=torch.float64) for name, value in TRUE.items()}
    deviation = model.error.relative(model.predict(zeta, everyone) - everyone.dv, everyone)
    value = everyone.sum_all(deviation.square()) / everyone.observation_count
    assert float(value) == pytest.approx(expected)


@pytest.mark.parametrize("told", ["{cmt: 1}", "{column: kind, value: plasma}"])
def test_a_text_or_another_column_tells_endpoints_apart(table: Path, tmp_path: Path, told: str) -> None:
    frame = pd.read_csv(table)
    path = tmp_path / "other.csv"
    frame.assign(cmt=frame["dvid"].fillna(1)).drop(columns="dvid").to_csv(path, index=False)
    other = told.replace("1", "2").replace("plasma", "effect")
    given = BOTH.replace("dvid: 1", told[1:-1]).replace("dvid: 2", other[1:-1])
    assert torch.equal(typical(built(path, tmp_path, given))[0], typical(built(table, tmp_path))[0])


@pytest.mark.slow
def test_one_endpoint_that_is_named_is_the_plain_fit(table: Path, tmp_path: Path) -> None:
    one = ("dataset.keep={dvid: [1]}", "error=additive", "objective=vi")
    plain = built(table, tmp_path, *one, "endpoints=null").train([(1, 1)])
    named = built(table, tmp_path, *one, "endpoints={cp: {output: central}}").train([(1, 1)])
    torch.testing.assert_close(named.objective, plain.objective, rtol=1e-10, atol=0)


REFUSED = {
    "endpoints=5": "endpoints is 5; expected null, or names",
    "endpoints={cp: 1}": "endpoints.cp is 1; expected its options",
    "endpoints={cp: {dvd: 1, error: additive}}": "endpoints.cp.dvd: no such option",
    "endpoints={cp: {dvid: 1, cmt: 1, error: additive}}": "endpoints.cp: expected one of dvid, cmt",
    "endpoints={cp: {column: kind, error: additive}}": "endpoints.cp: expected one of dvid, cmt",
    "endpoints={a: {dvid: 1, error: additive}, b: {cmt: 1, error: additive}}": "endpoints: expected one",
    "endpoints={a: {dvid: 1, error: additive}, b: {dvid: 1, error: additive}}": "endpoints: two are told by",
    "endpoints={a: {dvid: 1}, b: {dvid: 2, error: additive}}": "endpoints.a.error: is missing",
    "endpoints={a: {dvid: 1, error: heavy}}": "endpoints.a.error is 'heavy'; expected one of additive",
    "endpoints={a: {dvid: 1, error: additive, size: 0}}": "endpoints.a.size is 0; expected a number above 0",
    "endpoints={a: {dvid: 1, error: additive, output: liver}}": "endpoints.a.output is 'liver'",
    "endpoints={a: {error: additive, unit: kg}}": "endpoints.a.unit is",
    "fixed={sigma: {additive: 1}}": "fixed.sigma.additive: no such component of the errors",
    "error=power": "error is that of no endpoint",
    "endpoints=null": "error=endpoints: each endpoint has its own",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_line(table: Path, tmp_path: Path, given: str) -> None:
    with pytest.raises(InputError) as caught:
        built(table, tmp_path, given)
    assert str(caught.value).startswith(REFUSED[given])
    assert "\n" not in str(caught.value)


def test_an_observation_of_none_of_them_is_refused_by_its_line(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3, column 'dvid': is 2, of none of the endpoints: 1 \(cp\)"):
        built(table, tmp_path, "endpoints={cp: {dvid: 1, error: additive}}")


def test_mse_without_sizes_is_refused(table: Path, tmp_path: Path) -> None:
    job = built(table, tmp_path, "objective=mse", BOTH.replace(", size: 50", ""))
    with pytest.raises(InputError, match=r"endpoints\.pca\.size"):
        job.train([(1, 1)])
