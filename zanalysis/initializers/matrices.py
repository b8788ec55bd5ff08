"""ZerO's matrices, in the style of `torch.nn.init`: each function fills a tensor in place and returns it.

The deterministic ones touch no random number generator and give the same bits on every machine:
their entries are 0, 1 and ±c, with c rounded once, from its float64 value, to the tensor's dtype.

A tensor that cannot hold the result is refused: an integer one, an expanded one whose entries share
memory, a vector, a kernel without a centre tap. On the meta device nothing is filled, as in
`torch.nn.init`, so that a model can be built there first.

Source: Zhao, Schäfer & Anandkumar, "ZerO Initialization: Initializing Neural Networks with only
Zeros and Ones", TMLR 2022 (arXiv 2110.12661).
"""

import math
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from zanalysis.errors import InputError

__all__ = [
    "Normalization",
    "checked_normalization",
    "fill_hadamard",
    "fill_partial_identity",
    "fill_perturbed_identity",
    "fill_zero",
    "finite",
    "hadamard",
    "taps",
]

# Kept exact: entries are rounded once, from float64. Types of eight bits have a scale that only their owner knows.
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Normalization = Literal["orthonormal", "paper"]


def hadamard(m: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """Return Sylvester's Hadamard matrix H_m, entries ±1 (ZerO, Definition 2).

    `H_0 = 1`, `H_m = [[H, H], [H, −H]]` with `H = H_{m−1}`; `H_m H_mᵀ = 2^m I`.

    Args:
        m: the exponent of its size, 0 or more.
        dtype: of the result; the default dtype if None.
        device: of the result.

    Returns:
        `[2^m, 2^m]`.

    Raises:
        InputError: if m is not a whole number from 0 to 20.

    Example:
        >>> hadamard(1)
        tensor([[ 1.,  1.],
                [ 1., -1.]])
    """
    if isinstance(m, bool) or not isinstance(m, int) or not 0 <= m <= 20:
        raise InputError(f"got m = {m!r}, expected a whole number from 0 to 20: the matrix has 2^m rows.")
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    for _ in range(m):
        upper = torch.cat((matrix, matrix), 1)
        matrix = torch.cat((upper, torch.cat((matrix, -matrix), 1)), 0)
    return matrix


def _signs(rows: int, columns: int, device: torch.device) -> Tensor:
    # The leading entries of Sylvester's matrix, (−1)^popcount(i & j): +1 or −1, float64. The matrix is the
    # Kronecker product of those of the low and of the high bits, of which only what is needed is built.
    size = max(rows, columns)
    if size == 1:
        return torch.ones(rows, columns, dtype=torch.float64, device=device)
    half = 1 << ((size - 1).bit_length() - 1)
    upper = _signs(min(rows, half), min(columns, half), device)
    right = torch.cat((upper, upper[:, : columns - half]), 1) if columns > half else upper
    if rows <= half:
        return right
    lower = upper[: rows - half]
    if columns > half:
        lower = torch.cat((lower, -lower[:, : columns - half]), 1)
    return torch.cat((right, lower), 0)


def checked_normalization(normalization: Normalization) -> Normalization:
    """Check the name of a normalization.

    Args:
        normalization: the name.

    Returns:
        The name.

    Raises:
        InputError: if it is unknown.
    """
    if normalization not in ("orthonormal", "paper"):
        raise InputError(f"unknown normalization {normalization!r}; expected 'orthonormal' or 'paper'.")
    return normalization


def taps(tensor: Tensor) -> Tensor:
    """Return the writable matrix that an initialization fills: the centre tap of a kernel.

    Args:
        tensor: `[P, Q]` or `[c_out, c_in, *taps]` with odd taps.

    Returns:
        `[P, Q]`, a view.

    Raises:
        InputError: if the tensor is no matrix or odd kernel, or cannot hold the result.
    """
    if not isinstance(tensor, Tensor):
        raise InputError(f"got {type(tensor).__name__}, expected a tensor to fill in place.")
    if not tensor.dtype.is_floating_point:
        raise InputError(
            f"got dtype {tensor.dtype}, expected a floating dtype: the entries are fractions, which it would "
            "cut to whole numbers or give another meaning."
        )
    if tensor.dtype not in _DTYPES:
        raise InputError(
            f"got dtype {tensor.dtype}, whose eight bits mean something only together with a scale; initialize in "
            "float32 or bfloat16, and convert afterwards."
        )
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise InputError(
            f"got an expanded tensor of shape {list(tensor.shape)}, whose entries share memory and cannot "
            "differ; call .clone() first."
        )
    if tensor.ndim < 2:
        raise InputError(
            f"got a tensor of shape {list(tensor.shape)}, expected a matrix [P, Q] or a kernel "
            "[c_out, c_in, *taps]; initialize biases separately."
        )
    taps = tensor.shape[2:]
    if any(size % 2 == 0 for size in taps):
        raise InputError(
            f"a kernel of size {'×'.join(map(str, taps))} has no centre tap: ZerO needs odd kernel sizes "
            "(Algorithm 2); use an odd size, or another initialization for this layer."
        )
    for size in taps:
        tensor = tensor.select(2, size // 2)
    return tensor


def finite(value: Any, name: str) -> float:
    """Check a number.

    Args:
        value: what was passed.
        name: of the argument.

    Returns:
        The number.

    Raises:
        InputError: if it is none, or not finite.
    """
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"got {name} = {value!r}, expected a finite number.")
    return number


@torch.no_grad()
def fill_partial_identity(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with the partial identity I* (ZerO, Definition 1), on the centre tap of a kernel.

    Args:
        tensor: `[P, Q]` or `[c_out, c_in, *taps]` with odd taps.
        gain: the value on the diagonal.

    Returns:
        The tensor.

    Raises:
        InputError: if the gain is no finite number, or the tensor cannot be filled.

    Example:
        >>> fill_partial_identity(torch.empty(2, 3))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    gain = finite(gain, "gain")
    centre = taps(tensor)
    tensor.zero_()
    centre.diagonal().fill_(gain)
    return tensor


@torch.no_grad()
def fill_hadamard(tensor: Tensor, normalization: Normalization = "orthonormal") -> Tensor:
    """Fill with c · I* H_m I*, m = ⌈log₂ P⌉ (ZerO, Algorithm 1, the case P > Q).

    The paper's text calls the transform orthonormal, which is `c = 2^{−m/2}`, as in its authors'
    code; Algorithm 1 prints `c = 2^{−(m−1)/2}`, which is √2 larger.

    Args:
        tensor: `[P, Q]` or `[c_out, c_in, *taps]` with odd taps.
        normalization: ``"orthonormal"``, or ``"paper"`` for the printed factor.

    Returns:
        The tensor.

    Raises:
        InputError: if the normalization is unknown, or the tensor is no matrix or odd kernel.

    Example:
        >>> fill_hadamard(torch.empty(4, 2))
        tensor([[ 0.5000,  0.5000],
                [ 0.5000, -0.5000],
                [ 0.5000,  0.5000],
                [ 0.5000, -0.5000]])
    """
    checked_normalization(normalization)
    centre = taps(tensor)
    rows, columns = centre.shape
    # (n − 1).bit_length() is ⌈log₂ n⌉ without the rounding of a logarithm. A wide matrix, which
    # Algorithm 1 never asks for, takes the size that covers it.
    m = max(0, max(rows, columns) - 1).bit_length()
    exponent = m if normalization == "orthonormal" else m - 1
    scale = math.sqrt(2.0**-exponent)
    tensor.zero_()
    if tensor.numel() and not tensor.is_meta:
        centre.copy_(_signs(rows, columns, tensor.device) * scale)
    return tensor


@torch.no_grad()
def fill_zero(tensor: Tensor, normalization: Normalization = "orthonormal") -> Tensor:
    """Fill by ZerO: Algorithm 1 for a matrix `[P, Q]`, Algorithm 2 for an odd kernel.

    Identity where P = Q, the partial identity where P < Q, the Hadamard transform where P > Q.

    Args:
        tensor: `[P, Q]` or `[c_out, c_in, *taps]` with odd taps.
        normalization: of the Hadamard transform, see `fill_hadamard`.

    Returns:
        The tensor.

    Raises:
        InputError: if the normalization is unknown, or the tensor is no matrix or odd kernel.

    Example:
        >>> fill_zero(torch.empty(2, 2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    checked_normalization(normalization)
    centre = taps(tensor)
    if centre.shape[0] > centre.shape[1]:
        return fill_hadamard(tensor, normalization)
    return fill_partial_identity(tensor)


@torch.no_grad()
def fill_perturbed_identity(tensor: Tensor, std: float, generator: Generator | None = None) -> Tensor:
    """Fill with I* + μ, μ_ij ~ N(0, std²) (ZerO, Theorem 1 (i)).

    Args:
        tensor: `[P, Q]` or `[c_out, c_in, *taps]` with odd taps; every tap is perturbed.
        std: standard deviation of the perturbation, more than 0.
        generator: source of the randomness; the global one if None.

    Returns:
        The tensor.

    Raises:
        InputError: if std is not a positive number, or the tensor cannot be filled.
    """
    std = finite(std, "std")
    if std <= 0:
        raise InputError(f"got std = {std!r}, expected a positive number.")
    centre = taps(tensor)
    if generator is None or tensor.is_meta:
        tensor.normal_(0.0, std, generator=generator)
    else:
        tensor.copy_(torch.empty_like(tensor, device=generator.device).normal_(0.0, std, generator=generator))
    centre.diagonal().add_(1.0)
    return tensor
