"""Runge-Kutta pairs of order 5 with an embedded solution of order 4: coefficients only.

In both, the last stage is where the step ends, so that the first of the next step is known.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tableau:
    """Stage i at ``nodes[i]`` of a step is x + h sum_j ``rows[i][j]`` k_j + h ``diagonal`` k_i, the first
    without the last term; the last is the solution, and h sum_i ``error[i]`` k_i its estimated error.

    ``diagonal`` 0: explicit.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    diagonal: float
    error: tuple[float, ...]
    order: int = 5

    @property
    def used(self) -> int:
        """How many stages, from the first, the solution depends on."""
        return len(self.nodes) if self.diagonal else len(self.nodes) - 1

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the ``used`` stages in the solution."""
        return (*self.rows[-1], self.diagonal) if self.diagonal else self.rows[-1]

    @property
    def later(self) -> list[list[float]]:
        """Row i: what the change at a stage i adds to each stage after it and, last, to the end of a step."""
        used = self.used
        rows = [[self.rows[j][i] for j in range(i + 1, used)] for i in range(used)]
        return [[*row, weight] for row, weight in zip(rows, self.weights, strict=True)]

    @property
    def guesses(self) -> list[list[float]]:
        """Row i: of the changes at the stages before it, in that at stage i of an implicit method, by the
        polynomial through those whose nodes differ."""
        found = list[list[float]]()
        for i, node in enumerate(self.nodes):
            known = {self.nodes[j]: j for j in range(i)}
            row = [0.0] * i
            for here, j in known.items():
                row[j] = math.prod((node - there) / (here - there) for there in known if there != here)
            found.append(row)
        return found


class Coefficients(NamedTuple):
    """What tensors of one kind are weighted with: of a ``Tableau``."""

    rows: list[Tensor]
    error: Tensor
    weights: Tensor
    later: list[Tensor]
    guesses: list[Tensor]


@functools.lru_cache(maxsize=64)
def coefficients(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> Coefficients:
    """Made once: a tensor of a few numbers costs as much as a stage of few trajectories."""

    def made(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Coefficients(
        [made(row) for row in tableau.rows],
        made(tableau.error),
        made(tableau.weights),
        [made(row) for row in tableau.later],
        [made(row) for row in tableau.guesses],
    )


_LAST = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
)

# Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption,
# Computers & Mathematics with Applications 62 (2011) 770-775.
TSIT5 = Tableau(
    nodes=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    rows=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        _LAST,
    ),
    diagonal=0.0,
    error=(
        _LAST[0] - 0.09468075576583945,
        _LAST[1] - 0.009183565540343254,
        _LAST[2] - 0.4877705284247616,
        _LAST[3] - 1.2342975669304790,
        _LAST[4] + 2.7077123499835256,
        _LAST[5] - 1.8666284181705870,
        -1 / 66,
    ),
)

_GAMMA = 0.26
_FOURTH = (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676)
_FIFTH = (
    0.13659751177640291,
    0.0,
    -0.05496908796538376,
    -0.04118626728321046,
    0.62993304899016403,
    0.06962479448202728,
)

# Kvaerno, Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT Numerical
# Mathematics 44 (2004) 489-502: A-stable, and stiff parts decay as they should.
KVAERNO5 = Tableau(
    nodes=(0.0, 0.52, 1.230333209967908, 0.8957659843500759, 0.43639360985864756, 1.0, 1.0),
    rows=(
        (),
        (_GAMMA,),
        (0.13, 0.84033320996790809),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
        (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
        _FOURTH,
        _FIFTH,
    ),
    diagonal=_GAMMA,
    error=(
        *(fifth - fourth for fifth, fourth in zip(_FIFTH[:5], _FOURTH, strict=True)),
        _FIFTH[5] - _GAMMA,
        _GAMMA,
    ),
)

TABLEAUX = {"tsit5": TSIT5, "kvaerno5": KVAERNO5}
