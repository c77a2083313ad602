"""Covariates -> typical parameters, for a batch of fits at once.

A typical parameter is the product of the effects of the branches that have a head for it; a parameter
without a branch is one free scalar per fit. Which covariate feeds which parameter is configuration
(conf/network/).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import number, whole
from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream, per_fit

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # torch replaces softplus by the identity above ``threshold``; 40 is exact in float64 where its default
    # of 20 is not.
    "smooth_relu": lambda x: functional.softplus(x, beta=10.0, threshold=40.0),  # softplus(10 x) / 10
    "swish": functional.silu,
}


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

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Initial values of what is trained, fit dimension last."""

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """zeta: parameter -> (1, N, B) where it depends on covariates (1, N, B), (P, 1, N, B) where on one
        that changes in time, (P, 1, N, B), and (B,) where it is global."""


@dataclass(frozen=True)
class Branch:
    """inputs -> hidden layers -> one head Dense(., 1) with softplus for each parameter in ``heads``."""

    inputs: tuple[str, ...]
    hidden: tuple[int, ...]
    heads: tuple[str, ...]
    activation: str
    name: str  # prefix of this branch's trained values: weight, weight+vwf, or weight_2 for the second such


@dataclass(frozen=True)
class CovariateNetwork(Network):
    """Branches and global parameters. ``scales`` divides each covariate to about [0, 1]; ``initial`` holds
    what a global parameter begins with, where that is not drawn."""

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
        """From configuration; ``covariates`` is the dataset's description of each, with its ``scale``;
        ``initial`` gives initial values of global parameters, in their unit, as a model without a network
        needs them.

        :raises InputError: unknown covariate, activation or branch option, a parameter that has two sources,
        or an initial value that is not above 0 or of no global parameter.
        """
        for name, start in (initial or {}).items():
            if name not in global_parameters:
                raise InputError(
                    f"network.initial.{name}: no such global parameter; expected some of "
                    f"{', '.join(global_parameters) or 'none'}"
                )
            number(f"network.initial.{name}", start, above=0)
        made: list[Branch] = []
        if not isinstance(branches, list | tuple):
            raise InputError(f"network.branches is {branches!r}; expected a list of branches")
        if len(set(global_parameters)) < len(global_parameters):
            raise InputError(
                f"network.global_parameters is {list(global_parameters)}; expected each parameter once"
            )
        for options in branches:
            if not isinstance(options, Mapping):
                raise InputError(
                    f"network.branches: {options!r}; expected inputs, hidden, heads and activation"
                )
            unknown = set(options) - {"inputs", "hidden", "heads", "activation"}
            if unknown:
                raise InputError(f"network.branches: unknown option {min(unknown)!r}")
            activation = str(options.get("activation", "smooth_relu"))
            if activation not in ACTIVATIONS:
                raise InputError(
                    f"network.branches: activation {activation!r}; expected one of {sorted(ACTIVATIONS)}"
                )
            values = {key: options.get(key) or () for key in ("inputs", "hidden", "heads")}
            for key, value in values.items():
                if not isinstance(value, Sequence) or isinstance(value, str) or not value:
                    raise InputError(
                        f"network.branches: {key!r} is {value!r}; expected a list that is not empty"
                    )
            units: list[object] = list(values["hidden"])
            hidden = tuple(whole("network.branches: a layer of 'hidden'", size, 1) for size in units)
            inputs, heads = (tuple(map(str, values[key])) for key in ("inputs", "heads"))
            for key, names in (("inputs", inputs), ("heads", heads)):
                if len(set(names)) < len(names):
                    raise InputError(f"network.branches: {key!r} is {list(names)}; expected each name once")
            alike = 1 + sum(branch.inputs == inputs for branch in made)
            name = "+".join(inputs) + (f"_{alike}" if alike > 1 else "")
            branch = Branch(inputs, hidden, heads, activation, name)
            for name in branch.inputs:
                if name not in covariates:
                    known = ", ".join(covariates) or "none"
                    raise InputError(
                        f"network.branches: covariate {name!r} is not in the dataset, which has {known}"
                    )
            made.append(branch)
        both = {head for branch in made for head in branch.heads} & set(global_parameters)
        if both:
            raise InputError(f"network: {min(both)!r} is a global parameter and has a branch; choose one")
        scales = {name: entry.get("scale") for name, entry in covariates.items()}
        for name, scale in scales.items():
            number(f"dataset.covariates.{name}.scale", scale, above=0)
        return cls(
            tuple(made),
            tuple(global_parameters),
            {name: float(str(s)) for name, s in scales.items()},
            dict(initial or {}),
        )

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
        """Initial values, fit dimension last: Glorot-uniform weights, hidden bias 0, head bias 1, globals
        +-sqrt(2) where no initial value is given.

        Weights are (out, in, B), biases (out, B), global scalars (B,).
        """
        values: dict[str, Tensor] = {}

        def glorot(name: str, fan_out: int, rows: int, columns: int) -> None:
            bound = math.sqrt(6 / (columns + fan_out))
            values[name] = per_fit(streams, lambda g: g.uniform(-bound, bound, (rows, columns)), name, dtype)

        fits = len(streams)
        for branch in self.branches:
            width = len(branch.inputs)
            for depth, units in enumerate(branch.hidden, 1):
                glorot(f"{branch.name}.hidden_{depth}.weight", units, units, width)
                values[f"{branch.name}.hidden_{depth}.bias"] = torch.zeros(units, fits, dtype=dtype)
                width = units
            # Every head is a Dense(width, 1) of its own: fan-out 1 however many heads there are.
            glorot(f"{branch.name}.heads.weight", 1, len(branch.heads), width)
            values[f"{branch.name}.heads.bias"] = torch.ones(len(branch.heads), fits, dtype=dtype)
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
            # Batched matrix products want the fit dimension first: (B, features, N).
            x, regimes = _features([covariates[name] / self.scales[name] for name in branch.inputs])
            x = x.permute(2, 0, 1).contiguous()
            activation = ACTIVATIONS[branch.activation]
            for depth in range(1, len(branch.hidden) + 1):
                x = activation(_dense(values, f"{branch.name}.hidden_{depth}", x))
            effects = functional.softplus(_fits_last(_dense(values, f"{branch.name}.heads", x)))
            for head, effect in zip(branch.heads, effects.split(1), strict=True):
                if regimes:
                    effect = effect.view(regimes, 1, -1, effect.shape[-1])
                zeta[head] = zeta[head] * effect if head in zeta else effect
        for name in self.global_parameters:
            zeta[name] = functional.softplus(values[f"global.{name}"])
        return zeta


