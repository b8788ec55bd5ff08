"""What is subtracted from a weight before it is measured, by the names that a table shows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from hooks.layers import Layer, layer_name
from zanalysis.analyzers.matrices import Reference
from zanalysis.analyzers.metrics import NONE
from zanalysis.errors import InputError
from zanalysis.runfile import Initial
from zanalysis.runfile.bits import bits_of, tensor_of, word_of

__all__ = [
    "Initials",
    "initial_of",
    "initial_tensor",
    "named_references",
    "reference_of",
    "take_up_initial",
]


def named_references(reference: Any, layers: Sequence[Layer]) -> dict[str, Any]:
    """Name the references that were asked for.

    Args:
        reference: None, ``"init"``, ``"identity"``, a tensor, a mapping from layer names to tensors, or
            several of these.
        layers: the recorded layers, one of which a tensor must fit.

    Returns:
        What was given, by name: ``none``, ``init``, ``identity``, ``tensor``, ``tensor_2``, ….

    Raises:
        InputError: if a reference is of another kind, or fits no layer.
    """
    several = reference if isinstance(reference, list | tuple) else [reference]
    if not several:
        raise InputError("reference is empty; pass None, 'init', 'identity', a tensor, or a list of these.")
    named: dict[str, Any] = {}
    for given in several:
        if given is None:
            named[NONE] = None
        elif isinstance(given, str) and given in ("init", "identity"):
            named[given] = given
        elif isinstance(given, Tensor):
            if not any(tuple(given.shape) == layer.shape for layer in layers):
                raise InputError(f"the reference of shape {list(given.shape)} fits no recorded layer.")
            named[_free_name(named)] = given.detach().clone()
        elif isinstance(given, Mapping):
            named[_free_name(named)] = _checked_mapping(given, layers)
        else:
            raise InputError(
                f"unknown reference {given!r}; expected None, 'init', 'identity', a tensor, a mapping from "
                "layer names to tensors, or a list of these."
            )
    return named


def _free_name(named: Mapping[str, Any]) -> str:
    count = sum(name.startswith("tensor") for name in named)
    return f"tensor_{count + 1}" if count else "tensor"


def _checked_mapping(given: Mapping[str, Any], layers: Sequence[Layer]) -> dict[str, Tensor]:
    tensors = {layer_name(name): value for name, value in given.items()}
    for layer in layers:
        value = tensors.get(layer.name)
        if not isinstance(value, Tensor) or tuple(value.shape) != layer.shape:
            raise InputError(
                f"the reference has no tensor of shape {list(layer.shape)} for layer {layer.name!r}; pass one for "
                "every recorded layer, or choose layers=…"
            )
    return {layer.name: tensors[layer.name].detach().clone() for layer in layers}


def reference_of(given: Any, layer: Layer) -> Reference:
    """Return what is subtracted from one layer.

    Args:
        given: as `named_references` returns it.
        layer: the layer, whose weights now are the reference ``init``.

    Returns:
        None, ``"identity"``, or a tensor of the shape that the layer is read in.
    """
    if given is None:
        return None
    if isinstance(given, str) and given == "identity":
        return "identity"
    if isinstance(given, str):
        return layer.read().clone()
    tensor: Tensor = given[layer.name] if isinstance(given, Mapping) else given
    # A kernel of one tap dimension is read with two. What does not fit becomes an `error` of that layer.
    return tensor.reshape(layer.read().shape) if tuple(tensor.shape) == layer.shape else tensor


def initial_of(layer: Layer, weight: Tensor) -> Initial:
    """Return a layer's initial weights as a run file keeps them.

    Args:
        layer: the layer.
        weight: what the reference ``init`` stands for.

    Returns:
        Them, in the layer's own shape and dtype; a dtype that numpy lacks as its bits.
    """
    held = weight.detach().reshape(layer.shape)
    return Initial(layer.name, word_of(held.dtype), bits_of(held))


def initial_tensor(kept: Initial) -> Tensor:
    """Return a layer's initial weights as a tensor: the inverse of `initial_of`.

    Args:
        kept: what a run file keeps.

    Returns:
        The weights, on the CPU.
    """
    return tensor_of(kept.dtype, kept.values)


class Initials(Iterable[Initial]):
    """The initial weights of the layers, brought to the CPU one at a time, as often as asked for."""

    def __init__(self, layers: Sequence[Layer], references: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember whose.

        Args:
            layers: the layers.
            references: by layer and by name, `init` among them.
        """
        self._layers, self._references = layers, references

    def __iter__(self) -> Iterator[Initial]:
        for layer in self._layers:
            yield initial_of(layer, self._references[layer.name]["init"])


def take_up_initial(references: Mapping[str, dict[str, Reference]], initial: Iterable[Initial]) -> None:
    """Put the reference ``init`` of the run that goes on in place of today's.

    Args:
        references: by layer and by name; changed.
        initial: what the run file keeps.
    """
    for kept in initial:
        now = references[kept.layer]["init"]
        assert isinstance(now, Tensor)
        references[kept.layer]["init"] = initial_tensor(kept).to(now.device).reshape(now.shape)
