"""What a report is made from: a run or a table, brought to arrays `[steps, series]`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile.reader import Run, open_run
from zanalysis.runfile.schema import STATUSES, Series, SpectrumKey
from zanalysis.runfile.tables import COLUMNS

__all__ = ["Record", "Source", "gather"]

Source = Run | str | os.PathLike[str] | pd.DataFrame

ABSENT = "not measured"
_KEYS = list(Series._fields)
_CODES = 256  # that a status code, one byte, can take


@dataclass(frozen=True)
class Record:
    """Everything a report shows.

    Attributes:
        name: what the page is called.
        axis: what the steps count.
        steps: int64 `[T]`, increasing.
        series: what the columns of the arrays are, `[S]`.
        value: float64 `[T, S]`.
        tolerance: float64 `[T, S]`.
        status: uint8 `[T, S]`, indices into `words`.
        words: the statuses by code.
        attributes: facts stored with the run; empty for a table.
        logged: the user's own scalars.
        events: what went wrong.
        overhead: the account of the time spent, if there is one.
        finished: whether the writer closed the file.
        run: the open run, None for a table.
        notes: what the reader of the page should know of how the record was read.
    """

    name: str
    axis: str
    steps: npt.NDArray[np.int64]
    series: tuple[Series, ...]
    value: npt.NDArray[np.float64]
    tolerance: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]
    words: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    logged: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"step": np.empty(0, np.int64)}))
    events: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["step", "time", "kind", "layer", "text"])
    )
    overhead: pd.DataFrame | None = None
    finished: bool = True
    run: Run | None = None
    notes: tuple[str, ...] = ()

    @property
    def spectrum_keys(self) -> tuple[SpectrumKey, ...]:
        """Which spectra there are."""
        return () if self.run is None else self.run.spectrum_keys

    @property
    def layers(self) -> list[str]:
        """The layers, in the order of the model."""
        return list(dict.fromkeys([*(s.layer for s in self.series), *(s.layer for s in self.spectrum_keys)]))


def gather(source: Source) -> Record:
    """Read a run, or the table of one.

    Args:
        source: an open run; the path of a run file, or of a table that `DataFrame.to_csv` or
            `to_parquet` wrote; or a table with the columns of `Run.table`.

    Returns:
        The record.

    Raises:
        InputError: if the source is none of these, or a table lacks columns.
        RunFileError: if a file cannot be read.
    """
    if isinstance(source, pd.DataFrame):
        return _of_table(source, "table")
    if isinstance(source, Run):
        return _of_run(source)
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"a report is made of a run, the path of one, or a table, not of {type(source).__name__}; "
            "pass za.open_run(path), a path or a DataFrame."
        )
    path = Path(source)
    if path.suffix.lower() in (".csv", ".parquet"):
        return _of_table(_read_table(path), path.name)
    return _of_run(open_run(path))


def _read_table(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        # A layer may be called NA; what is no number in these columns is a name.
        words = dict.fromkeys(("checkpoint", *_KEYS, "status"), str)
        return pd.read_csv(
            path, dtype=words, keep_default_na=False, na_values={"value": [""], "tolerance": [""]}
        )
    except ImportError as error:
        raise InputError(f"reading {path} needs pyarrow; install it with: pip install pyarrow.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunFileError(f"cannot read {path}: {reason}.") from error


def _of_run(run: Run) -> Record:
    # Before the rows: a writer that closes meanwhile has then written all of them.
    finished = run.finished
    steps, value, tolerance, status = run.arrays()
    unknown = [f"code {code}" for code in range(len(STATUSES), _CODES)]
    attributes = run.attributes if isinstance(run.attributes, dict) else {}
    return Record(
        run.path.name,
        "optimizer steps",
        steps,
        run.series,
        value,
        tolerance,
        status,
        (*STATUSES, *unknown),
        attributes,
        run.logged(),
        run.events,
        run.overhead,
        finished,
        run,
    )


def _of_table(table: pd.DataFrame, name: str) -> Record:
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise InputError(
            f"the table lacks {', '.join(missing)}; pass one as run.table() or za.analyze() return it."
        )
    try:
        steps = table["step"].to_numpy().astype(np.int64)
        value = table["value"].to_numpy(np.float64)
        tolerance = table["tolerance"].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the columns step, value and tolerance of the table must hold numbers: {error}."
        ) from error
    axis, notes = "step", list[str]()
    if "checkpoint" in table:
        order, names = pd.factorize(table["checkpoint"])
        at = pd.DataFrame({"checkpoint": order, "step": steps}).drop_duplicates()
        axis = "step of the checkpoint"
        if len(at) > at["step"].nunique():
            steps, axis = order.astype(np.int64), "number of the checkpoint"
            listed = ", ".join(f"{i}: {one}" for i, one in enumerate(map(str, names[:50])))
            notes.append(f"Several checkpoints have the same step, so the axis counts them ({listed}).")
    keys = pd.MultiIndex.from_frame(table[_KEYS].astype(str))
    column, unique = pd.factorize(keys)
    words, status = _words(table["status"].astype(str))
    shown, row = np.unique(steps, return_inverse=True)
    if len(table) > len(np.unique(row * max(1, len(unique)) + column)):
        raise InputError(
            "the table has several values for the same step, layer, tensor, reference, tolerance rule and metric; "
            "add a column checkpoint, or pass one run only."
        )
    arrays = _Arrays((len(shown), len(unique)), row, column)
    return Record(
        name,
        axis,
        shown,
        tuple(Series(*key) for key in unique),
        arrays.of(value, np.nan),
        arrays.of(tolerance, np.nan),
        arrays.of(status, words.index(ABSENT)),
        words,
        notes=tuple(notes),
    )


def _words(status: pd.Series) -> tuple[tuple[str, ...], npt.NDArray[np.uint8]]:
    words = tuple(dict.fromkeys([*STATUSES, ABSENT, *status.unique()]))
    if len(words) > _CODES:
        raise InputError(
            f"the column status holds {status.nunique()} different words; is it the right table?"
        )
    codes = {word: code for code, word in enumerate(words)}
    return words, status.map(codes).to_numpy(np.uint8)


@dataclass(frozen=True)
class _Arrays:
    """From rows of a table to `[steps, series]`."""

    shape: tuple[int, int]
    row: npt.NDArray[Any]
    column: npt.NDArray[Any]

    def of(self, numbers: npt.NDArray[Any], missing: float | int) -> npt.NDArray[Any]:
        grid = np.full(self.shape, missing, numbers.dtype)
        grid[self.row, self.column] = numbers
        return grid
