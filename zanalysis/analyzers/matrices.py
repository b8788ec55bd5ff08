"""From a parameter to matrices, once and for every analyzer.

Layout:

- A parameter of two dimensions is a matrix `[m, n]`; one of three is a batch of matrices
  `[batch, m, n]`; one of four or more is a convolution kernel `[c_out, c_in, *taps]`. A Conv1d
  kernel, which has three dimensions too, is passed as `W.unsqueeze(-1)`.
- A *view* turns it into matrices `[..., m, n]`: ``"out"`` keeps the output channels as rows
  (`[c_out, c_in · taps]`), ``"in"`` the input channels (`[c_in, c_out · taps]`), ``"taps"`` gives
  one matrix for each tap (`[taps, c_out, c_in]`); a callable returns what it likes.
- All arithmetic is in float64, where float32 and the 16-bit types are exact. The type that the
  weights were *stored* in travels along, because it, not the arithmetic, limits what can be known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zanalysis.errors import InputError, did_you_mean

__all__ = [
    "Learned",
    "Reference",
    "ReferenceTable",
    "View",
    "checked_parameter",
    "common_diagonal",
    "computable",
    "identity_like",
    "identity_scale_of",
    "learned_of",
    "matricize",
]

View = Literal["out", "in", "taps"] | Callable[[Tensor], Tensor]
Reference = Literal["identity"] | Tensor | np.ndarray[Any, Any] | None

ReferenceTable = Mapping[str, Reference]
"""References by the name under which their results are stored."""

VIEWS = ("out", "in", "taps")

_ROWS = 128

MOST_LEARNED = 0.7
"""Share of a matrix above which splitting off the identity saves nothing."""


def checked_parameter(W: Any) -> Tensor:
    """Return W as a detached floating tensor with at least two dimensions.

    Args:
        W: a tensor, a parameter, or anything `torch.as_tensor` takes.

    Returns:
        The tensor, detached, sharing memory with W where it can.

    Raises:
        InputError: if W is no tensor, has fewer than two dimensions, is not of a real floating dtype, not
            dense, or on the meta device.
    """
    tensor = _as_tensor(W).detach()
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise InputError(
            f"got a tensor of layout {tensor.layout}, expected a dense one; call .to_dense() first, where it fits."
        )
    if tensor.device.type == "meta":
        raise InputError(
            "got a tensor on the meta device, which has a shape but no numbers; load them first."
        )
    if tensor.ndim < 2:
        raise InputError(
            f"got a tensor of shape {list(tensor.shape)}, expected a matrix [m, n], a batch "
            "[..., m, n] or a convolution kernel [c_out, c_in, *taps]; pass the weight, not its bias."
        )
    if not tensor.dtype.is_floating_point:
        raise InputError(
            f"got dtype {tensor.dtype}, expected a real floating dtype (bfloat16 to float64); "
            "dequantize or convert the tensor first."
        )
    return tensor


def _as_tensor(W: Any) -> Tensor:
    if isinstance(W, Tensor):
        return W
    if isinstance(W, np.ndarray):
        # torch takes neither foreign byte orders nor negative strides, and warns of what is read-only.
        native = W.astype(W.dtype.newbyteorder("="), copy=not W.flags.writeable)
        W = native.copy() if min(native.strides, default=0) < 0 else native
    try:
        return torch.as_tensor(W)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"got {type(W).__name__} ({str(error).splitlines()[0]}), expected a tensor, an array or nested "
            "lists of numbers, all rows of one length."
        ) from error


def computable(tensor: Tensor) -> Tensor:
    """Return a tensor in a dtype that torch can compute with.

    Args:
        tensor: as `checked_parameter` returns it.

    Returns:
        float32 for the 8-bit dtypes, which it holds exactly; else the tensor itself.

    Raises:
        InputError: if torch cannot convert the dtype.
    """
    if tensor.dtype.itemsize > 1:
        return tensor
    try:
        return tensor.float()
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"torch cannot convert {tensor.dtype} to float32; unpack the tensor first."
        ) from error


def matricize(W: Tensor, view: View = "out") -> Tensor:
    """See a parameter as matrices.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        view: ``"out"``, ``"in"``, ``"taps"`` or a callable `Tensor -> [..., m, n]`.

    Returns:
        `[..., m, n]`, dtype and device of W.

    Raises:
        InputError: if the view is unknown, or a callable gives fewer than two dimensions.

    Example:
        >>> matricize(torch.zeros(8, 4, 3, 3), "taps").shape
        torch.Size([9, 8, 4])
    """
    if callable(view):
        matrices = view(W)
        if not isinstance(matrices, Tensor) or matrices.ndim < 2:
            raise InputError("the view must return a tensor [..., m, n] with at least two dimensions.")
        return matrices
    if view not in VIEWS:
        raise InputError(f"unknown view {view!r}; {did_you_mean(str(view), VIEWS)} Or pass a callable.")
    if W.ndim <= 3:
        return W.mT if view == "in" else W
    if view == "out":
        return W.flatten(1)
    if view == "in":
        return W.transpose(0, 1).flatten(1)
    return W.flatten(2).movedim(-1, 0)


def _centre(W: Tensor) -> tuple[int, ...]:
    """Return the indices of the centre tap of an odd kernel.

    Args:
        W: `[c_out, c_in, *taps]`.

    Returns:
        One index for each tap dimension.

    Raises:
        InputError: if a kernel size is even.
    """
    taps = W.shape[2:]
    if any(size % 2 == 0 for size in taps):
        raise InputError(
            f"a kernel of size {'×'.join(map(str, taps))} has no centre tap, so it has no identity; "
            "use an odd kernel or another reference."
        )
    return tuple(size // 2 for size in taps)


def _diagonal(W: Tensor) -> Tensor:
    """Return W_ii, of the centre tap for a kernel: `[..., min(m, n)]`."""
    if W.ndim <= 3:
        return W.diagonal(dim1=-2, dim2=-1)
    index: tuple[Any, ...] = (slice(None), slice(None), *_centre(W))
    return W[index].diagonal()


def identity_scale_of(W: Tensor) -> Tensor:
    """Return α of the scaled partial identity α·I* that W carries outside what it has learned.

    α is the common value of W_ii over the indices whose row and column are otherwise exactly zero.
    Weight decay shrinks the identity by the same factor everywhere, so subtracting α·I* instead of
    I* leaves the support of what was learned exact.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]` with odd taps.

    Returns:
        float64 of the batch shape: α; 1 where no row and column are otherwise zero; NaN where the
        values differ.
    """
    diagonal = _diagonal(W).double()
    if diagonal.shape[-1] == 0:
        return torch.ones(W.shape[:-2] if W.ndim <= 3 else (), dtype=torch.float64, device=W.device)
    return common_diagonal(diagonal, *_off_diagonal(W))


def _off_diagonal(W: Tensor) -> tuple[Tensor, Tensor]:
    # The largest magnitude off the diagonal in each row and in each column.
    if W.ndim == 2 and W.shape[0] > _ROWS:
        return _off_diagonal_by_rows(W)
    elsewhere = W.abs()  # a copy; NaN stays NaN, which is not zero
    _diagonal(elsewhere).zero_()
    if W.ndim <= 3:
        return elsewhere.amax(-1), elsewhere.amax(-2)
    return elsewhere.flatten(1).amax(-1), elsewhere.transpose(0, 1).flatten(1).amax(-1)


def _off_diagonal_by_rows(W: Tensor) -> tuple[Tensor, Tensor]:
    # A few rows at a time stay in the cache: a copy of the whole matrix costs more than all that is done to it.
    in_row, in_column = [], torch.zeros(W.shape[1], dtype=W.dtype, device=W.device)
    for first in range(0, W.shape[0], _ROWS):
        block = W[first : first + _ROWS].abs()
        if first < W.shape[1]:
            block.diagonal(first).zero_()
        in_row.append(block.amax(1))
        in_column = torch.maximum(in_column, block.amax(0))
    return torch.cat(in_row), in_column


def common_diagonal(diagonal: Tensor, in_row: Tensor, in_column: Tensor) -> Tensor:
    """Return α, the common value of the diagonal where a row and its column are otherwise zero.

    Args:
        diagonal: `[..., min(m, n)]`, float64.
        in_row: `[..., m]`, the largest magnitude off the diagonal in each row.
        in_column: `[..., n]`, the same for each column.

    Returns:
        float64 of the batch shape; 1 where there is no such index, NaN where the values differ.

    Example:
        >>> common_diagonal(torch.tensor([0.5, 7.0]).double(), torch.tensor([0.0, 1.0]), torch.zeros(2))
        tensor(0.5000, dtype=torch.float64)
    """
    size = diagonal.shape[-1]
    idle = (in_row[..., :size] == 0) & (in_column[..., :size] == 0)
    low = torch.where(idle, diagonal, torch.inf).amin(-1)
    high = torch.where(idle, diagonal, -torch.inf).amax(-1)
    common = torch.where(low == high, low, torch.nan)
    return torch.where(idle.any(-1), common, 1.0)


@dataclass(frozen=True)
class Learned:
    """What a matrix W has beyond α·I*, where that is but a part of it.

    With S the indices whose row or column is not that of α·I*, `W = W[S, S] ⊕ α·I`: nothing outside S
    has to be looked at again.

    Attributes:
        rows: which rows differ from those of α·I*, bool `[m]`.
        columns: which columns do, bool `[n]`.
        weight: `W[S, S]`, float64.
        residual: `W[S, S] − α·I*`, float64.
    """

    rows: Tensor
    columns: Tensor
    weight: Tensor
    residual: Tensor

    @property
    def block(self) -> Tensor:
        """The residual without its zero rows and columns, which add only zeros to a spectrum."""
        m, n = self.rows.shape[0], self.columns.shape[0]
        size = min(m, n)
        either = self.rows[:size] | self.columns[:size]
        rows = torch.cat((self.rows[:size][either], self.rows[size:][self.rows[size:]]))
        columns = torch.cat((self.columns[:size][either], self.columns[size:][self.columns[size:]]))
        return self.residual[rows][:, columns]


def learned_of(W: Tensor) -> tuple[Tensor, Learned | None]:
    """Split a matrix into what it has learned and the scaled identity that is left.

    Args:
        W: `[m, n]`.

    Returns:
        α as `identity_scale_of` gives it, and what was learned; None where that is nothing, nearly all of
        W, or unknown, and W is to be taken whole.
    """
    diagonal = W.diagonal().double()
    in_row, in_column = _off_diagonal(W)
    scale = common_diagonal(diagonal, in_row, in_column)
    moved = diagonal != scale
    rows, columns = in_row != 0, in_column != 0
    size = diagonal.shape[0]
    rows[:size] |= moved
    columns[:size] |= moved
    either = rows[:size] | columns[:size]
    keep_rows, keep_columns = torch.cat((either, rows[size:])), torch.cat((either, columns[size:]))
    share = float(keep_rows.sum() * keep_columns.sum()) / W.numel()
    if not 0 < share < MOST_LEARNED:
        return scale, None
    weight = W[keep_rows.nonzero(), keep_columns.nonzero()[:, 0]].double()
    if not bool(weight.isfinite().all()):
        return scale, None
    residual = weight.clone()
    residual.diagonal()[: int(either.sum())].sub_(scale)
    return scale, Learned(rows, columns, weight, residual)


def identity_like(W: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return α·I* in the shape of W: the partial identity, on the centre tap of a kernel.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]` with odd taps.
        scale: α, of the batch shape.

    Returns:
        float64 of W's shape, on W's device.
    """
    identity = torch.zeros(W.shape, dtype=torch.float64, device=W.device)
    diagonal = _diagonal(identity)
    diagonal.copy_(
        torch.as_tensor(scale, dtype=torch.float64, device=W.device)[..., None].expand_as(diagonal)
    )
    return identity


def subtract_identity(W: Tensor, scale: Tensor) -> Tensor:
    """Return W − α·I* without building I*.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]` with odd taps.
        scale: α, of the batch shape.

    Returns:
        float64 of W's shape, a copy.
    """
    difference = W.to(torch.float64, copy=True)
    _diagonal(difference).sub_(scale[..., None])
    return difference
