"""Tables in the width of a terminal: every number of every command stands on one line, with what belongs to
it."""

import ast
import io
import random
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.cells import cell_len

import medcm_cli
from medcm_cli.commands import help, layout, predictions, terminal
from medcm_cli.commands.posterior_job import _summary
from medcm_cli.report.section import Section, in_lines
from medcm_cli.runs import Units
from medcm_cli.study.job import Job
from tests.helpers import configuration, write_draws

WIDTHS = (80, 120)
LONG = "a_clinic's own name of something, 0.125 mg/kg of it (every 12 h)/and so on" * 2
_NUMBER = r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?"
# A number with its interval, its spread, its unit or sign of percent, or else alone.
TOKEN = re.compile(
    rf"{_NUMBER} to {_NUMBER}|{_NUMBER} \({_NUMBER}(?: to {_NUMBER})?\)|{_NUMBER} (?:%|mg/L|IU|h)\b|{_NUMBER}"
)


def printed(section: Section, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    text = io.StringIO()
    console = terminal._Plain(
        file=text, force_terminal=True, width=width, soft_wrap=True, markup=False, color_system=None
    )
    monkeypatch.setattr(terminal, "OUT", console)
    terminal.show(section)
    return text.getvalue().splitlines()


def in_order(text: str) -> str:
    return "".join(text.split())


def check(section: Section, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, no line is too long, and what belongs together is on one line."""
    lines = printed(section, width, monkeypatch)
    assert max(map(cell_len, lines)) <= width
    section = in_lines(section)
    whole = "\n".join(lines)
    for cell in {cell for row in section.cells for cell in row}:
        for token in TOKEN.findall(cell):
            often = sum(TOKEN.findall(other).count(token) for row in section.cells for other in row)
            assert whole.count(token) >= often, (token, whole)
    letters = sorted("".join(cell for row in section.cells for cell in row).replace(" ", ""))
    shown = sorted(in_order(whole))
    for letter in set(letters):
        assert shown.count(letter) >= letters.count(letter), letter


# -- any table -------------------------------------------------------------------------------------


def words(draw: random.Random) -> str:
    kinds = (
        lambda: f"{draw.uniform(-2000, 2000):.{draw.randrange(6)}f}",
        lambda: f"{draw.random():.3g} to {draw.random() * 100:.4g}",
        lambda: f"{draw.uniform(0, 3000):.1f} ({draw.uniform(0, 100):.2f} to {draw.uniform(0, 9):.3f})",
        lambda: f"{draw.random():.3g} mg/L, missing {draw.random():.1f} %, changes in time",
        lambda: "".join(draw.choices("abcdefghij_/-=,.{}[]:", k=draw.randrange(1, 90))),
        lambda: " ".join(f"{name}={draw.random():.9f}" for name in draw.choices("abcdef", k=5)),
        lambda: LONG[: draw.randrange(len(LONG))],
        lambda: "",
        lambda: "漢字の名前" * draw.randrange(1, 9),
    )
    return draw.choice(kinds)()


@pytest.mark.parametrize("seed", range(60))
def test_any_table_fits_and_loses_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    columns, rows = draw.randrange(1, 15), draw.randrange(1, 6)
    cells = [[words(draw) for _ in range(columns)] for _ in range(rows)]
    section = Section(words(draw), [words(draw) or "x" for _ in range(columns)], cells)
    for width in (*WIDTHS, 60):
        check(section, width, monkeypatch)


def test_a_table_that_has_room_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    section = Section("levels", ["patient", "90 %, mg/L"], [["one", "1 to 20"], ["two", "3 to 4"]])
    assert printed(section, 80, monkeypatch) == [
        "levels",
        "patient  90 %, mg/L",
        "───────────────────",
        "one         1 to 20",
        "two          3 to 4",
        "",
    ]


def test_blocks_repeat_the_columns_that_tell_rows_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = ["patient", "regimen", "time, h", *(f"measure {i}, IU/dL (90 %)" for i in range(6))]
    cells = [
        [who, "given", time, *[f"{i}00.5 (1.25 to 3000.75)" for i in range(6)]]
        for who in ("one", "two")
        for time in ("24", "48")
    ]
    lines = printed(Section("levels", headers, cells), 80, monkeypatch)
    heads = [line for line in lines if line.startswith("patient")]
    assert len(heads) == 6 / 2
    assert all(re.match(r"patient +regimen +time, h +", line) for line in heads)
    for time in ("24", "48"):
        assert sum(bool(re.match(rf"one +given +{time} ", line)) for line in lines) == len(heads)


def test_rows_that_nothing_tells_apart_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [["vi", f"{10**9 + i} ({10**9} to {10**10})", *["1234567.5 (0.1 to 2.5)"] * 4] for i in (2, 1)]
    cells = [[*row[:1], *["same"] * 3, *row[1:]] for row in cells]
    lines = printed(Section("t", [f"h{i}" for i in range(9)], cells), 80, monkeypatch)
    assert [line.split("(")[0].split()[-1] for line in lines if "1000000" in line] == [
        "1000000002",
        "1000000001",
    ]


def test_a_terminal_too_narrow_for_two_columns_gets_records(monkeypatch: pytest.MonkeyPatch) -> None:
    section = Section("t", ["patient", "level"], [["x" * 40, "12.5 (1.25 to 30000.75)"], ["y", "1 (0 to 2)"]])
    lines = printed(section, 26, monkeypatch)
    assert "  12.5 (1.25 to 30000.75)" in lines
    assert "level: 1 (0 to 2)" in lines
    assert max(map(len, lines)) <= 26


def test_a_number_longer_than_the_terminal_is_whole_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    number = "1" + "0" * 100
    assert number in "\n".join(printed(Section("t", ["id", "level"], [[number, "1.5"]]), 80, monkeypatch))


def test_anything_but_a_terminal_gets_full_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal.show(Section("t", ["id", "level"], [["x" * 200, "12.5 (1.25 to 30000.75)"]]))
    assert f"| {'x' * 200} | 12.5 (1.25 to 30000.75) |" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_the_manual_breaks_none_either(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in help.topics().values():
        text, shown = page.read_text(encoding="utf-8"), io.StringIO()
        console = terminal._Plain(file=shown, force_terminal=True, width=width, color_system=None)
        monkeypatch.setattr(help, "OUT", console)
        help._show(text)
        rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
        for number in set(re.findall(r"\d[\d.,]*\d(?: to [\d.]*\d| %)?", rows)):
            assert number in shown.getvalue(), (page.name, number)


# -- the tables of every command ---------------------------------------------------------------------

# Where tables are made that commands print: a table that is made elsewhere is to be walked over below too.
MADE = {
    "commands.calibrate",
    "commands.distance",
    "commands.doses",
    "commands.ode_speed",
    "commands.patients",
    "commands.posterior_job",
    "commands.predictions",
    "commands.speed",
    "commands.standard_errors",
    "commands.status",
    "report.intervals",  # of the page
    "report.page",
    "report.scores",
    "report.provenance",
    "report.section",
    "report.tables",
}


def test_every_place_that_makes_tables_is_known() -> None:
    package = Path(medcm_cli.__file__).parent
    made = set()
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text if "Section(" in text else "")
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if any(isinstance(call.func, ast.Name) and call.func.id == "Section" for call in calls):
            made.add(".".join(path.relative_to(package).with_suffix("").parts))
    assert made == MADE


@pytest.fixture(scope="module")
def place(mixed_fits: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fits, patients and a posterior of long names."""
    folder = tmp_path_factory.mktemp("a folder of a name that is rather long 0.125 of it")
    frame = pd.read_parquet(data / "simulation.parquet")
    some = frame[frame["id"].isin(frame["id"].unique()[:3])].copy()
    some["id"] = some["id"].map(dict(zip(some["id"].unique(), (LONG, "2", f"3, {LONG}"), strict=True)))
    some.assign(**{f"{LONG}_{i}": some["wt"] + i for i in range(2)}).to_csv(folder / "p.csv", index=False)
    (folder / "plan.yaml").write_text(f'name: "{LONG}"\ndoses: [{{amount: 1500, ii: 48, addl: 3}}]\n')
    write_draws(folder / "draws", mixed_fits)
    job = Job.build(
        configuration(data, folder / "outputs", "objective=fo", "network=truth", "split=all", "epochs=300")
    )
    job.run(list(job.plan().records.values()))
    (folder / "expected.csv").write_text(
        "objective,measure,statistic,value,tolerance,source\n"
        f'vi,objective_value,median,-1234.56789,0.125,"{LONG}"\nmse,rmse,median,5.125,,paper\n'
    )
    return folder


@pytest.fixture(scope="module")
def found(place: Path, mixed_fits: Path) -> dict[str, list[Section]]:
    """What each command shows on a terminal."""
    patient = ("--run", str(mixed_fits), "--objective", "vi", "--patient", str(place / "p.csv"))
    commands: dict[str, tuple[str, ...]] = {
        "summarize": (str(mixed_fits), "--expected", str(place / "expected.csv"), "--out", str(place / "s")),
        "status": (str(mixed_fits),),
        "data": ("check", str(place / "p.csv"), "--level-unit", "IU/mL", "--amount-unit", "IU"),
        "uncertainty": (str(place / "outputs"),),
        "score": (str(place / "outputs"), "--by", "fo"),
        "calibrate": (str(mixed_fits), "--sets", "1"),
        "distance": (str(place / "draws"), str(mixed_fits)),
        "predict": (*patient, "--draws", "20", "--regimen", str(place / "plan.yaml")),
        "dose": (*patient, "--draws", "20", "--target", "trough>=0.01 IU/mL", "--target", "auc>=1 IU/mL*h"),
    }
    result: dict[str, list[Section]] = {}
    with pytest.MonkeyPatch.context() as patched:
        console = terminal._Plain(file=io.StringIO(), force_terminal=True, width=1000, soft_wrap=True)
        patched.setattr(terminal, "OUT", console)
        patched.setattr(predictions, "_draw", lambda *_: None)  # figures take seconds

        def keep(section: Section, width: int) -> Sequence[list[str]]:
            result.setdefault(name, []).append(section)
            return [["" for _ in range(width)][:1]]

        patched.setattr(layout, "blocks", keep)
        for name, words in commands.items():
            import_module(f"medcm_cli.commands.{name}").command(list(words))
    return result


def sections(found: dict[str, list[Section]]) -> Iterator[Section]:
    for several in found.values():
        yield from several
    quantities = np.repeat(["eta_1", f"eta_{LONG}", "sigma_additive"], [2, 2, 1])
    draws = pd.DataFrame({"quantity": quantities, "position": [1, 2, 1, 2, np.nan]})
    numbers = ("mean", "sd", "r_hat", "ess_bulk", "ess_tail")
    shown = draws.assign(divergences=3, **dict.fromkeys(numbers, 1234.567))
    yield _summary(shown, LONG, {LONG: "log scale"}, Units("mg/L", 1.0, "mg/L", "mg"))
    yield Section(LONG, ["what", "median", "ratio", "aim"], [[LONG, "12.5 ms (10.25 to 30)", "1.25", LONG]])


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_no_command_breaks_a_number(
    found: dict[str, list[Section]], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(map(found.get, ("summarize", "status", "data", "uncertainty", "distance", "predict", "dose")))
    for section in sections(found):
        check(section, width, monkeypatch)


@pytest.mark.slow
def test_the_walk_saw_the_tables_that_there_are(found: dict[str, list[Section]]) -> None:
    titles = {section.title for section in sections(found)}
    for part in (
        "estimates",
        "beside",
        "Distance to NUTS",
        "sandwich",
        "Levels",
        "Candidates",
        "What was read",
    ):
        assert any(part in title for title in titles), (part, titles)
    assert any(LONG in cell for section in found["predict"] for row in section.cells for cell in row)
