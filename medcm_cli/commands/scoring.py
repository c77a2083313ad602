"""``medcm score``: scores into the folders of fits, a table of each study, and likelihood-ratio tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medcm_cli import runs
from medcm_cli.analysis import criteria, scores
from medcm_cli.data import Population
from medcm_cli.data.sheet import IntArray
from medcm_cli.errors import InputError
from medcm_cli.report.scores import PLACE, notes, pair, sections, tested
from medcm_cli.report.section import Section
from medcm_cli.runs.folder import ALIKE
from medcm_cli.runs.sweeps import complete, grouped
from medcm_cli.runs.walk import walk
from medcm_cli.study.restore import Restored, restore
from medcm_cli.study.workers import prepare

FILE = "score.parquet"
_NUMBERS = 20_000_000  # drawn at once


@dataclass(frozen=True)
class Report:
    """``sections``: a table of each study and data set, and the tests; ``notes`` on how they came about;
    ``skipped``: folders without a score, and why."""

    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def report(
    roots: Sequence[Path],
    by: str | None,
    draws: int,
    tests: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    trust: bool = False,
) -> Report:
    """Write ``score.parquet`` into the folder of every complete fit below ``roots``, and show medians over
    the fits of a configuration.

    :param by: of ``scores.METHODS``; None: as ``scores.method_for`` has it. :param draws: by imp.
    :param tests: pairs of configurations (``report.scores.pair``).
    :param trust: as ``study.restore.restore`` has it.
    :raises InputError: no complete fit, or a test of configurations that are not there.
    """
    prepare(1)
    found = list(walk(roots))
    fits = complete(found, roots)
    addresses = pd.DataFrame([{name: getattr(record.address, name) for name in ALIKE} for _, record in fits])
    for name in tests:
        pair(addresses, name)
    whole = {folder for folder, _ in fits}
    result = Report(skipped=[f"{one.folder}: is no complete fit" for one in found if one.folder not in whole])
    rows: list[pd.DataFrame] = []
    done = 0
    for group in grouped(fits):
        try:
            (restored,) = restore(group, trust)
            scored = _scored(restored, by, draws)
        except InputError as error:
            result.skipped.extend(f"{folder}: {error}" for folder, _ in group)
            continue
        rows.append(_kept(restored, scored, result.skipped))
        done += len(group)
        if progress is not None:
            progress(done)
    rows = [part for part in rows if len(part)]
    if rows:
        table = pd.concat(rows, ignore_index=True)
        result.sections.extend([*sections(table), *tested(table, tests)])
        result.notes.extend(notes(table))
    return result


# -- of one configuration --------------------------------------------------------------------------


def _scored(restored: Restored, by: str | None, draws: int) -> pd.DataFrame:
    """A row per fit. :raises InputError: no random effects, or a method that does not fit."""
    problem, model = restored.problem, restored.problem.model
    if not restored.objective.mixed:
        raise InputError("has no random effects, and so no likelihood of the data")
    method = by or scores.method_for(model.size(restored.population))
    names = _of_model(restored)
    values = {name: value.double() for name, value in restored.estimates.items() if name in names}
    folds = [problem.folds[record.address.fold] for record in restored.records]
    everyone = Population.from_events(problem.events, torch.float64, not model.pk.needs_double)
    train = everyone.select([fold.train for fold in folds])
    table = _in_parts(restored, everyone, [fold.train for fold in folds], values, method, draws)
    if all(not set(fold.train) & set(fold.test) for fold in folds):
        unseen = _in_parts(restored, everyone, [fold.test for fold in folds], values, method, draws)
        table = table.assign(held_out_ofv=unseen["ofv"], held_out_mc_error=unseen["mc_error"])
    counts = criteria.count(model, values, train)
    ofv = torch.tensor(table["ofv"].to_list(), dtype=torch.float64)
    return table.assign(
        method=method,
        aic=criteria.aic(ofv, counts).numpy(),
        bicc=criteria.bicc(ofv, counts, train).numpy(),
        parameters=counts.all,
        random=counts.random,
        weights=counts.weights,
        variances=counts.variances,
        subjects=train.present.sum(0).long().numpy(),
        observations=train.observation_count.long().numpy(),
        transformation=train.sum_subjects(model.error.transformation(train)).numpy(),
    )


def _of_model(restored: Restored) -> set[str]:
    """The names of what the model estimates, whatever an objective trains beside it."""
    return set(restored.problem.model.init(restored.streams[:1], torch.float64))


def _in_parts(
    restored: Restored,
    everyone: Population,
    subjects: Sequence[IntArray],
    values: Mapping[str, torch.Tensor],
    method: str,
    draws: int,
) -> pd.DataFrame:
    """The scores of some subjects under each fit, of as many fits at once as memory holds the numbers of."""
    effects, fits = restored.problem.model.size(everyone), len(subjects)
    each = max(1, _NUMBERS // (max(map(len, subjects)) * draws * (effects + 1)))
    frames = []
    for start in range(0, fits, each):
        own = slice(start, start + each)
        found = scores.score(
            restored.problem.model,
            {name: value[..., own] for name, value in values.items()},
            everyone.select(subjects[own]),
            restored.streams[own],
            method,
            draws,
        )
        columns = {"ofv": found.total, "mc_error": found.error, "unfound": found.unfound}
        columns |= {"moved": found.moved} if found.moved is not None else {}
        columns |= {"tail": found.tail} if found.tail is not None else {}
        frame = pd.DataFrame({name: value.numpy() for name, value in columns.items()})
        frames.append(frame if found.nodes is None else frame.assign(nodes=found.nodes))
    return pd.concat(frames, ignore_index=True)


def _kept(restored: Restored, scored: pd.DataFrame, skipped: list[str]) -> pd.DataFrame:
    """Written into the folders of fits, in place of an earlier score by the same method; and with their
    addresses. Fits whose OFV is no number are added to ``skipped``."""
    kept = []
    for place, (folder, record) in enumerate(zip(restored.folders, restored.records, strict=True)):
        row = scored.iloc[[place]]
        if not np.isfinite(row["ofv"].item()):
            skipped.append(f"{folder}: its OFV by {row['method'].item()} is no number")
            continue
        path = folder / FILE
        before = pd.read_parquet(path) if path.exists() else row.iloc[:0]
        others = before[before["method"] != row["method"].item()]
        runs.write_table(path, pd.concat([others, row]) if len(others) else row, runs.columns("score", {}))
        address = record.address
        named = {name: getattr(address, name) for name in (*ALIKE, *PLACE)}
        kept.append(row.assign(**named, fingerprint=record.data["fingerprint"]))
    return pd.concat(kept) if kept else scored.iloc[:0]
