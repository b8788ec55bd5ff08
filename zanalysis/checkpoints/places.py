"""Where a tensor's numbers lie in a file, and reading them: plain data, no open file.

The file is opened for every tensor. (One mapping kept open over 2 GiB kept every page that it had touched:
2,463 MiB against 415.) Only the bytes between a tensor's first and last element are read, so that views of
one large storage cost no more than themselves.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from zanalysis.checkpoints.faults import FaultError

__all__ = ["MOST_AXES", "Place", "Strided", "checked_shape", "dense_strides", "placed"]

MOST_AXES = 64  # torch's own bound for an operation over elements
_ONE_READ = 64 << 20  # bytes that may be read at once, however few of them are wanted
_REPEATED = 64 << 20  # bytes up to which a tensor with more elements than its storage is written out


class Place(Protocol):
    """Somewhere that a tensor can be read from; picklable."""

    def read(self) -> Tensor:
        """Read the tensor.

        Returns:
            It, on the CPU, contiguous, in its stored dtype.
        """


@dataclass(frozen=True)
class Strided:
    """A strided view of a contiguous stretch of a file.

    Attributes:
        path: the file.
        start: where the storage begins, in bytes.
        dtype: of the elements.
        shape: of the tensor.
        strides: of the tensor, in elements, none negative.
        offset: of its first element, in elements.
        big: whether the numbers are stored big-endian.
    """

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    big: bool = False

    def read(self) -> Tensor:
        """Read the tensor.

        Returns:
            It, on the CPU, contiguous, in its stored dtype.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb") as file:
            return self._piece(file, self.offset, self.shape)

    def _piece(self, file: BinaryIO, offset: int, shape: tuple[int, ...]) -> Tensor:
        reach = _reach(shape, self.strides)
        item = self.dtype.itemsize
        if reach * item <= max(_ONE_READ, 2 * math.prod(shape) * item):
            flat = _numbers(file, self.start + offset * item, reach, self.dtype, self.big)
            return flat.as_strided(shape, self.strides).contiguous()
        axis = max(range(len(shape)), key=lambda i: (shape[i] - 1) * self.strides[i])
        half = shape[axis] // 2
        first, second = (
            self._piece(file, offset + skip * self.strides[axis], (*shape[:axis], n, *shape[axis + 1 :]))
            for skip, n in ((0, half), (half, shape[axis] - half))
        )
        return torch.cat((first, second), axis)


def _reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _numbers(file: BinaryIO, start: int, count: int, dtype: torch.dtype, big: bool) -> Tensor:
    raw = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    room = raw.numpy()
    file.seek(start)
    if file.readinto(room) != len(room):  # type: ignore[attr-defined]
        raise FaultError("ends within a tensor: it was shortened after it was opened; open it again.")
    if big != (sys.byteorder == "big") and dtype.itemsize > 1:
        room.view(f"u{dtype.itemsize}").byteswap(inplace=True)
    return raw.view(dtype)


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor.

    Args:
        shape: of the tensor.

    Returns:
        In elements.

    Example:
        >>> dense_strides((2, 3, 4))
        (12, 4, 1)
    """
    strides = [1]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * n)
    return tuple(reversed(strides)) if shape else ()


def checked_shape(shape: object) -> tuple[int, ...]:
    """Check what a file gives as a shape.

    Args:
        shape: anything.

    Returns:
        The shape.

    Raises:
        FaultError: unless it is a short sequence of sizes whose product is an address.
    """
    if not isinstance(shape, tuple | list) or len(shape) > MOST_AXES:
        raise FaultError("is damaged: a tensor has no valid shape; restore it from a copy.")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape) or math.prod(shape) >= 1 << 62:
        raise FaultError("is damaged: a tensor has sizes that no memory holds; restore it from a copy.")
    return tuple(shape)


def placed(place: Strided, room: int) -> str:
    """Check a view against the stretch of the file that it looks at.

    Args:
        place: the view.
        room: the bytes of the storage, known to be in the file.

    Returns:
        Empty, or why the tensor is skipped: it repeats few numbers so often that writing it out would take
        far more than the file.

    Raises:
        FaultError: if it reaches beyond the storage, or no number can lie where it says.
    """
    strides = checked_shape(place.strides)
    if len(strides) != len(place.shape) or type(place.offset) is not int or place.offset < 0:
        raise FaultError("is damaged: a tensor's strides do not fit its shape; restore it from a copy.")
    if 0 in place.shape:
        return ""
    item = place.dtype.itemsize
    if (place.offset + _reach(place.shape, strides)) * item > room:
        raise FaultError("is damaged: a tensor reaches beyond its storage; restore it from a copy.")
    size = math.prod(place.shape) * item
    if size > max(room, _REPEATED):
        return f"it shows {room} stored bytes as {size}, through overlapping strides"
    return ""
