"""How trained values lie in one tensor."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Names and shapes of trained values inside one flat tensor (P, B), so that an epoch moves a single
    tensor."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, values: Mapping[str, Tensor], last: Sequence[str] = ()) -> "Layout":
        """The layout of ``values``, whose last dimension is the fit; those that ``last`` names come last."""
        names = sorted(values, key=lambda name: name in last)
        return cls(tuple(names), tuple(tuple(values[name].shape[:-1]) for name in names))

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values -> (P, B), a copy."""
        return torch.cat([values[name].reshape(-1, values[name].shape[-1]) for name in self.names])

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """(P, B) -> values, as views through which gradients flow back."""
        parts = flat.split([torch.Size(shape).numel() for shape in self.shapes])
        return {
            name: part.view(*shape, flat.shape[-1])
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    @property
    def places(self) -> dict[str, int]:
        """Name -> the first of its rows."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        return dict(zip(self.names, itertools.accumulate([0, *sizes[:-1]]), strict=True))

    def resized(self, names: Sequence[str], subjects: int) -> "Layout":
        """That of another number of subjects, of whom ``names`` have a value each."""
        shapes = [
            (*shape[:-1], subjects) if name in names else shape
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        return Layout(self.names, tuple(shapes))

    def rows(self, names: Sequence[str]) -> Tensor:
        """Which of the P rows belong to ``names``, as booleans (P,)."""
        return torch.cat(
            [
                torch.full((torch.Size(shape).numel(),), name in names, device="cpu")
                for name, shape in zip(self.names, self.shapes, strict=True)
            ]
        )
