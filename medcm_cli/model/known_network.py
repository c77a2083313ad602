"""Typical parameters of which some come from a network that another fit has trained."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from medcm_cli.model.networks import Around, Network


@dataclass(frozen=True)
class WithKnown(Around):
    """The parameters of ``network``, and those of ``other``, whose trained values (...) are ``known`` and are
    the same of every fit. Only ``network`` is trained."""

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

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Network.typical``."""
        like = next(iter((*values.values(), *covariates.values())))
        known = {
            name: value.to(like)[..., None].expand(*value.shape, like.shape[-1])
            for name, value in self.known.items()
        }
        return {**self.other.typical(known, covariates), **self.network.typical(values, covariates)}
