"""The perceptrons on which Theorem 1 is checked."""

import itertools
from collections import OrderedDict
from typing import Literal

import torch
from torch import nn

__all__ = ["Network", "perceptron"]

Network = Literal["paper", "notebook"]


def perceptron(
    n_x: int,
    n_h: int,
    n_y: int,
    *,
    network: Network = "paper",
    activation: type[nn.Module] = nn.ReLU,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Build a perceptron without biases, its weights named W1, W2, … as in the paper.

    Args:
        n_x: input dimension.
        n_h: hidden dimension.
        n_y: output dimension.
        network: ``"paper"`` for N_x → N_h → N_h → N_y (section 2.3); ``"notebook"`` for
            N_x → N_x → N_h → N_h → N_y, that of the authors' published notebook.
        activation: module between the linear maps.
        dtype: of the weights.

    Returns:
        The model, with activations named phi1, phi2, ….
    """
    widths = [n_x, *([n_x] if network == "notebook" else []), n_h, n_h, n_y]
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    pairs = list(itertools.pairwise(widths))
    for i, (columns, rows) in enumerate(pairs, 1):
        modules[f"W{i}"] = nn.Linear(columns, rows, bias=False, dtype=dtype)
        if i < len(pairs):
            modules[f"phi{i}"] = activation()
    return nn.Sequential(modules)
