"""The manual's page on models: its choices are those that there are, and its command works as printed."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medcm_cli.study.job import Job
from medcm_cli.study.options import conf_dir
from tests.helpers import ROOT, configuration, needs_of_models

TEXT = (ROOT / "medcm_cli" / "docs" / "models.md").read_text(encoding="utf-8")
UNITS = "dataset.units={time: h, amount: mg, level: '%'}"


def words_of(command: str) -> list[str]:
    return [word.removeprefix("+") for word in shlex.split(command)[2:]]


def test_every_model_is_in_the_manual() -> None:
    pages = TEXT + (ROOT / "medcm_cli" / "docs" / "configuration.md").read_text(encoding="utf-8")
    named = {name for text in re.findall(r"`([^`\n]+)`", pages) for name in re.findall(r"\w+", text)}
    for name in needs_of_models():
        family = re.sub(r"^michaelis_menten(_\w+)?$", "michaelis_menten", name).removesuffix("_oral")
        assert family in named, name
    files = {path.stem for path in (conf_dir() / "pk").glob("*.yaml")}
    cells = re.findall(r"^\| `([a-z]\w+)`", TEXT, re.MULTILINE)
    assert len(cells) > 15
    assert set(cells) <= files


def test_the_command_of_the_page(tmp_path: Path) -> None:
    (command,) = re.findall(r"^    (medcm fit .+)$", TEXT, re.MULTILINE)
    g, rows = np.random.default_rng(0), []
    for patient in range(1, 7):
        rows.append({"ID": patient, "TIME": 0.0, "AMT": 80.0, "DV": np.nan, "EVID": 1})
        for time in (6.0, 24.0, 48.0, 96.0):
            response = 100 - 60 * time / 24 * np.exp(1 - time / 24) + g.normal()
            rows.append({"ID": patient, "TIME": time, "AMT": np.nan, "DV": response, "EVID": 0})
    pd.DataFrame(rows).to_csv(tmp_path / "pca.csv", index=False)
    options = [word for word in words_of(command) if not word.startswith("dataset.path=")]
    options = [word.replace('"', "'") if "units" in word else word for word in options]
    job = Job.build(
        configuration(tmp_path / "pca.csv", tmp_path, *options, "epochs=2", "training.polish=false")
    )
    trained = job.train([(1, 1)])
    assert trained.failures == (None,)
    assert bool(torch.isfinite(trained.objective).all())


def test_a_response_at_rest_needs_no_dose(tmp_path: Path) -> None:
    """Observations alone, and before anything is given."""
    rows = [
        {"ID": patient, "TIME": time, "AMT": 0.0, "DV": 90.0 + patient + time, "EVID": 0}
        for patient in range(1, 5)
        for time in (0.0, 5.0, 20.0)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "events.csv", index=False)
    options = ("dataset=table", "dataset.name=mine", UNITS, "split=all", "dataset.predose_observations=keep")
    needs = (*needs_of_models()["response_turnover"], "network.initial={BASE: 90}")
    config = configuration(
        tmp_path / "events.csv", tmp_path, *options, "pk=response_turnover", "objective=fo", *needs
    )
    problem = Job.build(config).problem
    zeta = {"BASE": torch.tensor([90.0]), "KOUT": torch.tensor([0.1])}
    got = problem.model.predict(zeta, problem.everyone)
    torch.testing.assert_close(got, torch.full_like(got, 90.0))
