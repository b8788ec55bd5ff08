"""Symmetry and gradient flow: which neurons are copies of one another, and which layers have begun to learn.

A neuron is a row of [weight | bias], the weight flattened behind its first dimension. Neurons that start
equal and have equal outgoing weights get equal gradients, so they stay equal: a layer with fewer distinct
neurons than neurons is narrower than it looks. Networks initialized with constants (ConstNet: Blumenfeld,
Gilboa & Soudry, ICML 2020) and with Hadamard matrices are of this kind.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from zanalysis.errors import InputError

__all__ = ["dead_units", "distinct_rows", "first_moved", "recognize_start", "row_groups", "zero_gradient"]

# A sum taken in another order is off by several eps; 16-bit sums are taken in 32 bits and rounded once.
_ULPS, _ULPS_16 = 16, 2
_BLOCK = 1024
# A distance from a Gram matrix is off by at most this much of the squared norms: it only preselects.
_GRAM_SLACK = 1e-12


def row_groups(
    W: Tensor, bias: Tensor | None = None, *, tolerance: float | None = None, up_to_scale: bool = False
) -> Tensor:
    """Group the neurons of a layer that are equal up to rounding.

    Rows a and b are equal if ‖a − b‖₂ ≤ tolerance · max(‖a‖₂, ‖b‖₂). Every row is compared with the first
    row of a group, never with its neighbour, so that a chain of small steps does not join what is far
    apart.

    Args:
        W: `[rows, ...]`, floating.
        bias: `[rows]`, taken as one more column.
        tolerance: relative to the larger norm; default 16 eps of the dtype of W (2 eps in 16 bits), which
            covers sums of the same numbers in another order. 0 asks for equality to the bit, but for the
            sign of zero.
        up_to_scale: compare the rows divided by their norms: a positive factor is then no difference, as it
            is none to the next layer under a positively homogeneous activation.

    Returns:
        `[rows]` int64: the number of the group, counted in order of first appearance; -1 where a row is not
        finite.

    Raises:
        InputError: if W is no floating weight, the bias does not fit or the tolerance is not in [0, 1).

    Example:
        >>> row_groups(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])).tolist()
        [0, 1, 0]
    """
    rows = _neurons(W, bias)
    ulps = _ULPS_16 if W.dtype.itemsize < 4 else _ULPS
    limit = ulps * torch.finfo(W.dtype).eps if tolerance is None else tolerance
    if not 0 <= limit < 1:
        raise InputError(f"tolerance={tolerance} must lie in [0, 1): it is relative to the row norm.")
    # Scaled by a power of two near the largest entry, which is exact: no square overflows or vanishes.
    finite = rows.isfinite().all(1)
    rows = torch.where(finite[:, None], rows, 0.0)
    rows = rows / torch.exp2(rows.abs().amax().log2().floor().clamp_min(-1000.0)) if rows.numel() else rows
    norms = torch.linalg.vector_norm(rows, dim=1)
    if up_to_scale:
        rows = rows / torch.where(norms > 0, norms, 1.0)[:, None]
        norms = (norms > 0).to(rows.dtype)
    labels = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
    near = _near(rows, norms, limit).cpu()
    free = finite.cpu()
    count = 0
    for first in range(len(rows)):
        if not free[first]:
            continue
        members = (near[first] & free).nonzero().squeeze(1).to(rows.device)
        distance = torch.linalg.vector_norm(rows[members] - rows[first], dim=1)
        members = members[distance <= limit * torch.maximum(norms[members], norms[first])]
        labels[members] = count
        free[members.cpu()] = False
        count += 1
    return labels


def distinct_rows(
    W: Tensor, bias: Tensor | None = None, *, tolerance: float | None = None, up_to_scale: bool = False
) -> Tensor:
    """Count the distinct neurons of a layer: the groups of `row_groups`.

    Layers of copies are what constant initializations train (ConstNet: Blumenfeld, Gilboa & Soudry, ICML 2020).

    Args:
        W: `[rows, ...]`, floating.
        bias: `[rows]`, taken as one more column.
        tolerance: as in `row_groups`.
        up_to_scale: as in `row_groups`.

    Returns:
        0-d float64; NaN if an entry is not finite.

    Raises:
        InputError: if W is no floating weight, the bias does not fit or the tolerance is not in [0, 1).

    Example:
        >>> distinct_rows(torch.ones(4, 3)).item()
        1.0
    """
    labels = row_groups(W, bias, tolerance=tolerance, up_to_scale=up_to_scale)
    count = labels.max() + 1 if len(labels) else labels.new_zeros(())
    return torch.where((labels < 0).any(), torch.nan, count.to(torch.float64))


def dead_units(W: Tensor, bias: Tensor | None = None) -> Tensor:
    """Find the units that nothing reaches: all incoming weights, and the bias, are exactly zero.

    Args:
        W: `[rows, ...]`, floating.
        bias: `[rows]`.

    Returns:
        `[rows]` bool.

    Raises:
        InputError: if W is no floating weight, or the bias does not fit.

    Example:
        >>> dead_units(torch.tensor([[0.0, 0.0], [0.0, 1.0]])).tolist()
        [True, False]
    """
    return (_neurons(W, bias) == 0).all(1)


def zero_gradient(gradient: Tensor | None) -> Tensor:
    """Say whether a gradient is exactly zero: the layer does not move, whatever the learning rate.

    Args:
        gradient: the gradient; None where there is none, which is not the same as zero.

    Returns:
        0-d float64: 1 if every entry is zero, 0 if one is not, NaN if there is none or one is not finite.

    Example:
        >>> zero_gradient(torch.zeros(2, 2)).item(), zero_gradient(None).item()
        (1.0, nan)
    """
    if gradient is None or not gradient.numel():
        return torch.tensor(
            torch.nan, dtype=torch.float64, device=None if gradient is None else gradient.device
        )
    zero = (gradient == 0).all().to(torch.float64)
    return torch.where(gradient.isfinite().all(), zero, torch.nan)


def first_moved(
    records: Iterable[tuple[int, Mapping[str, Tensor]] | tuple[int, str, float]],
) -> dict[str, float]:
    """Find the first step at which each layer moved: it differs, however little, from its first record.

    A layer behind a zero layer can move only after that one has.

    Args:
        records: in order of steps, either (step, weights by layer, of any shape) or rows (step, layer, value), as of a
            table in which the value changes when the layer does. The weights may be the live ones: the
            first are copied.

    Returns:
        The step by layer; NaN where a layer never moved.

    Raises:
        InputError: if the steps are not in order.

    Example:
        >>> first_moved([(0, "a", 0.0), (0, "b", 1.0), (5, "a", 0.0), (5, "b", 1.5), (9, "a", 2.0)])
        {'a': 9.0, 'b': 5.0}
    """
    start: dict[str, Tensor] = {}
    moved: dict[str, float] = {}
    last: int | None = None
    for record in records:
        step = record[0]
        if last is not None and step < last:
            raise InputError(f"records must be in order of steps, but step {step} follows step {last}.")
        last = step
        weights = {record[1]: torch.tensor(record[2])} if len(record) == 3 else record[1]
        for layer, weight in weights.items():
            if layer not in start:
                start[layer] = weight.detach().clone()
                moved[layer] = float("nan")
            elif moved[layer] != moved[layer] and not _same(weight, start[layer]):
                moved[layer] = float(step)
    return moved


def recognize_start(W: Tensor) -> str:
    """Recognize how a weight was initialized, by exact comparison.

    Args:
        W: `[rows, columns]`, or a kernel `[out, in, *taps]`. A kernel is taken by the centre of its taps
            where all are odd in number and every other tap is zero.

    Returns:
        `"zero"`; `"identity"`: α times the partial identity, α ≠ 0; `"constant"`: every entry c ≠ 0, which
        a single row or column of a Hadamard matrix is too; `"hadamard"`: entries c · (−1)^popcount(i & j),
        c ≠ 0, the Sylvester matrix cut to shape (ZerO, Zhao, Schäfer & Anandkumar, TMLR 2022, Algorithm 1);
        or `"other"`.

    Raises:
        InputError: if W has fewer than two dimensions.

    Example:
        >>> recognize_start(torch.eye(4, 3)), recognize_start(torch.tensor([[0.5, 0.5], [0.5, -0.5]]))
        ('identity', 'hadamard')
    """
    if W.ndim < 2:
        raise InputError(f"a weight has at least two dimensions, got shape {tuple(W.shape)}.")
    W = W.detach()
    if not W.count_nonzero():
        return "zero"
    if W.ndim > 2:
        taps = W.flatten(2)
        centre = taps[:, :, taps.shape[2] // 2]
        odd = all(size % 2 for size in W.shape[2:])
        if odd and centre.count_nonzero() == W.count_nonzero():
            return recognize_start(centre)
        return "constant" if _is_constant(W) else "other"
    corner = W[0, 0]
    if not corner.isfinite() or corner == 0:
        return "other"
    diagonal = W.diagonal()
    if W.count_nonzero() == len(diagonal) and torch.equal(diagonal, corner.expand_as(diagonal)):
        return "identity"
    if _is_constant(W):
        return "constant"
    if torch.equal(W.abs(), corner.abs().expand_as(W)) and torch.equal(W, corner * _sylvester_signs(W)):
        return "hadamard"
    return "other"


def _neurons(W: Tensor, bias: Tensor | None) -> Tensor:
    if W.ndim < 2 or not W.is_floating_point():
        raise InputError(f"expected a floating weight [rows, ...], got {W.dtype} of shape {tuple(W.shape)}.")
    rows = W.detach().flatten(1).to(torch.float64)
    if bias is None:
        return rows
    if bias.shape != W.shape[:1]:
        raise InputError(f"expected a bias of shape ({W.shape[0]},), got {tuple(bias.shape)}.")
    return torch.cat([rows, bias.detach().to(rows)[:, None]], 1)


def _near(rows: Tensor, norms: Tensor, limit: float) -> Tensor:
    # Squared distances through products: fast, and off by rounding, so the caller looks again.
    squares = norms.square()
    blocks = []
    for part, own in zip(torch.split(rows, _BLOCK), torch.split(squares, _BLOCK), strict=True):
        distance = own[:, None] + squares - 2 * part @ rows.T
        larger = torch.maximum(own[:, None], squares)
        blocks.append(distance <= (limit**2 + _GRAM_SLACK) * larger)
    return torch.cat(blocks) if blocks else rows.new_zeros(0, 0, dtype=torch.bool)


def _same(a: Tensor, b: Tensor) -> bool:
    b = b.to(a.device)
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _is_constant(W: Tensor) -> bool:
    first = W.flatten()[0]
    return bool(first != 0) and torch.equal(W, first.expand_as(W))


def _sylvester_signs(like: Tensor) -> Tensor:
    rows, columns = (torch.arange(size, dtype=torch.int32, device=like.device) for size in like.shape)
    common = rows[:, None] & columns
    for shift in (16, 8, 4, 2, 1):
        common ^= common >> shift
    return 1 - 2 * (common & 1).to(like.dtype)
