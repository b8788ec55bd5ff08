"""What an interrupted sweep keeps: an append-only file of JSON lines beside the table that is to be.

The first line says with which settings; each further line is one unit of work with its outcome, every float
to the bit. A line that a kill cut short is dropped. What failed is not kept, so that it is tried again. A unit
is named by a fingerprint of its checkpoint's path, size and time of modification: a file that has changed
since is measured anew.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock

from zanalysis._version import __version__
from zanalysis.errors import InputError

__all__ = ["Journal", "described", "fingerprint"]

_FORMAT = 1
_OUR_OWN = (".part", ".lock")  # a table may be on its way beside the shards that it is of


def fingerprint(path: Path) -> str:
    """Return what changes when a file, or a file of a folder, does.

    Args:
        path: a file or a folder.

    Returns:
        A digest of absolute names, sizes and times of modification.
    """
    digest = hashlib.sha256()
    inside = path.rglob("*") if path.is_dir() else [path]
    files = sorted(p for p in inside if p.is_file() and p.suffix not in _OUR_OWN)
    for file in files:
        status = file.stat()
        digest.update(os.fsencode(file.absolute()))
        digest.update(f"\0{status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:24]


def described(value: Any) -> Any:
    """Return what settings are compared by, as JSON can hold it.

    Args:
        value: a setting: a word, a number, a function, a tensor, or several of these.

    Returns:
        For a function its name and its code's digest, for a tensor a digest of its bytes.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [described(item) for item in value]
    if hasattr(value, "untyped_storage"):
        bytes_of = value.detach().cpu().contiguous().view(-1).view(dtype=_byte_type()).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(bytes_of).hexdigest()]
    if callable(value):
        code = getattr(value, "__code__", None)
        body = hashlib.sha256(repr((code.co_code, code.co_consts)).encode()).hexdigest() if code else ""
        return [getattr(value, "__module__", ""), getattr(value, "__qualname__", type(value).__name__), body]
    return repr(value)


def _byte_type() -> Any:
    import torch

    return torch.uint8


class Journal:
    """The file an interrupted sweep is taken up from. One writer at a time; a killed process loses its lock.

    Attributes:
        path: where it lies: the table's name and ``.part``.
        kept: the outcomes found there, by key.
    """

    def __init__(self, out: Path, settings: Any, overwrite: bool = False) -> None:
        """Take up what is there, or begin anew.

        Args:
            out: the table that is to be.
            settings: what the outcomes depend on beside the checkpoints.
            overwrite: whether a journal with other settings is replaced.

        Raises:
            InputError: if another sweep holds it, it is of other settings, or cannot be written.
        """
        self.path = out.with_name(f"{out.name}.part")
        self.kept: dict[str, dict[str, Any]] = {}
        self._lock = filelock.FileLock(f"{self.path.absolute()}.lock", thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise InputError(
                f"another sweep is writing {out}; wait for it, or choose another name."
            ) from None
        except (OSError, NotImplementedError) as error:
            raise InputError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}.") from error
        try:
            self._file = self._opened(settings, overwrite)
        except BaseException as error:
            self._release()
            if isinstance(error, OSError):
                raise InputError(f"cannot write {self.path}: {error.strerror or error}.") from error
            raise

    def _opened(self, settings: Any, overwrite: bool) -> IO[bytes]:
        first = {"zanalysis_sweep": _FORMAT, "version": __version__, "settings": settings}
        whole = 0
        if self.path.exists():
            with self.path.open("rb") as before:
                head, whole = _first_line(before)
                if head == json.loads(json.dumps(first)):
                    for line, end in _whole_lines(before):
                        self.kept[line["key"]] = line["outcome"]
                        whole = end
                elif not overwrite and not _is_ours(head) and self.path.stat().st_size:
                    raise InputError(
                        f"{self.path} is not what an interrupted sweep left; move it away, or choose another name."
                    )
                elif not overwrite and _is_ours(head):
                    raise InputError(
                        f"{self.path} is what an interrupted sweep with other settings left; finish that one, remove "
                        "the file, choose another name, or pass overwrite (--overwrite)."
                    )
                else:
                    whole = 0
        file: IO[bytes] = self.path.open("r+b" if whole else "wb")
        file.truncate(whole)
        file.seek(whole)
        if not whole:
            file.write(json.dumps(first).encode() + b"\n")
            file.flush()
        return file

    def add(self, key: str, outcome: dict[str, Any]) -> None:
        """Keep one outcome; it survives a kill of this process.

        Args:
            key: the unit of work.
            outcome: as JSON can hold it.
        """
        self._file.write(json.dumps({"key": key, "outcome": outcome}).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Leave the journal for the next call."""
        self._file.close()
        self._release()

    def finish(self, write: Callable[[], None]) -> None:
        """Write the table, and remove the journal once it is there.

        Args:
            write: writes the table.
        """
        self._file.close()
        try:
            write()
            self.path.unlink()
        finally:
            self._release()

    def _release(self) -> None:
        if self._lock.is_locked:  # only once: the name may be another sweep's by then
            with contextlib.suppress(OSError):
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()


def _first_line(file: IO[bytes]) -> tuple[Any, int]:
    line = file.readline()
    with contextlib.suppress(ValueError):
        if line.endswith(b"\n"):
            return json.loads(line), len(line)
    return None, 0


def _is_ours(head: Any) -> bool:
    return isinstance(head, dict) and "zanalysis_sweep" in head


def _whole_lines(file: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    for line in iter(file.readline, b""):
        try:
            parsed = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict) or not {"key", "outcome"} <= parsed.keys():
            return
        yield parsed, file.tell()
