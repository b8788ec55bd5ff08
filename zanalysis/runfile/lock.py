"""One writer for each run file: a lock file beside it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from zanalysis.errors import RunFileError

__all__ = ["acquire", "held", "is_held", "release"]

_LOCKS = Path("/proc/locks")


def acquire(path: Path) -> filelock.BaseFileLock:
    """Lock a run file for writing. A killed process loses its locks.

    HDF5's own locks are released once SWMR begins: a second writer would truncate a live file.

    Args:
        path: the run file; links are followed.

    Returns:
        The lock, for `release`.

    Raises:
        RunFileError: if another writer holds it, or no lock file can be made.
    """
    lock = filelock.FileLock(f"{path.resolve()}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not Path(lock.lock_file).exists():  # some versions wait in vain where no file can be made
            raise RunFileError(f"cannot write {path}; choose a folder that you may write to.") from None
        raise RunFileError(
            f"{path} is being written by another tracker; close that one first, or choose another name."
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunFileError(
            f"cannot write {path}: {reason}; choose a folder that you may write to."
        ) from error
    return lock


def release(lock: filelock.BaseFileLock) -> None:
    """Let others write, and remove the lock file.

    Args:
        lock: what `acquire` returned.
    """
    with contextlib.suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def is_held(path: Path) -> bool | None:
    """Say whether a process is seen to hold the lock of a run file. The lock itself is not touched.

    To try the lock would be to hold it for a moment, in which a writer that begins would be refused.

    Args:
        path: the run file.

    Returns:
        None where that cannot be seen: not on Linux, or the file's folder cannot be read. A process of another
        machine or another container is not seen.
    """
    try:
        lock = Path(f"{path.resolve()}.lock").stat()
        lines = _LOCKS.read_text().splitlines()
    except FileNotFoundError as error:
        return None if error.filename == str(_LOCKS) else False
    except OSError:
        return None
    # A line: number, kind, mode, access, process, major:minor:inode, from, to. On some file systems the device is
    # not the one that a file's status names.
    return any(line.split()[-3].rpartition(":")[2] == str(lock.st_ino) for line in lines)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a run file.

    Args:
        path: the run file.

    Yields:
        Nothing.
    """
    lock = acquire(path)
    try:
        yield
    finally:
        release(lock)
