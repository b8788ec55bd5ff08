"""Writing raw tensors: each goes straight to its place in the file, and counts once its whole step is there."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zanalysis.analyzers.statuses import CODES
from zanalysis.errors import InputError
from zanalysis.runfile.bits import DTYPES, flat_bytes
from zanalysis.runfile.schema import MOST_DIMENSIONS, Kept, TensorKey
from zanalysis.runfile.tensor_layout import EXTENT, FLAT_CHUNK, flat_ends

__all__ = ["TensorWriter", "check_kept"]

_DTYPE_CODES = {word: code for code, word in enumerate(DTYPES)}


def check_kept(keys: Sequence[TensorKey], kept: Sequence[Kept]) -> None:
    """Check that tensors are what was announced.

    Args:
        keys: what is recorded.
        kept: one for each key.

    Raises:
        InputError: if there are more or fewer, or one is of another shape or dtype.
    """
    if len(keys) != len(kept):
        raise InputError(f"got {len(kept)} tensors for a step, expected {len(keys)}.")
    for key, (status, dtype, values) in zip(keys, kept, strict=True):
        name = f"{key.tensor} of {key.layer!r}"
        if status not in CODES or (status == "ok") != (values is not None):
            raise InputError(f"{name} has status {status!r} and {'no' if values is None else 'its'} values.")
        if values is None:
            continue
        if dtype not in DTYPES or DTYPES[dtype] != values.dtype or (key.dtype and key.dtype != dtype):
            raise InputError(
                f"{name} is {dtype}, stored as {values.dtype}; expected {key.dtype or 'another dtype'}."
            )
        if key.shape is not None and values.shape != key.shape:
            raise InputError(f"{name} has shape {list(values.shape)}, expected {list(key.shape)}.")
        if values.ndim > MOST_DIMENSIONS:
            raise InputError(f"{name} has {values.ndim} dimensions; there is room for {MOST_DIMENSIONS}.")


class TensorWriter:
    """The part of a run file that holds raw tensors, open for writing.

    Attributes:
        last_step: the last step taken, -1 if there is none.
        dropped: how many steps were dropped so far.
    """

    def __init__(self, file: Any, keys: Sequence[TensorKey]) -> None:
        """Find the datasets.

        Args:
            file: an open run file, in SWMR mode.
            keys: what is recorded.
        """
        self._group = group = file["tensors"]
        self._keys = tuple(keys)
        self._data = [group[f"data/{index}"] for index in range(len(keys))]
        self._direct = [data.compression is None and sys.byteorder == "little" for data in self._data]
        self._columns = {
            row: column for column, row in enumerate(i for i, k in enumerate(keys) if k.shape is None)
        }
        self._committed, self.dropped = group["committed"][:].tolist()
        self._told = self.dropped
        self._ends = flat_ends(group, self._committed) if self._columns else []
        steps = group["step"]
        self.last_step = int(steps[self._committed - 1]) if self._committed else -1
        self._pending: list[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.int64]]] = []
        self._touched: set[int] = set()

    def append(self, step: int, kept: Sequence[Kept]) -> None:
        """Write the tensors of one step. They count from the next flush on.

        Args:
            step: completed optimizer steps, more than at the last call.
            kept: one for each key; not needed any more when this returns.

        Raises:
            InputError: if the step does not come after the last one, or a tensor is not what was announced.
        """
        if step <= self.last_step:
            raise InputError(
                f"step {step} does not come after step {self.last_step}, which is recorded already."
            )
        check_kept(self._keys, kept)
        row = self._committed + len(self._pending)
        extents = np.zeros((len(self._columns), EXTENT), np.int64)
        extents[:, 2] = -1
        for index, (key, (_, dtype, values)) in enumerate(zip(self._keys, kept, strict=True)):
            if values is None:
                continue
            self._touched.add(index)
            if key.shape is not None:
                self._write(index, row, values)
            else:
                column = self._columns[index]
                where = self._append_flat(index, column, values)
                extents[column, :3] = where, _DTYPE_CODES[dtype], values.ndim
                extents[column, 3 : 3 + values.ndim] = values.shape
        codes = np.array([CODES[one.status] for one in kept], np.uint8)
        self._pending.append((step, codes, extents))
        self.last_step = step

    def _write(self, index: int, row: int, values: npt.NDArray[Any]) -> None:
        data = self._data[index]
        data.id.set_extent((row + 1, *data.shape[1:]))
        if not self._direct[index] or not values.flags.c_contiguous:
            data[row] = values
            return
        # As it is, past HDF5's cache and conversion: half the time. A chunk at the edge is longer than the tensor.
        rows = data.chunks[1]
        rest = (0,) * (values.ndim - 1)
        for start in range(0, len(values), rows):
            part = values[start : start + rows]
            if len(part) == rows:
                data.id.write_direct_chunk((row, start, *rest), part, 0)
            else:
                data[row, start:] = part

    def _append_flat(self, index: int, column: int, values: npt.NDArray[Any]) -> int:
        data, content, where = self._data[index], flat_bytes(values), self._ends[column]
        if not self._direct[index]:
            # A compressed chunk that is written again takes a new place, and the old one is lost.
            where = -(-where // FLAT_CHUNK) * FLAT_CHUNK
        self._ends[column] = end = where + len(content)
        data.id.set_extent((end,))
        data[where:end] = content
        return where

    def flush(self) -> bool:
        """Make what was taken safe from a kill, and count it.

        Returns:
            Whether there was something.
        """
        if not self._pending and self.dropped == self._told:
            return False
        before, rows = self._committed, self._committed + len(self._pending)
        if self._pending:
            for index, (key, data) in enumerate(zip(self._keys, self._data, strict=True)):
                if key.shape is not None and data.shape[0] < rows:
                    data.id.set_extent((rows, *key.shape))
                    self._touched.add(index)
                if index in self._touched:
                    data.flush()
            steps, codes, extents = zip(*self._pending, strict=True)
            columns: dict[str, npt.NDArray[Any]] = {
                "step": np.array(steps, np.int64),
                "status": np.stack(codes),
            }
            if self._columns:
                columns["extent"] = np.stack(extents)
            for name, values in columns.items():
                data = self._group[name]
                data.resize(rows, axis=0)
                data[before:] = values
                data.flush()
        # Last: what lies beyond this count is not there yet.
        self._group["committed"][:] = [rows, self.dropped]
        self._group["committed"].flush()
        self._committed, self._told = rows, self.dropped
        self.forget()
        return True

    def forget(self) -> None:
        """Forget what is not flushed."""
        self._pending.clear()
        self._touched.clear()
