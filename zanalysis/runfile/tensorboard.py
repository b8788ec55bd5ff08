"""A record in TensorBoard: scalars, spectra as histograms, events as text; live or from a run file.

A number's tag is ``metric/layer``, with the tensor in front of the layer where it is not the weight, and behind it what
was subtracted and the tolerance rule, where there is one that is not the default: ``rank/encoder.0``,
``frobenius_norm/gradient/encoder.0``, ``rank/encoder.0/minus_init/1e-4``. A spectrum is the histogram
``singular_values/…`` of the values that were kept; what was logged stands under ``logged/``.

TensorBoard knows no status: a number that is NaN is left out. It keeps float32.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile.reader import Run, open_run

__all__ = ["add_record", "export_tensorboard", "summary_writer", "tag_of"]

_PLAIN = ("none", "default")


def summary_writer(folder: str | os.PathLike[str], flush_seconds: int = 120) -> Any:
    """Open a writer of event files.

    Args:
        folder: where they are to lie.
        flush_seconds: how long something may wait to be written.

    Returns:
        A `torch.utils.tensorboard.SummaryWriter`.

    Raises:
        InputError: if tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "writing for TensorBoard needs tensorboard, which is not installed; pip install 'zanalysis[tensorboard]'."
        ) from None
    return SummaryWriter(str(folder), flush_secs=flush_seconds)


def tag_of(row: Mapping[str, Any], metric: str | None = None) -> str:
    """Name a number as TensorBoard shows it.

    Args:
        row: layer, tensor, reference, and of a number tolerance_rule and metric.
        metric: in the place of the row's own.

    Returns:
        The tag; what stands in front of its first slash is the group.

    Example:
        >>> number = {"layer": "fc", "tensor": "gradient", "reference": "none", "tolerance_rule": "1e-4"}
        >>> tag_of({**number, "metric": "rank"})
        'rank/gradient/fc/1e-4'
    """
    parts = [metric or row["metric"]]
    parts += [row["tensor"]] if row["tensor"] != "weight" else []
    parts += [row["layer"]]
    parts += [f"minus_{row['reference']}"] if row["reference"] != "none" else []
    parts += [row["tolerance_rule"]] if row.get("tolerance_rule", "none") not in _PLAIN else []
    return "/".join(parts)


def add_record(
    writer: Any, step: int, rows: Iterable[Mapping[str, Any]], spectra: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Write one record.

    Args:
        writer: a `SummaryWriter`.
        step: completed optimizer steps.
        rows: its numbers, as the table has them; those that are not finite are left out.
        spectra: its singular values: layer, tensor, reference and `values`, NaN-padded.
    """
    for row in rows:
        if np.isfinite(row["value"]):
            writer.add_scalar(tag_of(row), row["value"], step)
    for one in spectra:
        values = np.asarray(one["values"], np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            writer.add_histogram(tag_of(one, "singular_values"), values, step)


def export_tensorboard(
    run: Run | str | os.PathLike[str], out: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> Path:
    """Write a run for TensorBoard: `tensorboard --logdir OUT` shows it under the file's name.

    Args:
        run: an open run, or its path.
        out: the folder that `RUN-tensorboard` is made in; the run's own if None.
        overwrite: whether the event files in a folder of that name may be replaced; other files there stay.

    Returns:
        The folder `RUN-tensorboard`.

    Raises:
        InputError: if tensorboard is not installed, or the folder is there already.
        RunFileError: if it cannot be written.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    above = opened.path.parent if out is None else Path(out)
    folder = above / f"{opened.path.stem}-tensorboard"
    if folder.exists() and not overwrite:
        raise InputError(
            f"{folder} exists already; choose another folder, or pass overwrite (--overwrite) to replace it."
        )
    part = above / f".{folder.name}.{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
        writer = summary_writer(part)
        try:
            _add_run(writer, opened)
        finally:
            writer.close()
        _put(part, folder)
    except OSError as error:
        raise RunFileError(f"cannot write into {above}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _put(part: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    before = list(folder.glob("events.out.tfevents.*"))
    for path in part.iterdir():
        path.replace(folder / path.name)
    for path in before:
        path.unlink()


def _add_run(writer: Any, run: Run) -> None:
    for step, rows in run.table().groupby("step", sort=True):
        add_record(writer, int(str(step)), rows.to_dict("records"))  # type: ignore[arg-type]
    for key in run.spectrum_keys:
        found = run.spectra(key.layer, key.tensor, key.reference)
        for step, values in zip(found.steps.tolist(), found.values, strict=True):
            add_record(writer, step, (), [{**key._asdict(), "values": values}])
    logged = run.logged()
    for name in logged.columns[1:]:
        kept = logged[np.isfinite(logged[name])]
        for step, value in zip(kept["step"].tolist(), kept[name].tolist(), strict=True):
            writer.add_scalar(f"logged/{name}", value, step)
    for event in run.events.to_dict("records"):
        writer.add_text("events", f"{event['kind']}: {event['text']}", event["step"])
