"""The perceptrons on which Theorem 1 is checked, and ordinary ones."""

import itertools
import math
from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import nn

from zanalysis.experiments.models.arguments import choice, image_shape, whole

__all__ = ["ACTIVATIONS", "Network", "image_perceptron", "mlp", "perceptron"]

Network = Literal["paper", "notebook"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}
"""The activations by name."""


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


def image_perceptron(
    *,
    image: tuple[int, int, int],
    classes: int,
    width: int = 256,
    network: Network = "paper",
    activation: str = "relu",
) -> nn.Sequential:
    """Build a perceptron of Theorem 1 for images, which it flattens first.

    Args:
        image: channels, height, width.
        classes: number of classes.
        width: hidden dimension N_h.
        network: as in `perceptron`.
        activation: one of `ACTIVATIONS`.

    Returns:
        The model, `[samples, *image]` to `[samples, classes]`, its weights named W1, W2, ….

    Raises:
        InputError: if an argument is unknown or out of range.

    Example:
        >>> model = image_perceptron(image=(1, 8, 8), classes=10, width=128)
        >>> [name for name, _ in model.named_parameters()]
        ['W1.weight', 'W2.weight', 'W3.weight']
    """
    inputs = math.prod(image_shape(image))
    chosen: type[nn.Module] = ACTIVATIONS[choice("activation", activation, ACTIVATIONS)]
    choice("network", network, get_args(Network))
    whole("width", width)
    whole("classes", classes)
    layers = perceptron(inputs, width, classes, network=network, activation=chosen)
    return nn.Sequential(OrderedDict([("flatten", nn.Flatten()), *layers.named_children()]))


def mlp(
    *,
    image: tuple[int, int, int],
    classes: int,
    width: int = 256,
    depth: int = 3,
    bias: bool = True,
    norm: bool = False,
    activation: str = "relu",
) -> nn.Sequential:
    """Build a multi-layer perceptron with biases, of any depth.

    Args:
        image: channels, height, width.
        classes: number of classes.
        width: of the hidden layers.
        depth: number of linear layers, the classifier `fc` included; the others are `fc1`, `fc2`, ….
        bias: whether the layers have biases.
        norm: whether a BatchNorm follows each hidden layer.
        activation: one of `ACTIVATIONS`.

    Returns:
        The model, `[samples, *image]` to `[samples, classes]`.

    Raises:
        InputError: if an argument is unknown or out of range.

    Example:
        >>> model = mlp(image=(1, 8, 8), classes=10, width=32)
        >>> sum(p.numel() for p in model.parameters()) == (64 + 1) * 32 + (32 + 1) * 32 + (32 + 1) * 10
        True
    """
    columns = math.prod(image_shape(image))
    chosen = ACTIVATIONS[choice("activation", activation, ACTIVATIONS)]
    whole("width", width)
    choice("bias", bias, (True, False))
    choice("norm", norm, (True, False))
    modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i in range(1, whole("depth", depth)):
        modules[f"fc{i}"] = nn.Linear(columns, width, bias=bias)
        if norm:
            modules[f"bn{i}"] = nn.BatchNorm1d(width)
        modules[f"phi{i}"] = chosen()
        columns = width
    modules["fc"] = nn.Linear(columns, whole("classes", classes), bias=bias)
    return nn.Sequential(modules)
