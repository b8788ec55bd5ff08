"""The weights that a run file keeps, one checkpoint for each recorded step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zanalysis.checkpoints.contents import Checkpoint, StoredTensor, unfit
from zanalysis.checkpoints.faults import FaultError
from zanalysis.checkpoints.places import checked_shape
from zanalysis.errors import RunFileError
from zanalysis.runfile.reader import open_run

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
        listing: Any = getattr(run, "tensors", None)
        kept = [row for row in (listing() if listing is not None else ()) if row[1] == "weight"]
        steps = [int(step) for step in run.steps]
    if not kept or not steps:
        raise FaultError("keeps measured numbers and no weights; record them with hooks.Recorder.")
    return [
        Checkpoint(path, "recorder", step, tuple(_stored(path, row, step) for row in kept)) for step in steps
    ]


def _stored(path: Path, row: Any, step: int) -> StoredTensor:
    layer, _, shape, dtype = row
    why = unfit(dtype)
    place = _Recorded(path.absolute(), layer, step)
    status = "skipped" if why else "ok"
    return StoredTensor(layer, checked_shape(tuple(shape)), dtype, status, why, path=path, place=place)
