"""The experiments folder: what its sweeps ask for, what its doubles do, and that its expected values can be
used."""

import functools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from medcm_cli.data import Population
from medcm_cli.haemophilia.virtual import Settings, write_study
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Foce
from medcm_cli.runs.summary import ESTIMATES, MEASURES
from medcm_cli.study.axes import axis, folds_of
from medcm_cli.study.job import Job
from medcm_cli.study.options import conf_dir
from tests.helpers import configuration, make_events

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
sys.path.append(str(EXPERIMENTS / "foce"))  # as the experiment's README has it
sys.path.append(str(EXPERIMENTS / "table1"))  # as a script has its own folder
sys.path.append(str(EXPERIMENTS / "optimum"))

from compare import PUBLISHED, by_fit, compared  # noqa: E402
from doubles import DetachedSlopes, ModesOfAnotherFold  # noqa: E402
from rmse_by_test_set import by_test_set  # noqa: E402

SWEEPS = sorted(EXPERIMENTS.glob("*/*.yaml"))
F64 = torch.float64


@functools.cache
def composed(sweep: Path, *overrides: str) -> DictConfig:
    """A sweep's configuration, from its folder and the main one."""
    with initialize_config_dir(str(sweep.parent), version_base="1.3"):
        searchpath = f"hydra.searchpath=[file://{conf_dir()}]"
        return compose(sweep.stem, [searchpath, *overrides], return_hydra_config=True)


def objectives_of(config: DictConfig) -> list[str]:
    """Those that are swept, or else the one."""
    swept = config.hydra.sweeper.params or {}
    return str(swept.get("objective", config.hydra.runtime.choices.objective)).split(",")


@pytest.mark.parametrize("sweep", SWEEPS, ids=[f"{path.parent.name}/{path.stem}" for path in SWEEPS])
def test_a_sweep_names_objectives_that_exist(sweep: Path) -> None:
    config = composed(sweep)
    assert config.objective.learning_rate > 0
    for name in objectives_of(config):
        assert any((folder / "objective" / f"{name}.yaml").exists() for folder in (conf_dir(), sweep.parent))


@pytest.mark.parametrize(
    ("sweep", "folds", "replicates"),
    [
        ("table1/as_published", 1, 100),
        ("table1/as_described", 20, 5),
        ("table1/simulated", 20, 5),
        ("foce/three_ways", 19, 5),
        ("foce/threads", 19, 1),
    ],
)
def test_a_sweep_has_the_fits_that_its_readme_says(sweep: str, folds: int, replicates: int) -> None:
    config = composed(EXPERIMENTS / f"{sweep}.yaml")
    assert len(axis("fold", config.fold)) == folds
    assert len(axis("replicate", config.replicate)) == replicates
    assert config.epochs == 2000
    assert config.study == sweep.replace("/", "_")


@pytest.mark.parametrize(
    ("dataset", "objective", "epochs"),
    [
        ("prophylaxis", "mse", 1000),
        ("prophylaxis", "fo", 1000),
        ("prophylaxis", "foce", 2000),
        ("prophylaxis", "vi", 1000),
        ("perioperative", "mse", 1000),
        ("perioperative", "fo", 1000),
        ("perioperative", "foce", 2000),
        ("perioperative", "vi", 1250),
    ],
)
def test_table3_is_the_protocol_of_the_real_data(dataset: str, objective: str, epochs: int) -> None:
    """docs/methods.md, "Protocol of the real data"."""
    choices = (f"dataset={dataset}", f"objective={objective}")
    config = composed(EXPERIMENTS / "table3" / "combined.yaml", *choices)
    assert (config.epochs, config.tail, config.checkpoint_every) == (epochs, 250, 25)
    assert config.learning_rate == (0.01 if objective == "foce" else 0.1)
    assert list(config.error.components) == ["additive", "proportional"]
    assert [branch.inputs for branch in config.network.branches] == [["ffm"], ["vwf"]]
    assert len(folds_of(config)) == 100
    assert config.study == "table3"
    additive = composed(EXPERIMENTS / "table3" / "additive.yaml", *choices)
    assert list(additive.error.components) == ["additive"]
    differing = {"error"} | {key for key in config if config[key] != additive[key]} - {"hydra"}
    assert differing == {"error"}


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/expected*.csv")), ids=lambda p: p.parent.name)
def test_expected_values_belong_to_a_sweep_of_their_folder(path: Path) -> None:
    frame = pd.read_csv(path)
    assert len(frame) > 5
    swept = set()
    for sweep in path.parent.glob("*.yaml"):
        config = composed(sweep)
        swept |= {(config.study, name) for name in objectives_of(config)}
    for row in frame.itertuples():
        assert (row.study, row.objective) in swept
        measure = str(row.measure)
        assert measure in {*MEASURES, *ESTIMATES, "failed"} or measure.startswith("omega_")
        assert row.statistic in {"median", "mean", "sd", "count"}


