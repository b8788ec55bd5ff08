"""A stretch of a file, read within bounds: what a file says about its own lengths is never allocated unseen."""

import io
from typing import BinaryIO

from zanalysis.checkpoints.faults import FaultError

__all__ = ["Window"]

_LONGEST_LINE = 1 << 20


class Window:
    """The bytes from `begin` on of an open file, as a file of its own.

    Attributes:
        begin: where it begins in the file, in bytes.
        length: its bytes.
    """

    def __init__(self, file: BinaryIO, begin: int, length: int, budget: int) -> None:
        """Look at a stretch of a file.

        Args:
            file: open for reading; its position is this window's from now on.
            begin: in bytes.
            length: in bytes, known to be in the file.
            budget: the bytes that may be read in all.
        """
        self.begin, self.length = begin, length
        self._file = file
        self._left = budget
        self._at = 0
        file.seek(begin)

    def seekable(self) -> bool:
        """Return whether `seek` works, for `zipfile`."""
        return True

    def tell(self) -> int:
        """Return the position, in bytes from the beginning of the window."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move.

        Args:
            offset: in bytes.
            whence: from where, as for a file.

        Returns:
            The new position.

        Raises:
            FaultError: if it lies outside.
        """
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        if not 0 <= base + offset <= self.length:
            raise FaultError("is damaged: it points outside itself; restore it from a copy.")
        self._at = base + offset
        self._file.seek(self.begin + self._at)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read.

        Args:
            size: in bytes; negative for the rest.

        Returns:
            At most that many bytes: fewer at the end.

        Raises:
            FaultError: if more than the budget is asked for.
        """
        rest = self.length - self._at
        size = rest if size < 0 else min(size, rest)
        self._spend(size)
        data = self._file.read(size)
        self._at += len(data)
        return data

    def readline(self) -> bytes:
        """Read a line.

        Returns:
            It, with its end where it has one.

        Raises:
            FaultError: if it is longer than any line of a checkpoint.
        """
        line = self._file.readline(min(_LONGEST_LINE, self.length - self._at))
        if len(line) == _LONGEST_LINE:
            raise FaultError("is damaged or no checkpoint: a line without an end; restore it from a copy.")
        self._spend(len(line))
        self._at += len(line)
        return line

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise FaultError(
                "has more in its index or its pickle than a checkpoint needs (tensors do not count); "
                "save the weights alone."
            )
