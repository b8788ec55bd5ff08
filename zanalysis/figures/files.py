"""A figure into a file: by its suffix, all at once, and never over another unasked."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zanalysis.errors import InputError, did_you_mean

__all__ = ["FORMATS", "checked_target", "save_figure"]

FORMATS = ("pdf", "png", "svg")
_DPI = 200


def save_figure(
    axes: Axes | Sequence[Axes] | Figure, path: str | os.PathLike[str], overwrite: bool = False
) -> Path:
    """Write a figure to a file, as its suffix says: the same figure gives the same bytes.

    Args:
        axes: the figure, or axes of it.
        path: where it is to lie: .pdf or .svg (vectors) or .png (200 dots per inch).
        overwrite: whether a file that is there is replaced.

    Returns:
        The path.

    Raises:
        InputError: if the suffix is unknown, the folder is missing, the file is there already, or it cannot be written.
    """
    target = checked_target(path, overwrite)
    suffix = target.suffix.lower().removeprefix(".")
    # Neither the date nor random names: what did not change stays the same in version control.
    metadata: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[suffix]
    figure = axes if isinstance(axes, Figure) else np.asarray(axes, dtype=object).flat[0].figure
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with mpl.rc_context({"svg.hashsalt": "zanalysis", "pdf.fonttype": 42}):
            figure.savefig(beside, format=suffix, dpi=_DPI, metadata=metadata)
        beside.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}.") from error
    finally:
        beside.unlink(missing_ok=True)
    return target


def checked_target(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return where a figure may be written.

    Args:
        path: the file.
        overwrite: whether one that is there may be replaced.

    Returns:
        Its path.

    Raises:
        InputError: if the suffix is unknown, the folder is missing, or the file is there already.
    """
    target = Path(path)
    suffix = target.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise InputError(
            f"cannot write {target}: unknown suffix {target.suffix!r}; {did_you_mean(suffix, FORMATS)}"
        )
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: there is no folder {target.parent}; make it first.")
    if target.is_dir() or (target.exists() and not overwrite):
        raise InputError(
            f"{target} exists already; choose another name, or pass overwrite (--overwrite) to replace it."
        )
    return target
