"""What is said of options that do not exist, and what was meant by them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from medcm_cli.cli import main
from medcm_cli.commands import fit, posterior
from medcm_cli.commands.nearest import nearest
from medcm_cli.errors import InputError

NAMES = ["epochs", "seed", "outer", "outputs", "objective", "objective.samples", "objective.lkj", "pk.lag"]


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("epoch", ["epochs"]),
        ("objective.sample", ["objective.samples"]),
        ("objectiv.samples", ["objective.samples"]),
        ("samples", ["objective.samples"]),
        ("output", ["outputs"]),
        ("pk.lkj", ["objective.lkj"]),  # no option of pk is like it
        ("device", []),
        ("", []),
    ],
)
def test_nearest(word: str, names: list[str]) -> None:
    assert nearest(word, NAMES) == names
    assert nearest(word, []) == []


def test_at_most_two_are_named() -> None:
    assert len(nearest("fold", ["folds", "folda", "foldb"])) == 2


WORDS = {
    "epoch=3": "epoch: no such option; did you mean epochs?",
    "+epoch=3": "epoch: no such option; did you mean epochs?",
    "++epoch=3": "epoch: no such option; did you mean epochs?",
    "~optimiser": "optimiser: no such option; did you mean optimizer?",
    "gadget=cuda": "gadget: no such option; medcm fit --help lists them",
    "+gadget=cuda": "gadget: no such option; medcm fit --help lists them",
    "objectiv=vi": "objectiv: no such option; did you mean objective?",
    "objective.sample=2": "objective.sample: no such option; did you mean objective.samples?",
    "dataset.level_units=IU/mL": "dataset.level_units: no such option; did you mean dataset.level_unit?",
    "batch.fit=2": "batch.fit: no such option; did you mean batch.fits?",
    "samples=2": "samples: no such option; did you mean objective.samples?",
    "objective.formulation=joint": "objective.formulation: only objective=foce has this option",
    "objective=vii": "objective=vii: no such choice; did you mean vi?",
    "objective=em": "objective=em: no such choice; did you mean saem?",
    "objective=q": "objective=q: no such choice; there are agq, fo, foce, focei, iw, laplace, mse, saem, vi",
    "-m error=additive,combine": "error=combine: no such choice; did you mean combined?",
    "pk.lag.V1=1": "pk.lag.V1: no such option; to add it, give +pk.lag.V1=1",
    "+pk.lag={V1:1} nonsense=1": "nonsense: no such option; medcm fit --help lists them",
    "dataset.covariates={weight:{unit:kg}} batch.fit=2": (
        "batch.fit: no such option; did you mean batch.fits?"
    ),
    "dataset.covariates={weight:{unit:kg},age:{unit:a}}": (
        "dataset.covariates: entries are added with a +, as in "
        "+dataset.covariates={weight:{unit:kg},age:{unit:a}}"
    ),
    "pk.lag={V1:1}": "pk.lag: entries are added with a +, as in +pk.lag={V1:1}",
    "dataset.covariates.vfw=3": (
        "dataset.covariates.vfw: no such option; did you mean dataset.covariates.vwf?"
    ),
    "dataset.covariates.age=3": (
        "dataset.covariates.age: no such option; to add it, give +dataset.covariates.age=3"
    ),
    "optimizer.eps=1": "optimizer.eps: no such option; to add it, give +optimizer.eps=1",
    "folds=1,2": "folds: no such option; did you mean fold?",
    "epochs=1,2": "epochs=1,2: several values; -m runs each of them, epochs=[1,2] makes them a list",
    "network.branches=[1": "network.branches=[1: no viable alternative at input '[1'",
    "--multrun": "--multrun: medcm fit has no such flag; did you mean --multirun?",
    "--epochs 3": "--epochs: medcm fit has no such flag; options are given without dashes, as in seed=1",
    "-cn as_published": (
        "--config-name as_published: no such configuration; --config-dir FOLDER says where it is"
    ),
    "-cn confg": "--config-name confg: no such configuration; did you mean config?",
    "hydra.jobs=1": "Could not override 'hydra.jobs'.",
}


@pytest.mark.parametrize("line", WORDS)
def test_an_unknown_option_suggests_those_that_are_like_it(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["medcm"])
    with pytest.raises(InputError, match=f"^{re.escape(WORDS[line])}$") as caught:
        fit.command(line.split())
    assert "append" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "better"),
    [
        ("dataset.path=Größe.csv", """'dataset.path="Größe.csv"'"""),
        ("dataset.path=it's (1).csv", """'dataset.path="it'\\''s (1).csv"'"""),
        ("+dataset.columns={dv: Größe (cm), id: NR}", """'+dataset.columns={dv: "Größe (cm)", id: NR}'"""),
        ("+dataset.columns={dv: Größe, id: 'a (b)'}", """{dv: "Größe", id: '\\''a (b)'\\''}'"""),
        ("+dataset.keep={Größe: [1]}", "write it in a file"),
        ("+dataset.keep.Größe=[1]", "write it in a file"),
    ],
)
def test_a_value_that_needs_quotes_is_written_out(
    option: str, better: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["medcm"])
    with pytest.raises(InputError) as caught:
        fit.command(["dataset=table", option])
    assert better in str(caught.value)
    assert "token" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("draw=3", "draw: no such option; did you mean draws?"),
        ("+draw=3", "draw: no such option; did you mean draws?"),
        ("epochs=3", "epochs: no such option; medcm posterior --help lists them"),
        ("error=combine", "error=combine: no such choice; did you mean combined?"),
        ("objective=vi", "objective: no such option; medcm posterior --help lists them"),
    ],
)
def test_a_posterior_has_options_of_its_own(
    argument: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["medcm"])
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        posterior.command([argument])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fti", "fti: no such command; did you mean fit?"),
        ("train", "train: no such command; medcm --help lists them"),
        ("", "give a command; medcm --help lists them"),
        ("--vesion", "--vesion: medcm has no such flag; did you mean --version?"),
        ("plot --formt", "--formt: medcm plot has no such flag; did you mean --format?"),
        ("plot --formt=png out", "--formt: medcm plot has no such flag; did you mean --format?"),
        ("report out --why", "--why: medcm report has no such flag; see medcm report --help"),
        ("help confguration", "confguration: the manual has no such topic; did you mean configuration?"),
        ("fit +objective.sampel=3", "objective.sampel: no such option; did you mean objective.samples?"),
    ],
)
def test_one_line_and_exit_code_2(
    line: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["medcm", *line.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", f"medcm: {words}\n")


DEEP = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize(
    "argument", [f"{name}={DEEP}" for name in ("seed", "fold", "pk", "+pk.lag", "dataset.keep")]
)
@pytest.mark.parametrize("command", [fit.command, posterior.command])
def test_brackets_inside_one_another_are_counted_before_they_are_read(
    argument: str, command: Callable[[list[str]], None]
) -> None:
    name = argument.partition("=")[0]
    with pytest.raises(
        InputError, match=f"^{re.escape(name)}: expected at most 50 brackets inside one another$"
    ):
        command([argument])


FILES = {
    "lists inside one another": f"seed: {'[' * 2000 + ']' * 2000}",
    "more levels than there can be": f"seed: {'[' * 60 + ']' * 60}",
    "a list inside itself": "seed: &a [*a]",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "lists inside one another" else n for n in FILES],
)
def test_a_configuration_that_is_nested_too_deeply(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep.yaml").write_text(f"defaults: [config, _self_]\n{FILES[name]}\n")
    monkeypatch.setattr("sys.argv", ["medcm", "fit", "-cd", str(tmp_path), "-cn", "deep"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "configuration" in line
    assert "is nested too deeply" in line


def test_what_was_meant_is_said_beside_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "damaged.yaml").write_text(f"a: {DEEP}")
    monkeypatch.setattr("sys.argv", ["medcm"])
    with pytest.raises(InputError, match="did you mean epochs"):
        fit.command(["-cd", str(tmp_path), "epoch=3"])


@pytest.mark.parametrize("line", ["plot --form", "report --q"])
def test_a_flag_may_be_shortened(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["medcm", *line.split()])
    with pytest.raises(SystemExit):
        main()
    assert "expected one argument" in capsys.readouterr().err
