"""Responses that depend on a dose, or on any column, and not on time: dose-response models in closed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medcm_cli.checks import one_of
from medcm_cli.errors import InputError
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.derivatives import Direction, moves, times_share
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.schedule import Schedule

FORMS = {
    "linear": ("E0", "SLOPE"),
    "emax": ("E0", "EMAX", "ED50"),
    "hill": ("E0", "EMAX", "ED50", "GAMMA"),
}
"""Form -> its parameters."""


@dataclass(frozen=True)
class DirectModel(PkModel):
    """The response to x, the value of ``column`` at an observation:

    - ``linear``: E0 + SLOPE x
    - ``emax``: E0 + EMAX x / (ED50 + x)
    - ``hill``: E0 + EMAX x^GAMMA / (ED50^GAMMA + x^GAMMA)

    The schedule has x as its time. ``x_unit``: of x, in braces ``amount``, that of doses in the data.

    :raises InputError: no such form, or a column without a name.
    """

    form: str
    column: str = "dose"
    x_unit: str = "{amount}"
    lag: Mapping[int, str] = field(default_factory=dict, init=False)
    bioavailability: Mapping[int, str] = field(default_factory=dict, init=False)
    durations: Mapping[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        one_of("pk.form", self.form, FORMS)
        for option in ("column", "x_unit"):
            if not getattr(self, option).strip():
                raise InputError(f"pk.{option} is {getattr(self, option)!r}; expected a name")
        if "{" in self.x_unit.replace("{amount}", ""):
            raise InputError(f"pk.x_unit is {self.x_unit!r}; expected a unit, or {{amount}}")

    @property
    def parameters(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of its form."""
        return FORMS[self.form]

    @property
    def abscissa(self) -> str:
        """The column of x."""
        return self.column

    @property
    def outputs(self) -> tuple[str, ...]:
        """The response alone."""
        return ("response",)

    @property
    def dosed(self) -> int:
        """No compartment takes a dose."""
        return 0

    @property
    def takes_doses(self) -> int:
        """None."""
        return 0

    @property
    def begins_empty(self) -> bool:
        """No: there is E0."""
        return False

    @property
    def needs_double(self) -> bool:
        """No."""
        return False

    @property
    def units(self) -> dict[str, str]:
        """See ``PkModel``."""
        known = {"E0": "{model}", "EMAX": "{model}", "ED50": self.x_unit, "GAMMA": "-"}
        known |= {"SLOPE": f"{{model}}/({self.x_unit})"}
        return {name: known[name] for name in self.parameters}

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``."""
        x = schedule.time.to(z["E0"].dtype)
        change = z["SLOPE"] * x if self.form == "linear" else z["EMAX"] * self._share(x, z)[0]
        return z["E0"] + change

    def sensitivities(
        self, schedule: Schedule, z: Values, wrt: Sequence[Direction]
    ) -> tuple[Tensor, list[Tensor]]:
        """See ``medcm_cli.pk.sensitivities``."""
        x = schedule.time.to(z["E0"].dtype)
        if self.form == "linear":
            change = z["SLOPE"] * x
            slopes = {"E0": z["E0"] + torch.zeros_like(change), "SLOPE": change}
        else:
            share, power, gamma = self._share(x, z)
            change = z["EMAX"] * share
            turn = change * (1 - share)  # by the logarithm of (x / ED50)^GAMMA
            slopes = {"E0": z["E0"] + torch.zeros_like(change), "EMAX": change}
            slopes |= {"ED50": -gamma * turn, "GAMMA": power * turn}
        prediction = z["E0"] + change
        return prediction, [times_share(one, slopes[moves(one)].expand_as(prediction)) for one in wrt]

    def _share(self, x: Tensor, z: Values) -> tuple[Tensor, Tensor, Tensor | float]:
        """x^g / (ED50^g + x^g), 0 where x is; log of (x / ED50)^g, 0 there too; and g."""
        gamma: Tensor | float = z["GAMMA"] if self.form == "hill" else 1.0
        given = x > 0
        power = gamma * (torch.log(torch.where(given, x, 1.0)) - torch.log(z["ED50"]))
        share = torch.where(given, torch.sigmoid(power), 0.0)
        return share, torch.where(given, power, 0.0), gamma
