"""What is subtracted from the weights of a checkpoint, by the names that a table shows."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zanalysis.analyzers.metrics import NONE
from zanalysis.analyzers.naming import layer_name, plain
from zanalysis.checkpoints import Checkpoint, StoredTensor, open_checkpoints
from zanalysis.errors import InputError
from zanalysis.sweep.layers import StoredLayer, tensors_by_layer
from zanalysis.sweep.work import Absent, Source

__all__ = ["named_references", "source_of"]


def named_references(reference: Any) -> dict[str, Any]:
    """Name the references that were asked for.

    Args:
        reference: None, ``"init"``, ``"identity"``, the path of a checkpoint, a tensor, a mapping from layer
            names to tensors, or several of these.

    Returns:
        What was given, by name: ``none``, ``init``, ``identity``, the file's own name, ``tensor``,
        ``tensor_2``, …; of a path the first state that it holds.

    Raises:
        InputError: if a reference is of another kind.
    """
    several = reference if isinstance(reference, list | tuple) else [reference]
    if not several:
        raise InputError(
            "reference is empty; pass None, 'init', 'identity', a checkpoint, or a list of these."
        )
    named: dict[str, Any] = {}
    for given in several:
        if given is None:
            named[NONE] = None
        elif isinstance(given, str) and given in ("init", "identity"):
            named[given] = given
        elif isinstance(given, Tensor):
            named[_free_name("tensor", named)] = given.detach().cpu()
        elif isinstance(given, Mapping):
            named[_free_name("tensor", named)] = _checked_mapping(given)
        elif isinstance(given, str | os.PathLike):
            named[_free_name(plain(Path(given).name), named)] = tensors_by_layer(_opened(given))
        else:
            raise InputError(
                f"unknown reference {given!r}; expected None, 'init', 'identity', the path of a checkpoint, a "
                "tensor, a mapping from layer names to tensors, or a list of these."
            )
    return named


def _opened(given: str | os.PathLike[str]) -> Checkpoint:
    if not Path(given).exists():
        raise InputError(
            f"unknown reference {os.fspath(given)!r}: there is no such file; expected init, identity or the path of a "
            "checkpoint."
        )
    return open_checkpoints(Path(given).absolute())[0]


def _free_name(wanted: str, named: Mapping[str, Any]) -> str:
    name, count = wanted, 1
    while name in named or name in (NONE, "init", "identity"):
        count += 1
        name = f"{wanted}_{count}"
    return name


def _checked_mapping(given: Mapping[Any, Any]) -> dict[str, Tensor]:
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise InputError(f"the reference has {type(value).__name__} for {name!r}, expected a tensor.")
    return {layer_name(str(name)): value.detach().cpu() for name, value in given.items()}


def source_of(given: Any, layer: StoredLayer, first: Mapping[str, StoredTensor] | None) -> Source:
    """Return where what is subtracted from one layer comes from.

    Args:
        given: as `named_references` returns it.
        layer: the layer.
        first: the tensors of the first checkpoint by layer, for the reference ``init``.

    Returns:
        A source; one that is absent where the reference has no tensor of this name.
    """
    if given is None or isinstance(given, Tensor):
        return given
    if isinstance(given, str) and given == "identity":
        return given
    tensors: Mapping[str, Any] = first or {} if isinstance(given, str) else given
    source: Source = tensors.get(layer.name)
    if source is None:
        return Absent(f"the reference has no tensor {layer.name!r}.")
    if isinstance(source, StoredTensor) and source.status != "ok":
        return Absent(f"the reference's {layer.name!r} was skipped: {source.why}")
    return source
