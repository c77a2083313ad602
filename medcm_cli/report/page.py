"""``medcm report``: what run folders hold as one page that needs nothing else, no file and no network."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medcm_cli import __version__, runs
from medcm_cli.errors import InputError
from medcm_cli.files import write_text
from medcm_cli.report import comparison, findings, intervals, provenance, tables
from medcm_cli.report.figures import style
from medcm_cli.report.pictures import Picture, pictures
from medcm_cli.report.section import Section
from medcm_cli.report.sheets import sheets
from medcm_cli.runs import summary, sweeps
from medcm_cli.runs.sweeps import Found
from medcm_cli.runs.walk import Fault, Fit, Typical, walk
from medcm_cli.study.mixture import unmixed

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_MOST_LINES = 50  # of what cannot be read
_ONE_LINE, _ALWAYS = 36, 12  # characters of a cell that stay on one line; on paper too
_MOST_COLUMNS = 10  # a table of more stands on its side where it has fewer rows


class Block(NamedTuple):
    """A part of a chapter. ``kind``: table, pictures, command, text, warning, lines or answers."""

    kind: str
    of: Any


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

    :param question: what the study asks, in words, above what the numbers say to it (``findings``).
    :param expected: as ``tables.compare`` has it.
    :param progress: told what is being done.
    :param trust: as ``study.restore.restore`` has it.
    :raises InputError: a root does not exist, ``expected`` is not as it should be, or ``out`` cannot be
        written.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder; expected a file for the page, as in --out report.html")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(out if out.exists() else above, os.W_OK):
        what = "cannot be written" if above.is_dir() else f"{above} is a file, not a folder"
        raise InputError(f"{out}: {what}; expected a file for the page, as in --out report.html")
    if expected is not None and not expected.is_file():
        raise InputError(f"{expected}: no such file")
    read = list(unmixed(walk(roots, lambda count: progress(f"{count} fits read"))))
    found, records = sweeps.gather(read, roots), sweeps.records_of(read)
    held = _summary(read, roots)
    chapters = [_answer(held, records, question)] if records else []
    chapters += _chapters(held, found, records, expected, progress, trust)
    studies = list(dict.fromkeys(record.address.study for record in records))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["classes"] = _classes
    environment.filters["upright"] = _upright
    environment.filters["typeset"] = style.typeset
    page = environment.get_template("report.html.jinja").render(
        title=", ".join(studies) or ", ".join(map(str, roots)),
        question=question,
        lead=provenance.lead(records),
        chapters=chapters,
        written=f"medcm {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    write_text(out, page)
    return len(records)


def _upright(section: Section) -> Section:
    """A table of many columns and few rows on its side, which fits a narrower page."""
    title, headers, cells = section
    if len(headers) <= _MOST_COLUMNS or len(headers) <= len(cells):
        return section
    first, *rows = map(list, zip(headers, *cells, strict=True))
    return Section(title, first, rows)


def _classes(section: Section) -> list[Markup]:
    """The attribute of each column's cells: whether it holds numbers, which stand at its right, or text short
    enough for one line."""
    number = re.compile(r"-?\d[\d.e+-]*( \([^a-z]*\)| \(-?[\d.e+-]+ to -?[\d.e+-]+\))?|-|")
    ends = re.compile(r"-?[\d.e+-]+ to -?[\d.e+-]+")
    result = []
    for place in range(len(section.headers)):
        column = [row[place] for row in section.cells]
        if place and any(column) and all(number.fullmatch(cell) or ends.fullmatch(cell) for cell in column):
            result.append(Markup(' class="number"'))
        else:
            longest = max(map(len, column), default=0)
            kind = "short tight" if longest <= _ALWAYS else "short" if longest <= _ONE_LINE else ""
            result.append(Markup(f' class="{kind}"') if kind else Markup(""))
    return result


def _answer(held: summary.Summary | None, records: Sequence[runs.Record], question: str | None) -> Chapter:
    """What the fits say, in sentences, first of all; below the question where there is one."""
    rules = "These statements follow from the numbers of complete fits by fixed rules (medcm help figures)"
    blocks = [Block("text", f"{rules}, whatever the question." if question else f"{rules}.")]
    inside = []
    groups = sweeps.by_sweep(records)
    for place, ((study, dataset), group) in enumerate(groups.items(), 1):
        sets = _comparable(held, group)
        of_sweep = [
            Block("answers", findings.answers(group, sets)),
            Block("lines", ("What these fits cannot say", findings.limits(group, sets))),
        ]
        inside.append(Chapter(f"answer-{place}", f"{study}, {dataset}", of_sweep))
    title = "Answer" if question else "Findings"
    if len(inside) == 1:
        return Chapter("answer", title, [*blocks, *inside[0].blocks])
    return Chapter("answer", title, blocks, inside)


def _comparable(held: summary.Summary | None, group: Sequence[runs.Record]) -> list[pd.DataFrame]:
    """Of ``comparison.comparable``, the fits of one study and data set; none where none can be read."""
    if held is None:
        return []
    study, dataset = group[0].address.sweep
    own = held.fits[(held.fits["study"] == study) & (held.fits["dataset"] == dataset)]
    return comparison.comparable(own, group)


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
        drawings = list(pictures(drawn.get((study, dataset)), missing, numbers, progress, trust))
        shown, patients = _tables(held, study, dataset)
        inside = [
            ("results", "Results", [*_results(shown, group), *_intervals(held, group)]),
            ("figures", "Figures", _figures(drawings, missing)),
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


def _results(shown: Sequence[Section], group: Sequence[runs.Record]) -> list[tuple[str, Any]]:
    if not shown:
        return [("text", "No fit can be read.")]
    note = (
        "Median (sd) over complete fits, or over the outer shuffles of a nested split, of the mean over a "
        f"fit's last checkpoints. A dash: nothing to show. {findings.objective_units(group)}"
    )
    return [*(("table", section) for section in shown), ("text", note)]


def _intervals(held: summary.Summary | None, group: Sequence[runs.Record]) -> list[tuple[str, Any]]:
    """Means with intervals, and differences between methods, of each set of fits that can be compared."""
    sets = _comparable(held, group)
    blocks: list[tuple[str, Any]] = []
    typical = (held.typical if held else {}).get(group[0].address.sweep) or Typical({}, "")
    for place, fits in enumerate(sets, 1):
        compared = [intervals.table(one) for _, one in findings.comparisons(group, fits)]
        endpoints = (held.endpoints if held else {}).get(group[0].address.sweep, {})
        estimated = intervals.estimates(fits, {**typical.units, **endpoints})
        which = f"; data and folds {place} of {len(sets)}" if len(sets) > 1 else ""
        for section in [*compared, *([estimated] if estimated else [])]:
            blocks.append(("table", section._replace(title=f"{section.title}{which}")))
    return [*blocks, ("text", findings.INTERVALS)] if blocks else []


def _figures(drawings: Sequence[Picture], missing: Sequence[str]) -> list[tuple[str, Any]]:
    blocks: list[tuple[str, Any]] = [("pictures", sheets(drawings))]
    if not drawings:
        blocks.append(("text", "There is nothing to draw: no fit has finished with a checkpoint."))
    lines = list(dict.fromkeys(missing))
    return [*blocks, ("lines", ("Not drawn", lines))] if lines else blocks
