"""How a fact about a file becomes an error that names the file.

What reads bytes knows no paths: it raises a `FaultError` whose text is a predicate ("is truncated: …").
Where a file is opened, `naming` puts the file in front, once.
"""

import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zanalysis.errors import CheckpointError

__all__ = ["FaultError", "check_readable", "naming", "quoted"]


class FaultError(ValueError):
    """What is wrong with a file, as a predicate without its subject."""


def quoted(text: str) -> str:
    r"""Show a text that comes from a file so that it can do nothing to a terminal.

    Args:
        text: any text.

    Returns:
        It in quotes, in ASCII, at most about 80 characters of it.

    Example:
        >>> quoted("fc\x1b[2J")
        "'fc\\x1b[2J'"
    """
    return ascii(text if len(text) <= 80 else text[:77] + "...")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in whatever goes wrong while it is read.

    Args:
        path: the file.

    Yields:
        Nothing.

    Raises:
        CheckpointError: for every fault of the file.
    """
    try:
        yield
    except CheckpointError:
        raise
    except FaultError as fault:
        raise CheckpointError(f"{path} {fault}") from fault
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (
        ValueError,
        EOFError,
        NotImplementedError,
        OverflowError,
        RecursionError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        why = (
            "it is nested too deeply" if isinstance(error, RecursionError) else ascii(str(error))[1:-1][:200]
        )
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: {why}; restore it from a copy."
        ) from error


def check_readable(path: Path) -> bool:
    """Check that there is a regular file or a folder, before anything is opened (opening a pipe would wait).

    Args:
        path: the name.

    Returns:
        Whether it is a folder.

    Raises:
        CheckpointError: if there is nothing of that name, or a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path} does not exist; pass a checkpoint file or a folder of them."
        ) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read: {why}.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path} is a pipe, a socket or a device; pass a checkpoint file or a folder.")
    return stat.S_ISDIR(mode)
