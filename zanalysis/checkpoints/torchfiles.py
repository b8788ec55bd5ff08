"""Checkpoints that `torch.save` and `torch.jit.save` wrote: `.pt`, `.pth`, `.bin`, `.ckpt`."""

from pathlib import Path
from typing import Any, BinaryIO

import torch

from zanalysis.checkpoints.archives import Saved, read_saved
from zanalysis.checkpoints.contents import Checkpoint, StoredTensor
from zanalysis.checkpoints.faults import FaultError
from zanalysis.checkpoints.names import step_in_name, valid_step
from zanalysis.checkpoints.rebuilders import Described
from zanalysis.checkpoints.weights import Found, children, find_weights

__all__ = ["describe_torch", "step_of"]

_LIGHTNING = {"pytorch-lightning_version", "lightning_version"}
_NOTES = {
    "legacy": "It is in torch's legacy format of before 2020; its tensors are read one at a time all the same.",
    "torchscript": "It is a TorchScript archive; its tensors are read, its code is not.",
}


def describe_torch(path: Path, file: BinaryIO, length: int) -> Checkpoint:
    """Describe a file of torch.

    Args:
        path: the file.
        file: it, open.
        length: its bytes.

    Returns:
        Its weights.

    Raises:
        FaultError: if it is damaged, holds no tensors, or brings what is refused.
    """
    saved = read_saved(path, file, 0, length)
    found = find_weights(saved.root)
    if not found.entries:
        raise FaultError(
            "holds no weights (optimizer state does not count); pass the checkpoint that has the model's state_dict."
        )
    top = {key: child for key, child in children(saved.root) if not key.isdigit()}
    kind = "lightning" if saved.kind == "pt" and _LIGHTNING & top.keys() else saved.kind
    notes = [_NOTES[kind]] if kind in _NOTES else []
    step = step_of(top, saved)
    return Checkpoint(
        path=path,
        kind=kind,
        step=step_in_name(path) if step is None else step,
        tensors=_stored(saved, found),
        placeholders=saved.placeholders,
        notes=(*notes, *found.notes),
    )


def step_of(top: dict[str, Any], saved: Saved) -> int | None:
    """Read a checkpoint's own step.

    Args:
        top: its outermost mapping.
        saved: the file that a step kept as a tensor is read from.

    Returns:
        Its ``global_step``, else its ``step``, if that is a count; else None.

    Raises:
        FaultError: if the step is a tensor that cannot be read.
    """
    for key in ("global_step", "step"):
        value = top.get(key)
        if isinstance(value, Described) and value.shape in ((), (1,)):
            place, _ = saved.place(value)
            number = None if place is None else place.read()
            real = number is not None and not number.is_complex() and number.dtype != torch.bool
            value = number.reshape(()).item() if number is not None and real else None
        step = valid_step(value)
        if step is not None:
            return step
    return None


def _stored(saved: Saved, found: Found) -> tuple[StoredTensor, ...]:
    stored = []
    first: dict[object, str] = {}
    for entry in found.entries:
        place, why = saved.place(entry.tensor)
        tied = "" if place is None else first.setdefault(place, entry.name)
        stored.append(
            StoredTensor(
                name=entry.name,
                shape=entry.tensor.shape,
                dtype=entry.tensor.dtype,
                status="skipped" if why else "ok",
                why=why,
                kernel=entry.kernel if len(entry.tensor.shape) == 3 else None,
                tied="" if tied == entry.name else tied,
                path=saved.path,
                place=place,
            )
        )
    return tuple(stored)
