"""A branch of a network: covariates -> hidden layers -> one effect on each of some typical parameters."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import whole
from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream, per_fit

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # torch replaces softplus by the identity above ``threshold``; 40 is exact in float64 where its default
    # of 20 is not.
    "smooth_relu": lambda x: functional.softplus(x, beta=10.0, threshold=40.0),  # softplus(10 x) / 10
    "swish": functional.silu,
}


@dataclass(frozen=True)
class Branch:
    """inputs -> hidden layers -> one head Dense(., 1) with softplus for each parameter in ``heads``."""

    inputs: tuple[str, ...]
    hidden: tuple[int, ...]
    heads: tuple[str, ...]
    activation: str
    name: str  # prefix of this branch's trained values: weight, weight+age, or weight_2 for the second such

    @classmethod
    def build(
        cls,
        options: object,
        covariates: Collection[str],
        before: Sequence["Branch"],
        where: str = "network.branches",
    ) -> "Branch":
        """From an entry of ``network.branches``.

        :param covariates: names of those that the dataset has.
        :param before: the branches that stand before this one. :param where: what the entry is called.
        :raises InputError: an option that does not exist or is not of its kind, an unknown covariate or
            activation.
        """
        if not isinstance(options, Mapping):
            raise InputError(f"{where}: {options!r}; expected inputs, hidden, heads and activation")
        unknown = set(options) - {"inputs", "hidden", "heads", "activation"}
        if unknown:
            raise InputError(f"{where}: unknown option {min(unknown)!r}")
        activation = str(options.get("activation", "smooth_relu"))
        if activation not in ACTIVATIONS:
            raise InputError(f"{where}: activation {activation!r}; expected one of {sorted(ACTIVATIONS)}")
        lists = {key: _entries(where, options, key) for key in ("inputs", "hidden", "heads")}
        hidden = tuple(whole(f"{where}: a layer of 'hidden'", units, 1) for units in lists["hidden"])
        inputs, heads = (_names(where, lists[key], key) for key in ("inputs", "heads"))
        for name in inputs:
            if name not in covariates:
                known = ", ".join(covariates) or "none"
                raise InputError(f"{where}: covariate {name!r} is not in the dataset, which has {known}")
        alike = 1 + sum(branch.inputs == inputs for branch in before)
        return cls(inputs, hidden, heads, activation, "+".join(inputs) + (f"_{alike}" if alike > 1 else ""))

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Initial values: Glorot-uniform weights, hidden bias 0, head bias 1.

        :returns: name -> weights (out, in, B) and biases (out, B), a fit for each of ``streams``.
        """
        values: dict[str, Tensor] = {}

        def glorot(name: str, fan_out: int, rows: int, columns: int) -> None:
            bound = math.sqrt(6 / (columns + fan_out))
            values[name] = per_fit(streams, lambda g: g.uniform(-bound, bound, (rows, columns)), name, dtype)

        fits, width = len(streams), len(self.inputs)
        for depth, units in enumerate(self.hidden, 1):
            glorot(f"{self.name}.hidden_{depth}.weight", units, units, width)
            values[f"{self.name}.hidden_{depth}.bias"] = torch.zeros(units, fits, dtype=dtype, device="cpu")
            width = units
        # Every head is a Dense(width, 1) of its own: fan-out 1 however many heads there are.
        glorot(f"{self.name}.heads.weight", 1, len(self.heads), width)
        values[f"{self.name}.heads.bias"] = torch.ones(len(self.heads), fits, dtype=dtype, device="cpu")
        return values

    def effects(self, values: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """The factor by which the branch multiplies each of its parameters.

        :param values: trained values, as ``init`` lays them out.
        :param inputs: the covariates of ``inputs``, scaled to about [0, 1]: (1, N, B), or (P, 1, N, B) of one
            that changes in time.
        :returns: parameter -> (1, N, B), or (P, 1, N, B) where an input changes in time; above 0.
        """
        # Batched matrix products want the fit dimension first: (B, features, N).
        x, regimes = _features(inputs)
        x = x.permute(2, 0, 1).contiguous()
        activation = ACTIVATIONS[self.activation]
        for depth in range(1, len(self.hidden) + 1):
            x = activation(_dense(values, f"{self.name}.hidden_{depth}", x))
        stacked = functional.softplus(_fits_last(_dense(values, f"{self.name}.heads", x)))
        effects = dict(zip(self.heads, stacked.split(1), strict=True))
        if regimes:
            return {head: effect.view(regimes, 1, -1, effect.shape[-1]) for head, effect in effects.items()}
        return effects


def _entries(where: str, options: Mapping[str, object], key: str) -> Sequence[object]:
    """The list that an option of a branch is."""
    value = options.get(key) or ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InputError(f"{where}: {key!r} is {value!r}; expected a list that is not empty")
    return value


def _names(where: str, values: Sequence[object], key: str) -> tuple[str, ...]:
    """Names of covariates or parameters, each once."""
    names = tuple(map(str, values))
    if len(set(names)) < len(names):
        raise InputError(f"{where}: {key!r} is {list(names)}; expected each name once")
    return names


def _features(inputs: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Covariates as (features, N, B) and 0, or, where one changes in time, (features, P N, B) and the number
    P of regimes."""
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
