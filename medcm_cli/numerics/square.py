"""Small square matrices, one for each of many trajectories, whose entries are tensors."""

import torch
from torch import Tensor


def inverse(matrix: Tensor) -> Tensor:
    """Of each matrix (C, C, ...): (C, C, ...); not finite where there is none.

    Written out up to three rows, since a call of LAPACK for each of many tiny matrices is slow.
    """
    size = len(matrix)
    if size == 1:
        return matrix.reciprocal()
    if size == 2:
        (a, b), (c, d) = matrix
        adjugate = torch.stack([torch.stack([d, -b]), torch.stack([-c, a])])
        return adjugate.div_(a * d - b * c)
    if size == 3:
        first, second, third = matrix
        columns = [_cross(second, third), _cross(third, first), _cross(first, second)]
        adjugate = torch.stack(columns, 1)
        determinant = (first * columns[0]).sum(0)
        return torch.mul(adjugate, determinant.reciprocal())
    found: Tensor = torch.linalg.inv_ex(matrix.movedim((0, 1), (-2, -1)))[0]
    return found.movedim((-2, -1), (0, 1))


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(C, C, ...) times (C, ...)."""
    if len(vector) == 1:
        return matrix[:, 0] * vector
    columns, parts = matrix.unbind(1), vector.unbind(0)
    total = columns[0] * parts[0]
    for column, part in zip(columns[1:], parts[1:], strict=True):
        total = torch.addcmul(total, column, part)
    return total


def inverse_of_saddle(matrix: Tensor) -> Tensor:
    """The inverse of ``made_positive``; NaN where that is."""
    return _of_saddle(matrix, -1)


def made_positive(matrix: Tensor) -> Tensor:
    """A symmetric (..., n, n) with its eigenvalues made positive, and the small ones at least 1e-10 of the
    largest; NaN where it is not finite."""
    return _of_saddle(matrix, 1)


def _of_saddle(matrix: Tensor, power: int) -> Tensor:
    finite = torch.isfinite(matrix).all(-1, keepdim=True).all(-2, keepdim=True)
    if not matrix.shape[-1]:
        return matrix
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    value, vector = torch.linalg.eigh(torch.where(finite, matrix, identity))
    value = value.abs()
    value = torch.maximum(value, 1e-10 * value.amax(-1, keepdim=True)) ** power
    found = (vector * value[..., None, :]) @ vector.mT
    return torch.where(finite, found, torch.nan)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])
