"""Every model of the experiments by name."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from zanalysis.errors import InputError, did_you_mean
from zanalysis.experiments.models.arguments import choice
from zanalysis.experiments.models.cnn import cnn
from zanalysis.experiments.models.mixer import mixer
from zanalysis.experiments.models.mlp import image_perceptron, mlp
from zanalysis.experiments.models.resnet import deep_resnet, resnet
from zanalysis.experiments.models.transformer import transformer_lm
from zanalysis.experiments.models.vit import vit

__all__ = ["MODELS", "build"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "perceptron": image_perceptron,
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
    "deep-resnet": deep_resnet,
    "transformer-lm": transformer_lm,
    "vit": vit,
    "mixer": mixer,
}
"""The builders by name; all arguments are keywords."""


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a model by name.

    Args:
        name: one of `MODELS`.
        **arguments: of its builder: `image=(channels, height, width)` and `classes=`, or `vocabulary=` for the
            language model, then what makes it wide and deep.

    Returns:
        The model, its weights drawn from PyTorch's global generator.

    Raises:
        InputError: if the name or an argument is unknown (the nearest is named), one is missing, or out of
            range.

    Example:
        >>> model = build("deep-resnet", image=(1, 28, 28), classes=10, depth=8, width=4, scalars="fixup")
        >>> [name for name, _ in model.named_children()][:3]
        ['conv1', 'bias1', 'relu']
    """
    choice("model", name, MODELS)
    parameters = inspect.signature(MODELS[name]).parameters
    for argument in arguments:
        if argument not in parameters:
            raise InputError(f"{name} has no argument {argument!r}; {did_you_mean(argument, parameters)}")
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.name not in arguments]
    if needed:
        raise InputError(
            f"{name} needs {' and '.join(needed)}; pass image=(channels, height, width) and classes=, "
            "or vocabulary= for a language model."
        )
    return MODELS[name](**arguments)
