"""The first bytes of an HDF5 file, which say whether it is being written and where it ends.

HDF5 marks a file that is open for writing in its superblock, and writes the end-of-file address
only on closing. After a kill both are stale, and every plain open is refused. The layout is that of
the "HDF5 File Format Specification Version 3.0", section II.A, superblock versions 2 and 3: byte 8
the version, byte 11 the consistency flags, bytes 28 to 35 the end-of-file address, bytes 44 to 47
the lookup3 checksum (Bob Jenkins, 2006) of the 44 bytes before.
"""

import struct
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "SIGNATURE",
    "SUPERBLOCK_BYTES",
    "SWMR",
    "WRITING",
    "Superblock",
    "lookup3",
    "parse_superblock",
    "read_superblock",
    "without_marks",
]

WRITING, SWMR = 1, 4
"""The consistency flags."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHECKED = 44
SUPERBLOCK_BYTES = _CHECKED + 4
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
        return parse_superblock(file.read(SUPERBLOCK_BYTES))


def parse_superblock(block: bytes) -> Superblock | None:
    """Read the superblock at the beginning of a file.

    Args:
        block: the file's first 48 bytes.

    Returns:
        As `read_superblock`.
    """
    if len(block) < SUPERBLOCK_BYTES or block[:8] != SIGNATURE or block[8] not in (2, 3) or block[9] != 8:
        return None
    if lookup3(block[:_CHECKED]) != struct.unpack_from("<I", block, _CHECKED)[0]:
        return None
    return Superblock(block[11], struct.unpack_from("<Q", block, 28)[0])


def without_marks(block: bytes, end: int) -> bytes:
    """Return a superblock as it would be if the file had been closed.

    Args:
        block: the file's first 48 bytes.
        end: the end-of-file address it is to have.

    Returns:
        48 bytes.
    """
    mended = bytearray(block[:_CHECKED])
    mended[11] = 0
    struct.pack_into("<Q", mended, 28, end)
    return bytes(mended) + struct.pack("<I", lookup3(bytes(mended)))
