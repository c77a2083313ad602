"""The second endpoint of an event table that a configuration is to be written for: a response to the drug or
a metabolite, and where their parameters may begin."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medcm_cli.data import EventTable
from medcm_cli.quantities import factor
from medcm_cli.runs.units import Units

MOST = 2  # endpoints of such a file
# Of the highest value: what a subject's first one lies above where there is a baseline, if it was seen no
# later than the first dose, and if it was seen after it.
_BASELINE = 0.2, 0.5


@dataclass(frozen=True)
class Second:
    """``choice`` of conf/pk, in which the second endpoint is ``output``; ``why``; ``parameters`` and where
    they begin; ``alike``: those that do not vary between subjects to begin with; ``told``: name, column and
    value of both endpoints; ``sizes``, usual values of both; ``level``: the unit of the first."""

    choice: str
    output: str
    why: str
    parameters: Mapping[str, float]
    alike: tuple[str, ...]
    told: tuple[tuple[str, str, object], ...]
    sizes: tuple[float, float]
    level: str

    def begin(self, kinetics: Mapping[str, float]) -> dict[str, float]:
        """All parameters, of those of the drug's kinetics: of a metabolite it is formed from half of what is
        eliminated."""
        found = dict(kinetics)
        if self.choice == "metabolite":
            half = float(f"{found['CL'] / 2:.2g}")
            found |= {"CL": half, "CLF": half, "CLM": kinetics["CL"], "V1M": kinetics["V1"]}
        return {**found, **self.parameters}

    def lines(self, parameters: list[str]) -> list[str]:
        """Of the model and its endpoints, in YAML."""
        rows = []
        for (name, column, value), output, size, unit in zip(
            self.told, ("central", self.output), self.sizes, (self.level, "-"), strict=True
        ):
            plain = column.lower() == "dvid"
            which = f"dvid: {_cell(value)}" if plain else f"column: {_cell(column)}, value: {_cell(value)}"
            said = f"unit: {_cell(unit)}, size: {size:g}"
            rows.append(f"  {name}: {{{which}, output: {output}, {said}}}")
        rows[-1] += "   # say its unit"
        return [
            f"pk: {{parameters: [{', '.join(parameters)}], observed: central, amount_per_level: null}}",
            "endpoints:",
            *rows,
        ]


def second_of(table: EventTable, units: Units) -> Second:
    """Of a table with two kinds of observations."""
    one, other = table.kinds
    seen = ~table.is_dose & ~table.censored
    frame = pd.DataFrame(
        {name: getattr(table, name)[seen] for name in ("subject", "clock", "dv", "endpoint")}
    )
    levels = frame[frame["endpoint"] == 0].groupby("subject")["dv"]
    values = frame[frame["endpoint"] == 1].sort_values(["subject", "clock"], kind="stable")
    of_subject = values.groupby("subject")
    first, most = of_subject["dv"].first(), of_subject["dv"].max()
    change = (values["dv"] - values["subject"].map(first)).to_numpy()
    far = values.assign(change=change, size=np.abs(change)).sort_values("size").groupby("subject").last()
    begins = of_subject["clock"].first()
    after = float((far["clock"] - begins).median())
    name = f"{one.column} {other.value}"
    highest = float(levels.max().median()) * (factor(units.level, f"{units.amount}/L") or 1.0)
    told = tuple((kind.name, str(kind.column), kind.value) for kind in (one, other))
    sizes = _rounded(levels.median().median()), _rounded(of_subject["dv"].median().median())
    given = pd.Series(table.clock[table.is_dose]).groupby(table.subject[table.is_dose]).min()
    late = bool((begins > given.reindex(begins.index).fillna(-np.inf)).mean() > 0.5)
    if not float(first.median()) > _BASELINE[late] * float(most.median()):
        why = f"{name} begins near 0 and rises, so it is taken as a metabolite; another model: effect_emax"
        return Second("metabolite", "output", why, {}, ("CLM", "V1M"), told, sizes, units.level)
    base, turn = float(first.median()), float(far["change"].median())
    parameters = {"BASE": _rounded(base), "KOUT": _rounded(3 / after if after > 0 else 1.0)}
    way, kind = ("falls", "inhibited") if turn < 0 else ("rises", "stimulated")
    if turn < 0:
        parameters["IC50"] = _rounded(highest / 2)
    else:
        parameters |= {"EMAX": _rounded(2 * turn / base) or 1.0, "EC50": _rounded(highest / 2)}
    why = (
        f"{name} begins near {_rounded(base):g} and {way}, so it is taken as a response whose formation is "
        f"{kind}; another model: response_{kind}_loss, effect_emax"
    )
    alike = ("KOUT", "EMAX")
    return Second(f"response_{kind}_formation", "response", why, parameters, alike, told, sizes, units.level)


def _rounded(value: float) -> float:
    return abs(float(f"{value:.2g}"))


def _cell(value: object) -> str:
    """As YAML reads it back."""
    return str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"
