"""Standard errors and intervals of finished fits: transformations, what is left out, and what is written."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from scipy import stats

from medcm_cli import cli, runs
from medcm_cli.analysis.uncertainty import covariances, estimate, intervals, quantities
from medcm_cli.commands.standard_errors import report
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import Settings, write_study
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.job import Job
from medcm_cli.study.restore import Restored, restore
from medcm_cli.training.layout import Layout
from tests.helpers import ROOT, as_float, configuration

sys.path.append(str(ROOT / "experiments" / "coverage"))

from intervals import exact

F64 = torch.float64
CHOICES = ("split=blocks", "split.size=30", "fold=[1,2]", "epochs=60", "tail=4")


def fitted(outputs: Path, *choices: str) -> None:
    data = outputs.parent / "data"
    if not data.exists():
        write_study(data, Settings(n=60, folds=0, seed=2))
    job = Job.build(configuration(data, outputs, *CHOICES, *choices))
    job.run(list(job.plan().records.values()))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fits each by fo, vi with a q of sigma and Omega, and mse."""
    folder = tmp_path_factory.mktemp("uncertainty") / "outputs"
    fitted(folder, "objective=fo", "network=truth")
    fitted(folder, "objective=vi", "network=truth", "objective.population=variational", "epochs=300")
    fitted(folder, "objective=mse", "epochs=4")
    return folder


def only(outputs: Path, objective: str) -> Restored:
    (batch,) = restore([fit for fit in finished([outputs]) if fit[1].address.objective == objective])
    return batch


# -- covariances -----------------------------------------------------------------------------------


