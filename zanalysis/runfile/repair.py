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

from zanalysis.errors import RunFileError

__all__ = ["repair"]

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


def repair(path: str | os.PathLike[str]) -> bool:
    """Clear the marks that a killed writer left in a file's superblock.

    Nothing but the superblock is touched. The file must not be open for writing.

    Args:
        path: an HDF5 file of superblock version 2 or 3.

    Returns:
        Whether there was something to mend.

    Raises:
        RunFileError: if the file cannot be read, is not HDF5 or is of another superblock version.
    """
    path = Path(path)
    try:
        with path.open("r+b") as file:
            block = bytearray(file.read(_CHECKED + 4))
            if (
                len(block) < _CHECKED + 4
                or block[:8] != _SIGNATURE
                or block[8] not in (2, 3)
                or block[9] != 8
            ):
                raise RunFileError(
                    f"{path} is not an HDF5 file that zanalysis wrote; there is nothing to mend."
                )
            if lookup3(bytes(block[:_CHECKED])) != struct.unpack_from("<I", block, _CHECKED)[0]:
                raise RunFileError(f"{path} is damaged: its superblock does not match its checksum.")
            if block[11] == 0:
                return False
            block[11] = 0
            struct.pack_into("<Q", block, 28, os.fstat(file.fileno()).st_size)
            struct.pack_into("<I", block, _CHECKED, lookup3(bytes(block[:_CHECKED])))
            file.seek(0)
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return True
    except RunFileError:
        raise
    except OSError as error:
        raise RunFileError(f"cannot mend {path}: {error.strerror or error}.") from error
