"""Subjects in groups by their numbers of doses: each model of conf/pk by each objective is what it is with
all padded to the longest."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medcm_cli.data import population
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk import Ragged, Schedule
from medcm_cli.study.job import Job
from medcm_cli.study.options import conf_dir
from medcm_cli.training.loss import Evaluation
from tests.helpers import configuration
from tests.test_conf import NAMES, PARTNERS

F64 = torch.float64
SIZES = ((1, 24, 2, 4, 17), (3, 12, 2, 5, 12))  # doses, observations
GROUPS = [[0, 2, 3], [1, 4]]
MODELS = [name.removeprefix("pk/") for name in NAMES if name.startswith("pk/")]
INTEGRATED = ("michaelis_menten", "neural_ode", "two_compartment_ode")
FILES = {name: (conf_dir() / "pk" / f"{name}.yaml").read_text(encoding="utf-8") for name in MODELS}
CLOSED = [name for name, text in FILES.items() if "OdeModel" not in text and "DirectModel" not in text]
OBJECTIVES = ("mse", "fo", "foce", "vi")
COVARIATES = (
    "{weight: {column: wt, scale: 150, reference: 70, unit: kg}, "
    "vwf: {column: vwf, scale: 350, reference: 100, unit: IU/dL}}"
)
# What a table has beside doses that follow one another: columns, and what a model needs for them.
REGIMENS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "doses": (
        "+pk.lag={1: LAG}",
        "+pk.bioavailability={1: F}",
        "+pk.durations={1: D}",
        "network.global_parameters=[Q,V2,LAG,F,D]",
    ),
    "occasions": ("dataset.over_time={weight: record}",),
}


def write(path: Path, regimen: str) -> None:
    """Infusions every hour, one after another, and levels between and after them. With ``doses``: a steady
    state, durations that are a parameter, a reset; with ``occasions`` a weight that changes."""
    generator = np.random.default_rng(0)
    rows = []
    for subject, (doses, levels) in enumerate(zip(*SIZES, strict=True)):
        own = {"id": subject, "wt": 60.0 + 7 * subject, "vwf": 90.0 + 20 * subject}
        for dose in range(doses):
            rows.append(own | {"time": float(dose), "evid": 1, "amt": 400.0 + 90 * dose, "rate": 600.0})
        for time in np.sort(generator.uniform(0.4, doses + 6, levels)):
            rows.append(own | {"time": time, "evid": 0, "dv": 0.3 + generator.uniform(0, 0.6)})
    frame = pd.DataFrame(rows).sort_values(["id", "time"], kind="stable")
    if regimen == "doses":
        frame["ss"], frame["ii"] = 0.0, 0.0
        first = frame["evid"].eq(1) & ~frame.duplicated("id")
        frame.loc[first, ["ss", "ii"]] = (1.0, 12.0)
        modelled = frame["evid"].eq(1) & (np.arange(len(frame)) % 3 == 1)
        frame.loc[modelled, "rate"] = -2.0
        again = frame["id"].isin([1, 3]) & frame["time"].eq(1.0)
        frame.loc[again, "evid"] = 4
    if regimen == "occasions":
        frame["wt"] += np.where(frame["id"].isin([1, 2]), frame["time"], 0)
    frame.to_csv(path, index=False, na_rep=".")


def job(folder: Path, pk: str, objective: str, regimen: str) -> Job:
    write(folder / "ragged.csv", regimen)
    options = [*PARTNERS.get(f"pk/{pk}", ()), *REGIMENS[regimen]]
    return Job.build(
        configuration(
            folder / "ragged.csv",
            folder / "outputs",
            *("dataset=table", "dataset.name=ragged", f"+dataset.covariates={COVARIATES}"),
            *(f"pk={pk}", f"objective={objective}", "split=all", "dtype=float64", "training.protocol=paper"),
            *options,
        )
    )


def totals(made: Job, folds: list[list[int]], batch_subjects: int | None) -> list[torch.Tensor]:
    """Loss and gradient of a batch of fits, and the predictions of typical parameters."""
    subjects = made.problem.everyone.select([np.array(own) for own in folds])
    streams = [Stream(0, 1, 1 + fit) for fit in range(len(folds))]
    model, objective = made.problem.model, made.objective
    state = objective.init(model, subjects, streams, F64)
    work = Evaluation(model, objective, subjects, state, streams, F64, batch_subjects)
    found = work.total(work.layout.pack(state.trained), state.carried, True)
    level = model.predict(model.typical(state.trained, subjects), subjects)
    return [found.loss, found.gradient, level * subjects.observed]


def check(folder: Path, pk: str, objective: str, regimen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list[list[torch.Tensor]]()
    for groups in ([[0, 1, 2, 3, 4]], GROUPS):
        monkeypatch.setattr(population, "groups_of", lambda *_, own=groups: list(map(np.array, own)))
        made = job(folder, pk, objective, regimen)
        assert isinstance(made.problem.everyone.schedule, Ragged if len(groups) > 1 else Schedule)
        of_batch = [totals(made, [[0, 1, 2, 3, 4], [4, 2, 0]], size) for size in (None, 2)]
        found.append([value for values in of_batch for value in values])
    for padded, grouped in zip(*found, strict=True):
        assert bool(padded.isfinite().all())
        scale = float(padded.abs().max())
        torch.testing.assert_close(grouped, padded, rtol=1e-8, atol=1e-8 * scale)


@pytest.mark.parametrize(
    ("pk", "objective"),
    [
        # mse asks a model for what vi does.
        pytest.param(
            pk,
            objective,
            marks=[pytest.mark.slow]
            * (objective == "foce" or (objective == "mse" and pk != "two_compartment")),
        )
        for pk in CLOSED
        for objective in OBJECTIVES
    ],
)
def test_groups_are_as_padding(
    tmp_path: Path, pk: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(tmp_path, pk, objective, "plain", monkeypatch)


@pytest.mark.parametrize("regimen", ["doses", "occasions"])
def test_groups_have_every_regimen(tmp_path: Path, regimen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path, "two_compartment", "vi", regimen, monkeypatch)


@pytest.mark.parametrize("pk", INTEGRATED)
def test_a_model_that_is_integrated_has_one_group(
    tmp_path: Path, pk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population, "groups_of", lambda *_: list(map(np.array, GROUPS)))
    assert isinstance(job(tmp_path, pk, "mse", "plain").problem.everyone.schedule, Schedule)
