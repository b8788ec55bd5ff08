"""torch's own files: a pickle beside the storages it refers to, in a zip archive or, before 2020, in a row.

The storages of the older layout follow the pickle, each behind its count, so that their places can be
computed: they too are read one at a time.
"""

import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from zanalysis.checkpoints.faults import FaultError, quoted
from zanalysis.checkpoints.places import Strided, placed
from zanalysis.checkpoints.rebuilders import Described, StorageTag
from zanalysis.checkpoints.streams import Window
from zanalysis.checkpoints.unpickler import MOST_PICKLE_BYTES, Unpickler

__all__ = ["ZIP_MAGIC", "Saved", "read_archive", "read_legacy", "read_saved"]

ZIP_MAGIC = b"PK\x03\x04"
_MOST_INDEX_BYTES = 16 << 20  # a zip's directory: some 150,000 storages
_LOCAL_HEADER = 30
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_TEXT_MAGIC = b"ustar"


@dataclass
class Saved:
    """What a file of torch holds, before any tensor is read.

    Attributes:
        path: the file.
        root: the object that was saved, as `Unpickler` describes it.
        placeholders: the names that something inert stands for.
        locate: from a storage's key to where it begins in the file and its bytes.
        kind: ``"pt"``, ``"torchscript"`` or ``"legacy"``.
        big: whether its numbers are big-endian.
    """

    path: Path
    root: Any
    placeholders: tuple[str, ...]
    locate: Callable[[str], tuple[int, int]]
    kind: str = "pt"
    big: bool = False

    def place(self, tensor: Described) -> tuple[Strided | None, str]:
        """Find where a tensor's numbers lie.

        Args:
            tensor: of this file.

        Returns:
            The place, None if its numbers cannot be read; and why it is skipped, or an empty text.

        Raises:
            FaultError: if it lies outside its storage, or its storage is not there.
        """
        storage = tensor.storage
        if storage is None or tensor.dtype is None:
            return None, tensor.why
        start, room = self.locate(storage.key)
        _check_count(storage, room)
        skip = storage.skip * storage.dtype.itemsize
        strided = Strided(
            self.path.absolute(),
            start + skip,
            tensor.dtype,
            tensor.shape,
            tensor.strides,
            tensor.offset,
            self.big,
        )
        why = placed(strided, max(room - skip, 0))
        return (None if why else strided), why or tensor.why


def _check_count(storage: StorageTag, room: int) -> None:
    if storage.count * storage.dtype.itemsize > room:
        raise FaultError(f"is damaged: storage {quoted(storage.key)} is too short; restore it from a copy.")


def read_saved(path: Path, file: BinaryIO, begin: int, length: int) -> Saved:
    """Read the description of what `torch.save` wrote, in either layout.

    Args:
        path: the file.
        file: it, open.
        begin: where it begins in the file.
        length: its bytes.

    Returns:
        What it holds.

    Raises:
        FaultError: if it is neither layout, damaged, or brings what is refused.
    """
    file.seek(begin)
    if file.read(4) == ZIP_MAGIC[:length]:
        return read_archive(path, file, begin, length)
    return read_legacy(path, file, begin, length)


def read_archive(path: Path, file: BinaryIO, begin: int, length: int) -> Saved:
    """Read the description of what `torch.save` or `torch.jit.save` wrote into a zip archive.

    Args:
        path: the file.
        file: it, open.
        begin: where the archive begins in the file.
        length: its bytes.

    Returns:
        What it holds.

    Raises:
        FaultError: if it is damaged or another kind of archive, or brings what is refused.
    """
    members = _members(file, begin, length)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FaultError(
            "is a zip archive without the data.pkl of torch.save; pass a file that torch.save or "
            "torch.jit.save wrote."
        )
    prefix = pickles[0].removesuffix("data.pkl")

    def locate(name: str) -> tuple[int, int]:
        return _place_of(file, begin, length, members, name)

    order = members.get(f"{prefix}byteorder")
    big = order is not None and _bytes(file, *locate(f"{prefix}byteorder"), most=16) == b"big"
    start, size = locate(pickles[0])
    if size > MOST_PICKLE_BYTES:
        raise FaultError(f"has a pickle of {size} bytes beside its tensors; save its state_dict alone.")
    unpickler = Unpickler(Window(file, start, size, size))
    root = unpickler.load()
    script = f"{prefix}constants.pkl" in members
    places: dict[str, tuple[int, int]] = {}

    def storage(key: str) -> tuple[int, int]:
        if key not in places:
            places[key] = locate(f"{prefix}data/{key}")
        return places[key]

    kind = "torchscript" if script else "pt"
    return Saved(path, root, tuple(unpickler.placeholders), storage, kind, big)


