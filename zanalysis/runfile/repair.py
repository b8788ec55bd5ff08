"""Make the file of a killed writer openable by plain HDF5 tools, in place.

HDF5 marks a file that is open for writing in its superblock, and writes the end-of-file address
only on closing. After a kill both are stale, and every plain open is refused. The layout is that of
the "HDF5 File Format Specification Version 3.0", section II.A, superblock versions 2 and 3: byte 8
the version, byte 11 the consistency flags, bytes 28 to 35 the end-of-file address, bytes 44 to 47
the lookup3 checksum (Bob Jenkins, 2006) of the 44 bytes before.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

import h5py

from zanalysis.errors import RunFileError
from zanalysis.runfile.lock import held
from zanalysis.runfile.schema import FORMAT

__all__ = ["SWMR", "WRITING", "Superblock", "lookup3", "mend", "read_superblock", "repair"]

WRITING, SWMR = 1, 4
"""The consistency flags."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHECKED = 44
_MASK = 0xFFFFFFFF


def _rotated(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def lookup3(data: bytes) -> int:
    """Return the checksum that HDF5 keeps of its metadata: Jenkins's lookup3 with initial value 0.

    Args:
        data: the bytes, at least one.

    Returns:
        An unsigned 32-bit number.

    Example:
        >>> hex(lookup3(b"Four score and seven years ago"))
        '0x17770551'
    """
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    # Zero padding is harmless: the length is in the initial state, and absent bytes add nothing.
    blocks = [data[i : i + 12].ljust(12, b"\0") for i in range(0, len(data), 12)]
    for position, block in enumerate(blocks):
        x, y, z = struct.unpack("<3I", block)
        a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
        if position < len(blocks) - 1:
            for turn in (4, 6, 8, 16, 19, 4):
                a = ((a - c) & _MASK) ^ _rotated(c, turn)
                c = (c + b) & _MASK
                a, b, c = b, c, a
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotated(b, turn)) & _MASK
        a, b, c = b, c, a
    return b


class Superblock(NamedTuple):
    """The part of a superblock that a killed writer leaves stale.

    Attributes:
        flags: 0 for a closed file, `WRITING` while it is written, with `SWMR` besides in that mode.
        end: the end-of-file address, as of closing or of the beginning of SWMR.
    """

    flags: int
    end: int


def read_superblock(path: Path) -> Superblock | None:
    """Read the superblock of a file.

    Args:
        path: the file.

    Returns:
        Its flags and end-of-file address; None if it is no intact HDF5 superblock of version 2 or 3
        with 8-byte addresses.
    """
    with path.open("rb") as file:
        return _parsed(file.read(_CHECKED + 4))


def _parsed(block: bytes) -> Superblock | None:
    if len(block) < _CHECKED + 4 or block[:8] != _SIGNATURE or block[8] not in (2, 3) or block[9] != 8:
        return None
    if lookup3(block[:_CHECKED]) != struct.unpack_from("<I", block, _CHECKED)[0]:
        return None
    return Superblock(block[11], struct.unpack_from("<Q", block, 28)[0])


def repair(path: str | os.PathLike[str]) -> bool:
    """Clear the marks that a killed writer left in a run file's superblock.

    Nothing but the superblock is touched, and a file that is not whole is not touched at all.

    Args:
        path: a run file.

    Returns:
        Whether there was something to mend.

    Raises:
        RunFileError: if the file is missing, no run file, damaged or truncated, or if it is being
            written.
    """
    path = Path(path)
    if not path.is_file():
        raise RunFileError(f"{path} does not exist, or is no file; pass the path given to RankTracker.")
    with held(path):
        return mend(path)


def mend(path: Path) -> bool:
    """Do as `repair` does, for a caller who holds the lock.

    Args:
        path: a run file.

    Returns:
        Whether there was something to mend.

    Raises:
        RunFileError: as `repair`.
    """
    try:
        superblock = read_superblock(path)
        if superblock is None:
            raise RunFileError(
                f"{path} is not a run file, or its first bytes are damaged; nothing was changed."
            )
        _check_whole(path, superblock)
        if superblock.flags == 0:
            return False
        with path.open("r+b") as file:
            block = bytearray(file.read(_CHECKED))
            block[11] = 0
            struct.pack_into("<Q", block, 28, os.fstat(file.fileno()).st_size)
            file.seek(0)
            file.write(block + struct.pack("<I", lookup3(bytes(block))))
            file.flush()
            os.fsync(file.fileno())
    except RunFileError:
        raise
    except OSError as error:
        raise RunFileError(f"cannot mend {path}: {error.strerror or error}.") from error
    return True


def _check_whole(path: Path, superblock: Superblock) -> None:
    # The size first: HDF5 waits for a very long time for metadata that a truncated SWMR file lacks.
    size = path.stat().st_size
    if size < superblock.end:
        raise RunFileError(f"{path} is truncated ({size} of {superblock.end} bytes); restore it from a copy.")
    if superblock.flags not in (0, WRITING | SWMR):
        raise RunFileError(f"{path} is open for writing in another program; close it there.")
    try:
        with h5py.File(path, "r", swmr=superblock.flags != 0) as file:
            if file.attrs.get("format") != FORMAT:
                raise RunFileError(f"{path} is an HDF5 file, but no run file; nothing was changed.")
            needed = int(file["committed"][4]) if superblock.flags else 0
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, RunFileError):
            raise
        raise RunFileError(f"{path} is damaged ({error}); restore it from a copy.") from error
    if size < needed:
        raise RunFileError(f"{path} is truncated ({size} of {needed} bytes); restore it from a copy.")
