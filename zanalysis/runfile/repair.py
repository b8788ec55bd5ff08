"""Make the file of a killed writer openable by plain HDF5 tools, in place: see `superblock`."""

import os
from pathlib import Path

from zanalysis.errors import RunFileError
from zanalysis.runfile.change_journal import recover
from zanalysis.runfile.lock import held
from zanalysis.runfile.opening import unmarked
from zanalysis.runfile.schema import FORMAT
from zanalysis.runfile.superblock import (
    SUPERBLOCK_BYTES,
    SWMR,
    WRITING,
    Superblock,
    read_superblock,
    without_marks,
)

__all__ = ["check_mendable", "mend", "repair"]


def repair(path: str | os.PathLike[str]) -> bool:
    """Clear the marks that a killed writer left in a run file's superblock.

    Nothing but the superblock is touched, and a file that is not whole is not touched at all. Where a writer
    was killed while it took a file up again, what it had begun is completed first.

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
        completed = recover(path)
        if check_mendable(path).flags == 0:
            return completed
        with path.open("r+b") as file:
            block = file.read(SUPERBLOCK_BYTES)
            file.seek(0)
            file.write(without_marks(block, os.fstat(file.fileno()).st_size))
            file.flush()
            os.fsync(file.fileno())
    except RunFileError:
        raise
    except OSError as error:
        raise RunFileError(f"cannot mend {path}: {error.strerror or error}.") from error
    return True


def check_mendable(path: Path) -> Superblock:
    """Check that a file is a whole run file, closed or left by a killed writer.

    Args:
        path: the file; no change of it is pending.

    Returns:
        Its superblock.

    Raises:
        RunFileError: if it is not, with what it is.
    """
    superblock = read_superblock(path)
    if superblock is None:
        raise RunFileError(f"{path} is not a run file, or its first bytes are damaged; nothing was changed.")
    _check_whole(path, superblock)
    return superblock


def _check_whole(path: Path, superblock: Superblock) -> None:
    size = path.stat().st_size
    if size < superblock.end:
        raise RunFileError(f"{path} is truncated ({size} of {superblock.end} bytes); restore it from a copy.")
    if superblock.flags not in (0, WRITING | SWMR):
        raise RunFileError(f"{path} is open for writing in another program; close it there.")
    try:
        with unmarked(path) as file:
            if file.attrs.get("format") != FORMAT:
                raise RunFileError(f"{path} is an HDF5 file, but no run file; nothing was changed.")
            needed = int(file["committed"][4]) if superblock.flags else 0
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, RunFileError):
            raise
        raise RunFileError(f"{path} is damaged ({error}); restore it from a copy.") from error
    if size < needed:
        raise RunFileError(f"{path} is truncated ({size} of {needed} bytes); restore it from a copy.")
