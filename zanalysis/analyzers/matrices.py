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
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from zanalysis.errors import InputError, did_you_mean

__all__ = [
    "Reference",
    "Residual",
    "View",
    "checked_parameter",
    "identity_like",
    "identity_scale_of",
    "matricize",
]

View = Literal["out", "in", "taps"] | Callable[[Tensor], Tensor]
Reference = Literal["identity"] | Tensor | None

VIEWS = ("out", "in", "taps")


def checked_parameter(W: Any) -> Tensor:
    """Return W as a detached floating tensor with at least two dimensions.

    Args:
        W: a tensor, a parameter, or anything `torch.as_tensor` takes.

    Returns:
        The tensor, detached, sharing memory with W where it can.

    Raises:
        InputError: if W has fewer than two dimensions or is not of a real floating dtype.
    """
    tensor = torch.as_tensor(W).detach()
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
    nonzero = W != 0
    on_diagonal = _diagonal(nonzero)
    size = on_diagonal.shape[-1]
    if W.ndim <= 3:
        in_row, in_column = nonzero.sum(-1), nonzero.sum(-2)
    else:
        in_row, in_column = nonzero.flatten(1).sum(-1), nonzero.transpose(0, 1).flatten(1).sum(-1)
    elsewhere = in_row[..., :size] + in_column[..., :size] - 2 * on_diagonal
    idle = elsewhere == 0
    diagonal = _diagonal(W).double()
    if size == 0:
        return torch.ones(W.shape[:-2] if W.ndim <= 3 else (), dtype=torch.float64, device=W.device)
    low = torch.where(idle, diagonal, torch.inf).amin(-1)
    high = torch.where(idle, diagonal, -torch.inf).amax(-1)
    common = torch.where(low == high, low, torch.nan)
    return torch.where(idle.any(-1), common, 1.0)


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


