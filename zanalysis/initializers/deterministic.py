"""ZerO and its relatives: initializations without random numbers, of a tensor or of a whole model.

The same bits on every machine, in every dtype float64 rounded once, and no random number generator is touched.

Source: Zhao, Schäfer & Anandkumar, "ZerO Initialization: Initializing Neural Networks with only Zeros and Ones",
TMLR 2022 (arXiv 2110.12661). Its authors published code for linear layers only
(github.com/jiaweizzhao/ZerO-initialization).
"""

from typing import Any, Literal, overload

import torch
from torch import Generator, Tensor, nn

from zanalysis.errors import InputError, did_you_mean
from zanalysis.initializers.attention import Attention
from zanalysis.initializers.branches import Layers, find_branches, named_layers
from zanalysis.initializers.matrices import (
    Normalization,
    checked_normalization,
    fill_hadamard,
    fill_partial_identity,
    fill_perturbed_identity,
    fill_zero,
    finite,
    taps,
)
from zanalysis.initializers.parts import CONVOLUTIONS, Part
from zanalysis.initializers.plan import Rule, blockwise, carry_out, constant, drawn, ordinary, survey
from zanalysis.initializers.report import Report, named

__all__ = ["gi_", "hadamard_", "partial_identity_", "perturbed_identity_", "zero_"]

Patches = Literal["refuse", "linear"]
Embedding = Literal["algorithm-1", "keep"]


@overload
def zero_(tensor: Tensor, normalization: Normalization = ...) -> Tensor: ...
@overload
def zero_(
    tensor: nn.Module,
    normalization: Normalization = ...,
    *,
    last: Layers = ...,
    attention: Attention = ...,
    patches: Patches = ...,
    embedding: Embedding = ...,
) -> Report: ...
def zero_(
    tensor: Tensor | nn.Module,
    normalization: Normalization = "orthonormal",
    *,
    last: Layers = None,
    attention: Attention = None,
    patches: Patches = "refuse",
    embedding: Embedding = "algorithm-1",
) -> Tensor | Report:
    """Initialize by ZerO: Algorithm 1 for a matrix `[P, Q]`, Algorithm 2 for an odd kernel.

    Identity where P = Q, partial identity where P < Q, `c · I* H_m I*` where P > Q; a kernel has that on its centre
    tap and zeros elsewhere, a grouped one for each group. In a model moreover: the last convolution of each residual
    branch 0; `W_Q` by Algorithm 1 (the identity where it is square), `W_K` and `W_V` 0, other linear layers and the
    output projection by Algorithm 1; biases 0, normalization scale 1 and shift 0; scalar multipliers 1 and scalar
    biases 0, as in Fixup. The paper states no rule for embeddings: by default their table `[V, d]` gets Algorithm 1.
    A transposed convolution is taken by its outputs and inputs, whatever the order in its parameter. Buffers, such
    as running statistics, are not touched.

    Args:
        tensor: a tensor `[P, Q]` or `[c_out, c_in, *taps]` with odd taps; or a model.
        normalization: of the Hadamard transform: ``"orthonormal"``, or ``"paper"`` for the printed factor.
        last: the layers that end a residual branch: names, globs, patterns or predicates, set to 0 whatever
            they are; an empty sequence for none. If None, they are found, and convolutions among them set to 0.
        attention: roles of linear layers, see `find_attention`; by name if None.
        patches: what to do with an even kernel that cuts its input into patches (stride equal to kernel, no padding):
            ``"linear"`` takes it as the linear layer of a patch that it is, ``"refuse"`` refuses it as any other.
        embedding: ``"algorithm-1"``, or ``"keep"`` to leave embeddings as they are.

    Returns:
        The tensor; of a model a report.

    Raises:
        InputError: if an option is unknown, or a tensor cannot be filled, such as an even kernel; the layer is named.

    Example:
        >>> zero_(torch.empty(2, 2))
        tensor([[1., 0.],
                [0., 1.]])
        >>> zero_(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))).rules()["2.weight"]
        'partial identity'
    """
    if not isinstance(tensor, nn.Module):
        return fill_zero(tensor, normalization)
    checked_normalization(normalization)
    _one_of("patches", patches, ("refuse", "linear"))
    _one_of("embedding", embedding, ("algorithm-1", "keep"))
    parts, assumed = survey(tensor, attention)
    branches = find_branches(tensor, last)
    modules = named_layers(tensor)
    zeroed = {name for name in branches.last if last is not None or isinstance(modules[name], CONVOLUTIONS)}
    assumed += branches.assumed
    if spared := sorted(branches.last - zeroed):
        assumed.append(
            "the last linear layer of a branch keeps Algorithm 1, ZerO's rule for Transformers, and only convolutions "
            f"are set to 0 (last=… sets others, too): {named(spared)}."
        )
    cut = [part.name for part in parts if part.kind == "conv" and patches == "linear" and _cuts(part)]
    if cut:
        assumed.append(f"taken as the linear layer of a patch, for which Algorithm 1 holds: {named(cut)}.")
    tables = [part.name for part in parts if part.kind == "embedding"]
    if tables:
        done = "left as they were" if embedding == "keep" else "their table [V, d] was set by Algorithm 1"
        assumed.append(f"the paper states no rule for embeddings; {done}: {named(tables)}.")

    def rule(part: Part) -> Rule | None:
        if part.kind == "embedding" and embedding == "keep":
            return Rule("left as it was", lambda: None)
        if part.weight and part.layers & zeroed:
            return constant(part, 0.0)
        if part.roles:
            return _attention_rule(part, normalization)
        if part.weight:
            return _algorithm(part, normalization, part.name in cut)
        return ordinary(part)

    return carry_out(tensor, "ZerO", parts, rule, assumed)


