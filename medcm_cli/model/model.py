"""The model of one study: network, compartment model, random effects and residual error, composed and
frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model.equations import Equations
from medcm_cli.model.networks import Network
from medcm_cli.model.random_effects import RandomEffects
from medcm_cli.model.residual_error import ErrorModel
from medcm_cli.numerics.normal import normal_log_density
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import Lower, block_diagonal, total
from medcm_cli.pk import Along, Direction, PkModel, sensitivities, solve, spans

Values = Mapping[str, Tensor]
"""Unconstrained values of a batch of fits by name, fit dimension last."""


@dataclass(frozen=True)
class Model:
    """z = zeta(covariates) exp(eta), y = f(z) + residual error. Holds no trained value: those are passed as
    ``values``.

    With ``occasions`` some parameters are zeta exp(eta + kappa) with a kappa ~ N(0, Pi) of each occasion. The
    random effects of a subject, ``eta`` of every function, are then R = K + O L tensors: the K of
    ``random_effects``, and for each of the O occasions of a population the L of ``occasions``. A subject with
    fewer occasions has those that it lacks too; nothing depends on them.
    """

    network: Network
    pk: PkModel
    random_effects: RandomEffects
    error: ErrorModel
    occasions: RandomEffects | None = None

    def __post_init__(self) -> None:
        given, needed = set(self.network.parameters), set(self.pk.parameters)
        if given != needed:
            raise InputError(
                f"network and pk do not fit: pk needs {', '.join(self.pk.parameters)}, "
                f"the network's heads and globals are {', '.join(self.network.parameters) or 'none'}"
                f"{self._fitting()}"
            )
        names = self.random_effects.names
        unknown = sorted(set(names) - needed)
        if unknown or not names or len(set(names)) < len(names):
            raise InputError(
                f"random_effects is {list(names)}: expected distinct names of {list(self.pk.parameters)}"
            )
        own = None if self.occasions is None else self.occasions.names
        if own is not None and (not own or set(own) - needed or len(set(own)) < len(own)):
            raise InputError(
                f"occasions.parameters is {list(own)}: expected distinct names of {list(self.pk.parameters)}"
            )

    def _fitting(self) -> str:
        """Which options make network and pk fit."""
        if isinstance(self.network, Equations):
            lacks = [name for name in self.pk.parameters if name not in self.network.parameters]
            more = [name for name in self.network.parameters if name not in self.pk.parameters]
            return (
                f"; expected an equation of it too, as in '+network.equations.{lacks[0]}={{typical: NUMBER}}'"
                if lacks
                else f"; pk has no {more[0]}"
            )
        heads = {head for _, head in self.network.effects}
        of_all = ", ".join(name for name in self.pk.parameters if name not in heads)
        unknown = heads - set(self.pk.parameters)
        return (
            f"; pk has no {min(unknown)}" if unknown else f"; expected network.global_parameters=[{of_all}]"
        )

    def init(
        self, streams: Sequence[Stream], dtype: torch.dtype, typical_only: bool = False
    ) -> dict[str, Tensor]:
        """Initial values; ``typical_only`` leaves out Omega and sigma, for objectives without random
        effects."""
        values = self.network.init(streams, dtype) | self.pk.init(streams, dtype)
        if not typical_only:
            values |= self.error.init(streams, dtype) | self.random_effects.init(streams, dtype)
            values |= {} if self.occasions is None else self.occasions.init(streams, dtype)
        return values

    def typical(self, values: Values, population: Population) -> dict[str, Tensor]:
        """zeta: parameter -> (1, N, B) or (B,), in L and the unit of time of the data; and what the
        compartment model has learned, (..., B)."""
        return {**self.network.typical(values, population.covariates), **self.pk.weights(values)}

    @property
    def groups(self) -> list[RandomEffects]:
        """Those between subjects and, if any, those between occasions, each with a covariance of its own."""
        return [self.random_effects, *([] if self.occasions is None else [self.occasions])]

    def size(self, population: Population) -> int:
        """R, how many random effects a subject has."""
        own = 0 if self.occasions is None else population.occasions * len(self.occasions.names)
        return len(self.random_effects.names) + own

    def there(self, population: Population) -> Tensor | None:
        """Of each of the R random effects whether a subject has it, 1 or 0, (R, 1, N, B): not those of
        occasions that it lacks. None where there are no occasions."""
        if self.occasions is None:
            return None
        there = population.there
        own = there.repeat_interleave(len(self.occasions.names), 0)
        return torch.cat([torch.ones_like(there[:1])] * len(self.random_effects.names) + [own])

    def effects(self, population: Population) -> list[str]:
        """What the R random effects are called in tables: eta_1 .., then kappa_CL_1 .. of each occasion."""
        names = [f"eta_{place + 1}" for place in range(len(self.random_effects.names))]
        own = () if self.occasions is None else self.occasions.names
        return names + [f"kappa_{name}_{o + 1}" for o in range(population.occasions) for name in own]

    def kappas(self, eta: Sequence[Tensor]) -> dict[str, Tensor]:
        """Parameter -> its kappa on each occasion, (O, S, N, B), of R random effects."""
        if self.occasions is None:
            return {}
        first, step = len(self.random_effects.names), len(self.occasions.names)
        return {
            name: torch.stack(list(eta[first + place :: step]))
            for place, name in enumerate(self.occasions.names)
        }

    def individual(self, zeta: Values, eta: Sequence[Tensor], population: Population) -> dict[str, Tensor]:
        """z = zeta exp(eta), eta one (S, N, B) per random effect; (P, S, N, B) of a parameter that has its
        own on each occasion."""
        shifts = dict(zip(self.random_effects.names, eta, strict=self.occasions is None))
        for name, kappa in self.kappas(eta).items():
            here = _in_force(kappa, population.occasion)
            shifts[name] = shifts[name] + here if name in shifts else here
        return {**zeta, **{name: zeta[name] * torch.exp(shift) for name, shift in shifts.items()}}

    def predict(self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None) -> Tensor:
        """Level, in the unit of DV, at each observation, (T, S, N, B); typical where ``eta`` is None."""
        z = zeta if eta is None else self.individual(zeta, eta, population)
        return population.padded(solve(self.pk, population.schedule, z))

    @torch.no_grad()
    def spans(self, values: Values, population: Population) -> Tensor | None:
        """When doses begin to arrive and have arrived at typical parameters, medians over fits, on the
        clock: (2, E, N); None where these are the times of the table.

        :param population: with a fit dimension of 1, but for covariates.
        """
        names = {*self.pk.lag.values(), *self.pk.bioavailability.values(), *self.pk.durations.values()}
        if not names:
            return None
        zeta = self.typical(values, population)
        # Before there is a value for each dose: of many doses, patients and fits these would be too many.
        middle = {name: np.median(zeta[name].numpy(), axis=-1, keepdims=True) for name in names}
        z = {name: torch.from_numpy(value) for name, value in middle.items()}
        return spans(self.pk, population.schedule, z)[:, :, 0, :, 0]

    def linearise(
        self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """f and the columns of G = df/deta at ``eta`` (zero where None), (T, S, N, B) each."""
        z = zeta if eta is None else self.individual(zeta, eta, population)
        names = self.random_effects.names
        if self.occasions is None:
            prediction, columns = sensitivities(self.pk, population.schedule, z, names)
            return population.padded(prediction), columns
        alone = [name for name in names if name not in self.occasions.names]
        shares = _shares(population, next(iter(z.values())))
        parts = [Along(name, share) for share in shares for name in self.occasions.names]
        z = {**z, **{name: _of_regimes(z[name], shares) for name in self.occasions.names}}
        wrt: list[Direction] = [*alone, *parts]
        prediction, columns = sensitivities(self.pk, population.schedule, z, wrt)
        kappas = columns[len(alone) :]
        of = dict(zip(alone, columns, strict=False))
        # A parameter moves as a whole where it moves on each occasion.
        step = len(self.occasions.names)
        of |= {name: total(kappas[place::step]) for place, name in enumerate(self.occasions.names)}
        return population.padded(prediction), [*(of[name] for name in names), *kappas]

    def log_joint(
        self, values: Values, zeta: Values, population: Population, eta: Sequence[Tensor]
    ) -> Tensor:
        """log p(levels, eta) of each subject, constants included: sum over observations of log p(y | f(eta)),
        plus log N(eta; 0, Omega), and likewise of kappas, of those on occasions that a subject lacks too.

        :param zeta: typical parameters. :param eta: R of (S, N, B). :returns: (S, N, B).
        """
        prediction = self.predict(zeta, population, eta)
        terms = self.error.log_density(values, prediction, population)
        return population.sum_observations(terms) + self.log_prior(values, eta)

    def log_prior(self, values: Values, eta: Sequence[Tensor], there: Tensor | None = None) -> Tensor:
        """log N(eta; 0, Omega) and, with occasions, log N(kappa; 0, Pi) of each: (S, N, B).

        :param there: (O, 1, N, B), 1 where a subject has an occasion; None: those of all count.
        """
        first = len(self.random_effects.names)
        of_eta = normal_log_density(self.omega_cholesky(values), eta[:first])
        if self.occasions is None:
            return of_eta
        of_kappa = normal_log_density(self.occasions.cholesky(values), list(self.kappas(eta).values()))
        return of_eta + (of_kappa if there is None else of_kappa * there).sum(0)

    def omega_cholesky(self, values: Values) -> Lower:
        """Cholesky factor of Omega, entries (B,)."""
        return self.random_effects.cholesky(values)

    def prior_cholesky(self, values: Values, population: Population) -> Lower:
        """Cholesky factor of the covariance of the R random effects, entries (B,): that of Omega, and of Pi
        for each occasion."""
        omega = self.omega_cholesky(values)
        if self.occasions is None:
            return omega
        return block_diagonal([omega, *[self.occasions.cholesky(values)] * population.occasions])


def _in_force(kappa: Tensor, occasion: Tensor | None) -> Tensor:
    """Of kappas (O, S, N, B) those of each regime's ``occasion`` (P, 1, N, B): (P, S, N, B), or (S, N, B)
    where there is one regime. Who has no regimes has one occasion."""
    if occasion is None:
        return kappa[0]
    shape = torch.broadcast_shapes(kappa.shape[1:], occasion.shape[1:])
    found = kappa.expand(-1, *shape).gather(0, occasion.expand(-1, *shape))
    return found[0] if len(found) == 1 else found


def _shares(population: Population, like: Tensor) -> list[Tensor]:
    """Of each occasion 1 in its regimes and 0 in others, (P, 1, N, B), or (1, N, B) where there is one."""
    occasion = population.occasion
    if occasion is None:
        occasion = torch.zeros_like(population.present, dtype=torch.long)[None, None]
    shares = [(occasion == number).to(like.dtype) for number in range(population.occasions)]
    return [share[0] for share in shares] if len(occasion) == 1 else shares


def _of_regimes(value: Tensor, shares: Sequence[Tensor]) -> Tensor:
    """A parameter with a dimension for regimes where the shares have one."""
    like = shares[0]
    if like.ndim < 4 or value.ndim > 3:
        return value
    return value.expand(len(like), *torch.broadcast_shapes(value.shape, like.shape[1:]))
