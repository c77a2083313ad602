"""``medcm report``: what run folders hold as one page that needs nothing else, no file and no network."""

import base64
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medcm_cli import __version__, runs
from medcm_cli.errors import InputError
from medcm_cli.files import write_text
from medcm_cli.report import provenance, tables
from medcm_cli.report.figures import catalogue, style
from medcm_cli.report.section import Section
from medcm_cli.runs import summary, sweeps
from medcm_cli.runs.sweeps import Found, Sweep
from medcm_cli.runs.walk import Fault, Fit, walk

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_MOST_LINES = 50  # of what cannot be read
_ONE_LINE = 36  # characters of a cell that stay on one line
_CURVE = 400  # characters, from which on a path is a curve and no marker or letter
_LARGEST_SVG = 400_000  # bytes, from which on an image takes its place where that is smaller


class Block(NamedTuple):
    """A part of a chapter. ``kind``: table, picture, command, text, warning or lines."""

    kind: str
    of: Any


@dataclass(frozen=True)
class Picture:
    """A figure as the page holds it; sizes in CSS pixels."""

    number: int
    title: str
    caption: str
    alt: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Chapter:
    """A heading with what stands below it, then the chapters inside it."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    inside: list["Chapter"] = field(default_factory=list)


def write(
    roots: Sequence[Path],
    out: Path,
    question: str | None = None,
    expected: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    trust: bool = False,
) -> int:
    """Write the page of every run folder below ``roots``, replacing one that is there; returns the number of
    its fits. Folders without any fit give a page that says so.

    :param question: what the study asks, in words. :param expected: as ``tables.compare`` has it.
    :param progress: told what is being done.
    :param trust: as ``study.restore.restore`` has it.
    :raises InputError: a root does not exist, ``expected`` is not as it should be, or ``out`` is a folder.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder; expected a file for the page, as in --out report.html")
    if expected is not None and not expected.is_file():
        raise InputError(f"{expected}: no such file")
    read = list(walk(roots, lambda count: progress(f"{count} fits read")))
    found, records = sweeps.gather(read, roots), sweeps.records_of(read)
    held = _summary(read, roots)
    chapters = list(_chapters(held, found, records, expected, progress, trust))
    studies = list(dict.fromkeys(record.address.study for record in records))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["classes"] = _classes
    page = environment.get_template("report.html.jinja").render(
        title=", ".join(studies) or ", ".join(map(str, roots)),
        question=question,
        lead=provenance.lead(records),
        chapters=chapters,
        written=f"medcm {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    write_text(out, page)
    return len(records)


def _classes(section: Section) -> list[Markup]:
    """The attribute of each column's cells: whether it holds numbers, which stand at its right, or text short
    enough for one line."""
    number = re.compile(r"-?\d[\d.e+-]*( \([^a-z]*\))?|-|")
    result = []
    for place in range(len(section.headers)):
        column = [row[place] for row in section.cells]
        if place and any(column) and all(map(number.fullmatch, column)):
            result.append(Markup(' class="number"'))
        else:
            short = max(map(len, column), default=0) <= _ONE_LINE
            result.append(Markup(' class="short"') if short else Markup(""))
    return result


def _chapters(
    held: summary.Summary | None,
    found: Found,
    records: Sequence[runs.Record],
    expected: Path | None,
    progress: Callable[[str], None],
    trust: bool,
) -> Iterator[Chapter]:
    unread = [] if held is None else held.skipped
    yield Chapter("overview", "Overview", _overview(records, [*unread, *found.missing]))
    drawn = {(sweep.study, sweep.dataset): sweep for sweep in found.sweeps}
    numbers = iter(range(1, 1_000_000))
    groups = sweeps.by_sweep(records)
    for place, ((study, dataset), group) in enumerate(groups.items(), 1):
        prefix = f"study-{place}"
        missing: list[str] = []
        pictures = list(_pictures(drawn.get((study, dataset)), missing, numbers, progress, trust))
        shown, patients = _tables(held, study, dataset)
        inside = [
            ("results", "Results", _results(shown)),
            ("figures", "Figures", _figures(pictures, missing)),
            ("data", "Data", provenance.data(group, patients)),
            ("configuration", "Configuration", provenance.configuration(group)),
            ("failures", "Failures and warnings", provenance.failures(group)),
        ]
        yield Chapter(
            prefix,
            f"{study}, {dataset}",
            inside=[
                Chapter(f"{prefix}-{anchor}", title, [Block(*block) for block in blocks])
                for anchor, title, blocks in inside
            ],
        )
    if expected is not None and held is not None:
        compared = tables.compare(held, expected)._replace(title=f"Measured beside {expected}")
        yield Chapter("expected", "Expected values", [Block("table", compared)])
    if records:
        progress("commands")
        blocks = [Block(*block) for block in provenance.reproduction(records, trust)]
        yield Chapter("reproduction", "Reproduction", blocks)


def _summary(read: Sequence[Fit | Fault], roots: Sequence[Path]) -> summary.Summary | None:
    """What ``medcm summarize`` shows, None where no fit can be read."""
    try:
        return summary.summary_of(read, roots)
    except InputError:
        return None


def _overview(records: Sequence[runs.Record], unread: Sequence[str]) -> list[Block]:
    blocks = []
    finished = sum(record.status == "complete" for record in records)
    if not records:
        blocks.append(Block("warning", "There are no fits here. `medcm fit` writes them."))
    elif not finished:
        blocks.append(Block("warning", "No fit is complete, so there are no estimates to show."))
    elif finished < len(records):
        count = f"{finished} of {len(records)} fits are complete"
        blocks.append(Block("warning", f"{count}; tables and figures show what there is."))
    if records:
        blocks.append(Block("table", provenance.overview(records)))
    lines = list(dict.fromkeys(unread))
    if lines:
        more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
        blocks.append(Block("lines", ("Not read, or not there", [*lines[:_MOST_LINES], *more])))
    return blocks


def _tables(held: summary.Summary | None, study: str, dataset: str) -> tuple[list[Section], Section | None]:
    """The tables of ``medcm summarize`` of one study and data set, and that of its patients."""
    if held is None:
        return [], None
    own = replace(
        held,
        fits=held.fits[(held.fits["study"] == study) & (held.fits["dataset"] == dataset)],
        table=held.table[(held.table["study"] == study) & (held.table["dataset"] == dataset)],
        cohorts={key: cohort for key, cohort in held.cohorts.items() if key == (study, dataset)},
    )
    shown = [provenance.titled(section, study, dataset) for section in tables.sections(own)]
    return (shown[:-1], shown[-1]) if own.cohorts else (shown, None)


def _results(shown: Sequence[Section]) -> list[tuple[str, Any]]:
    if not shown:
        return [("text", "No fit can be read.")]
    note = (
        "Median (sd) over complete fits, or over the outer shuffles of a nested split, of the mean over a "
        "fit's last checkpoints. A dash: nothing to show."
    )
    return [*(("table", section) for section in shown), ("text", note)]


def _figures(pictures: Sequence[Picture], missing: Sequence[str]) -> list[tuple[str, Any]]:
    blocks: list[tuple[str, Any]] = [("picture", picture) for picture in pictures]
    if not pictures:
        blocks.append(("text", "There is nothing to draw: no fit has finished with a checkpoint."))
    lines = list(dict.fromkeys(missing))
    return [*blocks, ("lines", ("Not drawn", lines))] if lines else blocks


def _pictures(
    sweep: Sweep | None,
    missing: list[str],
    numbers: Iterator[int],
    progress: Callable[[str], None],
    trust: bool,
) -> Iterator[Picture]:
    if sweep is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        for drawn in _drawn(sweep, missing, trust):
            progress(f"{sweep.study}, {sweep.dataset}: {drawn.title}")
            width, height = (round(96 * inches) for inches in drawn.figure.get_size_inches())
            source = _source(drawn, Path(folder))
            yield Picture(next(numbers), drawn.title, drawn.caption, drawn.alt, source, width, height)


def _drawn(sweep: Sweep, missing: list[str], trust: bool) -> Iterator[style.Drawn]:
    """The figures of a sweep, as far as its files can be read."""
    try:
        yield from catalogue.figures(sweep, missing, trust=trust)
    except InputError as error:
        missing.append(str(error))


def _source(drawn: style.Drawn, folder: Path) -> str:
    """A figure as a data URI: SVG, which stays sharp, unless it is large and an image is smaller."""
    (path, _) = style.write(drawn, folder, ["svg"])
    text = _short(path.read_text(encoding="utf-8"))
    vector = "data:image/svg+xml," + quote(text, safe=" '()*,-./:;=@_~$+?|[]{}^`!")
    if len(vector) < _LARGEST_SVG:
        return vector
    (path, _) = style.write(drawn, folder, ["png"])
    image = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    return min(vector, image, key=len)


def _short(svg: str) -> str:
    """Without what only a file of its own has, and with no more digits than one sees: a hundredth of a point,
    a tenth along a curve."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)

    def rounded(match: re.Match[str]) -> str:
        digits = 1 if len(match.group()) > _CURVE else 2
        return re.sub(rf"(\.\d{{{digits}}})\d+", r"\1", match.group())

    body = re.sub(r'\b(?:d|x|y)="[^"]*"', rounded, body)
    body = re.sub(r"=\"([^\"']*)\"", r"='\1'", body)  # which needs no escape in an address
    return re.sub(r">\s+<", "><", re.sub(r"\s+", " ", body))
