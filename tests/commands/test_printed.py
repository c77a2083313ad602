"""Every command that README.md and the manual print passes the checking step: flags and options are there,
and, where Hydra composes them, which takes a second each, choices and values fit together. Nothing is trained
or read; tests/test_manual.py runs those of its page on extending."""

import argparse
import functools
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from medcm_cli.cli import COMMANDS
from medcm_cli.commands import fit, help, posterior
from medcm_cli.commands.compose import checked_flags
from medcm_cli.commands.mistyped import _Options
from medcm_cli.commands.parser import check_flags
from medcm_cli.errors import InputError
from medcm_cli.patients.targets import read_target
from medcm_cli.runs import Units
from medcm_cli.study.axes import axis, folds_of
from medcm_cli.study.dataset import with_stand_in
from medcm_cli.study.job import objective_of, optimizer_of
from medcm_cli.study.options import PROBLEM, as_config, complete, complete_problem, conf_dir
from medcm_cli.study.problem import model_of
from tests.commands.test_flags import reads
from tests.helpers import ROOT

DOCS = ROOT / "medcm_cli" / "docs"
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.glob("*.md") if page.stem != "extending")]
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"^[A-Z]+$")


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """What stands before ``medcm`` and what comes after it, of each command in code: in blocks, in lines that
    are set in by four blanks, and in the cells of tables that are commands with arguments."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(FENCE.findall(text)).splitlines()
    blocks += [line.strip() for line in FENCE.sub("", text).splitlines() if line.startswith("    ")]
    blocks += re.findall(r"^\| `(medcm [^`]+)` \|", text, re.MULTILINE)
    found = []
    for line in blocks:
        for part in line.split(" && "):
            match = re.match(r"^(?:\S*/)?medcm (.*)$|^(PYTHONPATH=\S+) medcm (.*)$", part)
            if match:
                words = shlex.split(match[1] or match[3], comments=True)
                found.append((match[2] or "", words))
    return found


def mentions(page: Path) -> list[str]:
    """Commands in the midst of a sentence, which need not be whole."""
    text = " ".join(FENCE.sub("", page.read_text(encoding="utf-8")).split())
    return re.findall(r"`medcm ([^`]+)`", text)


PRINTED = [(page.stem, *found) for page in PAGES for found in commands(page)]
WRITTEN = ("-cd", ".")  # a configuration that the reader has, as `medcm new` writes it
COMPOSED = [one for one in PRINTED if one[2][0] in ("fit", "posterior") and tuple(one[2][1:3]) != WRITTEN]
IN_SHORT = ("posteriors", "configuration: fit pk=")  # the others are composed with the slow tests


def named(stem: str, words: list[str]) -> str:
    return f"{stem}: {' '.join(words)}"[:120]


def of_fit(composed: DictConfig, _: object = None) -> None:
    """What a job checks before it reads data."""
    config = with_stand_in(complete(as_config(composed)))
    axis("replicate", config["replicate"])
    folds_of(config)
    model_of(config)
    objective_of(config)
    optimizer_of(config["optimizer"])


def of_posterior(composed: DictConfig, own: Mapping[str, Any], *_: object) -> None:
    """What a posterior checks, after its own options."""
    del composed
    posed = {key: own[key] for key in PROBLEM}
    model_of(complete_problem({**posed, "study": own["study"] or "default"}))


def parsed(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    options = reads(command, monkeypatch)(words)
    for target in getattr(options, "target", []):
        of_all = Units("IU/dL", 100.0, "IU/mL", "IU")
        read_target(target, of_all)
    if command == "help" and options.topic is not None:
        assert PLACEHOLDER.match(options.topic) or options.topic in help.topics()
    return options


@functools.cache
def options_of(config_name: str, folder: str | None) -> list[str]:
    folders = [conf_dir(), *([ROOT / folder] if folder else [])]
    return list(_Options(config_name, folders).of)


@pytest.mark.parametrize("words", [pytest.param(one[2], id=named(one[0], one[2])) for one in PRINTED])
def test_a_printed_command_is_taken(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command, *rest = words
    config_name = {"fit": "config", "posterior": "posterior"}.get(command)
    if config_name is not None:
        quoted = [posterior.as_one_value(word) for word in rest]
        flags = checked_flags(command, config_name, fit.coalesce(quoted) if command == "fit" else quoted)
        known = options_of(config_name, flags.config_dir)
        for override in OverridesParser.create().parse_overrides(flags.overrides):
            name = override.key_or_group
            if name.startswith("hydra"):  # of a launcher
                assert name != "hydra/launcher" or (conf_dir() / name / f"{override.value()}.yaml").is_file()
                continue
            assert any(name == one or name.startswith(f"{one}.") for one in known), name
        if flags.config_name is not None and flags.config_dir != ".":  # which `medcm new` has written
            assert (ROOT / flags.config_dir / f"{flags.config_name}.yaml").is_file()
    elif command in COMMANDS:
        parsed(command, rest, monkeypatch)
    else:
        assert words in (["--version"], ["--help"], ["-sc", "install=bash"])


@pytest.mark.parametrize(
    ("before", "words"),
    [
        pytest.param(
            *one[1:],
            id=named(one[0], one[2]),
            marks=[] if named(one[0], one[2]).startswith(IN_SHORT) else pytest.mark.slow,
        )
        for one in COMPOSED
    ],
)
def test_a_printed_configuration_fits_together(
    before: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["medcm"])
    monkeypatch.setattr(fit, "_job", of_fit)
    monkeypatch.setattr("medcm_cli.commands.posterior_job.run", of_posterior)
    if before:
        monkeypatch.syspath_prepend(ROOT / before.partition("=")[2])
    command, *rest = (word for word in words if not word.lstrip("+").startswith("hydra"))  # not installed
    run: Mapping[str, Callable[[list[str]], None]] = {"fit": fit.command, "posterior": posterior.command}
    run[command](rest)


def test_what_is_mentioned_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, flags and topics; a command in a sentence may lack what it needs."""
    seen = 0
    for page in PAGES:
        for text in mentions(page):
            command, *rest = shlex.split(text)
            seen += 1
            if PLACEHOLDER.match(command) or command in ("--version", "--help", "-sc"):
                continue
            assert command in COMMANDS, f"{page.name}: medcm {text}"
            if command not in ("fit", "posterior"):
                parser = getattr(reads(command, monkeypatch), "__self__")  # noqa: B009 (of a bound method)
                check_flags(parser, rest)
            if command == "help" and rest:
                assert PLACEHOLDER.match(rest[0]) or rest[0] in help.topics()
    assert seen > 20


def test_the_reader_of_pages_sees_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the tests above."""
    found = {page.stem: [" ".join(words) for _, words in commands(page)] for page in PAGES}
    assert "summarize outputs" in found["README"]
    assert any(line.startswith("fit -m objective=mse,fo,foce,vi") for line in found["README"])
    assert (
        "dose --run outputs/default --objective vi --patient patient.csv --target trough>=0.01 IU/mL"
        in (found["README"])
    )
    assert len(found["paper"]) > 15
    assert any(line.startswith("posterior run=outputs/default") for line in found["posteriors"])
    with pytest.raises(InputError):
        parsed("distance", ["outputs/default/posterior/known"], monkeypatch)
    assert isinstance(parsed("distance", ["a", "b"], monkeypatch), argparse.Namespace)
