"""Changing a run file in place, all at once: what a kill interrupts can be completed or was never begun.

What HDF5 would write is collected in memory, page by page, over the untouched file. Then it is written to a
journal beside the file, complete under its name ``.NAME.journal`` only when all of it is there, applied to the
file, and the journal removed. A reader who finds a journal sees the file as it will be; the next writer, or
`repair`, completes the change. A journal that does not fit its file, because the file is another by now, is
ignored.
"""

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

__all__ = ["Change", "Overlay", "apply", "journal_of", "pending", "recover", "write_journal"]

_PAGE = 4096
_MAGIC = b"ZANJRNL1"
_HEAD = struct.Struct("<8sQQ")  # magic, size of the file afterwards, number of pages
_ENTRY = struct.Struct("<QII")  # page number, bytes in it, checksum of what was there before


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
        """Say that it can be read."""
        return True

    def writable(self) -> bool:
        """Say that it can be written."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read at any place."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Change the position, and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as there is something, and return how far."""
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
        """Replace bytes in memory, and return how many."""
        given = memoryview(data).cast("B")
        for number, skip, at, count in _pages(self._position, len(given)):
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = bytearray(_PAGE)
                if count < _PAGE:
                    self._underlying(number * _PAGE, memoryview(page))
            page[skip : skip + count] = given[at : at + count]
        self._position += len(given)
        self._size = max(self._size, self._position)
        return len(given)

    def truncate(self, size: int | None = None) -> int:
        """Forget what lies beyond a size, and return it."""
        self._size = self._position if size is None else size
        self._original = min(self._original, self._size)
        for number in [n for n in self._pages if n * _PAGE >= self._size]:
            del self._pages[number]
        last, used = divmod(self._size, _PAGE)
        if last in self._pages:
            self._pages[last][used:] = bytes(_PAGE - used)
        return self._size

    def change(self) -> Change:
        """Return what was written, as far as it differs from the file.

        Returns:
            The change.
        """
        pages, before = {}, {}
        for number, page in sorted(self._pages.items()):
            new = bytes(page[: self._size - number * _PAGE])
            self._file.seek(number * _PAGE)
            old = self._file.read(_PAGE)
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
        number, skip = divmod(start + done, _PAGE)
        here = min(_PAGE - skip, count - done)
        yield number, skip, done, here
        done += here


def journal_of(path: Path) -> Path:
    """Return where the journal of a file lies.

    Args:
        path: the file; links are followed.

    Returns:
        A hidden name beside it.
    """
    place = path.resolve()
    return place.with_name(f".{place.name}.journal")


def write_journal(path: Path, change: Change) -> None:
    """Write a change down, so that from now on it will happen, whatever happens to this process.

    Args:
        path: the file that is to change.
        change: what is to become of it.
    """
    journal = journal_of(path)
    part = journal.with_name(f"{journal.name}.part")
    content = bytearray(_HEAD.pack(_MAGIC, change.size, len(change.pages)))
    for number, page in change.pages.items():
        content += _ENTRY.pack(number, len(page), change.before[number]) + page
    content += struct.pack("<I", crc32(content))
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(journal)
    finally:
        part.unlink(missing_ok=True)


def pending(path: Path) -> Change | None:
    """Return the change that a killed process left to be completed.

    Args:
        path: the file.

    Returns:
        The change; None where there is no journal, it is not whole, or does not fit the file.
    """
    try:
        content = journal_of(path).read_bytes()
    except OSError:
        return None
    change = _parsed(content)
    return change if change is not None and _fits(path, change) else None


def _parsed(content: bytes) -> Change | None:
    if len(content) < _HEAD.size + 4 or content[:8] != _MAGIC:
        return None
    if crc32(content[:-4]) != struct.unpack("<I", content[-4:])[0]:
        return None
    _, size, count = _HEAD.unpack_from(content)
    change, position = Change(size, {}, {}), _HEAD.size
    for _ in range(count):
        number, length, checksum = _ENTRY.unpack_from(content, position)
        position += _ENTRY.size
        change.pages[number], change.before[number] = content[position : position + length], checksum
        position += length
    return change


def _fits(path: Path, change: Change) -> bool:
    with path.open("rb") as file:
        for number, page in change.pages.items():
            file.seek(number * _PAGE)
            there = file.read(_PAGE)
            # Half applied, a last page may be as long as before.
            if crc32(there) != change.before[number] and there[: len(page)] != page:
                return False
    return True


def apply(path: Path, change: Change) -> None:
    """Change a file.

    Args:
        path: the file.
        change: what is to become of it.
    """
    with path.open("r+b") as file:
        for number, page in change.pages.items():
            file.seek(number * _PAGE)
            file.write(page)
        file.truncate(change.size)
        file.flush()
        os.fsync(file.fileno())


def recover(path: Path) -> bool:
    """Complete what a killed process left, for a caller who holds the lock, and remove the journal.

    Args:
        path: the file.

    Returns:
        Whether there was something to complete.
    """
    change = pending(path)
    if change is not None:
        apply(path, change)
    journal_of(path).unlink(missing_ok=True)
    return change is not None
