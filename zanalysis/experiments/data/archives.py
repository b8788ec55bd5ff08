"""Files of a folder, of a zip or of a tar archive, read in memory and within bounds.

No name that an archive brings is ever used as a path: what is wanted is looked up among its names, so links,
absolute names and names with ``..`` lead nowhere.
"""

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from zanalysis.errors import ZAnalysisError

__all__ = ["FolderStore", "Store", "ZipStore", "gunzipped", "read_bounded", "reading", "tar_members"]

_MOST_NAMES = 1 << 20
_OVERHEAD = 64 << 20  # headers, padding and small extra files of a tar archive


class Store(Protocol):
    """A tree of files. Names are relative, with forward slashes; "" is the top."""

    def inside(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files right within a folder, sorted."""

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a file of at most so many bytes."""

    def where(self, name: str) -> str:
        """Return how to call a file in a message."""


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Name the file in whatever goes wrong while it is read.

    Args:
        where: what to call it.

    Yields:
        Nothing.

    Raises:
        ZAnalysisError: for every fault of the file.
    """
    try:
        yield
    except ZAnalysisError:
        raise
    except (
        OSError,
        EOFError,
        zlib.error,
        tarfile.TarError,
        zipfile.BadZipFile,
        RuntimeError,  # an encrypted zip; NotImplementedError: its unknown compression
        ValueError,
        OverflowError,
    ) as error:
        reason = getattr(error, "strerror", None) or ascii(str(error))[1:-1][:200] or type(error).__name__
        raise ZAnalysisError(f"cannot read {where}: {reason}; fetch it again.") from error


def read_bounded(path: Path, most: int) -> bytes:
    """Read a file that is not too large to be what it should be.

    Args:
        path: the file.
        most: in bytes.

    Returns:
        Its content.

    Raises:
        ZAnalysisError: if it cannot be read, or is larger.
    """
    with reading(path), path.open("rb") as file:
        return _all_of(file, most, path)


def gunzipped(path: Path, most: int) -> bytes:
    """Read a gzipped file.

    Args:
        path: the file.
        most: the bytes that it may hold, unpacked.

    Returns:
        Its content, unpacked.

    Raises:
        ZAnalysisError: if it cannot be read, or holds more.
    """
    with reading(path), gzip.open(path) as file:
        return _all_of(file, most, path)


def _all_of(file: BinaryIO | gzip.GzipFile, most: int, where: object) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise ZAnalysisError(f"{where} holds more than {most} bytes, more than it should; fetch it again.")
    return content


class FolderStore:
    """The files under a folder of the user's; links in it are followed, as it is theirs."""

    def __init__(self, path: Path) -> None:
        """Look at a folder.

        Args:
            path: the top.
        """
        self._path = path

    def inside(self, folder: str) -> tuple[list[str], list[str]]:  # noqa: D102
        with reading(self._path / folder), os.scandir(self._path / folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
        return sorted(n for n, is_dir in found if is_dir), sorted(n for n, is_dir in found if not is_dir)

    def read(self, name: str, most: int) -> bytes:  # noqa: D102
        return read_bounded(self._path / name, most)

    def where(self, name: str) -> str:  # noqa: D102
        return str(self._path / name)


class ZipStore:
    """The files of a zip archive below one of its folders."""

    def __init__(self, path: Path, top: str) -> None:
        """Open an archive.

        Args:
            path: the archive.
            top: the folder in it that everything lies in.

        Raises:
            ZAnalysisError: if it is no zip archive, or has millions of files.
        """
        with reading(path):
            self._zip = zipfile.ZipFile(path)
        self._path, self._top = path, top
        self._tree: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
        names = self._zip.namelist()
        if len(names) > _MOST_NAMES:
            raise ZAnalysisError(f"{path} has {len(names)} files, more than it should; fetch it again.")
        for name in names:
            if name.startswith(f"{top}/"):
                self._enter(name[len(top) + 1 :])

    def _enter(self, name: str) -> None:
        folder, _, file = name.rpartition("/")
        if file:
            self._tree[folder][1].add(file)
        while folder:
            parent, _, last = folder.rpartition("/")
            self._tree[parent][0].add(last)
            folder = parent

    def inside(self, folder: str) -> tuple[list[str], list[str]]:  # noqa: D102
        folders, files = self._tree.get(folder, (set(), set()))
        return sorted(folders), sorted(files)

    def read(self, name: str, most: int) -> bytes:  # noqa: D102
        where = self.where(name)
        try:
            info = self._zip.getinfo(f"{self._top}/{name}")
        except KeyError as error:
            raise ZAnalysisError(f"{self._path} lacks {self._top}/{name}; fetch it again.") from error
        with reading(where), self._zip.open(info) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ZAnalysisError(
                f"{where} holds more than {most} bytes, more than it should; fetch it again."
            )
        return content

    def where(self, name: str) -> str:  # noqa: D102
        return f"{self._top}/{name} in {self._path}"


class _Bounded(io.RawIOBase):
    """A stream that ends with an error once more is unpacked than there should be."""

    def __init__(self, stream: gzip.GzipFile, most: int, stop: Callable[[], Exception]) -> None:
        self._stream, self._left, self._stop = stream, most, stop

    def read(self, size: int = -1) -> bytes:
        wanted = self._left + 1 if size < 0 else min(size, self._left + 1)
        content = self._stream.read(wanted)
        self._left -= len(content)
        if self._left < 0:
            raise self._stop()
        return content


def tar_members(path: Path, names: list[str], most: int) -> dict[str, bytes]:
    """Read some members of a gzipped tar archive.

    Args:
        path: the archive.
        names: of the members, all of which must be there, once, as plain files.
        most: the bytes that they may have together.

    Returns:
        Their contents, in the order of the names.

    Raises:
        ZAnalysisError: if it cannot be read, lacks one, or unpacks to more than it should.
    """

    def too_much() -> Exception:
        return ZAnalysisError(
            f"{path} unpacks to more than {most + _OVERHEAD} bytes, more than it should; fetch it again."
        )

    found: dict[str, bytes] = {}
    with (
        reading(path),
        gzip.open(path) as unzipped,
        tarfile.open(fileobj=_Bounded(unzipped, most + _OVERHEAD, too_much), mode="r|") as tar,
    ):
        for member in tar:
            name = member.name.removeprefix("./")
            if name not in names:
                continue
            file = tar.extractfile(member) if member.isreg() else None
            if file is None or name in found:
                what = "twice" if name in found else "as a link or a folder, not as a file"
                raise ZAnalysisError(f"{path} holds {name} {what}; fetch it again.")
            found[name] = file.read()
    lacking = [name for name in names if name not in found]
    if lacking:
        raise ZAnalysisError(f"{path} lacks {', '.join(lacking)}; fetch it again.")
    return {name: found[name] for name in names}
