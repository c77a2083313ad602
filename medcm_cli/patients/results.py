"""What predictions and doses are handed over as: tables with a row for each thing, and words about them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pandas as pd

from medcm_cli.data.sheet import FloatArray
from medcm_cli.patients.targets import Target
from medcm_cli.runs import Units
from medcm_cli.runs.frames import name_units

GIVEN = "given"  # the name of the regimen in the patients' own file
DISCLAIMER = "For research use only, not for treatment decisions."


@dataclass(frozen=True, repr=False)
class Prediction:
    """What is predicted, as tables with a row for each

    - ``parameters``: patient and parameter; ``unit``, ``typical`` and the bounds;
    - ``curve``: patient, regimen and time; ``typical`` and the bounds of the level, and
      ``measured_lower_90`` and so on, those of a level as it would be measured, with residual error;
    - ``shape``: the same as ``curve``, at more times, close around doses, for a figure; of 100 patients at
      most, else empty, and written to no file;
    - ``thresholds``: patient, regimen and threshold; time above it within the times, ``typical`` and bounds;
    - ``above``: patient, regimen, threshold and time; ``probability`` of a level above;
    - ``posteriors``: patient and fit; mode and covariance of eta, ``converged``, and ``effective``, the
      effective size of the weighted sample as a fraction;
    - ``doses``: patient, regimen and dose; its time, ``amount`` and ``duration``;
    - ``observations``: patient and time of the levels in the file;
      (of several endpoints ``curve``, ``shape`` and these have a column ``endpoint``, and values in its unit;
      both have ``on_curve``, false where the file's time begins again later, over what the curve shows);
    - ``warnings``: patient (empty: all), kind and message.

    Bounds are ``lower_90``, ``lower_50``, ``median``, ``upper_50`` and ``upper_90``. Levels and thresholds
    are in ``unit``, all in ``units``; ``attrs["units"]`` of each table has those of its columns. ``label``
    names the study, ``disclaimer`` what predictions are for; ``rank`` of its objective gives figures their
    colour. ``collected``: endpoints that are collected over a time, and how long, None where the samples say
    it; ``curve`` and ``shape`` have what there is so far of a patient's sample, or else that of a time as
    long as his others; of who has none, over how long it says, or all since the first dose.
    """

    label: str
    units: Units
    times: FloatArray
    parameters: pd.DataFrame
    curve: pd.DataFrame
    thresholds: pd.DataFrame
    above: pd.DataFrame
    posteriors: pd.DataFrame
    doses: pd.DataFrame
    observations: pd.DataFrame
    warnings: pd.DataFrame
    shape: pd.DataFrame = field(default_factory=pd.DataFrame)
    disclaimer: str = DISCLAIMER
    rank: int | None = None
    collected: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name_units(self, "predictions", self.units.of_each)

    @property
    def unit(self) -> str:
        """Of levels and thresholds."""
        return self.units.reported

    @property
    def of_endpoints(self) -> "list[tuple[str, Prediction]]":
        """Name of each endpoint and its part, in its units; of one alone "level" and itself."""
        found = []
        for number, (name, _) in enumerate(self.units.endpoints):
            own: dict[str, Any] = {"units": self.units.endpoint(number)._replace(endpoints=())}
            for table in ("curve", "shape", "observations"):
                frame: pd.DataFrame = getattr(self, table)
                if "endpoint" in frame:
                    own[table] = frame[frame["endpoint"] == name].drop(columns="endpoint")
            own["collected"] = {name: self.collected[name]} if name in self.collected else {}
            if number:  # thresholds are levels
                own |= {table: getattr(self, table).iloc[:0] for table in ("thresholds", "above")}
            found.append((name, replace(self, **own)))
        return found or [("level", self)]

    def over(self, patients: Collection[str]) -> str:
        """Of a part of ``of_endpoints``: in words, over what time the curves of some patients are; empty of
        what is not collected."""
        if not self.collected:
            return ""
        (hours,) = self.collected.values()
        sampled = set(self.observations["patient"]) & set(patients)
        otherwise = " so far" if hours is None else f" over {hours:g} {self.units.time}"
        if not sampled:
            return otherwise
        return " of each sample" + (f", or{otherwise}" if set(patients) - sampled else "")

    def __repr__(self) -> str:
        return contents(self)


def contents(result: Any) -> str:
    """What a result holds, for a person in a notebook: its study, and the rows of each of its tables."""
    tables = {f.name: getattr(result, f.name) for f in fields(result)}
    rows = [f"  .{name}: {len(t)} rows" for name, t in tables.items() if isinstance(t, pd.DataFrame)]
    return "\n".join([f"{result.label}. {result.disclaimer}", *rows])


@dataclass(frozen=True, repr=False)
class Dosing:
    """The doses that meet targets, as tables with a row for each

    - ``doses``: patient and interval ``every``: ``feasible``; ``dose``, the smallest that meets all
      targets, NaN where none does, and its ``probability``; ``per_kg`` where weight is known; ``weekly``
      consumption; ``least_weekly``, whether it is the patient's least, at the longest interval of equal ones;
      ``best_dose`` and ``best_probability``, the highest that was reached; ``reason`` where there is no dose;
    - ``candidates``: patient, interval and dose, around the answer or else the best: ``chosen``,
      ``probability``, ``per_kg``, ``weekly``, and of ``trough``, ``peak``, ``auc`` and ``above_X`` (the
      time above X) the ``_typical``, ``_lower_90``, ``_median`` and ``_upper_90``;
    - ``warnings``: patient (empty: all), kind and message.

    Levels are in ``unit``, doses in ``dose_unit``, intervals in ``units.time`` (``attrs["units"]``).
    ``regimen`` says what is repeated and which interval counts, ``label`` names the study, ``disclaimer``
    what doses are for.
    """

    label: str
    units: Units
    targets: tuple[Target, ...]
    probability: float
    regimen: str
    doses: pd.DataFrame
    candidates: pd.DataFrame
    warnings: pd.DataFrame
    disclaimer: str = DISCLAIMER

    def __post_init__(self) -> None:
        name_units(self, "doses", self.units.named)

    @property
    def unit(self) -> str:
        """Of levels."""
        return self.units.reported

    @property
    def dose_unit(self) -> str:
        """Of doses."""
        return self.units.amount

    def __repr__(self) -> str:
        return contents(self)
