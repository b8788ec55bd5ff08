"""Singular values of the Jacobians of a network, sample by sample.

Notation: J is `[outputs, inputs]`, the derivative of the flattened target with respect to the flattened
source, at one sample. Saxe, McClelland & Ganguli (ICLR 2014) call a network dynamically isometric if all
its singular values are near 1.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zanalysis.analyzers.block_lanczos import extreme_singular_values
from zanalysis.analyzers.modes import evaluating, find_modules, watching
from zanalysis.analyzers.products import NetworkMap, PlainProducts, TracedProducts
from zanalysis.errors import InputError, did_you_mean

__all__ = ["JacobianReading", "jacobian_reading", "jacobian_singular_values"]

Method = Literal["auto", "dense", "lanczos"]
_METHODS = ("auto", "dense", "lanczos")
# What a products-only top-k costs at most, in rows of a dense Jacobian per value asked for (seen: 4 to 20).
_PRODUCTS_PER_VALUE = 24
# An eigenvalue of a Gram matrix above this share of the largest has a relative error of at most about 1e-9.
_GRAM_FLOOR = 1e-6
# What torch.func raises on an operation it cannot vectorize; a model that is at fault itself raises it again.
_UNTRACEABLE = (RuntimeError, NotImplementedError)


class JacobianReading(NamedTuple):
    """Singular values, and how to read them.

    Attributes:
        values: `[samples, k]` float64, as `jacobian_singular_values` returns them.
        status: a word for each sample: `nonfinite`, where its Jacobian is not finite; `not_converged`, where a
            value could not be certified and is NaN; `zero`, where all of them are; else `ok`.
    """

    values: Tensor
    status: tuple[str, ...]


def jacobian_singular_values(
    model: nn.Module,
    x: Tensor,
    *,
    k: int | None = None,
    source: str | None = None,
    target: str | None = None,
    smallest: bool = False,
    method: Method = "auto",
    memory: int = 2**28,
) -> Tensor:
    """Take the singular values of a network's Jacobian at each sample.

    All of them near 1 is dynamical isometry (Saxe, McClelland & Ganguli, ICLR 2014).

    The model runs in eval mode, each sample with a batch dimension of one; mode, buffers, RNG, `.grad` and
    hooks are as before, also after an exception. Dense Jacobians are taken by reverse mode, a row per
    output, for many samples at once; where the network's operations do not vectorize (an LSTM), row by row.
    Where J is thin, its singular values are those of a small triangular factor, or of JJᵀ
    in float64 where J is not and none is below σ₁ / 1000, as a square loses half the digits. Large maps are
    not formed: J·v and Jᵀ·u feed a block Lanczos iteration (`zanalysis.analyzers.block_lanczos`), J·v as the
    derivative of Jᵀ·u by u, since forward mode is missing for attention and LSTM.

    Args:
        model: the network.
        x: `[samples, ...]` inputs, floating unless a source is named.
        k: how many; default all, min(outputs, inputs).
        source: the layer with respect to whose output; default the input.
        target: the layer whose output; default the network's. Where there are several tensors, the first.
        smallest: take the k smallest in place of the k largest.
        method: `"dense"`, `"lanczos"` or `"auto"`: dense, unless k is given and small against the outputs or
            a single J exceeds the memory.
        memory: bytes to stay within: of the Jacobians taken at once, or of the bases of Lanczos.

    Returns:
        `[samples, k]` float64, descending; NaN in a row whose Jacobian is not finite, and where Lanczos
        could not certify a value to 1e-10 · σ₁ (32 eps · σ₁ below float64).

    Raises:
        InputError: if x has no samples dimension or is not floating, a layer is unknown, not called exactly
            once or called in the wrong order, k is out of range, or the method is unknown.

    Example:
        >>> jacobian_singular_values(torch.nn.Linear(2, 2), torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """
    return jacobian_reading(
        model, x, k=k, source=source, target=target, smallest=smallest, method=method, memory=memory
    ).values


def jacobian_reading(
    model: nn.Module,
    x: Tensor,
    *,
    k: int | None = None,
    source: str | None = None,
    target: str | None = None,
    smallest: bool = False,
    method: Method = "auto",
    memory: int = 2**28,
    at_most: bool = False,
) -> JacobianReading:
    """Take the singular values of a network's Jacobian at each sample, and say how to read them.

    Args:
        model: as for `jacobian_singular_values`.
        x: `[samples, ...]` inputs, floating unless a source is named.
        k: how many; default all, min(outputs, inputs).
        source: the layer with respect to whose output; default the input.
        target: the layer whose output; default the network's.
        smallest: take the k smallest in place of the k largest.
        method: `"dense"`, `"lanczos"` or `"auto"`.
        memory: bytes to stay within.
        at_most: take all there are where they are fewer than k, in place of refusing.

    Returns:
        The values, and a word for each sample.

    Raises:
        InputError: as `jacobian_singular_values` does.
    """
    if x.ndim < 1 or not (x.is_floating_point() or source is not None):
        raise InputError(
            f"expected floating inputs [samples, ...], got {x.dtype} of shape {tuple(x.shape)}; where inputs "
            "are not floating, as tokens are, name the layer to start from with source=."
        )
    if method not in _METHODS:
        raise InputError(f"method={method!r} is unknown: {did_you_mean(method, _METHODS)}")
    if not len(x):
        raise InputError("x holds no samples.")
    named = find_modules(model, [name for name in (source, target) if name is not None])
    network, x = NetworkMap(model, named, source, target), x.detach()
    with evaluating(model), torch.no_grad(), _differentiable(model):
        size = _measure(network, x[0])
        full = min(size.outputs, size.inputs)
        k = min(k, full) if k is not None and at_most else k
        if k is not None and not 1 <= k <= full:
            raise InputError(f"k={k} must lie between 1 and min(outputs, inputs) = {full}.")
        few = k is not None and not smallest and _PRODUCTS_PER_VALUE * k < size.outputs
        large = k is not None and 16 * size.outputs * size.inputs > memory
        if method == "lanczos" or (method == "auto" and (few or large)):
            found = [_by_products(network, sample, k or full, smallest, memory, size) for sample in x]
            values = torch.stack([of_one for of_one, _ in found])
            return JacobianReading(values, tuple(map(_word, values, [finite for _, finite in found])))
        values = _dense(network, x, memory, size)
    finite = values.isfinite().all(1).tolist()
    values = values if k is None else values[:, -k:] if smallest else values[:, :k]
    return JacobianReading(values, tuple(map(_word, values, finite)))


def _word(values: Tensor, finite: bool) -> str:
    if not finite:
        return "nonfinite"
    if not values.isfinite().all():
        return "not_converged"
    return "ok" if (values > 0).any() else "zero"


class _Size(NamedTuple):
    """What decides the way: the sides of J, the widest layer's output, the eps of the value."""

    outputs: int
    inputs: int
    widest: int
    eps: float


def _measure(network: NetworkMap, sample: Tensor) -> _Size:
    widths = [1]

    def take(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            widths.append(output.numel())

    with watching(dict(network.model.named_modules()), take):
        variable = network.point(sample)
        value = network(variable, sample)
    return _Size(value.numel(), variable.numel(), max(widths), torch.finfo(value.dtype).eps)


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Choose kernels that have the derivatives needed, and silence the note that vmap loops."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        # The fused attention kernels have no second derivative; cuDNN's recurrent ones none in eval mode.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _dense(network: NetworkMap, x: Tensor, memory: int, size: _Size) -> Tensor:
    # Of each row: itself, its cotangent in the widest layer, and float64 copies for the decomposition.
    bytes_per_row = 24 * max(size.inputs, size.widest)
    rows = max(1, min(size.outputs, memory // bytes_per_row))
    traced, values = True, []
    for part in torch.split(x, max(1, memory // (bytes_per_row * size.outputs))):
        jacobians: Tensor | None = None
        if traced:
            try:
                jacobians = TracedProducts.jacobians(network, part, size.outputs, rows)
            except _UNTRACEABLE:
                traced = False
        if jacobians is None:
            jacobians = torch.stack([PlainProducts(network, sample).jacobian() for sample in part])
        values.append(_singular_values(jacobians))
    return torch.cat(values)


def _singular_values(jacobians: Tensor) -> Tensor:
    matrices = jacobians.to(torch.float64)
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.mT
    thin = 2 * matrices.shape[2] < matrices.shape[1]
    if thin and jacobians.dtype != torch.float64:
        # In float64 the Gram matrix of a float32 J has digits to spare, unless σ is very small.
        grams = matrices.mT @ matrices
        if grams.isfinite().all():
            squares: Tensor = torch.linalg.eigvalsh(grams).flip(-1)
            if (squares[:, -1] > _GRAM_FLOOR * squares[:, 0]).all():
                return squares.sqrt()
    finite = matrices.isfinite().flatten(1).all(1)
    matrices = torch.where(finite[:, None, None], matrices, 0.0)
    if thin:
        # The triangle of a tall matrix has the same singular values, and all their digits.
        matrices = torch.linalg.qr(matrices, mode="r").R
    values: Tensor = torch.linalg.svdvals(matrices)
    return torch.where(finite[:, None], values, torch.nan)


def _by_products(
    network: NetworkMap, sample: Tensor, k: int, smallest: bool, memory: int, size: _Size
) -> tuple[Tensor, bool]:
    shape = (size.outputs, size.inputs)
    tolerance = max(1e-10, 32 * size.eps)
    most = max(2 * k + 16, memory // (8 * sum(shape)))

    def solve(products: TracedProducts | PlainProducts) -> tuple[Tensor, bool]:
        finite = [True]

        def noted(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def take(block: Tensor) -> Tensor:
                result = product(block)
                finite.append(bool(result.isfinite().all()))
                return result

            return take

        values = extreme_singular_values(
            noted(products.times),
            noted(products.adjoint),
            shape,
            k,
            smallest=smallest,
            tolerance=tolerance,
            most=most,
            device=sample.device,
        )
        return values, all(finite)

    try:
        return solve(TracedProducts(network, sample))
    except _UNTRACEABLE:
        return solve(PlainProducts(network, sample))
