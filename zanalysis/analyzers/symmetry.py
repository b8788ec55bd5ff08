"""How a layer starts: by exact comparison with the deterministic initializations."""

import torch
from torch import Tensor

__all__ = ["recognize_start"]


def recognize_start(W: Tensor) -> str:
    """Say in a word how a weight was initialized.

    Args:
        W: `[m, n]`, or `[c_out, c_in, *taps]`, whose centre tap must then carry everything.

    Returns:
        ``"identity"`` (α·I*, α ≠ 0), ``"hadamard"`` (±c in Sylvester's pattern), ``"zero"``,
        ``"constant"`` or ``"other"``.
    """
    if not bool(W.any()):
        return "zero"
    if W.numel() > 1 and bool((W.flatten()[0] == W).all()):
        return "constant"
    if W.ndim == 3:
        return "other"
    centre = W
    for size in W.shape[2:]:
        if size % 2 == 0:
            return "other"
        centre = centre.select(2, size // 2)
    if int((W != 0).sum()) != int((centre != 0).sum()):
        return "other"
    diagonal = centre.diagonal()
    scale = diagonal[0]
    if bool(scale != 0) and bool((diagonal == scale).all()) and int((centre != 0).sum()) == len(diagonal):
        return "identity"
    rows = torch.arange(centre.shape[0], device=W.device)[:, None]
    shared = rows & torch.arange(centre.shape[1], device=W.device)[None, :]
    parity = torch.zeros_like(shared)
    while bool(shared.any()):
        parity, shared = parity ^ (shared & 1), shared >> 1
    pattern = torch.where(parity == 1, -scale, scale)
    return "hadamard" if bool(scale > 0) and bool((centre == pattern).all()) else "other"
