"""The weights that a run file keeps, one checkpoint for each recorded step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zanalysis.checkpoints.contents import Checkpoint, StoredTensor, unfit
from zanalysis.checkpoints.faults import FaultError
from zanalysis.checkpoints.places import checked_shape
from zanalysis.errors import RunFileError
from zanalysis.runfile.reader import open_run
from zanalysis.runfile.tensor_reader import RecordedTensor

__all__ = ["describe_run"]


@dataclass(frozen=True)
class _Recorded:
    path: Path
    layer: str
    step: int

    def read(self) -> Tensor:
        with _told():
            return torch.as_tensor(open_run(self.path).tensor(self.layer, "weight", self.step))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RunFileError as error:
        raise FaultError(f"is HDF5, but no weights can be read from it: {error}") from error


def describe_run(path: Path) -> list[Checkpoint]:
    """Describe the weights in a run file.

    Args:
        path: the file.

    Returns:
        One checkpoint for each recorded step, in order.

    Raises:
        FaultError: if it is no run file, or keeps numbers only.
    """
    with _told():
        run = open_run(path)
        kept = [row for row in run.tensors if row.tensor == "weight"]
    # The tracker knew which three-dimensional parameters are kernels, and counted their matrices.
    whole = {
        layer["name"]: layer["matrices"] == [layer["name"]] for layer in run.attributes.get("layers", ())
    }
    steps = sorted({int(step) for row in kept for step in row.steps})
    if not steps:
        raise FaultError("keeps measured numbers and no weights; record them with hooks.Recorder.")
    return [
        Checkpoint(
            path,
            "recorder",
            step,
            tuple(_stored(path, row, step, whole.get(row.layer)) for row in kept if step in row.steps),
        )
        for step in steps
    ]


def _stored(path: Path, row: RecordedTensor, step: int, kernel: bool | None) -> StoredTensor:
    place = _Recorded(path.absolute(), row.layer, step)
    dtype: torch.dtype = getattr(torch, row.dtype)
    why = unfit(dtype)
    # A weight has one shape and one dtype: the columns of the file are made for it.
    shape = checked_shape(tuple(size or 0 for size in row.shape or ()))
    return StoredTensor(
        row.layer, shape, dtype, "skipped" if why else "ok", why, kernel, path=path, place=place
    )