def _features(inputs: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Covariates as (features, N, B), or, where one changes in time, (features, P N, B) and P regimes, else
    0."""
    regimes = max(len(values) if values.ndim == 4 else 0 for values in inputs)
    if not regimes:
        return torch.cat(list(inputs)), 0
    shape = (regimes, 1, *inputs[0].shape[-2:])
    return torch.stack([values.expand(shape).reshape(-1, shape[-1]) for values in inputs]), regimes


def _dense(values: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias = values[f"{name}.weight"], values[f"{name}.bias"]
    return torch.baddbmm(bias.T[:, :, None], weight.permute(2, 0, 1).contiguous(), x)  # (B, out, N)


class _FitsFirst(torch.autograd.Function):
    """(features, N, B) -> (B, features, N), the inverse of ``_FitsLast``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.permute(2, 0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx
        return _fits_last(grad)


class _FitsLast(torch.autograd.Function):
    """(B, features, N) -> (features, N, B), contiguous, and so is the gradient: torch runs batched products
    of anything else one matrix at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.permute(1, 2, 0).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx
        result = _FitsFirst.apply(grad)  # type: ignore[no-untyped-call]
        assert isinstance(result, Tensor)
        return result


def _fits_last(x: Tensor) -> Tensor:
    result = _FitsLast.apply(x)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result
