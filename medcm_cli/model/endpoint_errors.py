"""The residual error of several endpoints: of each observation that of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model.residual_error import Deviance, ErrorModel, Normal, Scale

Values = Mapping[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class EndpointErrors(ErrorModel):
    """``errors``: name of each endpoint, in the order of their numbers, -> its residual error. A sigma is
    called by component and endpoint, as in sigma_additive_pca.

    ``weights``: endpoint -> what a deviation counts relative to where deviations of several are added up
    (``relative``); ``endpoint`` of the observations that ``white`` and ``draw`` are told of, None: the first;
    ``typical`` predictions whose spread counts (``without_interaction``).
    """

    errors: Mapping[str, ErrorModel]
    weights: Mapping[str, float] = field(default_factory=dict)
    endpoint: Tensor | int | None = field(default=None, compare=False)
    typical: Tensor | None = field(default=None, compare=False)

    @property
    def components(self) -> tuple[str, ...]:  # type: ignore[override]
        """Of all, by endpoint."""
        return tuple(f"{part}_{name}" for name, error in self.errors.items() for part in error.components)

    @property
    def fixed(self) -> Mapping[str, float]:  # type: ignore[override]
        """Of all, by endpoint."""
        return {
            f"{part}_{name}": sigma
            for name, error in self.errors.items()
            for part, sigma in error.fixed.items()
        }

    @property
    def logged(self) -> bool:  # type: ignore[override]
        """Where each of them is."""
        return all(error.logged for error in self.errors.values())

    @property
    def above_zero(self) -> bool:  # type: ignore[override]
        """Where one of them is."""
        return any(error.above_zero for error in self.errors.values())

    @property
    def allows_zero(self) -> bool:
        """Where each of them does."""
        return all(error.allows_zero for error in self.errors.values())

    @property
    def needs_positive(self) -> bool:
        """Where one of them does."""
        return any(error.needs_positive for error in self.errors.values())

    @property
    def each(self) -> tuple[ErrorModel, ...]:
        """See ``ErrorModel``."""
        return tuple(self.errors.values())

    def of_endpoint(self, endpoint: Tensor | int | None) -> "EndpointErrors":
        """See ``ErrorModel``."""
        return replace(self, endpoint=endpoint)

    def of_trained(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``ErrorModel``."""
        found = dict[str, Tensor]()
        for name, error in self.errors.items():
            own = {part: parts[f"{part}_{name}"] for part in error.free}
            found |= {f"{part}_{name}": sigma for part, sigma in error.of_trained(own).items()}
        return found

    def reported(self, values: Values, scale: float = 1.0) -> dict[str, Tensor]:
        """See ``ErrorModel``; ``scale`` is the first endpoint's."""
        found = dict[str, Tensor]()
        for number, (name, error) in enumerate(self.errors.items()):
            own = error.reported(self._own(values, name), 1.0 if number else scale)
            found |= {f"{sigma}_{name}": value for sigma, value in own.items()}
        return found

    def relative(self, deviation: Tensor, population: Population) -> Tensor:
        """See ``ErrorModel``. :raises InputError: an endpoint has no weight."""
        for name in self.errors:
            if name not in self.weights:
                raise InputError(
                    "objective=mse adds up endpoints relative to their sizes; expected "
                    f"endpoints.{name}.size, a usual value in its unit"
                )
        sizes = [deviation.new_tensor(self.weights[name]) for name in self.errors]
        return deviation / _picked(sizes, population.endpoint)

    def counted_in(self, component: str, begins: Mapping[str, float]) -> float:
        """See ``ErrorModel``."""
        for name, error in self.errors.items():
            own = {part: begins[f"{part}_{name}"] for part in error.components if f"{part}_{name}" in begins}
            part = component.removesuffix(f"_{name}")
            if part != component and part in error.components:
                return error.counted_in(part, own)
        raise KeyError(component)

    def scale(self, values: Values, prediction: Tensor, population: Population) -> Scale:
        """See ``ErrorModel``."""
        each = self._of(values, prediction, population, lambda error, *seen: error.scale(*seen))
        pull = _picked([one.pull for one in each], population.endpoint)
        curvature = _picked([one.curvature for one in each], population.endpoint)
        if all(one.cross is None for one in each):
            return Scale(pull, curvature, None)
        crosses = [torch.zeros_like(pull) if one.cross is None else one.cross for one in each]
        return Scale(pull, curvature, _picked(crosses, population.endpoint))

    def without_interaction(self, values: Values, typical: Tensor) -> "EndpointErrors":
        """See ``ErrorModel``."""
        del values
        return replace(self, typical=typical)

    def transformation(self, population: Population) -> Tensor:
        """See ``ErrorModel``: a 1 in place of another endpoint's observation has none."""
        found = super().transformation(population)
        for number, error in enumerate(self.errors.values()):
            own = _or_one(_mine(population.endpoint, number), population.dv)
            found = found + error.transformation(replace(population, dv=own))
        return found

    def white(self, values: Values, prediction: Tensor, dv: Tensor) -> Tensor:
        """See ``ErrorModel``: of ``endpoint``."""

        def one(error: ErrorModel, own: Values, number: int) -> Tensor:
            mine = _mine(self.endpoint, number)
            return error.white(own, _or_one(mine, prediction), _or_one(mine, dv))

        return _picked(self._all(values, one), self.endpoint)

    def draw(self, values: Values, prediction: Tensor, noise: Tensor | float, unit: float = 1.0) -> Tensor:
        """See ``ErrorModel``: of ``endpoint``, of which ``unit`` is, too."""

        def one(error: ErrorModel, own: Values, number: int) -> Tensor:
            return error.draw(own, _or_one(_mine(self.endpoint, number), prediction), noise, unit)

        return _picked(self._all(values, one), self.endpoint)

    def log_density(self, values: Values, prediction: Tensor, population: Population) -> Tensor:
        """See ``ErrorModel``."""
        return _picked(
            self._of(values, prediction, population, lambda error, *seen: error.log_density(*seen)),
            population.endpoint,
        )

    def deviance(self, values: Values, prediction: Tensor, population: Population) -> Deviance:
        """See ``ErrorModel``."""
        each = self._of(values, prediction, population, lambda error, *seen: error.deviance(*seen))
        value, sd, pull = (
            _picked([getattr(one, part) for one in each], population.endpoint)
            for part in ("value", "sd", "pull")
        )
        if all(one.curvature is None for one in each):
            return Deviance(value, sd, pull, None)
        whole = [torch.ones_like(pull) if one.curvature is None else one.curvature for one in each]
        return Deviance(value, sd, pull, _picked(whole, population.endpoint))

    def as_normal(self, values: Values, prediction: Tensor, population: Population) -> Normal:
        """See ``ErrorModel``."""
        each = self._of(values, prediction, population, lambda error, *seen: error.as_normal(*seen))
        deviation = _picked([one.deviation for one in each], population.endpoint)
        sd = _picked([one.sd for one in each], population.endpoint)
        censored = None
        if any(one.censored is not None for one in each):
            none = torch.zeros_like(deviation, dtype=torch.bool)
            of_each = [none if one.censored is None else one.censored for one in each]
            censored = _picked(of_each, population.endpoint)
        if all(one.misfit is None and one.log_scale is None for one in each):
            return Normal(deviation, sd, censored=censored, side=population.side)
        misfit = [(one.deviation / one.sd).square() if one.misfit is None else one.misfit for one in each]
        scale = [torch.log(one.sd) if one.log_scale is None else one.log_scale for one in each]
        both = _picked(misfit, population.endpoint), _picked(scale, population.endpoint)
        return Normal(deviation, sd, both[0], both[1].expand_as(deviation), censored, population.side)

    def _of(
        self,
        values: Values,
        prediction: Tensor,
        population: Population,
        of: Callable[[ErrorModel, Values, Tensor, Population], T],
    ) -> list[T]:
        """What each error says of all observations; those of others are 1, as their predictions are: what is
        computed of them is finite, and not used."""

        def one(error: ErrorModel, own: Values, number: int) -> T:
            mine = _mine(population.endpoint, number)
            seen = replace(population, dv=_or_one(mine, population.dv))
            if self.typical is not None:
                error = error.without_interaction(own, _or_one(mine, self.typical))
            return of(error, own, _or_one(mine, prediction), seen)

        several = population.endpoint is not None
        return self._all(values, one) if several else self._all(values, one)[:1]

    def _all(self, values: Values, of: Callable[[ErrorModel, Values, int], T]) -> list[T]:
        return [
            of(error, self._own(values, name), number)
            for number, (name, error) in enumerate(self.errors.items())
        ]

    def _own(self, values: Values, name: str) -> Values:
        """Values with the raw sigmas of an endpoint in place of those of all."""
        rest = {key: value for key, value in values.items() if key != "sigma"}
        first = 0
        for other, error in self.errors.items():
            count = len(error.free)
            if other == name:
                return {**rest, "sigma": values["sigma"][first : first + count]} if count else rest or values
            first += count
        raise KeyError(name)


def _mine(endpoint: Tensor | int | None, number: int) -> Tensor | bool:
    return (endpoint or 0) == number if endpoint is None or isinstance(endpoint, int) else endpoint == number


def _or_one(mine: Tensor | bool, values: Tensor) -> Tensor:
    """``values`` where they are of an endpoint, else 1."""
    if isinstance(mine, bool):
        return values if mine else torch.ones_like(values)
    return torch.where(mine, values, 1.0)


def _picked(each: list[Tensor], endpoint: Tensor | int | None) -> Tensor:
    """That of each observation's own endpoint."""
    if endpoint is None or isinstance(endpoint, int):
        return each[endpoint or 0]
    found = each[0]
    for number, value in enumerate(each[1:], 1):
        found = torch.where(endpoint == number, value, found)
    return found
