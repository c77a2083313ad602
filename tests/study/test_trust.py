"""Reading a recorded configuration runs nothing that is not medcm's own, and imports nothing to find out."""

import contextlib
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import medcm_cli.objectives
from medcm_cli.errors import InputError
from medcm_cli.runs import Record
from medcm_cli.runs.description import described
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.identity import RENAMED
from medcm_cli.study.job import Job
from medcm_cli.study.options import conf_dir
from medcm_cli.study.reproduction import Command, commands
from medcm_cli.study.restore import ensemble, restore
from medcm_cli.study.trust import foreign_part
from tests.helpers import configuration
from tests.study.payloads import PLACES, calls

NAMES = list(calls(Path("/dev/null")))


@pytest.fixture(scope="module")
def fit(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    outputs = tmp_path_factory.mktemp("trust")
    job = Job.build(configuration(data, outputs, "objective=fo"))
    job.run(list(job.plan().records.values()))
    (fit,) = finished([outputs])
    return fit


def changed(record: Record, config: dict[str, Any]) -> Record:
    return dataclasses.replace(record, config=config)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_ours_is_refused_wherever_it_stands(
    fit: tuple[Path, Record], tmp_path: Path, name: str, place: str
) -> None:
    folder, record = fit
    marker = tmp_path / "executed"
    config = PLACES[place](record.config, calls(marker)[name])
    for bring_back in (restore, ensemble):
        with pytest.raises(InputError, match="--trust") as refused:
            bring_back([(folder, changed(record, config))])
        assert str(refused.value).startswith(f"{folder / 'run.json'}: ")
    (command,) = commands([changed(record, config)])
    assert command == Command((), 1, command.note)
    assert "--trust" in command.note
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["write", "unpickle", "unpickle by a module of ours", "a file by a function of ours"]
)
def test_the_payloads_work_where_there_is_trust(fit: tuple[Path, Record], tmp_path: Path, name: str) -> None:
    """Else the test above could not fail."""
    folder, record = fit
    marker = tmp_path / "executed"
    config = PLACES["network.branches"](record.config, calls(marker)[name])
    with contextlib.suppress(InputError, TypeError):  # it gives no branches
        restore([(folder, changed(record, config))], trust=True)
    assert marker.exists()


@pytest.mark.parametrize(
    "path",
    [
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "medcm_cli.pk.two_compartment",
        "medcm_cli.pk.compartments.two_compartment",
        "medcm_cli.model.CovariateNetwork.build",
        "medcm_cli.objectives.Vi",
        *RENAMED,
    ],
)
def test_what_is_ours_is_known_under_every_name(path: str) -> None:
    assert foreign_part({"group": {"_target_": path}}) == ""
    assert foreign_part({"rate": {"_target_": "hydra.utils.get_method", "path": path}}) == ""


@pytest.mark.parametrize(
    "path",
    [
        "medcm_cli",
        "torch.optim",
        "torch.optim.lr_scheduler.StepLR",
        "torch.optim.Adam.load_state_dict",
        "torch.nn.Linear",
        "medcm_cli.model.CovariateNetwork.build.__func__.__globals__.get",
        "medcm_cli.load_study",
        "medcm_cli.study.job.Job.build",
        "os",
        "",
        "..",
        None,
        3,
        ["os.system"],
    ],
)
def test_everything_else_is_not(path: object) -> None:
    assert foreign_part({"group": {"_target_": path}}) != ""


def test_nothing_is_imported_to_find_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a module of the path nor one that another module would load when asked for it."""
    (tmp_path / "harmful.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    foreign_part({"group": {"_target_": "torch.optim.Adam"}})
    before = set(sys.modules)
    for path in (
        "harmful.build",
        "medcm_cli.harmful.build",
        "torch.onnx.utils.export",
        "medcm_cli.dose",
        "antigravity",
    ):
        assert foreign_part({"group": {"_target_": path}}) != ""
    assert set(sys.modules) == before
    assert not (tmp_path / "executed").exists()


def test_every_choice_that_comes_with_medcm_is_read_without_trust(fit: tuple[Path, Record]) -> None:
    files = (path for path in conf_dir().rglob("*.yaml") if "hydra" not in path.relative_to(conf_dir()).parts)
    texts = (path.read_text(encoding="utf-8") for path in files)
    named = {name for text in texts for name in re.findall(r"(?:_target_|path): ([a-z_.]+\.\w+)", text)}
    ours = named - {"hydra.utils.get_method"}
    assert len(ours) > 15
    assert [path for path in ours if foreign_part({"group": {"_target_": path}})] == []
    assert foreign_part(fit[1].config) == ""


def test_an_objective_of_before_is_asked_only_if_it_is_one(
    fit: tuple[Path, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records without a description name a class, which is loaded for it."""
    called = []
    monkeypatch.setattr(medcm_cli.objectives, "harm", lambda **options: called.append(options), raising=False)
    for name, likelihood in (("harm", ""), ("Fo", "first-order")):
        config = {"objective": {"_target_": f"medcm_cli.objectives.{name}"}}
        assert described(dataclasses.replace(fit[1], described=None, config=config)).likelihood == likelihood
    assert called == []
