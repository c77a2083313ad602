"""Terms of a right-hand side that are learned: small networks with inputs of size 1 and outputs within
bounds."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import flag, number, one_of, whole
from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream, per_fit

# Smooth, so that a method of a high order keeps it.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "swish": functional.silu,
    "softplus": functional.softplus,
}
_UNIT = math.log(math.e - 1)  # softplus of it is 1


@dataclass(frozen=True)
class Term:
    """A network ``name`` of some ``inputs``, each with its typical size, by which it is divided.

    Its value stays above ``least`` and below ``most``, where these are numbers, and begins as ``initial``;
    ``anchored``: where all inputs are 0 it stays so. Its weights are those of a fit, the same for all
    subjects: (out, in + 1, B) of each layer, the last column that of a constant.

    :raises InputError: an option of another kind, an initial value out of its bounds.
    """

    name: str
    inputs: tuple[tuple[str, float], ...]
    hidden: tuple[int, ...] = (8,)
    activation: str = "tanh"
    least: float | None = None
    most: float | None = None
    initial: float = 1.0
    anchored: bool = False

    @classmethod
    def build(cls, name: str, options: object) -> "Term":
        """From an entry of ``pk.terms``."""
        where = f"pk.terms.{name}"
        if not isinstance(options, Mapping) or "inputs" not in options:
            raise InputError(f"{where} is {options!r}; expected inputs: {{name: typical size}}")
        known = [key for key in cls.__dataclass_fields__ if key != "name"]
        for key in options:
            one_of(f"{where}: option", key, known)
        inputs, hidden = options["inputs"], options.get("hidden", (8,))
        if not isinstance(inputs, Mapping) or not inputs:
            raise InputError(f"{where}.inputs is {inputs!r}; expected {{name: typical size}}")
        if not isinstance(hidden, list | tuple) or not hidden:
            raise InputError(f"{where}.hidden is {hidden!r}; expected the width of each layer, as in [8]")
        own: dict[str, Any] = {
            **options,
            "inputs": tuple(
                (str(key), float(number(f"{where}.inputs.{key}", size, above=0)))
                for key, size in inputs.items()
            ),
            "hidden": tuple(whole(f"{where}.hidden", width, 1) for width in hidden),
        }
        return cls(name, **own)

    def __post_init__(self) -> None:
        where = f"pk.terms.{self.name}"
        one_of(f"{where}.activation", self.activation, ACTIVATIONS)
        flag(f"{where}.anchored", self.anchored)
        initial = number(f"{where}.initial", self.initial)
        for bound in ("least", "most"):
            if getattr(self, bound) is not None:
                number(f"{where}.{bound}", getattr(self, bound))
        if (
            not (-math.inf if self.least is None else self.least)
            < initial
            < (math.inf if self.most is None else self.most)
        ):
            raise InputError(f"{where}.initial is {initial:g}; expected a number between least and most")

    @property
    def weights(self) -> list[str]:
        """The names of the weights of each layer, the last that of the output."""
        return [f"pk.{self.name}.layer_{depth}" for depth in range(1, len(self.hidden) + 2)]

    @property
    def _shapes(self) -> list[tuple[int, int]]:
        widths = [len(self.inputs), *self.hidden]
        return [(after, before + 1) for before, after in zip(widths, [*self.hidden, 1], strict=True)]

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Initial weights: of hidden layers Glorot-uniform, constants too, which so spread over the inputs;
        of the output 0, so that it begins as ``initial``."""
        values = {}
        for name, (rows, columns) in zip(self.weights, self._shapes, strict=True):
            draw = functools.partial(_glorot, rows, columns)
            last = name == self.weights[-1]
            drawn = per_fit(streams, draw, name, dtype)
            values[name] = torch.zeros_like(drawn) if last else drawn
        return values

    def example(self) -> dict[str, Tensor]:
        """Weights that are not 0, as ``__call__`` has them, of one fit."""
        g = torch.Generator(device="cpu").manual_seed(1)
        return {
            name: torch.rand(*shape, 1, 1, 1, generator=g, dtype=torch.float64, device="cpu") - 0.4
            for name, shape in zip(self.weights, self._shapes, strict=True)
        }

    def __call__(self, weights: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Its value, at inputs of one shape (..., S, N, B).

        :param weights: (out, in + 1, 1, 1, B) of each layer.
        """
        if len(inputs) != len(self.inputs):
            names = ", ".join(name for name, _ in self.inputs)
            raise InputError(f"learned term {self.name} is given {len(inputs)} inputs; expected {names}")
        sized = [x / size for x, (_, size) in zip(inputs, self.inputs, strict=True)]
        x = torch.stack(torch.broadcast_tensors(*sized)) if len(sized) > 1 else sized[0][None]
        output = self._output(weights, x)
        if self.anchored:
            output = output - self._output(weights, x.new_zeros(len(x), 1, 1, x.shape[-1]))
        return self._bounded(output)

    def _output(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """Of inputs (in, ..., S, N, B)."""
        activation = ACTIVATIONS[self.activation]
        for depth, weight in enumerate(weights):
            x = _dense(weight, activation(x) if depth else x)
        return x[0]

    def _bounded(self, x: Tensor) -> Tensor:
        """From any number, ``initial`` of 0."""
        least, most, initial = self.least, self.most, self.initial
        if least is not None and most is not None:
            share = (initial - least) / (most - least)
            return least + (most - least) * torch.sigmoid(x + math.log(share / (1 - share)))
        if least is not None:
            return least + (initial - least) * functional.softplus(x + _UNIT)
        if most is not None:
            return most - (most - initial) * functional.softplus(_UNIT - x)
        return initial + (abs(initial) or 1.0) * x


def _dense(weight: Tensor, x: Tensor) -> Tensor:
    """(out, in + 1, 1, 1, B) of (in, ..., S, N, B): (out, ..., S, N, B)."""
    rows, columns = weight.shape[:2]
    more = [1] * (x.ndim - 2)
    each = weight.view(rows, columns, *more, weight.shape[-1])
    constant = each[:, -1]
    if columns == 2:
        return torch.addcmul(constant, each[:, 0], x)
    if rows == 1:
        return constant + (each[0, :-1] * x).sum(0, keepdim=True)
    return constant + torch.einsum("oib,i...b->o...b", each[:, :-1].flatten(2), x)


def _glorot(rows: int, columns: int, g: np.random.Generator) -> np.ndarray:
    bound = math.sqrt(6 / (rows + columns - 1))
    return g.uniform(-bound, bound, (rows, columns))
