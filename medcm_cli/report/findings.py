"""What finished fits say in sentences, by fixed rules from their numbers alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from medcm_cli.report.comparison import Comparison, compare, counted, measures, of_one_objective, over
from medcm_cli.report.intervals import difference_texts, digits_of, ends_of, text
from medcm_cli.report.section import decimals
from medcm_cli.runs import Record, Units
from medcm_cli.runs.description import described
from medcm_cli.runs.sweeps import by_method

_QUESTIONS = {
    "rmse": "Which method predicts test subjects best from their covariates?",
    "kl": "Which method finds the true variation between subjects?",
    "omega_mae": "Which method finds the true omegas?",
    "sigma_mae": "Which method finds the true residual error?",
}
INTERVALS = (
    "Means are over folds, each the mean over its replicates; over the outer shuffles of a nested split, "
    "each the mean over its inner folds; or over replicates where all fits are of one fold. Their intervals "
    "are t-intervals. Differences from the best are between fits of the same fold and replicate; their joint "
    "intervals hold for all pairs of methods together (Bonferroni), since the best was chosen from the same "
    "numbers. A method is distinguishable from the best where its joint interval leaves out no difference."
)
_ALL_SUBJECTS = "medcm_cli.data.all_subjects"


def comparisons(records: Sequence[Record], fits: pd.DataFrame) -> list[tuple[str, Comparison]]:
    """What methods are compared by, each with the question that it answers.

    :param fits: one of ``comparison.comparable``. :param records: of its study and data set.
    """
    unit, truth = str(fits["level_unit"].iloc[0]), records[0].truth
    endpoints = Units.of_config(records[0].config).by_endpoint
    found = [(_question(m.name), compare(fits, m)) for m in measures(unit, truth, endpoints)]
    for measure, labels in of_one_objective(records):
        asked = f"Which way of fitting has the lowest {measure.title}?"
        found.append((asked, compare(fits[fits["label"].isin(labels)], measure)))
    return [(asked, compared) for asked, compared in found if compared is not None]


def _question(measure: str) -> str:
    """What a measure answers."""
    kind, _, endpoint = measure.partition("_")
    if measure in _QUESTIONS or kind != "rmse":
        return _QUESTIONS[measure]
    return f"Which method predicts {endpoint} of test subjects best from their covariates?"


def answers(records: Sequence[Record], sets: Sequence[pd.DataFrame]) -> list[tuple[str, str]]:
    """Questions and what the fits of one study and data set say to them.

    :param sets: as ``comparison.comparable`` has them.
    """
    found: list[tuple[str, str]] = []
    for place, fits in enumerate(sets, 1):
        which = f" (data and folds {place} of {len(sets)})" if len(sets) > 1 else ""
        found += [(f"{asked}{which}", verdict(compared)) for asked, compared in comparisons(records, fits)]
    return [*found, ("Did fits fail?", _failures(records)), ("How long does a fit take?", _times(records))]


def verdict(compared: Comparison) -> str:
    """Which method is best, by how much, and from which others it can be told."""
    best, digits = compared.best, digits_of(compared)
    number = _measured(text(best.value, digits), compared.measure.unit)
    ends = ends_of(best.low, best.high, digits)
    fits = counted(best.fits, "fit") + (f" over {best.base}" if best.fits > 1 else "")
    base = f"{number} ({fits}, so there is no interval)"
    if ends != "-":
        base = f"{number} (95 % interval {ends}; {fits})"
    mean = "geometric mean " if compared.ratio else "mean "
    title = compared.measure.title
    if all(one.fits == 1 for one in compared.means):
        mean = ""
    if not compared.differences:
        return f"Only {best.label} has it: {mean}{title} {base}. There is nothing to compare it with."
    parts = [f"{best.label} has the lowest {mean}{title}: {base}."]
    kinds = {
        True: "Distinguishable from it",
        False: "Not distinguishable from it",
        None: "Without an interval, so that it cannot be told",
    }
    for verdict_of, name in kinds.items():
        said = [
            _apart(compared, label)
            for label, one in compared.differences.items()
            if one.distinguishable is verdict_of
        ]
        if said:
            parts.append(f"{name}: {'; '.join(said)}.")
    by_median = min(compared.means, key=lambda one: one.median)
    if by_median.label != best.label and by_median.median < best.median:
        parts.append(f"By the median over fits, {by_median.label} is the lowest.")
    return " ".join(parts)


def _apart(compared: Comparison, label: str) -> str:
    one = compared.differences[label]
    if not one.units:
        return f"{label} (no fit of the same fold and replicate)"
    less = not compared.ratio and one.value < 0
    value, ends = difference_texts(compared, one, -1 if less else 1)
    if compared.ratio:
        said = f"{value} times as much"
        less = one.value < 1
    else:
        said = _measured(value, compared.measure.unit, " less" if less else " more")
    # Means are over all fits of a method: the lowest of them may be another's in the same folds.
    where = " in the same folds" if less else ""
    return f"{label} ({said}{where})" if ends == "-" else f"{label} ({said}{where}, {ends})"


def _measured(number: str, unit: str, than: str = "") -> str:
    """A number and its unit in a sentence. :param than: more or less, where it is a difference."""
    if unit == "log scale":
        return f"{number}{than} on the {unit}"
    said = (
        number if unit == "-" else f"{number} units of {unit}" if unit.startswith("-") else f"{number} {unit}"
    )
    return said + than


def _failures(records: Sequence[Record]) -> str:
    counts = {
        label: (sum(fit.status == "failed" for fit in fits), len(fits))
        for label, fits in by_method(records).items()
    }
    failed = sum(some for some, _ in counts.values())
    waiting = sum(record.status not in ("complete", "failed") for record in records)
    rest = f" {counted(waiting, 'fit')} did not finish." if waiting else ""
    if not failed:
        return f"No: 0 of {counted(len(records), 'fit')}.{rest}"
    by = ", ".join(f"{label} {some} of {all_}" for label, (some, all_) in counts.items() if some)
    return f"{failed} of {counted(len(records), 'fit')} failed: {by}.{rest}"


def _times(records: Sequence[Record]) -> str:
    seconds = {
        label: float(np.median(done))
        for label, fits in by_method(records).items()
        if (done := [fit.seconds for fit in fits if fit.status == "complete"])
    }
    if not seconds:
        return "No fit is complete."
    least, most = (
        min(seconds, key=lambda label: seconds[label]),
        max(seconds, key=lambda label: seconds[label]),
    )
    digits = decimals("seconds")
    times = f"{least} {seconds[least]:.{digits}f} s"
    if least != most:
        times = f"from {times} to {most} {seconds[most]:.{digits}f} s"
    return f"In the median {times}. Fits of a batch share its time equally, so that there is no interval."


def limits(records: Sequence[Record], sets: Sequence[pd.DataFrame]) -> list[str]:
    """What the fits of one study and data set cannot say."""
    lines = [line for fits in sets for line in _of_intervals(fits)]
    if len(sets) > 1:
        lines.append("Fits of other data or folds are not compared with one another.")
    configs = [record.config for record in records]
    if len({record.address.objective for record in records}) > 1:
        lines.append("Values of different objectives are not compared: they are different functions.")
    if of_one_objective(records):
        lines.append(
            "An objective's value is of the training subjects and falls with every further parameter; a "
            "lower one alone does not make a better model."
        )
    if any((config.get("split") or {}).get("_target_") == _ALL_SUBJECTS for config in configs):
        lines.append(
            "The test subjects are those of the training: nothing is said of predictions for others."
        )
    lines.append(
        "RMSE is of typical predictions, from covariates alone; it does not say how well a method predicts "
        "once levels of a patient are known."
    )
    if not records[0].truth:
        lines.append("The truth is not known, so that nothing is said of errors of Omega and sigma.")
    epochs = sorted({int(config["epochs"]) for config in configs if _whole(config.get("epochs"))})
    if len(epochs) > 1:
        named = ", ".join(map(str, epochs))
        lines.append(f"Methods were trained for different numbers of epochs ({named}).")
    failed = sum(record.status == "failed" for record in records)
    if failed:
        lines.append(
            f"Means leave out {counted(failed, 'failed fit')}; differences are of fits that both methods "
            "completed."
        )
    return list(dict.fromkeys(lines))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _of_intervals(fits: pd.DataFrame) -> list[str]:
    """What the intervals of a set of comparable fits do not cover."""
    column, name = over(fits)
    number = fits[column].nunique()
    if number == 1:
        return [
            "Each method has a single fit: there is no interval, and no difference can be told from chance."
        ]
    if column == "replicate":
        return [
            f"All fits are of one fold: intervals are over {counted(number, 'replicate')} and hold what "
            "initial values and noise do, not what other training subjects would."
        ]
    return [
        f"Intervals are over {counted(number, name)} of the same subjects: they hold what the choice of "
        "training subjects does, not what another data set would."
    ]


def objective_units(records: Sequence[Record]) -> str:
    """In which units the values of objectives are."""
    said: dict[str, list[str]] = {}
    for label, (first, *_) in by_method(records).items():
        about = described(first)
        unit = about.unit_in(Units.of(first.config["dataset"]).level) if about.power else about.unit
        said.setdefault(unit, []).append(label)
    named = "; ".join(f"{unit} ({', '.join(labels)})" for unit, labels in said.items())
    return f"Units of objective values: {named}."
