"""Where predictions and doses go: those of other patients, regimens or options never in the place of others,
and the same again in its own."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medcm_cli import runs
from medcm_cli.commands import dose, predict
from medcm_cli.commands.parser import Parser
from medcm_cli.commands.patients import folder_for
from medcm_cli.commands.replaced import asked
from medcm_cli.errors import InputError

ADDRESS = runs.Address("s", "d", "vi", "additive", 0.1, "default", 1, 1)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What of a study says where it lies."""
    monkeypatch.chdir(tmp_path)
    fits = SimpleNamespace(
        folders=[ADDRESS.folder(tmp_path / "outputs")], records=[SimpleNamespace(address=ADDRESS)]
    )
    return SimpleNamespace(fits=fits)


def options(command: Any, *words: str) -> argparse.Namespace:
    parser = Parser("any", "")
    command.add_options(parser)
    return parser.read(["--run", "outputs/s", "--patient", "p.csv", *words])


def written(study: Any, given: argparse.Namespace, name: str = "p", kind: str = "predictions") -> Path:
    """The folder that a command with these options has written."""
    folder = folder_for(study, given.out, kind, name, asked(given))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}.json").write_text(json.dumps({"options": asked(given)}))
    return folder


PREDICTED = (
    ("--times", "0:48:1"),
    ("--times", "0:48:2"),
    ("--threshold", "1"),
    ("--method", "laplace"),
    ("--draws", "50"),
    ("--objective", "vi"),
    ("--regimen", "other/plan.yaml"),
    ("--regimen", "plan.yaml"),
    ("--dialect", "decimal=comma"),
    ("--patient", "elsewhere/p.csv"),
    ("--run", "outputs/s/dataset=d"),
    ("--check",),
    ("--check", "--uses", "1"),
)


def test_each_question_has_a_folder_and_the_same_again_its_own(study: Any) -> None:
    every = [options(predict), *(options(predict, *words) for words in PREDICTED)]
    folders = [written(study, given) for given in every]
    assert len(set(folders)) == len(folders)
    assert folders[0] == Path("outputs/s/predictions/p")
    assert all(folder.name.startswith("p~") for folder in folders[1:])
    assert [written(study, given) for given in every] == folders
    assert written(study, options(predict, "--trust")) == folders[0]  # of no consequence


def test_so_has_each_target(study: Any) -> None:
    words: list[tuple[str, ...]] = [("--target", "trough>=1 mg/L"), ("--target", "trough>=2 mg/L")]
    words += [(*words[0], *more) for more in (("--vial", "500"), ("--every", "24"), ("--after", "given"))]
    folders = [written(study, options(dose, *one), kind="doses") for one in words]
    assert len(set(folders)) == len(words)


def test_a_folder_that_is_given_keeps_what_it_holds(study: Any) -> None:
    out = ("--out", "mine")
    assert written(study, options(predict, *out)) == Path("mine")
    assert written(study, options(predict, *out)) == Path("mine")
    with pytest.raises(InputError) as refused:
        written(study, options(predict, *out, "--times", "1,2", "--regimen", "plan.yaml"))
    words = "predictions that were asked for with another --regimen, --times; choose another --out"
    assert str(refused.value) == f"mine: holds {words}"


def test_what_an_earlier_version_left_stays(study: Any) -> None:
    folder = Path("outputs/s/predictions/p")
    folder.mkdir(parents=True)
    for held in ("{}", "[1]", "no JSON", '{"options": 3}'):
        (folder / "predictions.json").write_text(held)
        assert folder_for(study, None, "predictions", "p", asked(options(predict))) != folder
        with pytest.raises(InputError, match=r"another version of medcm; choose another --out"):
            folder_for(study, folder, "predictions", "p", asked(options(predict)))


def test_something_else_is_refused(study: Any) -> None:
    Path("outputs/s/predictions").mkdir(parents=True)
    for path in (Path("outputs/s/predictions/p"), Path("outputs/s/predictions/q/file")):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for name in ("p", "q"):
        with pytest.raises(InputError, match="holds no predictions of this command; choose another --out"):
            folder_for(study, None, "predictions", name, asked(options(predict)))


def test_many_regimens_make_no_name_that_is_too_long(study: Any) -> None:
    found = folder_for(study, None, "predictions", "_".join(["näme"] * 90), asked(options(predict)))
    assert len(found.name) <= 130
