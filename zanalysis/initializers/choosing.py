"""Layers of a model by name."""

from collections.abc import Callable

from torch import nn

from zanalysis.analyzers.naming import Selection, selected
from zanalysis.errors import InputError
from zanalysis.initializers.parts import ATTENTION, WEIGHTED, clean, unwrapped

__all__ = ["Layers", "chosen_layers", "layered", "named_layers"]

Layers = Selection | Callable[[str, nn.Module], bool]


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module of a model by each of its names.

    Args:
        model: the model.

    Returns:
        The modules; names without the prefixes of wrappers.
    """
    return {clean(name): module for name, module in unwrapped(model).named_modules(remove_duplicate=False)}


def chosen_layers(model: nn.Module, selection: Layers, what: str) -> list[str]:
    """Choose linear and convolution layers, and attention layers, by name.

    Args:
        model: the model.
        selection: names, globs, compiled regular expressions, predicates `name -> bool` or
            `(name, module) -> bool`, or several of these.
        what: the argument's name, for errors.

    Returns:
        Their names, in the model's order.

    Raises:
        InputError: if the selection is of another kind, or one of its patterns matches nothing.
    """
    modules = {name: module for name, module in named_layers(model).items() if layered(module)}
    try:
        return selected(selection, {name: (lambda m=m: m) for name, m in modules.items()})  # type: ignore[misc]
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def layered(module: nn.Module) -> bool:
    """Say whether a module is a layer that can be chosen.

    Args:
        module: any module.

    Returns:
        Whether it is a linear, convolution or attention layer.
    """
    return isinstance(module, (*WEIGHTED, ATTENTION))
