"""The model of one study: network, compartment model, random effects and residual error, composed and
frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model.coefficients import Coefficient
from medcm_cli.model.equations import Equations
from medcm_cli.model.networks import Network, innermost
from medcm_cli.model.random_effects import SIGMA, RandomEffects
from medcm_cli.model.residual_error import OF_SUBJECTS, ErrorModel
from medcm_cli.model.rows import Row, row_of
from medcm_cli.numerics.normal import normal_log_density
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import Lower, block_diagonal, total
from medcm_cli.pk import Along, Direction, PkModel, sensitivities, solve, spans

Values = Mapping[str, Tensor]
"""Unconstrained values of a batch of fits by name, fit dimension last."""


@dataclass(frozen=True)
class Model:
    """z = zeta(covariates) exp(eta), or as its distribution is, and y = f(z) + residual error. Holds no
    trained value: those are passed as ``values``. ``sigmas``: component of the error -> where its sigma
    begins, and its bounds.

    With ``occasions`` some parameters have eta + kappa in its place, with a kappa ~ N(0, Pi) of each
    occasion. The random effects of a subject, ``eta`` of every function, are then R = K + O L tensors: the K
    of ``random_effects``, and for each of the O occasions of a population the L of ``occasions``. A subject
    with fewer occasions has those that it lacks too; nothing depends on them.
    """

    network: Network
    pk: PkModel
    random_effects: RandomEffects
    error: ErrorModel
    sigmas: Mapping[str, Coefficient] = field(default_factory=dict)
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
        unknown = sorted(set(names) - needed - {SIGMA})
        if SIGMA in needed:
            raise InputError(
                f"pk: a parameter is called {SIGMA}, as the residual error is; expected another name"
            )
        if unknown or not names or len(set(names)) < len(names):
            raise InputError(
                f"random_effects is {list(names)}: expected distinct names of {list(self.pk.parameters)}, "
                f"or {SIGMA} of the residual error"
            )
        own = None if self.occasions is None else self.occasions.names
        if own is not None and (not own or set(own) - needed or len(set(own)) < len(own)):
            raise InputError(
                f"occasions.parameters is {list(own)}: expected distinct names of {list(self.pk.parameters)}"
            )

        if own is not None and self.pk.abscissa is not None:
            raise InputError("occasions: are parts of a record over time, which this pk has not")
        for name in self.random_effects.distributions:
            if name not in needed:
                raise InputError(
                    f"distributions.{name}: pk has no such parameter; it has {', '.join(self.pk.parameters)}"
                )

    def _fitting(self) -> str:
        """Which options make network and pk fit."""
        if isinstance(innermost(self.network), Equations):
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
        for row in self.rows():
            if row.begin is not None and row.name in values:
                row.put(values)
        return values

    def rows(self) -> list[Row]:
        """Trained numbers that are population parameters on a scale of their own; not coefficients, which
        have theirs (``Coefficient``), nor what networks have."""
        begins = {name: given.begin for name, given in self.sigmas.items()}
        sigmas = [
            row_of("sigma", place, self.sigmas.get(name), self.error.counted_in(name, begins))
            for place, name in enumerate(self.error.free)
        ]
        return [*self.network.rows(), *(row for group in self.groups for row in group.rows()), *sigmas]

    def typical(self, values: Values, population: Population) -> dict[str, Tensor]:
        """zeta: parameter -> (1, N, B) or (B,), in L and the unit of time of the data; and what the
        compartment model and distributions have learned, (..., B)."""
        zeta = self.network.typical(values, population.covariates)
        return {**zeta, **self.pk.weights(values), **self.random_effects.shapes(values)}

    @property
    def groups(self) -> list[RandomEffects]:
        """Those between subjects and, if any, those between occasions, each with a covariance of its own."""
        return [self.random_effects, *([] if self.occasions is None else [self.occasions])]

    def size(self, population: Population) -> int:
        """R, how many random effects a subject has."""
        return sum(len(group.names) for group in self._each(population))

    def _each(self, population: Population) -> list[RandomEffects]:
        """Those between subjects, and those of each occasion."""
        own = [] if self.occasions is None else [self.occasions] * population.occasions
        return [self.random_effects, *own]

    def sizes(self, count: int) -> list[float] | None:
        """What each of R = ``count`` random effects is counted in where it is trained; None where that is 1
        of all."""
        first, *own = (
            [1.0] * len(group.names) if group.sizes is None else group.sizes for group in self.groups
        )
        found = first + [size for sizes in own for size in sizes * ((count - len(first)) // len(sizes))]
        return found if any(size != 1 for size in found) else None

    def reach(
        self, zeta: Values, population: Population, omega: Lower
    ) -> list[tuple[Tensor | float, Tensor | float]]:
        """From where to where modes of each of the R random effects are searched. :param omega: the Cholesky
        factor of their covariance."""
        sds = iter([total([entry * entry for entry in row]).detach().sqrt() for row in omega])
        groups = self._each(population)
        return [reach for group in groups for reach in group.reach(zeta, [next(sds) for _ in group.names])]

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

    def _shifts(self, eta: Sequence[Tensor], population: Population) -> dict[str, Tensor]:
        """Parameter -> its eta and kappa together, (S, N, B), or (P, S, N, B)."""
        shifts = dict(zip(self.random_effects.names, eta, strict=self.occasions is None))
        for name, kappa in self.kappas(eta).items():
            here = _in_force(kappa, population.occasion)
            shifts[name] = shifts[name] + here if name in shifts else here
        return shifts

    def individual(self, zeta: Values, eta: Sequence[Tensor], population: Population) -> dict[str, Tensor]:
        """z, as the distribution of each parameter has it, from zeta and one eta (S, N, B) per random effect;
        (P, S, N, B) of a parameter that has its own on each occasion."""
        return self.random_effects.shifted(zeta, self._shifts(eta, population))

    def coefficients(self, values: Values) -> dict[str, tuple[Tensor, str, bool]]:
        """See ``Network.coefficients``; and the shapes of distributions."""
        shapes = {name: (value, "-", False) for name, value in self.random_effects.shapes(values).items()}
        return {**self.network.coefficients(values), **shapes}

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
        shifts = None if eta is None else self._shifts(eta, population)
        z = zeta if shifts is None else self.random_effects.shifted(zeta, shifts)

        def slope(name: str) -> Tensor | None:
            return self.random_effects.slope(name, zeta, None if shifts is None else shifts[name])

        own = () if self.occasions is None else self.occasions.names
        alone = [name for name in self.random_effects.parameters if name not in own]
        slopes = [slope(name) for name in alone]
        wrt: list[Direction] = [
            Along(n, by) if by is not None and by.ndim > 3 else n for n, by in zip(alone, slopes, strict=True)
        ]
        if own:
            shares = _shares(population, z[own[0]])
            turns = {name: slope(name) for name in own}
            wrt += [Along(name, _times(share, turns[name])) for share in shares for name in own]
            z = {**z, **{name: _of_regimes(z[name], shares) for name in own}}
        if wrt:
            prediction, columns = sensitivities(self.pk, population.schedule, z, wrt)
        else:
            prediction, columns = solve(self.pk, population.schedule, z), []
        kappas = columns[len(alone) :]
        of = {
            name: column if isinstance(one, Along) else _times(column, by)
            for name, one, column, by in zip(alone, wrt, columns, slopes, strict=False)
        }
        # A parameter moves as a whole where it moves on each occasion.
        of |= {name: total(kappas[place :: len(own)]) for place, name in enumerate(own)}
        if self.random_effects.place_of_sigma is not None:  # which moves no prediction
            of[SIGMA] = torch.zeros_like(prediction)
        return population.padded(prediction), [*(of[name] for name in self.random_effects.names), *kappas]

    def of_subjects(self, values: Values, eta: Sequence[Tensor]) -> Values:
        """Values with which the error model has the residual sd of each subject, where that has a random
        effect: exp(eta) times the population's."""
        place = self.random_effects.place_of_sigma
        return values if place is None else {**values, OF_SUBJECTS: torch.exp(eta[place])}

    def log_joint(
        self, values: Values, zeta: Values, population: Population, eta: Sequence[Tensor]
    ) -> Tensor:
        """log p(levels, eta) of each subject, constants included: sum over observations of log p(y | f(eta)),
        plus log N(eta; 0, Omega), and likewise of kappas, of those on occasions that a subject lacks too.

        :param zeta: typical parameters. :param eta: R of (S, N, B). :returns: (S, N, B).
        """
        prediction = self.predict(zeta, population, eta)
        terms = self.error.log_density(self.of_subjects(values, eta), prediction, population)
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


def _times(value: Tensor, slope: Tensor | None) -> Tensor:
    return value if slope is None else value * slope


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
