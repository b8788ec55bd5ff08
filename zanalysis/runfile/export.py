"""A run in other hands' formats."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zanalysis.errors import InputError, RunFileError, did_you_mean
from zanalysis.runfile.reader import Run, open_run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "export_tables", "tables_of"]

FORMATS = ("csv", "parquet", "tensorboard")


def export_tables(
    run: Run | str | os.PathLike[str],
    to: str = "csv",
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the tables of a run, one file each: `RUN-scalars.csv`, `RUN-logged.csv`, `RUN-events.csv`, ….

    Args:
        run: an open run, or its path.
        to: ``"csv"``, ``"parquet"``, or ``"tensorboard"``: a folder of event files, see
            `zanalysis.runfile.tensorboard`.
        out: the folder they are written into, made if it is missing; the run's own if None.
        overwrite: whether files that are there may be replaced.

    Returns:
        The files written, or the folder.

    Raises:
        InputError: if the format is unknown or its writer not installed, or a file is there already.
        RunFileError: if a file cannot be written.
    """
    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}; {did_you_mean(to, FORMATS)}")
    if to == "tensorboard":
        from zanalysis.runfile.tensorboard import export_tensorboard

        return [export_tensorboard(run, out, overwrite)]
    if to == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError(
                "writing parquet needs pyarrow, which is not installed; pip install 'zanalysis[parquet]', or "
                "choose csv."
            ) from None
    opened = run if isinstance(run, Run) else open_run(run)
    folder = opened.path.parent if out is None else Path(out)
    tables = tables_of(opened)
    targets = {name: folder / f"{opened.path.stem}-{name}.{to}" for name in tables}
    for path in targets.values():
        if path.exists() and not overwrite:
            raise InputError(
                f"{path} exists already; choose another folder, or pass overwrite (--overwrite) to replace it."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in targets.items():
            _write(tables[name], path, to)
    except OSError as error:
        raise RunFileError(f"cannot write into {folder}: {error.strerror or error}.") from error
    return list(targets.values())


def _write(table: "pd.DataFrame", path: Path, to: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if to == "csv":
            table.to_csv(part, index=False)
        else:
            table.to_parquet(part, index=False, engine="pyarrow")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def tables_of(run: Run) -> "dict[str, pd.DataFrame]":
    """Return everything a run holds as tables.

    Args:
        run: an open run.

    Returns:
        `scalars`, `logged`, `events`, `overhead`, and `spectra` where some were recorded: step, layer,
        tensor, reference, index, value.
    """
    tables = {"scalars": run.table(), "logged": run.logged(), "events": run.events, "overhead": run.overhead}
    spectra = _spectra(run)
    return tables if spectra is None else tables | {"spectra": spectra}


def _spectra(run: Run) -> "pd.DataFrame | None":
    import pandas as pd

    parts = []
    for key in run.spectrum_keys:
        found = run.spectra(key.layer, key.tensor, key.reference)
        steps, indices = np.indices(found.values.shape)
        parts.append(
            pd.DataFrame(
                {
                    "step": found.steps[steps.ravel()],
                    "layer": key.layer,
                    "tensor": key.tensor,
                    "reference": key.reference,
                    "index": indices.ravel(),
                    "value": found.values.ravel(),
                }
            )
        )
    if not parts:
        return None
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values(["step", "layer", "tensor", "reference", "index"], ignore_index=True)
