"""Relatives of ZerO, of a tensor or of a whole model: partial identity, Hadamard GI-Init, perturbed identity.

Source: Zhao, Schäfer & Anandkumar, "ZerO Initialization: Initializing Neural Networks with only Zeros and Ones",
TMLR 2022 (arXiv 2110.12661): Definition 1, Algorithm 1, Theorem 1.
"""

from typing import Literal, overload

from torch import Generator, Tensor, nn

from zanalysis.errors import InputError
from zanalysis.initializers.algorithms import algorithm_rule, check_taps
from zanalysis.initializers.matrices import (
    Normalization,
    checked_normalization,
    fill_hadamard,
    fill_partial_identity,
    fill_perturbed_identity,
    finite,
)
from zanalysis.initializers.parts import Part
from zanalysis.initializers.plan import Rule, blockwise, carry_out, drawn, ordinary, survey
from zanalysis.initializers.report import Report

__all__ = ["gi_", "hadamard_", "partial_identity_", "perturbed_identity_"]


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
        >>> import torch
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
        check_taps(part)
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
        >>> import torch
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
        return algorithm_rule(part, normalization, False) if part.weight else ordinary(part)

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
        check_taps(part)
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
