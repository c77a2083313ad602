"""Covariates -> typical parameters, for a batch of fits at once.

A typical parameter is the product of the effects of the branches that have a head for it; a parameter
without a branch is one free scalar per fit. Which covariate feeds which parameter is configuration
(conf/network/).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import number
from medcm_cli.errors import InputError
from medcm_cli.model.branches import Branch
from medcm_cli.model.coefficients import Coefficient
from medcm_cli.model.distributions import Logit
from medcm_cli.model.rows import Row, raw_of, row_of
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

    @property
    def named(self) -> dict[str, float]:
        """The parameters and coefficients of which can be said where they begin (``with_initial``), and what
        each is above. By default none."""
        return {}

    def values_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """What those of equations among ``named`` are, (B,) or a number that is known, in the unit in which
        ``with_initial`` takes them. By default none."""
        del values
        return {}

    def with_initial(self, given: Mapping[str, Coefficient]) -> "Network":
        """The same with some of ``named`` as given.

        :raises InputError: what is given cannot be of one of them.
        """
        assert not given
        return self

    def rows(self) -> list[Row]:
        """Trained numbers whose softplus is a parameter. By default none."""
        return []


@dataclass(frozen=True)
class CovariateNetwork(Network):
    """Branches and global parameters. ``scales`` divides each covariate to about [0, 1]; ``initial`` holds
    what a global parameter begins with, where that is not drawn, and what the product of a parameter's
    branches, which begins near 1, is multiplied by. ``given``: global parameters of which more is said."""

    branches: tuple[Branch, ...]
    global_parameters: tuple[str, ...]
    scales: Mapping[str, float]
    initial: Mapping[str, float] = field(default_factory=dict)
    given: Mapping[str, Coefficient] = field(default_factory=dict)

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
        for parameter in self._free:
            name = f"global.{parameter}"
            values[name] = per_fit(streams, lambda g: g.uniform(-root, root), name, dtype)
            if parameter in self.initial:
                values[name] = torch.full_like(values[name], raw_of(self.initial[parameter]))
        return values

    @property
    def _free(self) -> list[str]:
        """The global parameters that are estimated."""
        known = {name for name, given in self.given.items() if not given.estimated}
        return [name for name in self.global_parameters if name not in known]

    @property
    def named(self) -> dict[str, float]:
        """See ``Network.named``."""
        return dict.fromkeys(self.parameters, 0.0)

    def with_initial(self, given: Mapping[str, Coefficient]) -> "CovariateNetwork":
        """See ``Network.with_initial``."""
        for name, one in given.items():
            if name in self.initial:
                raise InputError(f"initial.{name}: network.initial.{name} says it too; leave one out")
            bounded = one.lower > 0 or one.upper < math.inf
            if name not in self.global_parameters and (bounded or not one.estimated):
                raise InputError(
                    f"initial.{name}: comes from a network, whose size this is; expected a number alone"
                )
        begin = {name: one.begin for name, one in given.items() if one.estimated}
        of_all = {name: one for name, one in given.items() if name in self.global_parameters}
        return replace(self, initial={**self.initial, **begin}, given=of_all)

    def rows(self) -> list[Row]:
        """See ``Network.rows``."""
        return [row_of(f"global.{name}", 0, self.given.get(name)) for name in self._free]

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Network.typical``."""
        zeta: dict[str, Tensor] = {}
        for branch in self.branches:
            inputs = [covariates[name] / self.scales[name] for name in branch.inputs]
            for head, effect in branch.effects(values, inputs).items():
                zeta[head] = zeta[head] * effect if head in zeta else effect
        zeta = _times(zeta, self.initial)
        free = self._free
        for name in self.global_parameters:
            if name in free:
                zeta[name] = functional.softplus(values[f"global.{name}"])
            else:
                like = next(iter((*values.values(), *covariates.values())))
                zeta[name] = like.new_full(like.shape[-1:], self.given[name].begin)
        return zeta


@dataclass(frozen=True)
class Around(Network):
    """What is trained is all of another ``network``; by default, all else is that one's too."""

    network: Network

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
        return self.network.typical(values, covariates)

    def coefficients(self, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str, bool]]:
        """See ``Network.coefficients``."""
        return self.network.coefficients(values)

    @property
    def named(self) -> dict[str, float]:
        """See ``Network.named``."""
        return self.network.named

    def values_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """See ``Network.values_of``."""
        return self.network.values_of(values)

    def with_initial(self, given: Mapping[str, Coefficient]) -> "Around":
        """See ``Network.with_initial``."""
        return replace(self, network=self.network.with_initial(given))

    def rows(self) -> list[Row]:
        """See ``Network.rows``."""
        return self.network.rows()


def innermost(network: Network) -> Network:
    """What is trained, without what is around it."""
    while isinstance(network, Around):
        network = network.network
    return network


@dataclass(frozen=True)
class Rescaled(Around):
    """A network whose typical parameters are in other units: each of ``factors`` times what ``network``
    gives, which so begins, and learns, as it would in its own.

    Of parameters that lie between ``bounds`` the network gives the odds of where. A factor of a covariate so
    multiplies these, which is to add its logarithm to the logit.
    """

    factors: Mapping[str, float]
    bounds: Mapping[str, Logit] = field(default_factory=dict)

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Network.typical``."""
        zeta = _times(self.network.typical(values, covariates), self.factors)
        return {name: self.bounds[name].of_odds(z) if name in self.bounds else z for name, z in zeta.items()}

    def values_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """See ``Network.values_of``."""
        found = self.network.values_of(values)
        for name, of in self.bounds.items():
            if name in found:
                found[name] = of.of_odds(torch.as_tensor(found[name], dtype=torch.float64))
        return found

    def with_initial(self, given: Mapping[str, Coefficient]) -> "Rescaled":
        """See ``Network.with_initial``."""
        own = {name: one.over(self.factors.get(name, 1.0)) for name, one in given.items()}
        own |= {name: _in_odds(given[name], of) for name, of in self.bounds.items() if name in given}
        return replace(self, network=self.network.with_initial(own))


def _in_odds(given: Coefficient, of: Logit) -> Coefficient:
    """What is said of a parameter, of the odds of where it lies between the bounds of its distribution.

    :raises InputError: it does not lie there.
    """
    if not of.lower < given.begin < of.upper:
        raise InputError(
            f"initial.{given.name} is {given.begin:g}; expected a value above {of.lower:g} and below "
            f"{of.upper:g} (distributions.{given.name})"
        )
    low = of.odds(given.lower) if given.lower > of.lower else 0.0
    high = of.odds(given.upper) if given.upper < of.upper else math.inf
    return replace(given, begin=of.odds(given.begin), lower=low, upper=high)


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
