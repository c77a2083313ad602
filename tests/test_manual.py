"""The manual: what points into it leads somewhere, and of the page on extending the files are written into a
folder and the commands run there."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from medcm_cli import runs
from medcm_cli.haemophilia.virtual import Settings, write_study
from tests.helpers import ROOT, ran

DOCS = ROOT / "medcm_cli" / "docs"
PAGE = (DOCS / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(mine/\S+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.DOTALL)
    for line in block.splitlines()
]
LIMIT = 300  # s, for a command that hangs
SHORT = ("epochs=2", "checkpoint_every=1", "dataset.path=data", "variant=short", "study={number}")


def program(number: int) -> tuple[list[str], dict[str, str]]:
    """A command of the page as a list of words, with few epochs and a separate study if it is a fit, and its
    environment."""
    variable, name, *words = shlex.split(COMMANDS[number])
    assert variable == "PYTHONPATH=mine"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(("mine", str(ROOT)))}
    if name == "medcm":
        short = [option.format(number=number) for option in SHORT]
        return [sys.executable, "-m", "medcm_cli", *words, *short], environment
    assert name == "python3"
    return [sys.executable, *words, "-p", "no:cacheprovider"], environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where somebody has followed the page."""
    folder = tmp_path_factory.mktemp("manual")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    write_study(folder / "data", Settings(n=8, folds=1, fold_size=5))
    return folder


def test_the_page_shows_a_file_for_each_that_it_lists() -> None:
    (listed,) = re.findall(r"^```text\nmine/\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert sorted(FILES) == sorted(f"mine/{line.split()[0]}" for line in listed.splitlines())
    blocks = re.findall(r"^```(?:python|yaml)$", PAGE, re.MULTILINE)
    assert len(blocks) == len(FILES)
    for example in ("objective=penalised_fo", "network=power", "pk=parallel", "pytest mine"):
        assert any(example in command for command in COMMANDS)


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, id=line, marks=[pytest.mark.slow] if n else []) for n, line in enumerate(COMMANDS)],
)
def test_the_command_does_what_it_says(folder: Path, number: int) -> None:
    words, environment = program(number)
    done = ran(words, folder, environment, LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    if "medcm_cli" not in words:
        assert f"{FILES['mine/test_mine.py'].count('def test_')} passed" in done.stdout
        return
    (run,) = runs.find(folder / "outputs" / str(number))
    record = runs.read_record(run)
    assert record is not None
    assert record.status == "complete"
    for word in words:
        group, _, choice = word.partition("=")
        if group in ("objective", "network", "pk"):
            target = re.search(r"_target_: ([a-z_]\S+)", FILES[f"mine/{group}/{choice}.yaml"])
            assert target is not None
            assert record.config[group]["_target_"] == target[1]


@pytest.mark.slow
def test_options_that_make_no_sense_end_in_one_line(folder: Path) -> None:
    words, environment = program(0)
    done = ran([*words, "objective.penalty=-1"], folder, environment, LIMIT)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("objective.penalty is -1; expected a number from 0")
    assert "\n" not in done.stderr.strip()


@pytest.mark.slow
def test_results_of_ones_own_objective_are_read_on_trust(folder: Path) -> None:
    words, environment = program(0)
    words = [*words, "study=trusted"]
    assert ran(words, folder, environment, LIMIT).returncode == 0
    plot = [sys.executable, "-m", "medcm_cli", "plot", "outputs/trusted", "--format", "svg"]
    without = ran(plot, folder, environment, LIMIT)
    assert "objective._target_ is 'penalised.PenalisedFo', which is not medcm's own" in without.stderr
    trusting = ran([*plot, "--trust"], folder, environment, LIMIT)
    assert (trusting.returncode, trusting.stderr) == (0, "")
    assert list((folder / "outputs" / "trusted" / "figures").rglob("goodness_*.svg"))


# -- references ------------------------------------------------------------------------------------


def headings(page: Path) -> dict[str, str]:
    """Anchor, as a code host makes it -> heading."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"): heading for heading in found}


def test_what_points_into_the_manual_names_a_section_that_is_there() -> None:
    """In sources and configurations: docs/PAGE.md, "SECTION"."""
    pointers = []
    for path in [*ROOT.glob("medcm_cli/**/*.py"), *ROOT.glob("conf/**/*.yaml"), *ROOT.glob("tests/**/*.py")]:
        words = " ".join(path.read_text(encoding="utf-8").split())
        pointers += re.findall(r'docs/(\w+)\.md, "([^"]+)"', words)
    assert len(pointers) > 20
    for page, section in set(pointers) - {("PAGE", "SECTION")}:
        assert section in headings(DOCS / f"{page}.md").values(), f"{page}.md has no section {section}"


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*DOCS.glob("*.md"), ROOT / "README.md"]
    assert len(pages) > 10
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            other = page.parent / name if name else page
            assert other.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in headings(other), f"{page.name}: {target}"


def test_no_document_is_cited_that_is_not_there() -> None:
    """Notes that people wrote for themselves are no part of the project."""
    for path in (p for folder in ("medcm_cli", "conf", "experiments") for p in (ROOT / folder).rglob("*")):
        if path.suffix in (".py", ".md", ".yaml"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\b(METHODS|ESTIMATION|HOUSE|DESIGN)(, \"|\.md)", text), path
