"""Typical parameters of which some come from a network that another fit has trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medcm_cli.model.coefficients import Coefficient
from medcm_cli.model.networks import Network
from medcm_cli.model.rows import Row
from medcm_cli.numerics.streams import Stream


@dataclass(frozen=True)
class WithKnown(Network):
    """The parameters of ``network``, and those of ``other``, whose trained values (...) are ``known`` and are
    the same of every fit. Only ``network`` is trained."""

    network: Network
    other: Network
    known: Mapping[str, Tensor]

    @property
    def parameters(self) -> tuple[str, ...]:
        """See ``Network.parameters``."""
        return (*self.other.parameters, *self.network.parameters)

    @property
    def inputs(self) -> tuple[str, ...]:
        """See ``Network.inputs``."""
        return tuple(dict.fromkeys((*self.other.inputs, *self.network.inputs)))

    @property
    def effects(self) -> tuple[tuple[str, str], ...]:
        """See ``Network.effects``."""
        return (*self.other.effects, *self.network.effects)

    @property
    def categories(self) -> Mapping[str, tuple[float, ...]]:
        """See ``Network.categories``."""
        return {**self.other.categories, **self.network.categories}

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """See ``Network.init``."""
        return self.network.init(streams, dtype)

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Network.typical``."""
        like = next(iter((*values.values(), *covariates.values())))
        known = {
            name: value.to(like)[..., None].expand(*value.shape, like.shape[-1])
            for name, value in self.known.items()
        }
        return {**self.other.typical(known, covariates), **self.network.typical(values, covariates)}

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

    def with_initial(self, given: Mapping[str, Coefficient]) -> "WithKnown":
        """See ``Network.with_initial``."""
        return replace(self, network=self.network.with_initial(given))

    def rows(self) -> list[Row]:
        """See ``Network.rows``."""
        return self.network.rows()
