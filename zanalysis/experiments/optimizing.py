"""Optimizers and learning rates, as a protocol describes them."""

import math

import torch
from torch import nn

from zanalysis.experiments.recipes.schema import Decay, Optimizer

__all__ = ["factor", "optimizer_of", "set_rate"]

_SCALARS = ("bias", "scale")


def optimizer_of(model: nn.Module, wanted: Optimizer) -> torch.optim.Optimizer:
    """Make an optimizer.

    Args:
        model: whose parameters it updates; those whose name contains `bias` or `scale` form a group of
            their own where their learning rate differs.
        wanted: how.

    Returns:
        The optimizer; each group keeps its largest learning rate under `peak`.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        share = wanted.scalars if any(word in name for word in _SCALARS) else 1.0
        groups.setdefault(share, []).append(parameter)
    described = [
        {"params": parameters, "lr": wanted.lr * share, "peak": wanted.lr * share}
        for share, parameters in groups.items()
    ]
    if wanted.kind == "adam":
        return torch.optim.Adam(described, lr=wanted.lr, weight_decay=wanted.weight_decay)
    return torch.optim.SGD(
        described, lr=wanted.lr, momentum=wanted.momentum, weight_decay=wanted.weight_decay
    )


def factor(decay: Decay, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the share of the largest learning rate that a step is made with.

    During the warm-up of w steps step s (from 0) has `(s + 1) / w`. Afterwards, at epoch e:
    `(1 + cos(π (e − warmup) / (epochs − warmup))) / 2`, or `factor` to the power of the milestones, or of
    the periods, that lie behind.

    Args:
        decay: how it moves.
        step: steps made before, 0 for the first.
        steps_per_epoch: of the training.
        epochs: of the training.

    Returns:
        From 0 to 1.

    Example:
        >>> factor(Decay(warmup=1, kind="every", factor=0.5, period=2), step=9, steps_per_epoch=4, epochs=4)
        0.5
    """
    warm = decay.warmup * steps_per_epoch
    if step + 1 < warm:
        return (step + 1) / warm
    epoch = step / steps_per_epoch
    if decay.kind == "cosine":
        span = max(epochs - decay.warmup, 1 / steps_per_epoch)
        done = min(max(epoch - decay.warmup, 0.0) / span, 1.0)
        return (1 + math.cos(math.pi * done)) / 2
    if decay.kind == "milestones":
        return decay.factor ** sum(epoch >= milestone for milestone in decay.milestones)
    if decay.kind == "every":
        return decay.factor ** (int(epoch) // decay.period)
    return 1.0


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Set the learning rate of every group.

    Args:
        optimizer: one of `optimizer_of`.
        share: of each group's largest.

    Returns:
        The rate of the first group.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return float(optimizer.param_groups[0]["lr"])
