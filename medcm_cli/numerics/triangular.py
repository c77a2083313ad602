"""Small lower-triangular matrices.

A lower-triangular K x K matrix is a list of K rows, row i holding i + 1 tensors. K is small, the
tensors are large: every operation on such matrices is written out over K and vectorised over subjects,
samples and fits.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

Lower = list[list[Tensor]]


class Sparse(list[list[Tensor]]):
    """A lower-triangular matrix whose entries off the diagonal are 0 but at ``pairs`` (i, j), i > j, so that
    what is multiplied or solved with it does not cost what a full one does."""

    def __init__(self, rows: Lower, pairs: Collection[tuple[int, int]]) -> None:
        super().__init__(rows)
        self.pairs = frozenset(pairs)


def _below(lower: Lower, i: int, j: int) -> bool:
    """Whether there is an entry (i, j), i > j, that may not be 0."""
    return not isinstance(lower, Sparse) or (i, j) in lower.pairs


def cholesky(matrix: Sequence[Sequence[Tensor]]) -> Lower:
    """Cholesky factor L of a symmetric positive definite matrix L L'.

    :param matrix: K rows of tensors, of which only the lower triangle is read.
    """
    rows: Lower = []
    for i in range(len(matrix)):
        row: list[Tensor] = []
        for j in range(i + 1):
            value = matrix[i][j]
            for k in range(j):
                value = value - row[k] * (rows[j][k] if j < i else row[k])
            row.append(torch.sqrt(value) if i == j else value / rows[j][j])
        rows.append(row)
    return rows


def solve_lower(lower: Lower, vector: Sequence[Tensor]) -> list[Tensor]:
    """x with L x = vector, K tensors each."""
    x: list[Tensor] = []
    for i, row in enumerate(lower):
        value = vector[i]
        for k in range(i):
            if _below(lower, i, k):
                value = value - row[k] * x[k]
        x.append(value / row[i])
    return x


def solve_lower_transposed(lower: Lower, vector: Sequence[Tensor]) -> list[Tensor]:
    """x with L' x = vector, K tensors each."""
    n = len(lower)
    x: list[Tensor] = list(vector)
    for i in reversed(range(n)):
        value = vector[i]
        for k in range(i + 1, n):
            if _below(lower, k, i):
                value = value - lower[k][i] * x[k]
        x[i] = value / lower[i][i]
    return x


def multiply_lower(lower: Lower, vector: Sequence[Tensor]) -> list[Tensor]:
    """L x, K tensors."""
    return [
        total([entry * vector[k] for k, entry in enumerate(row) if k == i or _below(lower, i, k)])
        for i, row in enumerate(lower)
    ]


def multiply_lower_transposed(lower: Lower, vector: Sequence[Tensor]) -> list[Tensor]:
    """L' x, K tensors."""
    n = len(lower)
    return [
        total([lower[k][i] * vector[k] for k in range(i, n) if k == i or _below(lower, k, i)])
        for i in range(n)
    ]


def covariance(lower: Lower) -> list[list[Tensor]]:
    """L L', all K rows of K tensors."""
    n = len(lower)
    return [
        [total([lower[i][k] * lower[j][k] for k in range(min(i, j) + 1)]) for j in range(n)] for i in range(n)
    ]


def log_det(lower: Lower) -> Tensor:
    """log |L L'|, of the shape of the diagonal's tensors."""
    return 2 * total([torch.log(row[-1]) for row in lower])


def dense(matrix: Sequence[Sequence[Tensor]]) -> Tensor:
    """Stack a (lower-triangular) matrix of lists to (K, K, ...), zeros above the diagonal where rows are
    short."""
    n = len(matrix)
    shape = torch.broadcast_shapes(*(entry.shape for row in matrix for entry in row))
    zero = matrix[0][0].new_zeros(shape)
    rows = [torch.stack([row[j].expand(shape) if j < len(row) else zero for j in range(n)]) for row in matrix]
    return torch.stack(rows)


def total(terms: Sequence[Tensor]) -> Tensor:
    """Sum of one or more tensors, broadcast."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def lower_from_raw(
    scale: Sequence[Tensor],
    raw_correlation: Sequence[Tensor],
    pairs: Collection[tuple[int, int]] | None = None,
) -> Lower:
    """Cholesky factor of S C S from marginal sds and unconstrained correlations.

    tanh of the raw values are the canonical partial correlations, row by row (2,1), (3,1), (3,2) ...; with K
    = 2 the single one is rho itself (docs/methods.md, "Population parameters"; Lewandowski, Kurowicka and Joe
    2009).

    :param scale: the K standard deviations, the diagonal of S, above 0.
    :param raw_correlation: K (K - 1) / 2 tensors, any real number.
    :param pairs: the (i, j), i > j, in this order, that ``raw_correlation`` is of, where it is not of all.
        They are all those within blocks; others have no correlation.
    """
    partial = iter(torch.tanh(raw) for raw in raw_correlation)
    rows: Lower = []
    for i, sd in enumerate(scale):
        left = torch.ones_like(sd)  # what remains of the squared length of the row
        row: list[Tensor] = []
        for j in range(i):
            if pairs is not None and (i, j) not in pairs:
                row.append(torch.zeros_like(sd))
                continue
            value = next(partial)
            row.append(sd * value * torch.sqrt(left))
            left = left * (1 - value * value)
        row.append(sd * torch.sqrt(left))
        rows.append(row)
    return rows if pairs is None or len(pairs) == len(rows) * (len(rows) - 1) // 2 else Sparse(rows, pairs)


def raw_from_lower(
    lower: Lower, most: float, pairs: Collection[tuple[int, int]] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """The opposite: ``scale`` and ``raw_correlation`` of a Cholesky factor.

    :param most: partial correlations are taken as no further from 0, since those of 1 have no raw value.
    """
    scale, raw = [], []
    for i, row in enumerate(lower):
        sd = total([entry * entry for entry in row]).sqrt()
        left = torch.ones_like(sd)
        for j, entry in enumerate(row[:-1]):
            if pairs is not None and (i, j) not in pairs:
                continue
            partial = (entry / sd / left.sqrt()).clamp(-most, most)
            raw.append(torch.atanh(partial))
            left = left * (1 - partial * partial)
        scale.append(sd)
    return scale, raw


def diagonal(scale: Sequence[Tensor]) -> Lower:
    """diag(scale), of K tensors, as a lower-triangular matrix."""
    zero = torch.zeros_like(scale[0])
    return Sparse([[*[zero] * i, sd] for i, sd in enumerate(scale)], ())


def block_diagonal(blocks: Sequence[Lower]) -> Lower:
    """Lower-triangular matrices along the diagonal of one."""
    rows: Lower = []
    pairs = []
    for block in blocks:
        first = len(rows)
        zero = torch.zeros_like(block[0][0])
        rows += [[*[zero] * first, *row] for row in block]
        pairs += [(first + i, first + j) for i in range(len(block)) for j in range(i) if _below(block, i, j)]
    return Sparse(rows, pairs)
