"""Residual error: how an observation spreads around its prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import number
from medcm_cli.errors import InputError
from medcm_cli.model.initial import constant, positive_init
from medcm_cli.numerics.streams import Stream


@dataclass(frozen=True)
class ResidualError:
    """Residual sd of an observation with prediction f: the sum of its components' sds (METHODS).

    ``components`` is a subset of ``additive`` (sigma_additive, IU/mL) and ``proportional``
    (sigma_proportional * f). ``fixed`` holds the sigmas that are known, and not estimated.
    """

    components: tuple[str, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        distinct = set(self.components)
        if not distinct or distinct - {"additive", "proportional"} or len(distinct) < len(self.components):
            raise InputError(
                f"error.components is {list(self.components)}: expected additive, proportional or both"
            )
        for name, sigma in self.fixed.items():
            if name not in self.components:
                raise InputError(
                    f"fixed.sigma.{name}: no such component of the error; expected "
                    f"{' or '.join(self.components)}"
                )
            number(f"fixed.sigma.{name}", sigma, above=0)

    @property
    def names(self) -> list[str]:
        """Names of the sigmas in reports."""
        return [f"sigma_{component}" for component in self.components]

    @property
    def free(self) -> list[str]:
        """The components whose sigma is estimated."""
        return [component for component in self.components if component not in self.fixed]

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Raw sigmas (free components, B); none where all are fixed."""
        return {"sigma": positive_init(streams, "sigma", len(self.free), dtype)} if self.free else {}

    def sigmas(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """component -> sigma, (B,)."""
        free = self.free
        raw = functional.softplus(values["sigma"]).unbind(0) if free else ()
        known = {name: constant(values, sigma) for name, sigma in self.fixed.items()}
        sigmas = known | dict(zip(free, raw, strict=True))
        return {component: sigmas[component] for component in self.components}

    def sd(self, values: Mapping[str, Tensor], prediction: Tensor) -> tuple[Tensor, Tensor | None]:
        """sd, (B,) or the shape of ``prediction``, and its derivative with respect to the prediction (None
        for zero)."""
        sigmas = self.sigmas(values)
        if "proportional" not in sigmas:
            return sigmas["additive"], None
        slope = sigmas["proportional"]
        sd = slope * prediction
        return (sd + sigmas["additive"] if "additive" in sigmas else sd), slope
