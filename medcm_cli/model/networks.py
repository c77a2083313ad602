"""Covariates -> typical parameters, for a batch of fits at once.

A typical parameter is the product of the effects of the branches that have a head for it; a parameter
without a branch is one free scalar per fit. Which covariate feeds which parameter is configuration
(conf/network/).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import number
from medcm_cli.errors import InputError
from medcm_cli.model.branches import Branch
from medcm_cli.model.distributions import Logit
from medcm_cli.numerics.streams import Stream, per_fit


@runtime_checkable
class Network(Protocol):
    """What gives the typical parameters of a model."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the typical parameters that it gives."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the covariates that it reads."""

    @property
    def effects(self) -> tuple[tuple[str, str], ...]:
        """(covariate, parameter): which depends on which."""

    @property
    def categories(self) -> Mapping[str, tuple[float, ...]]:
        """Covariate -> the numbers of its categories, where others have no meaning. By default none."""
        return {}

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Initial values of what is trained, unconstrained.

        :param streams: the random numbers of each of B fits.
        :returns: name -> (..., B).
        """

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The typical parameters zeta, each above 0.

        :param values: trained values, as ``init`` lays them out.
        :param covariates: name -> (1, N, B) in its unit, or (P, 1, N, B) with a value for each of P regimes
            where it changes in time.
        :returns: parameter -> (B,) where it is global, (1, N, B) where it depends on covariates, (P, 1, N, B)
            where on one that changes in time; in the unit that the compartment model has it in.
        """

    def coefficients(self, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str, bool]]:
        """What is estimated besides typical parameters and has a name: name -> value (B,), its unit, and
        whether it is above 0 whatever is trained. By default none.

        :param values: trained values, as ``init`` lays them out.
        """
        del values
        return {}


@dataclass(frozen=True)
class CovariateNetwork(Network):
    """Branches and global parameters. ``scales`` divides each covariate to about [0, 1]; ``initial`` holds
    what a global parameter begins with, where that is not drawn, and what the product of a parameter's
    branches, which begins near 1, is multiplied by."""

    branches: tuple[Branch, ...]
    global_parameters: tuple[str, ...]
    scales: Mapping[str, float]
    initial: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        branches: Sequence[Mapping[str, object]],
        global_parameters: Sequence[str],
        covariates: Mapping[str, Mapping[str, object]],
        initial: Mapping[str, float] | None = None,
    ) -> "CovariateNetwork":
        """From configuration.

        :param branches: the options of each branch: inputs, hidden, heads, activation.
        :param global_parameters: parameters with one value per fit.
        :param covariates: the dataset's description of each, with its ``scale``.
        :param initial: where parameters begin, in their unit: exactly so if global, or else about there.
        :raises InputError: unknown covariate, activation or branch option, a parameter that has two sources,
            or an initial value that is not above 0 or of no parameter.
        """
        if not isinstance(branches, list | tuple):
            raise InputError(f"network.branches is {branches!r}; expected a list of branches")
        if len(set(global_parameters)) < len(global_parameters):
            raise InputError(
                f"network.global_parameters is {list(global_parameters)}; expected each parameter once"
            )
        made: list[Branch] = []
        for options in branches:
            made.append(Branch.build(options, covariates, made))
        heads = {head for branch in made for head in branch.heads}
        both = heads & set(global_parameters)
        if both:
            raise InputError(f"network: {min(both)!r} is a global parameter and has a branch; choose one")
        initial = dict(initial or {})
        _check_initial(initial, (*sorted(heads), *global_parameters))
        return cls(tuple(made), tuple(global_parameters), scales_of(covariates), initial)

    @property
    def parameters(self) -> tuple[str, ...]:
        """See ``Network.parameters``."""
        heads = dict.fromkeys(head for branch in self.branches for head in branch.heads)
        return (*heads, *self.global_parameters)

    @property
    def inputs(self) -> tuple[str, ...]:
        """See ``Network.inputs``."""
        return tuple(dict.fromkeys(name for branch in self.branches for name in branch.inputs))

    @property
    def effects(self) -> tuple[tuple[str, str], ...]:
        """See ``Network.effects``."""
        pairs = ((name, head) for b in self.branches for name in b.inputs for head in b.heads)
        return tuple(dict.fromkeys(pairs))

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Initial values, fit dimension last: those of the branches, and of each global parameter a scalar
        per fit, (B,), +-sqrt(2) where no initial value is given."""
        values: dict[str, Tensor] = {}
        for branch in self.branches:
            values |= branch.init(streams, dtype)
        root = math.sqrt(2)
        for parameter in self.global_parameters:
            name = f"global.{parameter}"
            values[name] = per_fit(streams, lambda g: g.uniform(-root, root), name, dtype)
            if parameter in self.initial:
                # softplus(raw) = value, by a form that neither overflows nor cancels.
                value = self.initial[parameter]
                raw = value + math.log(-math.expm1(-value))
                values[name] = torch.full_like(values[name], raw)
        return values

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Network.typical``."""
        zeta: dict[str, Tensor] = {}
        for branch in self.branches:
            inputs = [covariates[name] / self.scales[name] for name in branch.inputs]
            for head, effect in branch.effects(values, inputs).items():
                zeta[head] = zeta[head] * effect if head in zeta else effect
        zeta = _times(zeta, self.initial)
        for name in self.global_parameters:
            zeta[name] = functional.softplus(values[f"global.{name}"])
        return zeta


@dataclass(frozen=True)
class Rescaled(Network):
    """A network whose typical parameters are in other units: each of ``factors`` times what ``network``
    gives, which so begins, and learns, as it would in its own.

    Of parameters that lie between ``bounds`` the network gives the odds of where. A factor of a covariate so
    multiplies these, which is to add its logarithm to the logit.
    """

    network: Network
    factors: Mapping[str, float]
    bounds: Mapping[str, Logit] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[str, ...]:
        """See ``Network.parameters``."""
        return self.network.parameters

    @property
    def inputs(self) -> tuple[str, ...]:
        """See ``Network.inputs``."""
        return self.network.inputs

    @property
    def effects(self) -> tuple[tuple[str, str], ...]:
        """See ``Network.effects``."""
        return self.network.effects

    @property
    def categories(self) -> Mapping[str, tuple[float, ...]]:
        """See ``Network.categories``."""
        return self.network.categories

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """See ``Network.init``."""
        return self.network.init(streams, dtype)

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Network.typical``."""
        zeta = _times(self.network.typical(values, covariates), self.factors)
        return {name: self.bounds[name].of_odds(z) if name in self.bounds else z for name, z in zeta.items()}

    def coefficients(self, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str, bool]]:
        """See ``Network.coefficients``."""
        return self.network.coefficients(values)


def _times(zeta: Mapping[str, Tensor], factors: Mapping[str, float]) -> dict[str, Tensor]:
    """Those that have a factor times it; the others cost nothing, in every epoch and its gradient."""
    return {name: value * factors[name] if name in factors else value for name, value in zeta.items()}


def _check_initial(initial: Mapping[str, object], parameters: Sequence[str]) -> None:
    for name, value in initial.items():
        if name not in parameters:
            raise InputError(
                f"network.initial.{name}: no such parameter; expected some of "
                f"{', '.join(parameters) or 'none'}"
            )
        number(f"network.initial.{name}", value, above=0)


def scales_of(covariates: Mapping[str, Mapping[str, object]]) -> dict[str, float]:
    """What divides each covariate. :raises InputError: a ``scale`` that is not above 0."""
    return {
        name: float(number(f"dataset.covariates.{name}.scale", entry.get("scale"), above=0))
        for name, entry in covariates.items()
    }
