"""One writer for each run file: a lock file beside it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from zanalysis.errors import RunFileError

__all__ = ["acquire", "held", "release"]


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
