"""Comparisons as tables, with the digits that the other tables have."""

import math
from collections.abc import Mapping

import pandas as pd

from medcm_cli.report.comparison import Comparison, Difference, Measure, compare
from medcm_cli.report.section import Section, decimals
from medcm_cli.report.tables import effects_of, scales_of
from medcm_cli.runs import SIGMAS
from medcm_cli.runs.summary import estimates_of, label_of


def text(value: float, digits: int) -> str:
    """A number, a dash of none."""
    return f"{value:z.{digits}f}" if math.isfinite(value) else "-"


def ratio_text(value: float) -> str:
    """A ratio with two digits, whatever its size; a dash of none."""
    if not math.isfinite(value) or value <= 0:
        return "-"
    places = 1 - math.floor(math.log10(value))
    return text(round(value, places), min(8, max(0, places)))


def ends_of(low: float, high: float, digits: int) -> str:
    """An interval, a dash of none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "-"
    return f"{text(low, digits)} to {text(high, digits)}"


def digits_of(compared: Comparison) -> int:
    """The decimals of a comparison's means and differences, which are those of the tables."""
    return decimals(compared.measure.name, *(one.value for one in compared.means))


def difference_texts(compared: Comparison, apart: Difference, sign: int = 1) -> tuple[str, str]:
    """A difference and the ends of its interval. :param sign: -1 turns it round."""
    if compared.ratio:
        ends = [ratio_text(end) for end in (apart.low, apart.high)]
        return ratio_text(apart.value), "-" if "-" in ends else " to ".join(ends)
    digits = digits_of(compared)
    low, high = sorted((sign * apart.low, sign * apart.high))
    return text(sign * apart.value, digits), ends_of(low, high, digits)


def table(compared: Comparison) -> Section:
    """A row per method: mean and interval, and the difference from the best with the interval that holds for
    all pairs of methods together."""
    measure, best = compared.measure, compared.best.label
    digits = digits_of(compared)
    mean = "Geometric mean" if compared.ratio else "Mean"
    several = bool(compared.differences)
    headers = ["Method", "Fits", "Over", f"{mean}, {measure.unit}", f"95 % interval, {measure.unit}"]
    if several:
        unit = "-" if compared.ratio else measure.unit
        what = f"Ratio to {best}" if compared.ratio else f"Difference from {best}"
        headers += [f"{what}, {unit}", f"Joint 95 % interval, {unit}", "Distinguishable"]
    cells = []
    for one in compared.means:
        ends = ends_of(one.low, one.high, digits)
        row = [one.label, str(one.fits), one.base, text(one.value, digits), ends]
        if several and (apart := compared.differences.get(one.label)):
            verdict = {None: "cannot be told", True: "yes", False: "no"}[apart.distinguishable]
            row += [*difference_texts(compared, apart), verdict]
        elif several:
            row += ["-", "-", "-"]
        cells.append(row)
    return Section(f"{measure.title[0].upper()}{measure.title[1:]}", headers, cells)


def estimates(fits: pd.DataFrame, typical: Mapping[str, str]) -> Section | None:
    """A row per method: the mean of each estimate with its interval; None without any.

    :param typical: column of a typical parameter, or of one of several endpoints -> its unit.
    """
    columns, means = [], {}
    for name in estimates_of(fits):
        if not name.startswith("cv_") and (compared := compare(fits, Measure(name, name, ""))):
            columns.append(name)
            means[name] = {mean.label: mean for mean in compared.means}
    if not columns:
        return None
    level = str(fits["level_unit"].iloc[0])
    units = {f"sigma_{part}": unit.format(reported=level) for part, unit in SIGMAS.items()}
    units |= {"omega": "log scale", **typical}
    effects = effects_of(fits[fits["omega_1"].notna()]) if "omega_1" in fits else []
    scales = enumerate(scales_of(fits[fits["omega_1"].notna()]) if "omega_1" in fits else [], 1)
    units |= {f"omega_{place}": scale for place, scale in scales}
    titles = {
        name: f"{label_of(name, effects)}, {units.get(name, units.get(name.partition('_')[0], '-'))}"
        for name in columns
    }
    cells = []
    for label in dict.fromkeys(fits["label"]):
        row = [str(label)]
        for name in columns:
            one = means[name].get(str(label))
            digits = decimals(name, *(mean.value for mean in means[name].values()))
            ends = "-" if one is None else ends_of(one.low, one.high, digits)
            value = "-" if one is None else text(one.value, digits)
            row.append(value if ends == "-" else f"{value} ({ends})")
        cells.append(row)
    return Section("Estimates: mean (95 % interval)", ["Method", *titles.values()], cells)
