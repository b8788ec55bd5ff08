"""Stable ranks of many small matrices at once, for records that nobody is to notice.

`σ₁²` is the largest eigenvalue of the Gram matrix of the shorter side, `‖A‖_F²` its trace. Formed in float32
it is right to a few 1e-6, where a stable rank promises 1e-4; the eigenvalues are taken in float64, of all
Gram matrices of one size in one call, whatever the shapes of the matrices they come from.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["stable_ranks"]

ORDINARY = (1e-12, 1e12)
"""Traces within these come of entries that float32 can square."""


def stable_ranks(matrices: Sequence[Tensor]) -> Tensor:
    """Return the stable ranks of matrices with a short side.

    Args:
        matrices: each `[m, n]`, float32 or a 16-bit dtype, on one device.

    Returns:
        float64 `[len(matrices)]`, right to 1e-5; NaN where a matrix is zero, not finite or out of scale, and
        the ordinary way has to say what it is.

    Example:
        >>> stable_ranks([torch.diag(torch.tensor([2.0, 1.0])), torch.zeros(3, 2)])
        tensor([1.2500,    nan], dtype=torch.float64)
    """
    by_side: dict[int, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_side.setdefault(min(matrix.shape), []).append(index)
    result = torch.full((len(matrices),), torch.nan, dtype=torch.float64)
    for indices in by_side.values():
        grams = torch.stack([_gram(matrices[index].float()) for index in indices]).double()
        traces = grams.diagonal(dim1=-2, dim2=-1).sum(-1)
        ordinary = (traces > ORDINARY[0]) & (traces < ORDINARY[1])
        largest = torch.linalg.eigvalsh(torch.where(ordinary[:, None, None], grams, 0.0))[:, -1]
        values = (traces / largest).clamp(1, grams.shape[-1])
        result[indices] = torch.where(ordinary, values, torch.nan).cpu()
    return result


def _gram(A: Tensor) -> Tensor:
    return A @ A.mT if A.shape[0] <= A.shape[1] else A.mT @ A
