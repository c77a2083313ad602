"""A compartment model with some of its parameters given through others, such as KA = KE + KD."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor

from medcm_cli.checks import shown
from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import total
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.derivatives import Along, Direction, moves, times_share
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.expression import Expression, parsed, units_of
from medcm_cli.pk.schedule import Schedule


@dataclass(frozen=True)
class Given(PkModel):
    """``model``, of which the parameters in ``through`` follow from the others and from those that only the
    expressions name, which become parameters in their place.

    What stands for a subject has the random effects: KE and KD are log-normal, and KA is their sum.
    """

    model: PkModel
    through: Mapping[str, Expression]
    parameters: tuple[str, ...]
    lag: Mapping[int, str]
    bioavailability: Mapping[int, str]
    durations: Mapping[int, str]
    bioavailability_keeps: str

    @property
    def dosed(self) -> int:
        """See ``PkModel``."""
        return self.model.dosed

    @property
    def takes_doses(self) -> int:
        """See ``PkModel``."""
        return self.model.takes_doses

    @property
    def observes(self) -> int | None:
        """See ``PkModel``."""
        return self.model.observes

    @property
    def scales_with_dose(self) -> bool:
        """See ``PkModel``."""
        return self.model.scales_with_dose

    @property
    def needs_double(self) -> bool:
        """See ``PkModel``."""
        return self.model.needs_double

    @property
    def units(self) -> dict[str, str]:
        """See ``PkModel``: those of what the model has itself, and what follows from them."""
        known = dict(self.model.units)
        for name, expression in reversed(list(self.through.items())):
            if name in known:
                known = {**units_of(expression, known[name], known), **known}
        return {name: known[name] for name in self.parameters if name in known}

    @property
    def begins_empty(self) -> bool:
        """See ``PkModel``."""
        return self.model.begins_empty

    @property
    def abscissa(self) -> str | None:
        """See ``PkModel``."""
        return self.model.abscissa

    def silent(self, endpoint: int) -> bool:
        """See ``PkModel``."""
        return self.model.silent(endpoint)

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``PkModel``."""
        return self.model.notes

    def with_compiled_steps(self) -> "Given":
        """See ``PkModel``."""
        return replace(self, model=self.model.with_compiled_steps())

    def check(self, schedule: Schedule) -> None:
        """See ``PkModel``."""
        self.model.check(schedule)

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """See ``PkModel``."""
        return self.model.init(streams, dtype)

    def weights(self, values: Values) -> dict[str, Tensor]:
        """See ``PkModel``."""
        return self.model.weights(values)

    def half_life(self, z: Values) -> Tensor | None:
        """See ``PkModel``."""
        return self.model.half_life(self._all(z))

    def check_beginning(self, begin: Mapping[str, Tensor | float]) -> None:
        """Whether what is given has a meaning where a fit begins.

        :param begin: its parameters, as far as they are known, a number each. :raises InputError: a given
            parameter that has to be above 0 is not, or is no number.
        """
        if not set(self.parameters) <= set(begin):
            return
        z = {name: torch.as_tensor(begin[name], dtype=torch.float64).reshape(1) for name in self.parameters}
        found = self._all(z)
        for name, expression in self.through.items():
            if not bool(torch.isfinite(found[name])):
                at = ", ".join(f"{other} {float(found[other]):g}" for other in expression.names)
                raise InputError(
                    f"given.{name} is {expression.text!r}, which where a fit begins ({at}) is no number "
                    "above 0; expected one, or another beginning (network.equations, initial)"
                )

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``."""
        return self.model.predict(schedule, self._all(z))

    def sensitivities(
        self, schedule: Schedule, z: Values, wrt: Sequence[Direction]
    ) -> tuple[Tensor, list[Tensor]]:
        """See ``medcm_cli.pk.sensitivities``: by the chain rule on the log scale."""
        full = self._all(z)
        shares = [self._shares(full, one) for one in wrt]
        # What has part in the same way at all times, which several directions may have in common; and others.
        alike = dict.fromkeys(name for own in shares for name, share in own.items() if not _changes(share))
        others = [Along(name, share) for own in shares for name, share in own.items() if _changes(share)]
        prediction, columns = self.model.sensitivities(schedule, full, [*alike, *others])
        of = dict(zip(alike, columns, strict=False))
        rest = iter(columns[len(alike) :])
        return prediction, [
            total([next(rest) if _changes(share) else of[name] * share for name, share in own.items()])
            for own in shares
        ]

    def _all(self, z: Values) -> dict[str, Tensor]:
        """With what is given, in the order in which it is."""
        full = dict(z)
        for name, expression in self.through.items():
            value = expression.value(full)
            assert isinstance(value, Tensor)  # it has names
            # A difference may fall below 0, where levels are numbers that mean nothing.
            full[name] = torch.where(value > 0, value, torch.nan) if name in self.model.units else value
        return full

    def _shares(self, full: Values, along: Direction) -> dict[str, Tensor | float]:
        """Parameter of the model -> the derivative of its logarithm in a direction; with a dimension for
        regimes where these differ in it."""
        name = moves(along)
        tangents: dict[str, Tensor | float] = {name: times_share(along, full[name])}
        shares: dict[str, Tensor | float] = {}
        if name in self.model.parameters:
            shares[name] = 1.0 if isinstance(along, str) else along.share
        for given, expression in self.through.items():
            value, tangent = expression.slope(full, tangents)
            if not isinstance(tangent, Tensor):
                continue
            tangents[given] = tangent
            share = tangent / value
            same = share.ndim > 3 and torch.allclose(share, share[:1].expand_as(share), rtol=1e-5)
            shares[given] = share[0] if same else share
        return shares


def _changes(share: Tensor | float) -> TypeGuard[Tensor]:
    return isinstance(share, Tensor) and share.ndim > 3


def with_given(pk: PkModel, given: object) -> PkModel:
    """A model whose parameters ``given`` follow from others: parameter -> an expression; ``pk`` itself where
    there are none.

    :raises InputError: no such parameter, no expression, or one that depends on what follows from it.
    """
    if not isinstance(given, Mapping):
        raise InputError(
            f"given is {shown(given)}; expected parameters and their expressions, as in {{CL: KE * V1}}"
        )
    if not given:
        return pk
    through = {str(name): parsed(f"given.{name}", text) for name, text in given.items()}
    of_doses = {*pk.lag.values(), *pk.bioavailability.values(), *pk.durations.values()}
    before: set[str] = set()
    for name, expression in through.items():
        if name not in pk.parameters:
            raise InputError(f"given.{name}: pk has no such parameter; it has {', '.join(pk.parameters)}")
        if name in of_doses:
            raise InputError(f"given.{name}: a parameter of doses is estimated itself, and not given")
        if not expression.names:
            raise InputError(f"given.{name} is {expression.text!r}: depends on no parameter; fix it instead")
        later = [other for other in expression.names if other in through and other not in before]
        if later:
            raise InputError(f"given.{name}: {later[0]} is given too; expected it before, and in no circle")
        before.add(name)
    own = [name for name in pk.parameters if name not in through]
    new = [n for e in through.values() for n in e.names if n not in through and n not in own]
    return Given(
        pk,
        through,
        (*own, *dict.fromkeys(new)),
        pk.lag,
        pk.bioavailability,
        pk.durations,
        pk.bioavailability_keeps,
    )
