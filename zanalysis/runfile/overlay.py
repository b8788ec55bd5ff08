"""Changing a run file in place, all at once: what a kill interrupts can be completed or was never begun.

What HDF5 would write is collected in memory, page by page, over the untouched file. Then it is written to a
journal beside the file, complete under its name ``.NAME.journal`` only when all of it is there, applied to the
file, and the journal removed. A reader who finds a journal sees the file as it will be; the next writer, or
`repair`, completes the change. A journal that does not fit its file, because the file is another by now, is
ignored.
"""

import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

__all__ = ["PAGE", "Change", "Overlay"]

PAGE = 4096


class Change(NamedTuple):
    """What is to become of a file.

    Attributes:
        size: bytes it will have.
        pages: the new contents of the pages that change, by number; the last may be short.
        before: the checksum of each of these pages as it was.
    """

    size: int
    pages: dict[int, bytes]
    before: dict[int, int]


class Overlay(io.RawIOBase):
    """A file as it would be with some pages replaced; writing replaces pages in memory only."""

    def __init__(self, file: BinaryIO, change: Change | None = None) -> None:
        """Lay nothing, or a change, over a file.

        Args:
            file: open for reading, unbuffered or not.
            change: what is laid over it from the beginning.
        """
        self._file = file
        size = os.fstat(file.fileno()).st_size
        self._size = change.size if change else size
        self._original = min(size, self._size)  # beyond it there are zeros, not what may have been there
        self._pages = {n: bytearray(page) for n, page in change.pages.items()} if change else {}
        self._position = 0

    def readable(self) -> bool:
        """Say that it can be read.

        Returns:
            True.
        """
        return True

    def writable(self) -> bool:
        """Say that it can be written.

        Returns:
            True.
        """
        return True

    def seekable(self) -> bool:
        """Say that any place of it can be reached.

        Returns:
            True.
        """
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Change the position.

        Args:
            offset: bytes.
            whence: from where they count.

        Returns:
            The new position.
        """
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what comes next.

        Args:
            buffer: where it goes.

        Returns:
            How many bytes there were.
        """
        room = memoryview(buffer).cast("B")
        there = max(0, min(len(room), self._size - self._position))
        room = room[:there]
        self._underlying(self._position, room)
        for number, skip, at, count in _pages(self._position, there):
            page = self._pages.get(number)
            if page is not None:
                room[at : at + count] = bytes(page[skip : skip + count]).ljust(count, b"\0")
        self._position += there
        return there

    def _underlying(self, start: int, room: memoryview) -> None:
        """Fill the room with what the file has there, and zeros beyond its end."""
        count = max(0, min(len(room), self._original - start))
        if count:
            self._file.seek(start)
            count = self._file.readinto(room[:count])  # type: ignore[attr-defined]
        room[count:] = bytes(len(room) - count)

    def write(self, data: Any) -> int:
        """Replace bytes, in memory.

        Args:
            data: the bytes.

        Returns:
            How many.
        """
        given = memoryview(data).cast("B")
        for number, skip, at, count in _pages(self._position, len(given)):
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = bytearray(PAGE)
                if count < PAGE:
                    self._underlying(number * PAGE, memoryview(page))
            page[skip : skip + count] = given[at : at + count]
        self._position += len(given)
        self._size = max(self._size, self._position)
        return len(given)

    def truncate(self, size: int | None = None) -> int:
        """Forget what lies beyond a size.

        Args:
            size: bytes; the position if None.

        Returns:
            The new size.
        """
        self._size = self._position if size is None else size
        self._original = min(self._original, self._size)
        for number in [n for n in self._pages if n * PAGE >= self._size]:
            del self._pages[number]
        last, used = divmod(self._size, PAGE)
        if last in self._pages:
            self._pages[last][used:] = bytes(PAGE - used)
        return self._size

    def change(self) -> Change:
        """Return what was written, as far as it differs from the file.

        Returns:
            The change.
        """
        # Where it was cut and has grown again there are zeros, though nothing was written.
        for number in range(self._original // PAGE, -(-self._size // PAGE)):
            if number not in self._pages:
                self._pages[number] = page = bytearray(PAGE)
                self._underlying(number * PAGE, memoryview(page))
        pages, before = {}, {}
        for number, page in sorted(self._pages.items()):
            new = bytes(page[: self._size - number * PAGE])
            self._file.seek(number * PAGE)
            old = self._file.read(PAGE)
            if new != old:
                pages[number], before[number] = new, crc32(old)
        return Change(self._size, pages, before)


def _pages(start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a stretch of a file along its pages.

    Args:
        start: where it begins.
        count: how long it is.

    Yields:
        For each page that it touches: its number, bytes skipped there, bytes before it, bytes in it.
    """
    done = 0
    while done < count:
        number, skip = divmod(start + done, PAGE)
        here = min(PAGE - skip, count - done)
        yield number, skip, done, here
        done += here