# -- optima of public data ------------------------------------------------------------------------


def test_published_optima_belong_to_a_sweep() -> None:
    swept = set()
    for sweep in PUBLISHED.parent.glob("*.yaml"):
        config = composed(sweep)
        swept |= {(config.study, name) for name in objectives_of(config)}
    published = pd.read_csv(PUBLISHED)
    assert set(zip(published["study"], published["objective"], strict=True)) <= swept
    assert set(published["kind"]) == {"ofv", "estimate", "se"}


def test_fits_are_compared_with_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the history of a fit, moved away by known steps."""
    rows = [(i, time, 0.01 * i + 0.8 / (1 + time)) for i in range(SUBJECTS) for time in (0.0, 2.0, 8.0)]
    events = pd.DataFrame(rows, columns=["id", "time", "dv"])
    events["amt"] = np.where(events["time"] == 0, 1.0, np.nan)
    events["evid"] = (events["time"] == 0).astype(int)
    events.to_csv(tmp_path / "events.csv", index=False)
    options = ["dataset=table", "dataset.covariates={}", "network=none", "study=optimum", "objective=fo"]
    options += [
        "dataset.name=x",
        "network.global_parameters=[CL,V1]",
        "pk=one_compartment",
        "split=all",
        "omega=diagonal",
    ]
    config = configuration(tmp_path / "events.csv", tmp_path, *options)
    job = Job.build(config)
    job.run(list(job.plan().records.values()))
    (path,) = tmp_path.rglob("history.parquet")
    last = pd.read_parquet(path).iloc[-1]
    published = [
        ("ofv", "", last["objective_value"] + 0.02),
        ("estimate", "CL", last["typical_CL"] * 0.98),
        ("estimate", "omega V1", last["omega_2"]),
        ("se", "CL", 0.1),
    ]
    table = pd.DataFrame(published, columns=["kind", "quantity", "value"])
    table.assign(study="optimum", objective="fo", error="additive", source="").to_csv(tmp_path / "x.csv")
    monkeypatch.setattr("compare.PUBLISHED", tmp_path / "x.csv")
    found = compared([tmp_path / "optimum"])
    np.testing.assert_allclose(found["off"], [-0.02, 100 / 0.98 - 100, 0, np.nan], atol=1e-3)
    assert found["within"].tolist() == [True, False, True, False]
    (row,) = by_fit(found)
    assert row[5:] == ["+2.04 % (CL, of 2)", "", "no"]


# -- test subjects of Table 1 ----------------------------------------------------------------------


def test_rmse_by_test_set_is_the_histories_on_their_own_fold(tmp_path: Path) -> None:
    write_study(tmp_path / "data", Settings(n=40, folds=20, fold_size=8))
    for objective in ("fo", "vi"):
        config = configuration(
            tmp_path / "data", tmp_path / "outputs", f"objective={objective}", "replicate=[1,2]"
        )
        job = Job.build(config)
        job.run(list(job.plan().records.values()))
    found = by_test_set(tmp_path / "outputs", 2)
    assert sorted(found) == ["fo", "vi"]
    for objective, fits in found.items():
        folders = sorted((tmp_path / "outputs").rglob(f"objective={objective}/**/history.parquet"))
        assert len(folders) == len(fits) == 2
        histories = [pd.read_parquet(folder) for folder in folders]
        tails = [history.loc[history["epoch"] >= 2, "rmse"].mean() for history in histories]
        own, other, _ = np.array(fits).T
        np.testing.assert_allclose(own, tails, rtol=1e-5)
        # a second fit, in order of their folders, is taken for one of fold 2
        assert (other == own).tolist() == ([True, False] if objective == "fo" else [False, False])


# -- doubles of FOCE -------------------------------------------------------------------------------

SUBJECTS = 8
FOLDS = {1: [1, 2, 3, 3, 5], 2: [8, 5, 5, 6, 1]}  # as in the files, from 1


@pytest.fixture
def fold_files(tmp_path: Path) -> str:
    for number, subjects in FOLDS.items():
        lines = "".join(f"{subject}\n" for subject in subjects)
        (tmp_path / f"train_set_{number}.csv").write_text(f"idxs\n{lines}")
    return str(tmp_path)


@pytest.fixture
def first_fold() -> Population:
    """Two fits, both of fold 1's subjects."""
    everyone = Population.from_events(make_events(SUBJECTS), F64)
    return everyone.select([np.array(FOLDS[1]) - 1] * 2)


