"""What a checkpoint is to the rest of the house: names, shapes, stored dtypes, and where the numbers lie."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from zanalysis.checkpoints.faults import naming, quoted
from zanalysis.checkpoints.places import Place
from zanalysis.errors import CheckpointError

__all__ = ["Checkpoint", "StoredTensor", "unfit"]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, not read yet. Plain data: it can be pickled, and holds no file open.

    Attributes:
        name: its key in the state dict, as the file has it.
        shape: its sizes.
        dtype: as stored; None where torch has no such dtype.
        status: ``"ok"``, or ``"skipped"`` where no floating matrix can be had of it.
        why: the reason, if skipped.
        kernel: where the checkpoint tells: whether a tensor of three dimensions is a convolution's kernel.
        tied: the name of an earlier tensor of the checkpoint that has the very same place in the file, or
            empty.
        path: the file to name in an error.
        place: where its numbers lie; None where they cannot be read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    status: str = "ok"
    why: str = ""
    kernel: bool | None = None
    tied: str = ""
    path: Path = Path()
    place: Place | None = field(default=None, repr=False)

    def load(self) -> Tensor:
        """Read the tensor. The file is opened for it, and closed again.

        Returns:
            The tensor, on the CPU, contiguous, in its stored dtype. Whole numbers and the like, which are
            ``"skipped"``, can be read too.

        Raises:
            CheckpointError: if it cannot be read.
        """
        if self.place is None:
            raise CheckpointError(f"{self.path} has {quoted(self.name)}, which cannot be read: {self.why}.")
        with naming(self.path):
            return self.place.read()


@dataclass(frozen=True)
class Checkpoint:
    """The weights at one step. Plain data: it can be pickled, and holds no file open.

    Attributes:
        path: the file or folder.
        kind: ``"safetensors"``, ``"pt"``, ``"legacy"``, ``"lightning"``, ``"torchscript"``, ``"sharded"``,
            ``"huggingface"``, ``"dcp"`` or ``"recorder"``.
        step: the checkpoint's own, else the last number in its name, else None.
        tensors: the weights, in the order of the file; in natural order where its order says nothing.
        placeholders: dotted names of the classes and functions that something inert stands for.
        notes: what a user should know, a sentence each.
    """

    path: Path
    kind: str
    step: int | None
    tensors: tuple[StoredTensor, ...]
    placeholders: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


_EIGHT_BITS = (torch.int8, torch.uint8, torch.qint8, torch.quint8, torch.qint32)


def unfit(dtype: torch.dtype | None) -> str:
    """Say why a dtype holds no weights that can be measured.

    Args:
        dtype: as stored.

    Returns:
        The reason, or an empty string.

    Example:
        >>> unfit(torch.bfloat16), unfit(torch.int64)
        ('', 'it holds whole numbers (int64)')
    """
    if dtype is None:
        return "torch has no such dtype"
    name = str(dtype).removeprefix("torch.")
    if dtype.is_complex:
        return f"it is complex ({name})"
    if not dtype.is_floating_point:
        kind = "quantized or whole numbers" if dtype in _EIGHT_BITS else "whole numbers"
        return f"it holds {kind} ({name})"
    if dtype.itemsize < 2:
        return f"it is quantized ({name}: its scales lie in another tensor)"
    return ""
