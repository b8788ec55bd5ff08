"""One HTML page of a run: self-contained, to be looked at, sent and kept.

The page embeds its data and plotly.js, both packed, and carries a content security policy that
forbids every request, so that it works from a disk and tells nobody that it is read. Drawing it
needs the extra ``report`` (plotly and jinja2), which nothing else imports.
"""

import os
from collections.abc import Callable
from pathlib import Path

from zanalysis.errors import InputError
from zanalysis.reporting.gathering import Source, gather
from zanalysis.reporting.rendering import page

__all__ = ["report"]

_TAKEN = "{} exists already; pass overwrite=True (--overwrite), or choose another name."


def report(
    run: Source,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    watch: Callable[[int, int], None] | None = None,
) -> Path:
    """Write one self-contained HTML page of a run: trajectories, spectra, verdicts, warnings, settings.

    Where more was recorded than a screen can show, the page keeps the smallest and the largest value of
    each bucket of steps, and says so.

    Args:
        run: an open run, finished or not; the path of a run file, or of a table saved as ``.csv`` or
            ``.parquet``; or a table with the columns of `Run.table`, such as `analyze` returns for
            several checkpoints.
        out: where the page is to lie.
        overwrite: whether a file that is there already may be replaced.
        watch: told, while the page is made, how many of how many parts are done.

    Returns:
        The path of the page.

    Raises:
        InputError: if there is a file already, the folder is missing, the run is none, or the packages
            that draw are not installed.
        RunFileError: if the run cannot be read.

    Example:
        >>> report("run.txt", "report.html")
        Traceback (most recent call last):
        zanalysis.errors.RunFileError: run.txt does not exist; pass the path given to RankTracker.
    """
    path = _free(Path(out), overwrite)
    text = page(gather(run), watch or (lambda done, of: None))
    _write(path, text, overwrite)
    return path


def _free(path: Path, overwrite: bool) -> Path:
    if path.is_dir():
        raise InputError(f"{path} is a folder; pass the name of a file in it.")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first, or choose another.")
    if path.exists() and not overwrite:
        raise InputError(_TAKEN.format(path))
    return path


def _write(path: Path, text: str, overwrite: bool) -> None:
    """Write the page under another name first, so that nobody sees half of it.

    Args:
        path: where it is to lie.
        text: the page.
        overwrite: whether what is there may be replaced.

    Raises:
        InputError: if it cannot be written, or the name was taken meanwhile.
    """
    part = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    try:
        try:
            with part.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
            if overwrite:
                part.replace(path)
            else:
                # Unlike a renaming, a link takes no name that somebody else took meanwhile.
                os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError as error:
        raise InputError(_TAKEN.format(path)) from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place.") from error
