"""Opening a run file for reading, whatever state its writer left it in, in bounded time.

HDF5 opens a file that is marked as being written only for SWMR reading, and there waits between its
attempts to read metadata, each time twice as long: where a file is damaged or cut, practically for
ever. So a marked file is read through a window that shows it without its marks. What is torn, because
its writer is just writing it, fails its checksum, and is looked at again; a few times only.
"""

import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import h5py

from zanalysis.errors import RunFileError, ZAnalysisError
from zanalysis.runfile.change_journal import pending
from zanalysis.runfile.overlay import Overlay
from zanalysis.runfile.schema import FORMAT, SCHEMA_VERSION, Committed
from zanalysis.runfile.superblock import (
    SIGNATURE,
    SUPERBLOCK_BYTES,
    SWMR,
    WRITING,
    parse_superblock,
    without_marks,
)

__all__ = ["ask", "check_regular", "is_marked", "unmarked"]

T = TypeVar("T")

_LOOKS, _PAUSE = 5, 0.02  # seconds
_ROOM = 1 << 40  # bytes that a file may grow by while it is open


class _Window(io.RawIOBase):
    """A file as it would be without the marks of its writer.

    A growing file has its metadata beyond the end that it had when it was opened: the window has no end.
    """

    def __init__(self, file: BinaryIO | Overlay, block: bytes) -> None:
        self._file = file
        self._end = file.seek(0, os.SEEK_END) + _ROOM
        self._block = without_marks(block, self._end)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        self._file.seek(self._position)
        there = self._file.readinto(room)  # type: ignore[union-attr]
        # HDF5 knows of no short read. Zeros fail the checksum of metadata; beyond the committed data there
        # is nothing else to be read.
        room[there:] = bytes(len(room) - there)
        if self._position < SUPERBLOCK_BYTES:
            shown = self._block[self._position : self._position + len(room)]
            room[: len(shown)] = shown
        self._position += len(room)
        return len(room)


@contextmanager
def unmarked(path: Path) -> Iterator[Any]:
    """Open an HDF5 file, and look past the marks of a writer where there are any.

    Args:
        path: the file.

    Yields:
        The open `h5py.File`.
    """
    change = pending(path)
    with path.open("rb") as raw:
        file = Overlay(raw, change) if change else raw
        block = file.read(SUPERBLOCK_BYTES)
        superblock = parse_superblock(block)
        marked = superblock is not None and superblock.flags == WRITING | SWMR
        # Never by its name: a lock of HDF5's would keep a training from going on in the file.
        with h5py.File(_Window(file, block) if marked else file, "r") as opened:
            yield opened


def check_regular(path: Path) -> None:
    """Check that there is an ordinary file under a name.

    Args:
        path: the name.

    Raises:
        RunFileError: if there is none, or a folder, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunFileError(f"{path} does not exist; pass the path given to RankTracker.") from error
    except (OSError, ValueError) as error:
        raise RunFileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    if stat.S_ISDIR(mode):
        raise RunFileError(f"{path} is a folder; pass the path of a run file in it.")
    if not stat.S_ISREG(mode):
        raise RunFileError(
            f"{path} is a pipe, a socket or a device, no run file; pass the path of a regular file."
        )


class _UnsettledError(Exception):
    """What another look may find otherwise, because the file is being opened, written or closed."""


def ask(path: Path, question: Callable[[Any, Committed], T]) -> T:
    """Answer a question about a run file: closed, being written, or left by a killed writer.

    Args:
        path: the file.
        question: a function of the open `h5py.File` and the counts of what is complete; it may be asked
            several times.

    Returns:
        The answer.

    Raises:
        RunFileError: if the file is missing, not HDF5, not a run file, truncated, damaged, or of a newer
            schema.
    """
    check_regular(path)
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        try:
            return _answer(path, question)
        except _UnsettledError as error:
            failure = error
    raise RunFileError(str(failure)) from failure.__cause__


def _answer(path: Path, question: Callable[[Any, Committed], T]) -> T:
    block = _check_whole(path)
    try:
        with unmarked(path) as file:
            _check_schema(path, file)
            done = Committed(*(int(n) for n in file["committed"][:]))
            size = path.stat().st_size
            if size < done.size and _marked(block):
                raise _UnsettledError(_truncated(path, size, done.size))
            answer = question(file, done)
        if _first_bytes(path) != block:
            raise _UnsettledError(f"{path} was opened or closed by its writer, time and again")
        return answer
    except BlockingIOError as error:
        raise _UnsettledError(f"{path} is open for writing in another program; close it there.") from error
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ZAnalysisError):
            raise
        raise _UnsettledError(
            f"{path} is damaged or truncated ({error}); restore it from a copy. "
            "What can be salvaged is what h5dump still shows."
        ) from error


def _first_bytes(path: Path) -> bytes:
    change = pending(path)
    if change is not None and 0 in change.pages:
        return change.pages[0][:SUPERBLOCK_BYTES]
    with path.open("rb") as file:
        return file.read(SUPERBLOCK_BYTES)


def _check_whole(path: Path) -> bytes:
    """Check, without HDF5, that the file begins as it should and is as long as it says.

    Args:
        path: the file.

    Returns:
        Its first 48 bytes.

    Raises:
        RunFileError: if it is no HDF5 file, or cannot be read.
        _UnsettledError: if it is shorter than it says, or is being written by something else.
    """
    try:
        block, change = _first_bytes(path), pending(path)
        size = change.size if change else path.stat().st_size
    except PermissionError as error:
        raise RunFileError(f"cannot read {path}: {error.strerror}; ask for permission to read it.") from error
    except OSError as error:
        raise RunFileError(
            f"cannot read {path}: {error.strerror or error}; pass the path of a run file."
        ) from error
    if not block:
        raise RunFileError(f"{path} is empty; pass the path of a run file.")
    if block[:8] != SIGNATURE:
        if SIGNATURE.startswith(block):
            raise RunFileError(f"{path} is truncated: it has {len(block)} bytes; restore it from a copy.")
        raise RunFileError(f"{path} is not an HDF5 file; pass the path given to RankTracker.")
    if len(block) < SUPERBLOCK_BYTES:
        raise RunFileError(f"{path} is truncated: it has {len(block)} bytes; restore it from a copy.")
    superblock = parse_superblock(block)
    if superblock is not None and size < superblock.end:
        raise _UnsettledError(_truncated(path, size, superblock.end))
    if superblock is not None and superblock.flags not in (0, WRITING | SWMR):
        raise _UnsettledError(f"{path} is open for writing in another program; close it there.")
    return block


def is_marked(path: Path) -> bool:
    """Say whether a run file carries the marks of a writer that is at it, or was killed.

    Args:
        path: the file.

    Returns:
        False once the writer closed it, or `repair` mended it.
    """
    return _marked(_first_bytes(path))


def _marked(block: bytes) -> bool:
    superblock = parse_superblock(block)
    return superblock is None or superblock.flags != 0


def _check_schema(path: Path, file: Any) -> None:
    if file.attrs.get("format") != FORMAT:
        raise RunFileError(f"{path} is an HDF5 file, but no run file; pass the path given to RankTracker.")
    version = file.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RunFileError(
            f"{path} has schema version {version}, this zanalysis reads {SCHEMA_VERSION}; upgrade zanalysis."
        )


def _truncated(path: Path, size: int, expected: int) -> str:
    return f"{path} is truncated: it has {size} bytes of at least {expected}; restore it from a copy."
