"""What an objective says of itself to those who show its results, as the record of each fit keeps it."""

import functools
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from medcm_cli.runs.folder import Record

_HOME = "medcm_cli.objectives"


@dataclass(frozen=True)
class Description:
    """Its ``value`` in words and the ``unit`` of that, or to which ``power`` of a concentration it is.

    ``likelihood``: which approximation of the log likelihood of all observations of a fit it is minus
    ``scale`` times, but for a constant; empty and None where it is none. ``q``: whether it has a distribution
    of the random effects of its own, from which draws can be made. ``rank``: its place among objectives and
    in the palette of figures; None where it has none, and comes last, in a neutral colour.
    ``per_observation``: what its value has of each observation beyond ``scale`` / 2 times the OFV, which is
    -2 log likelihood - log(2 pi) of each.
    """

    value: str = "objective value"
    unit: str = "-"
    power: int = 0
    likelihood: str = ""
    scale: float | None = None
    q: bool = False
    rank: int | None = None
    per_observation: float = 0.0

    def label(self, concentration: str) -> str:
        """The value and its unit, where concentrations are in ``concentration``."""
        unit = self.unit_in(concentration) if self.power else self.unit
        return f"{self.value} (-)" if unit == "-" else f"{self.value}, {unit}"

    def unit_in(self, concentration: str) -> str:
        """The unit of the value, - of a log likelihood."""
        powers = {0: "-", 1: concentration, 2: f"({concentration})²"}
        return powers.get(self.power, f"({concentration})^{self.power}")


def described(record: Record) -> Description:
    """What the objective of a fit says of itself. Of a fit from before records kept it, its class is asked,
    and is loaded for that, as far as it is one of medcm's; any other is described as nothing special."""
    if record.described is not None:
        known = {field.name for field in fields(Description)}
        return Description(**{name: value for name, value in record.described.items() if name in known})
    options = record.config.get("objective")
    return _asked(json.dumps(options, sort_keys=True)) if isinstance(options, Mapping) else Description()


def converged(record: Record) -> bool | None:
    """Whether a complete fit has; None of one that was not asked, as all were before."""
    return None if record.convergence is None else record.convergence.get("converged") is True


@functools.cache
def _asked(text: str) -> Description:
    options: dict[str, Any] = json.loads(text)
    home, _, name = str(options.pop("_target_", "")).rpartition(".")
    options.pop("learning_rate", None)
    if home != _HOME:
        return Description()
    objectives = importlib.import_module(_HOME)
    if name not in objectives.__all__:
        return Description()
    try:
        description = getattr(objectives, name)(**options).describe()
    except (AttributeError, TypeError, ValueError):
        return Description()
    return description if isinstance(description, Description) else Description()
