"""Gradients as an optimizer finds them: where they are, and why one is not there."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from hooks.layers import Layer, as_parameter

__all__ = ["Found", "gradient_of", "parameters_of"]


class Found(NamedTuple):
    """A layer's gradient.

    Attributes:
        gradient: in the layout of `Layer.read`, or None.
        status: ``ok``; ``no_gradient`` of a frozen parameter, ``unused`` of one that had no part in the
            loss, ``skipped`` where it cannot be known.
        remark: why it is not what one would expect; empty where it is.
    """

    gradient: Tensor | None
    status: str
    remark: str = ""


def parameters_of(optimizer: Optimizer) -> set[int]:
    """Return the identities of the parameters that an optimizer trains now.

    Args:
        optimizer: the optimizer.

    Returns:
        Their `id`.
    """
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def gradient_of(layer: Layer, scale: Tensor | None = None) -> Found:
    """Return the gradient of a layer's weight, as it lies there.

    Args:
        layer: the layer.
        scale: what a gradient scaler has multiplied it with and the optimizer is about to take off.

    Returns:
        The gradient, detached and dense, in the dtype it is stored in; of a parametrized weight that of
        the original of its shape.
    """
    trained = layer.trained
    if trained is None:
        return Found(
            None, "skipped", f"no parameter behind {layer.name} has its shape: a gradient of it is not stored"
        )
    gradient = trained.grad
    if gradient is None and trained.requires_grad and _consumed(trained):
        text = (
            f"the gradient of {layer.name} is used up inside the backward; it can be recorded only where the "
            "optimizers that do so are given as optimizer=[...]"
        )
        return Found(None, "skipped", text)
    if gradient is None:
        # Frozen is not unused, and neither is zero.
        return Found(None, "unused" if trained.requires_grad else "no_gradient")
    gradient = gradient.detach()
    gradient = gradient if gradient.layout is torch.strided else gradient.to_dense()
    if scale is not None:
        gradient = gradient / scale.to(gradient.device)
    remark = ""
    if layer.parametrized:
        remark = (
            f"{layer.name} is parametrized: its gradient is that of the original parameter, which is what the "
            "optimizer uses, not that of the weight that acts"
        )
    return Found(as_parameter(gradient.to(trained.dtype), layer.owner), "ok", remark)


def _consumed(parameter: Tensor) -> bool:
    # By an optimizer in the backward, as soon as it is there.
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None)) or hasattr(
        parameter, "_in_backward_optimizers"
    )