@overload
def partial_identity_(tensor: Tensor, gain: float = ...) -> Tensor: ...
@overload
def partial_identity_(tensor: nn.Module, gain: float = ...) -> Report: ...
def partial_identity_(tensor: Tensor | nn.Module, gain: float = 1.0) -> Tensor | Report:
    """Fill with the partial identity I* (ZerO, Definition 1), on the centre tap of a kernel.

    In a model every weight, embeddings and each block of an attention layer included; biases 0, normalization and
    multipliers 1. No branch is treated apart: for that see `zero_`.

    Args:
        tensor: a tensor `[P, Q]` or `[c_out, c_in, *taps]` with odd taps; or a model.
        gain: the value on the diagonal.

    Returns:
        The tensor; of a model a report.

    Raises:
        InputError: if the gain is no finite number, or a tensor cannot be filled.

    Example:
        >>> partial_identity_(torch.empty(2, 3))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    if not isinstance(tensor, nn.Module):
        return fill_partial_identity(tensor, gain)
    gain = finite(gain, "gain")
    parts, assumed = survey(tensor)

    def rule(part: Part) -> Rule | None:
        if not part.weight:
            return ordinary(part)
        _check(part)
        text = "partial identity" if gain == 1 else f"{gain:g} × partial identity"
        return blockwise(part, text, lambda block: fill_partial_identity(block, gain))

    return carry_out(tensor, "partial identity", parts, rule, assumed)


@overload
def hadamard_(tensor: Tensor, normalization: Normalization = ...) -> Tensor: ...
@overload
def hadamard_(tensor: nn.Module, normalization: Normalization = ...) -> Report: ...
def hadamard_(tensor: Tensor | nn.Module, normalization: Normalization = "orthonormal") -> Tensor | Report:
    """Fill with c · I* H_m I*, m = ⌈log₂ P⌉ (ZerO, Algorithm 1, the case P > Q).

    The paper's text calls the transform orthonormal, which is `c = 2^{−m/2}`, as in its authors' code; Algorithm 1
    prints `c = 2^{−(m−1)/2}`, which is √2 larger. In a model (the Hadamard GI-Init of Theorem 1 (iii)) only weights
    that increase the dimension get it, all others the partial identity; biases 0, normalization and multipliers 1.

    Args:
        tensor: a tensor `[P, Q]` or `[c_out, c_in, *taps]` with odd taps; or a model.
        normalization: ``"orthonormal"``, or ``"paper"`` for the printed factor.

    Returns:
        The tensor; of a model a report.

    Raises:
        InputError: if the normalization is unknown, or a tensor is no matrix or odd kernel.

    Example:
        >>> hadamard_(torch.empty(4, 2))
        tensor([[ 0.5000,  0.5000],
                [ 0.5000, -0.5000],
                [ 0.5000,  0.5000],
                [ 0.5000, -0.5000]])
    """
    if not isinstance(tensor, nn.Module):
        return fill_hadamard(tensor, normalization)
    checked_normalization(normalization)
    parts, assumed = survey(tensor)

    def rule(part: Part) -> Rule | None:
        return _algorithm(part, normalization, False) if part.weight else ordinary(part)

    return carry_out(tensor, "Hadamard GI-Init", parts, rule, assumed)


@overload
def perturbed_identity_(tensor: Tensor, std: float, generator: Generator | None = ...) -> Tensor: ...
@overload
def perturbed_identity_(tensor: nn.Module, std: float, generator: Generator | None = ...) -> Report: ...
def perturbed_identity_(
    tensor: Tensor | nn.Module, std: float, generator: Generator | None = None
) -> Tensor | Report:
    """Fill with I* + μ, μ_ij ~ N(0, std²) (ZerO, Theorem 1 (i)).

    In a model every weight; biases 0, normalization and multipliers 1.

    Args:
        tensor: a tensor `[P, Q]` or `[c_out, c_in, *taps]` with odd taps; or a model. Every tap is perturbed.
        std: standard deviation of the perturbation, more than 0.
        generator: source of the randomness; the global one if None.

    Returns:
        The tensor; of a model a report.

    Raises:
        InputError: if std is not a positive number, or a tensor cannot be filled.
    """
    if not isinstance(tensor, nn.Module):
        return fill_perturbed_identity(tensor, std, generator)
    std = finite(std, "std")
    if std <= 0:
        raise InputError(f"got std = {std!r}, expected a positive number.")
    parts, assumed = survey(tensor)

    def rule(part: Part) -> Rule | None:
        if not part.weight:
            return ordinary(part)
        _check(part)
        text = f"partial identity + N(0, {std:g}²)"
        return drawn(part, text, lambda values: fill_perturbed_identity(values, std, generator), generator)

    return carry_out(tensor, "perturbed identity", parts, rule, assumed)


def gi_(
    model: nn.Module,
    kind: Literal["standard", "hadamard"] = "standard",
    normalization: Normalization = "orthonormal",
) -> Report:
    """Initialize the linear layers of a perceptron by one of the two GI-Inits of ZerO's Figure 3.

    Standard: every matrix is the partial identity. Hadamard: those that increase the dimension are
    the Hadamard transform instead, `W_1 = H I*` of Theorem 1 (iii). Biases become zero.

    Args:
        model: a module whose only parameters are those of `nn.Linear` layers.
        kind: ``"standard"`` or ``"hadamard"``.
        normalization: of the Hadamard transform, see `hadamard_`.

    Returns:
        The report.

    Raises:
        InputError: if the kind is unknown, or the model has a parameter outside its linear layers.
    """
    if kind not in ("standard", "hadamard"):
        raise InputError(f"unknown kind {kind!r}; expected 'standard' or 'hadamard'.")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    known = {id(parameter) for module in linear for parameter in module.parameters()}
    foreign = [name for name, parameter in model.named_parameters() if id(parameter) not in known]
    if foreign or not linear:
        raise InputError(
            "GI-Init is defined for perceptrons of nn.Linear layers; "
            + (f"{foreign[0]!r} belongs to another layer." if foreign else "this model has none.")
        )
    return hadamard_(model, normalization) if kind == "hadamard" else partial_identity_(model)


def _algorithm(part: Part, normalization: Normalization, flat: bool) -> Rule:
    # Algorithms 1 and 2; a kernel that is the linear layer of a patch is filled as one.
    if flat:
        weight = part.parameter.detach()
        matrix = torch.empty(weight.shape[0], weight[0].numel(), dtype=weight.dtype, device=weight.device)
        text = f"{_named_case(*matrix.shape)} of a patch"
        # Copied, not viewed: in channels-last order the kernel is no matrix in memory.
        return Rule(text, lambda: weight.copy_(fill_zero(matrix, normalization).view(weight.shape)))
    _check(part)
    blocks = part.blocks()
    text = _named_case(*blocks[0].shape[:2]) + (
        f" in each of {len(blocks)} groups" if len(blocks) > 1 else ""
    )
    return blockwise(part, text, lambda block: fill_zero(block, normalization))


def _attention_rule(part: Part, normalization: Normalization) -> Rule:
    _check(part)

    def fill() -> None:
        for role, block in zip(part.roles, part.blocks(), strict=True):
            if role == "q":
                fill_zero(block, normalization)
            else:
                block.zero_()

    block = part.blocks()[0]
    words = {"q": _named_case(*block.shape[:2]), "k": "0", "v": "0"}
    return Rule(", ".join(f"{role.upper()} {words[role]}" for role in part.roles), fill)


def _named_case(p: int, q: int) -> str:
    return "identity" if p == q else "partial identity" if p < q else "Hadamard"


def _check(part: Part) -> None:
    for block in part.blocks():
        taps(block)


def _cuts(part: Part) -> bool:
    module: Any = part.module
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or module.groups > 1:
        return False
    even = any(size % 2 == 0 for size in module.kernel_size)
    return (
        even
        and module.stride == module.kernel_size
        and not any(module.padding)
        and set(module.dilation) == {1}
    )


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; {did_you_mean(str(value), known)}")