@dataclass(frozen=True)
class Residual:
    """The matrices of `W − W_ref` in float64, with what is needed to say how far to trust them.

    Attributes:
        matrices: `W − W_ref`, `[..., m, n]`, float64.
        weight: W in the same layout, float64.
        reference: W_ref in the same layout, float64, or None.
        eps: machine epsilon of the coarsest dtype that W or W_ref was stored in.
        stored: the dtype that W was stored in.
        identity_scale: α of the batch shape where the reference is α·I*, else None.
    """

    matrices: Tensor
    weight: Tensor
    reference: Tensor | None
    eps: float
    stored: torch.dtype
    identity_scale: Tensor | None = None

    @classmethod
    def of(cls, W: Any, reference: Reference = None, view: View = "out") -> "Residual":
        """Subtract the reference and lay the result out as matrices.

        Args:
            W: the parameter, in the dtype it was stored in.
            reference: None, ``"identity"`` (α·I*) or a tensor of W's shape.
            view: how a parameter becomes matrices.

        Returns:
            The residual.

        Raises:
            InputError: if W is no floating tensor with two dimensions, or the reference does not fit.
        """
        parameter = checked_parameter(W)
        weight = matricize(parameter, view).double()
        eps = torch.finfo(parameter.dtype).eps
        if reference is None:
            return cls(weight, weight, None, eps, parameter.dtype)
        scale = None
        if isinstance(reference, Tensor):
            if reference.shape != parameter.shape:
                raise InputError(
                    f"the reference has shape {list(reference.shape)}, the weight "
                    f"{list(parameter.shape)}; pass a tensor of the weight's own shape."
                )
            eps = max(eps, torch.finfo(checked_parameter(reference).dtype).eps)
            start = reference.detach().to(parameter.device).double()
        elif isinstance(reference, str) and reference == "identity":
            scale = identity_scale_of(parameter)
            # A NaN scale has no reference to subtract; its status says so, and no NaN spreads.
            start = identity_like(parameter, scale.nan_to_num(1.0))
        else:
            raise InputError(
                f"unknown reference {reference!r}: expected None, 'identity' or a tensor of the "
                "weight's shape ('init' is known only to a tracker or a series of checkpoints)."
            )
        initial = matricize(start, view)
        if scale is not None and scale.ndim == 0:
            scale = scale.expand(weight.shape[:-2])  # one kernel, many taps
        return cls(weight - initial, weight, initial, eps, parameter.dtype, scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of one matrix."""
        return self.matrices.shape[-2], self.matrices.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """The shape of the results."""
        return self.matrices.shape[:-2]

    @property
    def empty(self) -> bool:
        """Whether there is not one entry to look at."""
        return 0 in self.shape

    @cached_property
    def finite(self) -> Tensor:
        """Whether every entry of a matrix and of its weight is finite: bool, batch shape."""
        return self.matrices.isfinite().flatten(-2).all(-1)

    @cached_property
    def defined(self) -> Tensor:
        """Whether there is a residual at all: finite, and with a common diagonal where one is asked for."""
        if self.empty:
            return torch.zeros(self.batch_shape, dtype=torch.bool, device=self.matrices.device)
        if self.identity_scale is None:
            return self.finite
        return self.finite & ~self.identity_scale.isnan()

    @cached_property
    def nonzero(self) -> tuple[Tensor, Tensor]:
        """Which rows `[..., m]` and which columns `[..., n]` have a non-zero entry."""
        entries = self.matrices != 0
        return entries.any(-1), entries.any(-2)

    @cached_property
    def zero(self) -> Tensor:
        """Whether every entry is exactly zero: bool, batch shape."""
        return ~self.nonzero[0].any(-1)

    @cached_property
    def singular_values(self) -> Tensor:
        """All singular values, descending, float64 `[..., min(m, n)]`; NaN where undefined."""
        return _singular_values(self.matrices, self.defined, self.nonzero)

    @cached_property
    def largest(self) -> Tensor:
        """σ₁ of the residual: float64, batch shape."""
        return self.singular_values[..., 0]

    @cached_property
    def scale(self) -> Tensor:
        """The larger of σ₁(W) and σ₁(W_ref), whose rounding errors the residual carries."""
        if self.reference is None:
            return self.largest
        norms = [_largest(self.weight, self.defined)]
        if self.identity_scale is not None:
            norms.append(self.identity_scale.abs())
        else:
            norms.append(_largest(self.reference, self.defined))
        return torch.maximum(*norms)


def _singular_values(matrices: Tensor, defined: Tensor, nonzero: tuple[Tensor, Tensor]) -> Tensor:
    rows, columns = matrices.shape[-2:]
    count = min(rows, columns)
    if matrices.ndim == 2:
        # Zero rows and columns add exact zeros to the spectrum, and nothing to compute.
        if not bool(defined):
            return torch.full((count,), torch.nan, dtype=torch.float64, device=matrices.device)
        compact = matrices[nonzero[0]][:, nonzero[1]]
        values = torch.linalg.svdvals(compact)
        return torch.nn.functional.pad(values, (0, count - values.shape[0]))
    clean = torch.where(defined[..., None, None], matrices, 0.0)
    values = torch.linalg.svdvals(clean)
    return torch.where(defined[..., None], values, torch.nan)


def _largest(matrices: Tensor, defined: Tensor) -> Tensor:
    clean = torch.where(defined[..., None, None], matrices, 0.0)
    if 0 in clean.shape:
        return torch.full(clean.shape[:-2], torch.nan, dtype=torch.float64, device=clean.device)
    unit = clean.abs().amax((-2, -1), keepdim=True)  # so that squares neither overflow nor vanish
    clean = clean / torch.where(unit > 0, unit, 1.0)
    # λ_max of a float64 Gram matrix gives σ₁ to 1e-15 relative: squaring hurts only the small ones.
    gram = clean @ clean.mT if clean.shape[-2] <= clean.shape[-1] else clean.mT @ clean
    values = torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()
    return torch.where(defined, values * unit[..., 0, 0], torch.nan)


ReferenceTable = Mapping[str, Reference]
"""References by the name under which their results are stored."""
