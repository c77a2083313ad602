"""Random numbers that belong to one fit, whatever else shares its batch.

Each (study seed, fold, replicate, purpose) has its own counter-based generator. Objectives share them, so
that replicate r of fold k starts from the same network under every objective.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medcm_cli.numerics.devices import CPU


@dataclass(frozen=True)
class Stream:
    """The random numbers of one fit, named by study seed, fold and replicate; ``attempt`` counts how often
    all of them were drawn again."""

    seed: int
    fold: int
    replicate: int
    attempt: int = 0

    def generator(self, purpose: str) -> np.random.Generator:
        """A fresh generator of what ``purpose`` names: the same name gives the same numbers each time."""
        key = [self.seed, self.fold, self.replicate, zlib.crc32(purpose.encode())]
        key += [self.attempt] if self.attempt else []
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def per_fit(
    streams: Sequence[Stream],
    draw: Callable[[np.random.Generator], npt.ArrayLike],
    purpose: str,
    dtype: torch.dtype,
) -> Tensor:
    """One draw per fit.

    :param streams: the random numbers of each of B fits.
    :param draw: draws the numbers of one fit, (...), from its generator.
    :param purpose: what the numbers are for, by which the generator is chosen.
    :returns: (..., B), fits along a last, new dimension; on the CPU, where all random numbers are drawn.
    """
    drawn = [np.asarray(draw(stream.generator(purpose))) for stream in streams]
    return torch.from_numpy(np.stack(drawn, axis=-1)).to(dtype)


class Noise:
    """Standard normal numbers for the epochs of a batch of fits.

    Numbers are drawn a block of epochs at a time, which keeps the loop over the fits' generators out of the
    epoch loop; a fit's sequence depends neither on the length of the block nor on the other fits.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        shape: tuple[int, ...],
        counts: Sequence[int],
        dtype: torch.dtype,
        purpose: str = "noise",
        device: torch.device = CPU,
    ) -> None:
        """
        :param streams: the random numbers of each of B fits.
        :param shape: (..., N) of one epoch and one fit.
        :param counts: how many of the N subjects each fit has; they come first, the others are padding.
        :param purpose: what the numbers are for, by which the generators are chosen.
        :param device: where they are wanted; they are the same everywhere.
        """
        self._device = device
        self._generators = [stream.generator(purpose) for stream in streams]
        self._shape, self._counts = shape, counts
        self._dtype = np.float64 if dtype == torch.float64 else np.float32
        self._block: Tensor | None = None
        self._next = 0
        self._before = self._states()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one epoch and one fit."""
        return self._shape

    def draw(self) -> Tensor:
        """The next epoch's numbers, (*shape, B); zero for padded subjects."""
        if self._block is None or self._next == len(self._block):
            self._block, self._next = self._draw_block(), 0
        self._next += 1
        return self._block[self._next - 1]

    def position(self) -> npt.NDArray[np.uint64]:
        """Where the next draw comes from, for ``move_to`` of the same streams, (B, 14)."""
        return np.insert(self._before, _PHILOX, self._next, axis=1)

    def move_to(self, position: npt.NDArray[np.uint64]) -> None:
        """Go on where ``position`` was taken. :raises ValueError: it is none of these streams."""
        if position.shape != (len(self._generators), _PHILOX + 1) or position.dtype != np.uint64:
            raise ValueError("a position of other streams")
        for generator, row in zip(self._generators, position, strict=True):
            numbers = row.tolist()
            generator.bit_generator.state = {
                "bit_generator": "Philox",
                "state": {"counter": row[:4].copy(), "key": row[4:6].copy()},
                "buffer": row[6:10].copy(),
                "buffer_pos": numbers[10],
                "has_uint32": numbers[11],
                "uinteger": numbers[12],
            }
        self._block, self._next = self._draw_block(), int(position[0, _PHILOX])

    def _states(self) -> npt.NDArray[np.uint64]:
        """Of each fit's generator, (B, 13)."""
        rows = []
        for generator in self._generators:
            state = generator.bit_generator.state
            rest = [state[name] for name in ("buffer_pos", "has_uint32", "uinteger")]
            inner = state["state"]
            rows.append(
                [*inner["counter"].tolist(), *inner["key"].tolist(), *state["buffer"].tolist(), *rest]
            )
        return np.array(rows, dtype=np.uint64)

    def _draw_block(self) -> Tensor:
        self._before = self._states()
        if self._device != CPU:
            return self._elsewhere()
        block = np.zeros((_BLOCK, *self._shape, len(self._generators)), dtype=self._dtype)
        for fit, (generator, count) in enumerate(zip(self._generators, self._counts, strict=True)):
            size = (_BLOCK, *self._shape[:-1], count)
            block[..., :count, fit] = generator.standard_normal(size, dtype=self._dtype)
        return torch.from_numpy(block)

    def _elsewhere(self) -> Tensor:
        """A block for another device, which may be done with an epoch before one core has drawn the next:
        drawn by several, fit by fit, and brought into order there."""
        fits = len(self._generators)
        block = np.zeros((fits, _BLOCK, *self._shape), dtype=self._dtype)

        def draw(part: npt.NDArray[np.int_]) -> None:
            for fit in part.tolist():
                size = (_BLOCK, *self._shape[:-1], self._counts[fit])
                block[fit, ..., : size[-1]] = self._generators[fit].standard_normal(size, dtype=self._dtype)

        workers = min(os.cpu_count() or 1, _DRAWING, fits)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(draw, np.array_split(np.arange(fits), workers)))
        return torch.from_numpy(block).to(self._device).movedim(0, -1).contiguous()


_BLOCK = 25  # epochs
_DRAWING = 16  # cores, at most, on which numbers for another device are drawn
_PHILOX = 13  # numbers that say where a generator is
