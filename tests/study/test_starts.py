"""Where population parameters begin: as option initial says, or as the data do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from medcm_cli.errors import InputError
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.study.identity import PROTOCOLS, STARTS, identity
from medcm_cli.study.job import Job
from medcm_cli.study.options import complete
from medcm_cli.study.problem import model_of
from tests.helpers import F64, configuration

STREAMS = [Stream(0, 1, 1), Stream(0, 1, 2)]
NETWORK = ("network=none", "network.global_parameters=[CL,V1]")
PLAIN = (*NETWORK, "pk=one_compartment", "dataset.truth=null")


def written(folder: Path, clearance: float = 4.0, volume: float = 50.0) -> Path:
    """A table of 12 subjects with a bolus of 100 mg and six levels, mg/L."""
    generator = np.random.default_rng(3)
    lines = ["id,time,amt,dv,evid"]
    for subject in range(12):
        cl, v = np.array([clearance, volume]) * np.exp(0.2 * generator.standard_normal(2))
        lines.append(f"{subject},0,100,.,1")
        for time in (0.5, 2, 6, 12, 24, 36):
            level = 100 / v * np.exp(-cl / v * time) * np.exp(0.1 * generator.standard_normal())
            lines.append(f"{subject},{time},.,{level:.5g},0")
    path = folder / "events.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def table(folder: Path, *more: str) -> dict[str, Any]:
    """A configuration of the table."""
    written(folder)
    config = configuration(
        None,
        folder,
        *("dataset=table", f"dataset.path={folder / 'events.csv'}", "split=all", *PLAIN),
        *("dataset.units={time: h, amount: mg, level: mg/L}", *more),
    )
    config["dataset"]["covariates"] = {}
    return config


def started(data: Path, initial: dict[str, Any], *more: str) -> tuple[Model, dict[str, torch.Tensor]]:
    network = () if "network=equations" in more else NETWORK
    config = configuration(data, data, *PLAIN[2:], *network, *more)
    config = complete(config | {"initial": initial})
    model = model_of(config)
    return model, model.init(STREAMS, F64)


# -- what a user says ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["additive", "combined", "log_normal", "power", "student_t"])
def test_every_population_parameter_begins_where_it_is_said(data: Path, error: str) -> None:
    sigma = {"additive": "additive", "log_normal": "log", "power": "power"}.get(error, "proportional")
    given = {"CL": 4, "omega_CL": 0.3, "rho_V1_CL": -0.4, f"sigma_{sigma}": 2}
    model, values = started(data, given, f"error={error}")
    typical = model.network.typical(values, {})
    omega = model.random_effects.cholesky(values)
    assert typical["CL"].tolist() == pytest.approx([4, 4])
    assert typical["V1"][0] != typical["V1"][1]  # of which nothing is said
    assert omega[0][0].tolist() == pytest.approx([0.3, 0.3])
    sd = (omega[1][0].square() + omega[1][1].square()).sqrt()
    assert (omega[1][0] / sd).tolist() == pytest.approx([-0.4, -0.4])
    assert model.error.sigmas(values)[sigma].tolist() == pytest.approx([2, 2])


def test_what_is_known_is_not_trained(data: Path) -> None:
    known = {name: {"fixed": value} for name, value in (("CL", 4), ("omega_V1", 0.3), ("rho_CL_V1", 0.5))}
    model, values = started(data, {**known, "sigma_additive": {"fixed": 2}})
    assert set(values) == {"global.V1", "omega"}
    assert values["omega"].shape == (1, 2)
    assert model.network.typical(values, {})["CL"].tolist() == [4, 4]
    omega = model.random_effects.cholesky(values)
    assert (omega[1][0] / 0.3).tolist() == pytest.approx([0.5, 0.5])
    assert omega[0][0].tolist() == pytest.approx(softplus(values["omega"][0]).tolist())
    assert model.error.sigmas(values)["additive"].tolist() == [2, 2]


def test_coefficients_of_equations_too(data: Path) -> None:
    equations = "{CL: {typical: 1, weight: {power: {initial: 0.5}}}, V1: {typical: 2}}"
    model, values = started(
        data,
        {"CL": 3, "CL_weight_power": {"fixed": 0.75}, "V1": {"initial": 5, "upper": 9}},
        "network=equations",
        f"network.equations={equations}",
    )
    weight = torch.full((1, 1, 2), 140.0, dtype=F64)
    typical = model.network.typical(values, {"weight": weight})
    assert typical["CL"].flatten().tolist() == pytest.approx([3 * 2**0.75] * 2)
    assert typical["V1"].tolist() == pytest.approx([5, 5])
    assert set(values) & {"global.CL_weight_power"} == set()
    values["global.V1"] += 50
    assert float(model.network.typical(values, {"weight": weight})["V1"].max()) <= 9
    known = "{CL: {typical: 1, weight: {power: 0.75}}, V1: {typical: {fixed: 2}}}"
    for name, value in (("V1", 3), ("CL_weight_power", 0.5)):
        with pytest.raises(InputError, match=rf"initial\.{name}: the equation has it as known"):
            started(data, {name: value}, "network=equations", f"network.equations={known}")


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        ({"KA": 1}, "initial.KA: no such parameter; expected some of CL, V1, omega_CL, omega_V1"),
        ({"CL": -1}, "initial.CL is -1; expected a value above 0"),
        ({"CL": {"initial": 4, "upper": 3}}, "initial.CL is"),
        ({"omega_CL": {"value": 1}}, "initial.omega_CL is"),
        ({"rho_CL_V1": 1}, "initial.rho_CL_V1 is"),
        ({"rho_CL_V1": 0.1, "rho_V1_CL": 0.1}, "is there twice"),
        ([1], "initial is [1]; expected values by name"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(data: Path, initial: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        started(data, initial)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("initial", "more", "words"),
    [
        ({"CL": 4}, ("network.initial={CL: 3}",), "network.initial.CL says it too"),
        ({"omega_CL": 1}, ("fixed={omega: [[0.04, 0], [0, 0.02]]}",), "fixed.omega is all of it"),
        ({"sigma_additive": 1}, ("fixed={sigma: {additive: 2}}",), "fixed.sigma.additive says it too"),
        ({"rho_CL_V1": 0.1}, ("omega=diagonal",), "has no such correlation"),
    ],
)
def test_what_is_said_twice_is_refused(
    data: Path, initial: dict[str, Any], more: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        started(data, initial, *more)


def test_what_comes_from_a_network_takes_a_number(data: Path) -> None:
    config = configuration(data, data, "dataset.truth=null")
    model = model_of(complete(config | {"initial": {"CL": 40}}))
    reference = {
        name: torch.full((1, 1, 2), value, dtype=F64) for name, value in (("weight", 70.0), ("vwf", 100.0))
    }
    typical = model.network.typical(model.init(STREAMS, F64), reference)
    assert 10 < float(typical["CL"].min()) < float(typical["CL"].max()) < 160
    with pytest.raises(InputError, match="comes from a network"):
        model_of(complete(config | {"initial": {"CL": {"fixed": 40}}}))


# -- what the data say -----------------------------------------------------------------------------


def test_starts_follow_the_data_in_any_unit(tmp_path: Path) -> None:
    job = Job.build(table(tmp_path))
    starts = job.config[STARTS]
    assert starts["CL"] == pytest.approx(4, rel=0.3)
    assert starts["V1"] == pytest.approx(50, rel=0.3)
    assert 0.05 < starts["omega_CL"] == starts["omega_V1"] < 0.5
    assert 0.01 < starts["sigma_additive"] < 0.5
    values = job.problem.model.init(STREAMS, F64)
    assert job.problem.model.network.typical(values, {})["CL"].tolist() == pytest.approx([starts["CL"]] * 2)
    said = {"initial": {"CL": 7}}
    again = Job.build(table(tmp_path) | said)
    assert "CL" not in again.config[STARTS]
    assert identity(job.config) == identity({**job.config, STARTS: {}})


def test_a_fit_ends_at_its_optimum_and_says_so(tmp_path: Path) -> None:
    job = Job.build(table(tmp_path, "objective=fo", "error=proportional", "omega=diagonal", "epochs=500"))
    (record,) = job.run(list(job.plan().records.values()))
    assert record.status == "complete"
    assert record.convergence is not None
    assert record.convergence["converged"] is True
    assert record.config["tail"] == 0
    assert (
        Job.build(table(tmp_path, "objective=fo", "error=proportional", "omega=diagonal", "epochs=500"))
        .plan()
        .todo
        == ()
    )


def test_values_are_looked_at_where_nothing_is_to_be_trained(tmp_path: Path) -> None:
    """-2 log L - n log(2 pi) at values that are given, by numpy."""
    config = table(tmp_path, "objective=fo", "omega=diagonal", "dtype=float64")
    config["training"] = {**config["training"], "stop": "start"}
    config["initial"] = {"CL": 4, "V1": 50, "omega_CL": 0.3, "omega_V1": 0.2, "sigma_additive": 0.1}
    trained = Job.build(config).train([(1, 1)])
    rows = np.genfromtxt(tmp_path / "events.csv", delimiter=",", skip_header=1)
    rows = rows[rows[:, 4] == 0]
    total = 0.0
    for subject in np.unique(rows[:, 0]):
        time, seen = rows[rows[:, 0] == subject][:, [1, 3]].T
        level = 2 * np.exp(-0.08 * time)
        slopes = np.stack([-0.08 * time * level, (0.08 * time - 1) * level], 1)
        matrix = slopes @ np.diag([0.09, 0.04]) @ slopes.T + 0.01 * np.eye(len(time))
        rest = seen - level
        total += np.linalg.slogdet(matrix)[1] + rest @ np.linalg.solve(matrix, rest)
    assert trained.objective.flatten().tolist() == pytest.approx([total], abs=1e-6)


# -- protocols -------------------------------------------------------------------------------------


def test_the_papers_data_keep_the_protocol_of_the_paper(data: Path, tmp_path: Path) -> None:
    assert complete(configuration(data, data))["training"] == PROTOCOLS["paper"]
    for dataset in ("prophylaxis", "perioperative"):
        config = configuration(None, data, f"dataset={dataset}", "network=real_data", "split=nested")
        assert complete(config)["training"] == PROTOCOLS["paper"]
    assert complete(table(tmp_path))["training"] == PROTOCOLS["field"]
    before = configuration(data, data)
    del before["training"], before["initial"]
    assert complete(before)["training"] == PROTOCOLS["paper"]
    assert identity(complete(before)) == identity(complete(configuration(data, data)))
    assert "training" not in identity(complete(before))