def positive(size: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((size, 2 * size))
    return np.asarray(root @ root.T)


def test_covariances_are_the_inverse_and_the_sandwich() -> None:
    information, outer = positive(4, 1), positive(4, 2)
    of_fits = [torch.from_numpy(np.stack([m, 3 * m])) for m in (information, outer)]
    found, regular, _ = covariances(of_fits[0], of_fits[1], torch.zeros(4, dtype=torch.bool))
    inverse = np.linalg.inv(information)
    np.testing.assert_allclose(found["hessian"].numpy(), [inverse, inverse / 3], rtol=1e-9)
    want = inverse @ outer @ inverse
    np.testing.assert_allclose(found["sandwich"].numpy(), [want, want / 3], rtol=1e-9)
    assert regular.tolist() == [True, True]


def test_a_fit_without_a_positive_definite_information_is_named_and_alone() -> None:
    good = torch.from_numpy(positive(3, 3))
    saddle = good - 2 * torch.linalg.eigvalsh(good)[0] * torch.eye(3)
    cases = torch.stack([good, saddle, torch.full((3, 3), torch.nan, dtype=F64), 0 * good])
    found, regular, _ = covariances(cases, cases, torch.zeros(3, dtype=torch.bool))
    assert regular.tolist() == [True, False, False, False]
    torch.testing.assert_close(found["hessian"][0], torch.linalg.inv(good))


def test_flat_directions_of_weights_take_no_part() -> None:
    """Two parameters and three weights, of which two combinations matter: as if those were the weights."""
    reduced = positive(4, 5)
    mix = np.random.default_rng(6).standard_normal((3, 2))
    jacobian = np.zeros((4, 5))
    jacobian[:2, :2] = np.eye(2)
    jacobian[2:, 2:] = mix.T
    information = torch.from_numpy(jacobian.T @ reduced @ jacobian)[None]
    weights = torch.tensor([False, False, True, True, True])
    found, regular, kept = covariances(information, information, weights)
    assert regular.tolist() == [True]
    assert kept.tolist() == [2]
    np.testing.assert_allclose(found["hessian"][0, :2, :2].numpy(), np.linalg.inv(reduced)[:2, :2], rtol=1e-6)
    function = jacobian @ found["hessian"][0].numpy() @ jacobian.T  # of what the weights do
    np.testing.assert_allclose(function, np.linalg.inv(reduced), rtol=1e-6)


# -- intervals -------------------------------------------------------------------------------------


def test_quantities_and_their_slopes(outputs: Path) -> None:
    batch = only(outputs, "fo")
    layout = Layout.of(batch.state.trained)
    theta = layout.pack(batch.state.trained).double()
    found = quantities(batch, layout, theta)
    assert found.names == ["omega_1", "omega_2", "rho_21", "sigma_additive"]
    raw = dict(zip(layout.names, theta.split([torch.Size(s).numel() for s in layout.shapes]), strict=True))
    sd, sigma = np.logaddexp(0, raw["omega"].numpy()), np.logaddexp(0, raw["sigma"].numpy())
    want = np.concatenate([np.log(sd), raw["correlation"].numpy(), np.log(sigma)])
    np.testing.assert_allclose(found.value.numpy(), want, rtol=1e-9)
    reported = np.concatenate([sd, np.tanh(raw["correlation"].numpy()), sigma])
    np.testing.assert_allclose(found.back(found.value).numpy(), reported, rtol=1e-9)
    for row in range(len(theta)):
        moved = theta.clone()
        moved[row] += 1e-6
        change = (quantities(batch, layout, moved).value - found.value) / 1e-6
        np.testing.assert_allclose(found.slope[:, row].numpy(), change.numpy(), rtol=1e-4, atol=1e-5)


def test_intervals_are_symmetric_on_their_scale(outputs: Path) -> None:
    batch = only(outputs, "fo")
    found = estimate(batch)
    for level in (0.5, 0.95):
        z = stats.norm.ppf(0.5 + level / 2)
        for fit, frame in enumerate(intervals(batch, found, level)):
            assert isinstance(frame, pd.DataFrame)
            rows = frame[frame["method"] == "hessian"].set_index("name")
            assert list(rows.index) == ["omega_1", "omega_2", "rho_21", "sigma_additive"]
            variance = np.diag(found.covariance["hessian"][fit].numpy())
            for name, value in rows.drop(index="rho_21").iterrows():
                assert value["lower"] * value["upper"] == pytest.approx(value["estimate"] ** 2), name
                log_se = np.log(value["upper"] / value["estimate"]) / z
                assert value["se"] == pytest.approx(log_se * value["estimate"]), name
                assert value["rse"] == pytest.approx(100 * log_se), name
            rho = rows.loc["rho_21"]
            ends = np.arctanh(rho[["lower", "estimate", "upper"]].to_numpy(dtype=np.float64))
            np.testing.assert_allclose(np.diff(ends), z * np.sqrt(variance[3]), rtol=1e-6)
            assert rows.loc["sigma_additive", "estimate"] == pytest.approx(3, rel=0.5)  # IU/dL


def test_a_fit_alone_has_the_intervals_that_it_has_in_a_batch(outputs: Path) -> None:
    fits = [fit for fit in finished([outputs]) if fit[1].address.objective == "fo"]
    results = [intervals(batch, estimate(batch), 0.95) for batch in (*restore(fits), *restore(fits[1:]))]
    together, alone = results[0][1], results[1][0]
    assert isinstance(together, pd.DataFrame)
    assert isinstance(alone, pd.DataFrame)
    pd.testing.assert_frame_equal(together, alone, rtol=1e-5)


def test_the_exact_likelihood_of_the_coverage_experiment(outputs: Path) -> None:
    """FO is near it (its README): most of a standard error at most, and of nearly the same size."""
    batch = only(outputs, "fo")
    for ours, theirs in zip(intervals(batch, estimate(batch), 0.95), exact(batch), strict=True):
        assert isinstance(ours, pd.DataFrame)
        assert isinstance(theirs, pd.DataFrame)
        moved = (theirs["estimate"] - ours["estimate"]) / ours["se"]
        assert 1e-4 < moved.abs().max() < 0.6
        np.testing.assert_allclose(theirs["se"], ours["se"], rtol=0.25)


def test_a_q_of_sigma_and_omega_gives_its_quantiles(outputs: Path) -> None:
    batch = only(outputs, "vi")
    found = estimate(batch)
    frames = intervals(batch, found, 0.9)
    mean = batch.state.trained["population.mean"].double().numpy()
    sd = np.log1p(np.exp(batch.state.trained["population.sd"].double().numpy()))
    for fit, frame in enumerate(frames):
        assert isinstance(frame, pd.DataFrame)
        assert set(frame["method"]) == {"posterior"}
        rows = frame.set_index("name")
        # log sigma is the first coordinate and log omega the next two.
        for place, name in enumerate(["sigma_additive", "omega_1", "omega_2"]):
            q = stats.lognorm(sd[place, fit], scale=np.exp(mean[place, fit]) * (100 if place == 0 else 1))
            assert rows.loc[name, "lower"] == pytest.approx(q.ppf(0.05), rel=1e-6)
            assert rows.loc[name, "upper"] == pytest.approx(q.ppf(0.95), rel=1e-6)
        assert -1 < as_float(rows.loc["rho_21", "lower"]) < as_float(rows.loc["rho_21", "upper"]) < 1


@pytest.mark.slow
def test_typical_parameters_of_a_network_have_intervals(tmp_path: Path) -> None:
    """At the reference covariates; directions of weights that the data do not tell apart are held."""
    fitted(tmp_path / "outputs", "objective=fo", "fold=1", "epochs=1000", "learning_rate=0.02", "tail=0")
    batch = only(tmp_path / "outputs", "fo")
    found = estimate(batch)
    (frame,) = intervals(batch, found, 0.95)
    assert isinstance(frame, pd.DataFrame), frame
    rows = frame[frame["method"] == "hessian"].set_index("name")
    assert list(rows.index[4:]) == ["CL", "V1", "Q", "V2"]
    assert bool((rows["se"] > 0).all())
    effects = pd.read_parquet(batch.folders[0] / "effects.parquet")
    last = effects[(effects["epoch"] == effects["epoch"].max()) & (effects["covariate"] == "weight")]
    level = (last["value"] / last["relative"])[last["parameter"] == "CL"].mean()  # at the reference
    assert rows.loc["CL", "estimate"] == pytest.approx(level, rel=1e-4)
    assert "directions" in found.note


# -- run folders and the command -------------------------------------------------------------------


def test_report_writes_each_fit_and_names_what_it_cannot_do(outputs: Path) -> None:
    found = report([outputs], "sandwich", 0.95)
    assert len(found.sections) == 2
    assert len(found.skipped) == 2
    assert all("objective=mse" in reason and "no likelihood" in reason for reason in found.skipped)
    assert not any("network weights" in note for note in found.notes)
    fo = next(section for section in found.sections if ": fo," in section.title)
    assert fo.title.endswith("sandwich, median of 2 fits")
    paths = sorted(outputs.rglob("objective=fo/**/uncertainty.parquet"))
    frames = [pd.read_parquet(path) for path in paths]
    assert len(frames) == 2
    units = {field.name: runs.unit_of(field) for field in pyarrow.parquet.read_schema(paths[0])}
    assert units["rse"] == "%"
    assert str(units["estimate"]).startswith("IU/dL (sigma_additive)")
    assert all(units.values())
    rows = pd.concat(frame[frame["method"] == "sandwich"] for frame in frames)
    labels = {"omega_1": "omega CL", "omega_2": "omega V1", "rho_21": "rho CL:V1"}
    labels["sigma_additive"] = "sigma additive"
    assert {cells[0].partition(",")[0]: cells[2] for cells in fo.cells} == {
        labels.get(str(name), name): f"{value:.4g}"
        for name, value in rows.groupby("name")["se"].median().items()
    }
    names = {label: name for name, label in labels.items()}
    truth = {"omega_1": 0.037**0.5, "omega_2": 0.017**0.5, "rho_21": 0.0113 / (0.037 * 0.017) ** 0.5}
    for title, *_, true, covered in fo.cells:
        label, _, unit = title.partition(", ")
        name = names.get(label, label)
        assert unit == ("IU/dL" if name == "sigma_additive" else "")
        of = rows[rows["name"] == name]
        want = truth.get(name, 3.0)
        hits = int(((of["lower"] <= want) & (want <= of["upper"])).sum())
        # Clopper-Pearson bounds are quantiles of beta distributions.
        low = 0 if hits == 0 else stats.beta.ppf(0.025, hits, 3 - hits)
        high = 1 if hits == 2 else stats.beta.ppf(0.975, hits + 1, 2 - hits)
        assert true == f"{want:.4g}"
        assert covered == f"{50 * hits:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    assert not list(outputs.rglob("objective=mse/**/uncertainty.parquet"))


def test_a_failed_fit_and_an_omega_on_its_boundary_are_named(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    fitted(outputs, "objective=fo", "network=truth")
    (one, record), (other, of_other) = finished([outputs])
    runs.write_record(outputs, replace(record, status="failed", failure={"epoch": 3, "cause": "a test"}))
    path = other / "parameters.parquet"
    table = pd.read_parquet(path)
    table.loc[table["name"] == "omega", "value"] = -30.0
    table.to_parquet(path)
    runs.write_record(outputs, replace(of_other, hashes=runs.hashes_of(other, of_other.hashes)))
    found = report([outputs], "hessian", 0.95)
    assert not found.sections
    assert found.skipped == [f"{one}: is no complete fit", f"{other}: Omega is on its boundary"]
    assert of_other.status == "complete"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("absent",), "absent: no such folder"),
        (
            ("--method", "wald"),
            "--method is 'wald'; expected one of sandwich, hessian, profile, sir, bootstrap",
        ),
        (("--level", "95"), "--level is 95; expected a number between 0 and 1"),
        (("--level", "nan"), "--level is nan"),
    ],
)
def test_bad_options_are_one_line(
    options: tuple[str, ...],
    message: str,
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = () if options[0] == "absent" else (str(outputs),)
    monkeypatch.setattr(sys, "argv", ["medcm", "uncertainty", *folders, *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_nothing_but_mse_is_an_error(outputs: Path) -> None:
    (batch,) = restore([fit for fit in finished([outputs]) if fit[1].address.objective == "mse"])
    with pytest.raises(InputError, match="no likelihood"):
        estimate(batch)
