"""Fits whose individual parameters are not log-normal: what results, tables and predictions say of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch

from medcm_cli.analysis.uncertainty import quantities
from medcm_cli.errors import InputError
from medcm_cli.patients.prediction import predict
from medcm_cli.patients.study import load_study
from medcm_cli.report.tables import sections
from medcm_cli.runs.summary import summarize
from medcm_cli.runs.sweeps import finished
from medcm_cli.runs.units import named_in
from medcm_cli.study.job import Job
from medcm_cli.study.restore import restore
from medcm_cli.training.layout import Layout
from tests.helpers import STREAMS, configuration

OPTIONS = (
    *("dataset=table", "dataset.name=mine", "split=all", "network=equations", "pk=one_compartment"),
    *("dataset.units={time: h, amount: mg, level: mg/L}", "error=proportional", "dtype=float64"),
    "dataset.covariates={weight: {column: WT, scale: 150, reference: 70, unit: kg}}",
    *("pk.bioavailability={1: F}", "random_effects=[CL,V1,F]", "omega=diagonal"),
    "network.equations={CL: {typical: 4}, V1: {typical: 50}, F: {typical: 0.8, weight: {power: 1}}}",
    "distributions={CL: {boxcox: {initial: 0.3}}, V1: additive, F: {logit: [0, 1]}}",
)


def write_table(path: Path, patients: int = 12) -> Path:
    generator, rows = np.random.default_rng(1), []
    for patient in range(1, patients + 1):
        of = {"ID": patient, "WT": 55 + 3 * patient}
        rows.append({**of, "TIME": 0.0, "AMT": 100.0, "EVID": 1})
        scale, rate = np.exp(0.3 * generator.standard_normal(2)) * (1.6, 0.08)
        for time in (0.5, 2.0, 6.0, 24.0):
            level = scale * np.exp(-rate * time + 0.1 * generator.standard_normal())
            rows.append({**of, "TIME": time, "DV": level, "EVID": 0})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit each by foce and vi."""
    folder = tmp_path_factory.mktemp("distributions")
    table = write_table(folder / "events.csv")
    for objective in ("foce", "vi"):
        config = configuration(
            table,
            folder / "outputs",
            f"objective={objective}",
            *OPTIONS,
            "epochs=20",
            "training.polish=false",
        )
        job = Job.build(config)
        (record,) = job.run(list(job.plan().records.values()))
        assert record.status == "complete"
    return folder / "outputs"


@pytest.mark.slow
def test_columns_have_the_unit_of_what_is_added(outputs: Path) -> None:
    for path in sorted(outputs.glob("**/history.parquet")):
        units = named_in(pyarrow.parquet.read_schema(path))
        assert (units["omega_1"], units["omega_2"], units["omega_3"]) == ("-", "L", "-")
        assert units["typical_CL_boxcox"] == "-"
        history = pd.read_parquet(path)
        assert 2 < history["omega_2"].iloc[0] < 10  # a tenth of 50 L
        assert history["typical_F"].between(0, 1).all()
        assert history["typical_CL_boxcox"].iloc[0] == pytest.approx(0.3, abs=0.15)
        assert history["typical_CL_boxcox"].iloc[-1] != history["typical_CL_boxcox"].iloc[0]
        units = named_in(pyarrow.parquet.read_schema(path.parent / "random_effects.parquet"))
        assert (units["eta_2"], units["cov_21"], units["cov_22"], units["cov_31"]) == ("L", "L", "L L", "-")


def test_a_coefficient_of_variation_is_of_what_is_log_normal(outputs: Path) -> None:
    summary = summarize([outputs])
    assert not {name for name in map(str, summary.fits) if name.startswith("cv_")}
    (section,) = [one for one in sections(summary) if one.title.endswith("estimates")]
    assert {"omega CL, log scale before Box-Cox", "omega V1, L", "omega F, logit scale"} <= set(
        section.headers
    )


def test_standard_errors_are_of_shapes_and_logits_too(outputs: Path) -> None:
    (batch,) = restore([fit for fit in finished([outputs]) if fit[1].address.objective == "foce"])
    shared = [name for name in batch.state.trained if name not in batch.state.per_subject]
    layout = Layout.of({name: batch.state.trained[name].double() for name in shared})
    at = quantities(batch, layout, layout.pack({n: batch.state.trained[n].double() for n in shared}))
    assert {"CL_boxcox", "F", "omega_2"} <= set(at.names)
    assert at.plain == {"CL_boxcox"}
    place = at.names.index("F")
    share = float(at.back(at.value)[place, 0])
    assert 0 < share < 1
    step = 1e-6
    up, down = (float(at.back(at.value + h)[place, 0]) for h in (step, -step))
    assert float(at.back_slope()[place, 0]) == pytest.approx((up - down) / (2 * step), rel=1e-6)
    assert bool((at.back(at.value + 50)[place] <= 1).all())


@pytest.mark.parametrize("method", ["importance", "variational"])
def test_patients_are_predicted(outputs: Path, method: str, tmp_path: Path) -> None:
    patients = write_table(tmp_path / "patients.csv", 2)
    study = load_study(outputs / "default", objective="foce")
    found = predict(study, patients, times=[0, 1, 6], method=method, draws=64)
    table = found.parameters.set_index(["patient", "parameter"])
    assert set(found.parameters["parameter"]) == {"CL", "V1", "F", "half-life"}
    shares = table.xs("F", level=1)
    assert bool(shares[["typical", "median"]].gt(0).all().all())
    assert bool(shares[["typical", "median"]].lt(1).all().all())
    assert bool(np.isfinite(found.curve.select_dtypes("number")).all().all())


def test_one_that_changes_in_time_has_a_slope_at_each(tmp_path: Path) -> None:
    """Of fo's columns: against differences of predictions."""
    table = pd.read_csv(write_table(tmp_path / "events.csv"))
    table["WT"] += table["TIME"]
    table.to_csv(tmp_path / "events.csv", index=False)
    options = [*OPTIONS, "dataset.over_time={weight: record}", "objective=fo"]
    job = Job.build(configuration(tmp_path / "events.csv", tmp_path, *options))
    model, population = job.problem.model, job.problem.everyone
    values = model.init(STREAMS[:1], torch.float64)
    zeta = {name: value.double() for name, value in model.typical(values, population).items()}
    assert zeta["F"].ndim == 4
    place, step = model.random_effects.names.index("F"), 1e-5
    zero = [torch.zeros(1, *population.present.shape, dtype=torch.float64)] * len(model.random_effects.names)
    with torch.no_grad():
        column = model.linearise(zeta, population, zero)[1][place]
        ends = []
        for sign in (1, -1):
            eta = list(zero)
            eta[place] = eta[place] + sign * step
            ends.append(model.predict(zeta, population, eta))
    torch.testing.assert_close(column, (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-5)


def test_the_truth_of_log_normal_parameters_is_none_of_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fixed=truth: the true parameters are log-normal"):
        Job.build(configuration(None, tmp_path, "fixed=truth", "distributions={CL: additive}"))
