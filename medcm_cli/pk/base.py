"""The contract between a compartment model and everything that uses one."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk.derivatives import Direction
from medcm_cli.pk.dosing import Values, check_doses
from medcm_cli.pk.schedule import Schedule

_UNITS = {
    **dict.fromkeys(("CL", "Q", "Q3"), "L/{time}"),
    **dict.fromkeys(("V1", "V2", "V3"), "L"),
    "KA": "1/{time}",
    "VM": "{amount}/{time}",
    "KM": "{amount}/L",
}


@runtime_checkable
class PkModel(Protocol):
    """A compartment model: a frozen value that holds options and no parameter. Of ``solve`` and
    ``sensitivities`` of ``medcm_cli.pk`` it has the way in which it is solved.

    The first of its attributes are those of ``medcm_cli.pk.dosing.Dosed``. A class that names this protocol
    as its base need only give these, ``predict`` and ``sensitivities``.
    """

    parameters: tuple[str, ...]
    lag: Mapping[int, str]
    bioavailability: Mapping[int, str]
    durations: Mapping[int, str]
    bioavailability_keeps: str = "rate"

    @property
    def dosed(self) -> int:
        """The compartment, from 0, of a dose that names none."""

    @property
    def takes_doses(self) -> int:
        """How many compartments, from the first, doses can go to."""

    @property
    def observes(self) -> int | None:
        """The compartment, from 0, that is observed; None where CMT of an observation says nothing."""
        return None

    def with_compiled_steps(self) -> "PkModel":
        """The same, integrated by compiled steps. :raises InputError: it is not integrated so."""
        raise InputError(
            "batch.compile=true is of models that are integrated by pk.method=tsit5; leave it out"
        )

    def check(self, schedule: Schedule) -> None:
        """Whether it can take the doses of a schedule. :raises InputError: see
        ``medcm_cli.pk.check_schedule``."""
        check_doses(self, schedule, superposed=self.scales_with_dose)

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``."""

    def sensitivities(
        self, schedule: Schedule, z: Values, wrt: Sequence[Direction]
    ) -> tuple[Tensor, list[Tensor]]:
        """See ``medcm_cli.pk.sensitivities``."""

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Initial values, name -> (..., B), of what is trained in the model itself: nothing, as a rule."""
        del streams, dtype
        return {}

    def weights(self, values: Values) -> dict[str, Tensor]:
        """Those of ``init`` among trained values; ``z`` of ``predict`` and of the others has them, too."""
        del values
        return {}

    @property
    def abscissa(self) -> str | None:
        """The column that it depends on in place of time, which schedules then have as their time; None of
        time."""
        return None

    @property
    def outputs(self) -> tuple[str, ...]:
        """What an endpoint can be of (``observing``)."""
        return ("central",)

    def observing(self, outputs: Sequence[str]) -> "PkModel":
        """The same, of which an observation of endpoint k (``Schedule.endpoint``) is the k-th of ``outputs``,
        all predicted along one integration.

        :param outputs: of ``self.outputs``.
        """
        del outputs
        return self

    def silent(self, endpoint: int) -> bool:
        """Whether predictions of an endpoint, from 0, are 0 until something is given."""
        del endpoint
        return self.begins_empty

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on how it is solved, where that is not what an option says."""
        return ()

    @property
    def begins_empty(self) -> bool:
        """Whether predictions are 0 until something is given."""
        return True

    @property
    def scales_with_dose(self) -> bool:
        """Whether predictions are sums over doses, proportional to the amount of each."""
        return False

    @property
    def needs_double(self) -> bool:
        """Whether predictions have to be computed in double precision, as by a solver that chooses its own
        steps."""
        return True

    def half_life(self, z: Values) -> Tensor | None:
        """Terminal half-life, in the data's unit of time, None of a model that has none.

        :param z: name -> (S, N, B) or broadcastable.
        """
        del z
        return None

    @property
    def above_zero(self) -> tuple[str, ...]:
        """Parameters that have no meaning at 0 or below, such as clearances, volumes and what doses follow;
        those of equations of one's own may be of any sign."""
        of_doses = {*self.lag.values(), *self.durations.values(), *self.bioavailability.values()}
        return tuple(name for name in self.parameters if name in _UNITS or name in of_doses)

    @property
    def units(self) -> dict[str, str]:
        """Parameter -> its unit, as far as it is known. In braces: ``time`` and ``amount``, those of the
        data."""
        times = dict.fromkeys((*self.lag.values(), *self.durations.values()), "{time}")
        shares = dict.fromkeys(self.bioavailability.values(), "-")
        known = {name: _UNITS[name] for name in self.parameters if name in _UNITS}
        return {**known, **times, **shares}