def test_modes_of_another_fold_are_missing(model: Model, first_fold: Population, fold_files: str) -> None:
    streams = [Stream(0, 1, 1), Stream(0, 2, 1)]
    double = ModesOfAnotherFold(folder=fold_files, subjects=SUBJECTS)
    state = double.refresh(model, first_fold, double.init(model, first_fold, streams, F64))
    state = double.refresh(model, first_fold, state)
    right = Foce().refresh(model, first_fold, Foce().init(model, first_fold, streams, F64))
    right = Foce().refresh(model, first_fold, right)
    torch.testing.assert_close(state.carried["eta"][..., 0], right.carried["eta"][..., 0])
    shared = torch.tensor([subject in FOLDS[2] for subject in FOLDS[1]])
    assert shared.tolist() == [True, False, False, False, True]
    assert bool((state.carried["eta"][:, ~shared, 1] == 0).all())
    torch.testing.assert_close(state.carried["eta"][:, shared, 1], right.carried["eta"][:, shared, 1])
    assert float(right.carried["eta"][:, ~shared, 1].abs().min()) > 1e-4
    losses = [each.loss(model, first_fold, s, None) for each, s in ((double, state), (Foce(), right))]
    torch.testing.assert_close(losses[0][0], losses[1][0])
    assert not torch.allclose(losses[0][1], losses[1][1], rtol=1e-7)


def test_without_any_mode_foce_is_fo(model: Model, first_fold: Population, fold_files: str) -> None:
    """At eta = 0 the linearised formulation is FO by definition: the double must not change anything else."""
    (Path(fold_files) / "train_set_3.csv").write_text("idxs\n8\n")
    streams = [Stream(0, 3, 1), Stream(0, 3, 2)]
    double = ModesOfAnotherFold(formulation="linearised", folder=fold_files, subjects=SUBJECTS)
    state = double.refresh(model, first_fold, double.init(model, first_fold, streams, F64))
    expected = Fo().loss(model, first_fold, state, None)
    torch.testing.assert_close(double.loss(model, first_fold, state, None), expected)


def test_detached_slopes_change_the_gradient_only(model: Model, first_fold: Population) -> None:
    streams = [Stream(0, 1, 1), Stream(0, 1, 2)]
    gradients, losses = {}, {}
    for objective in (Foce(), DetachedSlopes()):
        state = objective.refresh(model, first_fold, objective.init(model, first_fold, streams, F64))
        trained = {name: value.clone().requires_grad_() for name, value in state.trained.items()}
        loss = objective.loss(model, first_fold, replace(state, trained=trained), None)
        losses[type(objective)] = loss.detach()
        gradients[type(objective)] = torch.autograd.grad(loss.sum(), list(trained.values()))
    torch.testing.assert_close(losses[Foce], losses[DetachedSlopes])
    by_name = dict(zip(trained, zip(*gradients.values(), strict=True), strict=True))
    torch.testing.assert_close(*by_name["omega"])  # not through G
    right, detached = by_name["global.V2"]
    assert not torch.allclose(right, detached, rtol=1e-6)
