"""What becomes of a model while it trains: layers that are swapped, cast, moved; and what is said of it.

A layer is a place in the model. What is in that place counts, whatever it is: its numbers go on in the same
columns, and an event says from which step on it is another one.

- **Another module, or parameter, of the same shape** goes on as if nothing had happened. The reference ``init``
  stays what it was when the tracker was attached.
- **Of another shape**: numbers of the new weight alone go on in the same columns; what compares it with the former
  one (a reference that is a tensor, ``init``) has the status ``error``, and so has everything where the number of
  matrices is another. Raw tensors, whose datasets have the former shape, are not recorded: ``error`` too.
- **Cast** (``model.half()``): tolerances are those of the new dtype from there on. Raw tensors are stored in the
  dtype that they had, or that was asked for.
- **Moved** (``model.to(device)``): references and a probe follow.
- **Gone**: ``error``, until something is in its place again.

It is looked at when a step is recorded, and when `watch` is called. Of weights in parts (FSDP2), and of
parametrized ones, only the module is looked at.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from hooks.layers import Layer

__all__ = ["Changes", "Remark"]


class Remark(NamedTuple):
    """What is to be said.

    Attributes:
        kind: a word.
        text: a sentence.
        layer: the layer concerned; empty where it is no single one.
    """

    kind: str
    text: str
    layer: str


class _Found(NamedTuple):
    """What is in a layer's place."""

    owner: "weakref.ref[nn.Module]"
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None


class Changes:
    """Remembers what is in the place of each layer, and says what became of it."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Remember what is there now.

        Args:
            layers: the layers.
        """
        self._layers = list(layers)
        self._known = {layer.name: found for layer in layers if (found := _found(layer)) is not None}

    def look(self, step: int) -> list[Remark]:
        """Say what has changed since it was last looked at.

        Args:
            step: how many steps are complete.

        Returns:
            What is to be said.
        """
        before, now = dict(self._known), {}
        for layer in self._layers:
            found = _found(layer)
            if found is not None:
                now[layer.name] = found
        self._known |= now
        remarks = [Remark("replaced", text, name) for name, text in _replaced(before, now, step)]
        for kind, text, names in _together(before, now):
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            one = names[0] if len(names) == 1 else ""
            remarks.append(Remark(kind, f"{listed}: {text} from step {step} on", one))
        return remarks


def _replaced(
    before: Mapping[str, _Found], now: Mapping[str, _Found], step: int
) -> Iterator[tuple[str, str]]:
    for name, found in now.items():
        old = before.get(name)
        if old is None:
            yield name, f"something is in the place of {name} again"
        elif found.shape != old.shape:
            yield (
                name,
                (
                    f"{name} has shape {_shown(found.shape)} from step {step} on, before {_shown(old.shape)}: numbers "
                    "of it alone go on in the same columns, what compares it with the former weight does not"
                ),
            )
        elif found.owner() is not old.owner():
            yield name, f"another module is in the place of {name}; it is followed from now on"


def _found(layer: Layer) -> _Found | None:
    try:
        owner = layer.owner
        if layer.sharded is not None or is_parametrized(owner, layer.attribute):
            return _Found(weakref.ref(owner), None, None, None)
        weight = getattr(owner, layer.attribute)
    except AttributeError:  # there is none in its place now
        return None
    if not isinstance(weight, Tensor):
        return None
    return _Found(weakref.ref(owner), tuple(weight.shape), weight.dtype, weight.device)


def _together(before: dict[str, _Found], now: dict[str, _Found]) -> Iterator[tuple[str, str, list[str]]]:
    # A model is cast or moved as a whole: one sentence for all layers.
    groups: dict[tuple[str, str], list[str]] = {}
    for name, found in now.items():
        old = before.get(name, found)
        if found.dtype != old.dtype and found.dtype and old.dtype:
            what = f"{_word(found.dtype)}, before {_word(old.dtype)},"
            groups.setdefault(("cast", what), []).append(name)
        if found.device != old.device and found.device and old.device:
            groups.setdefault(("moved", f"on {found.device}, before on {old.device},"), []).append(name)
    for (kind, what), names in groups.items():
        yield kind, what, names


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "another" if shape is None else str(list(shape))
