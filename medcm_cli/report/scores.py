"""Scores of fits as tables: what they are, what a reader has to know of them, and likelihood-ratio tests."""

from collections.abc import Mapping, Sequence

import pandas as pd

from medcm_cli.analysis import criteria, scores
from medcm_cli.errors import InputError
from medcm_cli.report.section import Section
from medcm_cli.runs.folder import ALIKE, SWEEP

PLACE = ("fold", "replicate")
_TRUSTED = 0.7  # k of importance weights, at most


_SHOWN = {
    "ofv": "OFV",
    "mc_error": "MC error",
    "aic": "AIC",
    "bicc": "BICc",
    "held_out_ofv": "held-out OFV",
}


def sections(table: pd.DataFrame) -> list[Section]:
    """Medians over the fits of each configuration."""
    sections = []
    for (study, dataset), rows in table.groupby(list(SWEEP), sort=True):
        shown = [name for name in _SHOWN if name in rows and rows[name].notna().any() and rows[name].any()]
        cells = []
        for key, fits in rows.groupby([*ALIKE, "method"], sort=False):
            label = _label(dict(zip([*ALIKE, "method"], key, strict=True)))
            numbers = [f"{fits[name].median():.3f}" if fits[name].notna().any() else "" for name in shown]
            cells.append(
                [label, str(fits["method"].iloc[0]), str(len(fits)), f"{fits['parameters'].iloc[0]}"]
            )
            cells[-1] += numbers
        headers = ["fit", "by", "fits", "p", *(_SHOWN[name] for name in shown)]
        sections.append(Section(f"{study}, {dataset}: scores, medians over fits", headers, cells))
    return sections


def _label(address: Mapping[str, object]) -> str:
    variant = "" if address["variant"] == "default" else f", {address['variant']}"
    return f"{address['objective']}, {address['error']}, lr {address['learning_rate']:g}{variant}"


def notes(table: pd.DataFrame) -> list[str]:
    """What a reader has to know of the numbers."""
    found = ["OFV = -2 log L - n log(2 pi), without priors"]
    if table["transformation"].any():
        most = table["transformation"].abs().max()
        found[0] += f"; of log-normal errors that of levels, which 2 sum log y (to {most:.3f}) is part of"
    if table["weights"].any():
        found.append(
            f"p counts up to {table['weights'].max()} weights of networks, which are no honest number of "
            "parameters: AIC and BICc of these say little, held-out OFV does"
        )
    if "moved" in table and (unsettled := table["moved"] >= scores.MOVED).any():
        nodes, most = table.loc[unsettled, "nodes"].max(), table["moved"].max()
        found.append(
            f"agq has not settled in {unsettled.sum()} of the fits: with {nodes:.0f} nodes of each random "
            f"effect the OFV still moved by up to {most:.3g}; --by=imp is another way"
        )
    if "tail" in table and (table["tail"] > _TRUSTED).any():
        number, most = int((table["tail"] > _TRUSTED).sum()), table["tail"].max()
        found.append(
            f"imp is doubtful in {number} of the fits: the tail index k of a subject's weights is up to "
            f"{most:.2f}, above {_TRUSTED}; more --draws may help"
        )
    if table["unfound"].any():
        found.append(f"modes of up to {int(table['unfound'].max())} subjects of a fit were not found")
    return found


# -- likelihood-ratio tests ------------------------------------------------------------------------


def tested(table: pd.DataFrame, tests: Sequence[str]) -> list[Section]:
    """:raises InputError: configurations that are not there, not of the same data, or not nested."""
    cells = []
    for name in tests:
        rows = pair(table, name)
        small, large = (of.iloc[0] for of in rows)
        if small["fingerprint"] != large["fingerprint"]:
            raise InputError(f"--test {name}: they are of different data")
        more = int(large["parameters"] - small["parameters"])
        variances = max(0, int(large["variances"] - small["variances"]))
        if more < 1:
            raise InputError(
                f"--test {name}: the first has {small['parameters']} parameters and the second "
                f"{large['parameters']}; expected the smaller model first"
            )
        both = rows[0].merge(rows[1], on=list(PLACE), suffixes=("_small", "_large"))
        if both.empty:
            raise InputError(f"--test {name}: no fold and replicate has both")
        fell = both["ofv_small"] - both["ofv_large"]
        p = pd.Series([criteria.likelihood_ratio(value, more, variances) for value in fell])
        cells.append(
            [
                *(name, str(len(both)), f"{fell.median():.3f}", str(more), str(variances)),
                *(f"{p.median():.3g}", f"{100 * float((p < 0.05).mean()):.0f} %"),
            ]
        )
    headers = ["test", "pairs", "OFV falls by", "more parameters", "on the boundary", "p", "p < 0.05"]
    return [Section("likelihood-ratio tests, medians over pairs", headers, cells)] if cells else []


def pair(table: pd.DataFrame, name: str) -> list[pd.DataFrame]:
    """The fits of two configurations, SMALLER:LARGER.

    :param table: a row per fit, with the columns ``ALIKE``.
    :raises InputError: they are not there.
    """
    both = name.split(":")
    if len(both) != 2:
        raise InputError(f"--test {name}: expected SMALLER:LARGER, as in variant=base:variant=full")
    return [_chosen(table, name, one) for one in both]


def _chosen(table: pd.DataFrame, test: str, name: str) -> pd.DataFrame:
    """Those of one, by what tells it from the others, NAME=VALUE with commas between."""
    rows = table
    for part in name.split(","):
        key, _, value = part.partition("=")
        if key not in ALIKE or not value:
            raise InputError(
                f"--test {test}: {name!r} is no NAME=VALUE, or several with commas between; expected a NAME "
                f"of {', '.join(ALIKE)}"
            )
        rows = rows[[_text(found) == value for found in rows[key]]]
    number = len(rows.groupby(list(ALIKE)))
    if number != 1:
        raise InputError(f"--test {test}: {name} is that of {number} configurations; expected of one")
    return rows


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