def _members(file: BinaryIO, begin: int, length: int) -> dict[str, zipfile.ZipInfo]:
    # `zipfile` reads the directory at one go: the window's budget bounds it.
    with zipfile.ZipFile(Window(file, begin, length, _MOST_INDEX_BYTES)) as archive:
        infos = archive.infolist()
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise FaultError("is damaged: it has two members of one name; restore it from a copy.")
    return members


def _place_of(
    file: BinaryIO, begin: int, length: int, members: dict[str, zipfile.ZipInfo], name: str
) -> tuple[int, int]:
    info = members.get(name)
    if info is None:
        raise FaultError(f"is damaged: it has no member {quoted(name)}; restore it from a copy.")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
        raise FaultError(
            f"has a compressed or encrypted member {quoted(name)}, which torch never writes; unpack it and "
            "save it with torch.save."
        )
    head = b""
    if 0 <= info.header_offset <= length - _LOCAL_HEADER:
        head = _bytes(file, begin + info.header_offset, _LOCAL_HEADER)
    if head[:4] == ZIP_MAGIC:
        name_size, extra_size = struct.unpack("<HH", head[26:])
        start = info.header_offset + _LOCAL_HEADER + name_size + extra_size
        if start + info.file_size <= length:
            return begin + start, info.file_size
    raise FaultError(f"is truncated or damaged at its member {quoted(name)}; restore it from a copy.")


def _bytes(file: BinaryIO, start: int, size: int, most: int = _LOCAL_HEADER) -> bytes:
    file.seek(start)
    return file.read(min(size, most))


def read_legacy(path: Path, file: BinaryIO, begin: int, length: int) -> Saved:
    """Read the description of what `torch.save` wrote before 2020: five pickles, then the storages.

    Args:
        path: the file.
        file: it, open.
        begin: where it begins in the file.
        length: its bytes.

    Returns:
        What it holds.

    Raises:
        FaultError: if it is damaged or another kind of file, or brings what is refused.
    """
    if _bytes(file, begin + 257, 5, most=5) == _TEXT_MAGIC:
        raise FaultError(
            "is a tar archive, as torch wrote them before 2018; load and save it with torch once."
        )
    stream = Window(file, begin, length, MOST_PICKLE_BYTES)
    unpickler = Unpickler(stream)
    magic = unpickler.load()
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise FaultError("is a pickle, but not one of torch.save; save its tensors with torch.save.")
    if unpickler.load() != _LEGACY_PROTOCOL:
        raise FaultError("is of an unknown version of torch's old format; save it with a current torch.")
    unpickler.load()  # the sizes of integers on the machine that wrote it
    root = unpickler.load()
    keys = unpickler.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FaultError("is damaged: its list of storages is none; restore it from a copy.")
    places = _in_a_row(file, keys, unpickler.storages, begin + stream.tell(), begin + length)

    def locate(key: str) -> tuple[int, int]:
        if key not in places:
            raise FaultError(f"is damaged: it has no storage {quoted(key)}; restore it from a copy.")
        return places[key]

    return Saved(path, root, tuple(unpickler.placeholders), locate, "legacy")


def _in_a_row(
    file: BinaryIO, keys: list[str], sizes: dict[str, int], at: int, end: int
) -> dict[str, tuple[int, int]]:
    places = {}
    for key in keys:
        head = _bytes(file, at, 8)
        if key not in sizes or len(head) < 8:
            raise FaultError("is truncated or damaged between its storages; restore it from a copy.")
        size = struct.unpack("<q", head)[0] * sizes[key]
        if not 0 <= size <= end - at - 8:
            raise FaultError(
                f"is truncated: storage {quoted(key)} needs {size} bytes, {end - at - 8} are left; restore "
                "it from a copy."
            )
        places[key] = (at + 8, size)
        at += 8 + size
    return places
