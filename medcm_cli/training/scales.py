"""The scale on which each number is trained, where that is not its own: a logarithm, or between bounds."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.errors import InputError
from medcm_cli.model.rows import Row, raws_of


class _Part(NamedTuple):
    """``place`` (R,) of rows among the P of all; the bounds of each, (R, 1)."""

    place: Tensor
    lower: Tensor
    upper: Tensor


class Scales:
    """Between what a model takes, (P, B), and what is trained in its place.

    A parameter v above 0, whose softplus^-1 a model takes, is trained as log(v - lower); one with an upper
    bound, and a bounded correlation, as the logit of its place between the bounds. Other numbers are what
    they are.
    """

    def __init__(
        self, places: Mapping[str, int], rows: Sequence[Row], log: bool, device: torch.device
    ) -> None:
        """
        :param places: name of trained values -> the first of their rows among the P.
        :param rows: of the model. :param log: whether those without bounds are trained as logarithms.
        :raises InputError: bounds of what is not trained by itself.
        """
        chosen: dict[str, list[tuple[int, Row]]] = {"log": [], "logit": [], "rho": []}
        for row in rows:
            if not row.bounded and (row.correlation or not log):
                continue
            if row.name not in places:
                if row.bounded:
                    raise InputError(
                        f"initial: bounds of {row.name} cannot be kept: this objective trains another "
                        "quantity in its place"
                    )
                continue
            kind = "rho" if row.correlation else "logit" if math.isfinite(row.upper) else "log"
            chosen[kind].append((places[row.name] + row.place, row))
        self._parts = {kind: _part(found, device) for kind, found in chosen.items() if found}

    @property
    def plain(self) -> bool:
        """Whether everything is what it is."""
        return not self._parts

    def model(self, trained: Tensor) -> Tensor:
        """What the model takes, through which gradients flow."""
        values = trained
        for kind, part in self._parts.items():
            lower, upper = part.lower.to(trained), part.upper.to(trained)
            x = trained[part.place]
            if kind == "log":
                raw = raws_of(lower + torch.exp(x))
            else:
                inside = lower + (upper - lower) * torch.sigmoid(x)
                raw = torch.atanh(inside) if kind == "rho" else raws_of(inside)
            values = values.index_copy(0, part.place, raw)
        return values

    @torch.no_grad()
    def trained(self, values: Tensor) -> Tensor:
        """What is trained in the place of ``values`` that the model takes; of those on a bound, or beyond it,
        just within."""
        found = values.detach().clone()
        for kind, part in self._parts.items():
            lower, upper = part.lower.to(values), part.upper.to(values)
            raw = found[part.place]
            value = torch.tanh(raw) if kind == "rho" else functional.softplus(raw)
            if kind == "log":
                least = torch.finfo(value.dtype).tiny
                found[part.place] = torch.log((value - lower).clamp(min=least))
            else:
                margin = 1e-6
                share = ((value - lower) / (upper - lower)).clamp(margin, 1 - margin)
                found[part.place] = torch.logit(share)
        return found


def _part(found: Sequence[tuple[int, Row]], device: torch.device) -> _Part:
    def column(numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")[:, None].to(
            device if device.type != "mps" else "cpu"
        )

    rows = torch.tensor([place for place, _ in found], device="cpu").to(device)
    return _Part(rows, column([row.lower for _, row in found]), column([row.upper for _, row in found]))
