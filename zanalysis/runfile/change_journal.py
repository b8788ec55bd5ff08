"""The journal of a change to a run file: from the moment it is there under its name, the change will happen."""

import os
import struct
from pathlib import Path
from zlib import crc32

from zanalysis.runfile.overlay import PAGE, Change

__all__ = ["apply", "journal_of", "pending", "recover", "write_journal"]

_MAGIC = b"ZANJRNL1"
_HEAD = struct.Struct("<8sQQ")  # magic, size of the file afterwards, number of pages
_ENTRY = struct.Struct("<QII")  # page number, bytes in it, checksum of what was there before


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
            file.seek(number * PAGE)
            there = file.read(PAGE)
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
            file.seek(number * PAGE)
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
