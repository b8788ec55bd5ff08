"""A table into a file: by its suffix, all at once, and never over another unasked."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zanalysis.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "as_records", "checked_target", "save"]

FORMATS = ("csv", "parquet", "json")


def checked_target(out: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return where a table may be written.

    Args:
        out: the file.
        overwrite: whether one that is there may be replaced.

    Returns:
        Its path.

    Raises:
        InputError: if the suffix is unknown, its writer is not installed, the folder is missing, or the file is
            there already.
    """
    path = Path(out)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise InputError(
            f"cannot write {path}: unknown suffix {path.suffix!r}; {did_you_mean(suffix, FORMATS)}"
        )
    if suffix == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError(
                "writing parquet needs pyarrow, which is not installed; pip install 'zanalysis[parquet]', or choose "
                "a .csv file."
            ) from None
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it first.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InputError(
            f"{path} exists already; choose another name, or pass overwrite (--overwrite) to replace it."
        )
    return path


def as_records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return a table as JSON can hold it.

    Args:
        table: any table.

    Returns:
        One mapping for each row; NaN as None, infinities as the words ``"inf"`` and ``"-inf"``.
    """
    return [{str(name): _plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    return value if isinstance(value, int | str | None) else str(value)


def save(table: "pd.DataFrame", path: Path) -> None:
    """Write a table as its file's suffix says; the file is whole or not there.

    Args:
        table: the table.
        path: as `checked_target` returned it.

    Raises:
        InputError: if the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.suffix.lower() == ".csv":
            table.to_csv(part, index=False)
        elif path.suffix.lower() == ".parquet":
            table.to_parquet(part, index=False, engine="pyarrow")
        else:
            part.write_text(json.dumps(as_records(table), indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)
