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
from medcm_cli.model.networks import Network, Rescaled
from medcm_cli.model.random_effects import SIGMA, RandomEffects
from medcm_cli.model.residual_error import OF_SUBJECTS, ErrorModel
from medcm_cli.model.rows import Row, row_of
from medcm_cli.numerics.normal import normal_log_density
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import Lower
from medcm_cli.pk import PkModel, sensitivities, solve, spans

Values = Mapping[str, Tensor]
"""Unconstrained values of a batch of fits by name, fit dimension last."""


@dataclass(frozen=True)
class Model:
    """z = zeta(covariates) exp(eta), or as its distribution is, and y = f(z) + residual error. Holds no
    trained value: those are passed as ``values``. ``sigmas``: component of the error -> where its sigma
    begins, and its bounds."""

    network: Network
    pk: PkModel
    random_effects: RandomEffects
    error: ErrorModel
    sigmas: Mapping[str, Coefficient] = field(default_factory=dict)

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

        for name in self.random_effects.distributions:
            if name not in needed:
                raise InputError(
                    f"distributions.{name}: pk has no such parameter; it has {', '.join(self.pk.parameters)}"
                )

    def _fitting(self) -> str:
        """Which options make network and pk fit."""
        network = self.network.network if isinstance(self.network, Rescaled) else self.network
        if isinstance(network, Equations):
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
        return [*self.network.rows(), *self.random_effects.rows(), *sigmas]

    def typical(self, values: Values, population: Population) -> dict[str, Tensor]:
        """zeta: parameter -> (1, N, B) or (B,), in L and the unit of time of the data; and what the
        compartment model and distributions have learned, (..., B)."""
        zeta = self.network.typical(values, population.covariates)
        return {**zeta, **self.pk.weights(values), **self.random_effects.shapes(values)}

    def individual(self, zeta: Values, eta: Sequence[Tensor]) -> dict[str, Tensor]:
        """z, as the distribution of each parameter has it, from zeta and one eta (S, N, B) per random
        effect."""
        return self.random_effects.individual(zeta, eta)

    def coefficients(self, values: Values) -> dict[str, tuple[Tensor, str, bool]]:
        """See ``Network.coefficients``; and the shapes of distributions."""
        shapes = {name: (value, "-", False) for name, value in self.random_effects.shapes(values).items()}
        return {**self.network.coefficients(values), **shapes}

    def predict(self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None) -> Tensor:
        """Level, in the unit of DV, at each observation, (T, S, N, B); typical where ``eta`` is None."""
        z = zeta if eta is None else self.individual(zeta, eta)
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
        z = zeta if eta is None else self.individual(zeta, eta)
        effects = self.random_effects
        if effects.parameters:
            prediction, columns = sensitivities(self.pk, population.schedule, z, effects.parameters)
        else:
            prediction, columns = solve(self.pk, population.schedule, z), []
        columns = [
            column if slope is None else column * slope
            for column, slope in zip(columns, effects.slopes(zeta, eta), strict=True)
        ]
        if (place := effects.place_of_sigma) is not None:  # which moves no prediction
            columns.insert(place, torch.zeros_like(prediction))
        return population.padded(prediction), columns

    def of_subjects(self, values: Values, eta: Sequence[Tensor]) -> Values:
        """Values with which the error model has the residual sd of each subject, where that has a random
        effect: exp(eta) times the population's."""
        place = self.random_effects.place_of_sigma
        return values if place is None else {**values, OF_SUBJECTS: torch.exp(eta[place])}

    def log_joint(
        self, values: Values, zeta: Values, population: Population, eta: Sequence[Tensor]
    ) -> Tensor:
        """log p(levels, eta) of each subject, constants included: sum over observations of log p(y | f(eta)),
        plus log N(eta; 0, Omega).

        :param zeta: typical parameters. :param eta: K of (S, N, B). :returns: (S, N, B).
        """
        prediction = self.predict(zeta, population, eta)
        terms = self.error.log_density(self.of_subjects(values, eta), prediction, population)
        return population.sum_observations(terms) + normal_log_density(self.omega_cholesky(values), eta)

    def omega_cholesky(self, values: Values) -> Lower:
        """Cholesky factor of Omega, entries (B,)."""
        return self.random_effects.cholesky(values)
