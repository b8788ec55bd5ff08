"""Algorithms 1 and 2 of ZerO as rules for one parameter."""

import torch

from zanalysis.initializers.matrices import Normalization, fill_zero, taps
from zanalysis.initializers.parts import Part
from zanalysis.initializers.plan import Rule, blockwise

__all__ = ["algorithm_rule", "check_taps", "named_case"]


def algorithm_rule(part: Part, normalization: Normalization, flat: bool) -> Rule:
    """Return the rule of Algorithms 1 and 2.

    Args:
        part: a weight.
        normalization: of the Hadamard transform.
        flat: whether a kernel is filled as the linear layer of a patch.

    Returns:
        The rule.
    """
    if flat:
        weight = part.parameter.detach()
        matrix = torch.empty(weight.shape[0], weight[0].numel(), dtype=weight.dtype, device=weight.device)
        text = f"{named_case(*matrix.shape)} of a patch"
        # Copied, not viewed: in channels-last order the kernel is no matrix in memory.
        return Rule(text, lambda: weight.copy_(fill_zero(matrix, normalization).view(weight.shape)))
    check_taps(part)
    blocks = part.blocks()
    text = named_case(*blocks[0].shape[:2]) + (f" in each of {len(blocks)} groups" if len(blocks) > 1 else "")
    return blockwise(part, text, lambda block: fill_zero(block, normalization))


def named_case(p: int, q: int) -> str:
    """Say which case of Algorithm 1 a matrix is.

    Args:
        p: its rows.
        q: its columns.

    Returns:
        In words.
    """
    return "identity" if p == q else "partial identity" if p < q else "Hadamard"


def check_taps(part: Part) -> None:
    """Refuse a weight without a centre tap, or one that cannot be filled.

    Args:
        part: the weight.
    """
    for block in part.blocks():
        taps(block)
