"""From a record's arrays to the tables of the public interface; the same for a file and for memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from zanalysis.runfile.schema import STATUSES, Series

__all__ = ["COLUMNS", "Spectra", "event_table", "logged_table", "overhead_table", "scalar_table"]

COLUMNS = [
    "step", "layer", "tensor", "reference", "tolerance_rule", "metric", "value", "tolerance", "status",
]  # fmt: skip


@dataclass(frozen=True)
class Spectra:
    """The singular values of one layer over the recorded steps.

    Attributes:
        steps: `[T]`, completed optimizer steps.
        values: `[T, k]`, descending, in the unit of the weights; NaN where there are fewer or none.
    """

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


def scalar_table(
    series: Sequence[Series],
    steps: npt.NDArray[np.int64],
    value: npt.NDArray[np.float64],
    tolerance: npt.NDArray[np.float64],
    status: npt.NDArray[np.uint8],
) -> pd.DataFrame:
    """Lay `[T, S]` arrays out as one row for each number.

    Args:
        series: what the columns are, `[S]`.
        steps: `[T]`, increasing.
        value: `[T, S]`.
        tolerance: `[T, S]`.
        status: `[T, S]`, codes.

    Returns:
        The columns `COLUMNS`, sorted by step, layer, tensor, reference, metric, tolerance rule.
    """
    order = sorted(
        range(len(series)), key=lambda i: (*series[i][:3], series[i].metric, series[i].tolerance_rule)
    )
    words = np.array(STATUSES, dtype=object)
    columns: dict[str, Any] = {"step": np.repeat(np.asarray(steps, np.int64), len(series))}
    for field in ("layer", "tensor", "reference", "tolerance_rule", "metric"):
        names = np.array([getattr(series[i], field) for i in order], dtype=object)
        columns[field] = np.tile(names, len(steps))
    columns["value"] = value[:, order].ravel()
    columns["tolerance"] = tolerance[:, order].ravel()
    columns["status"] = words[status[:, order].ravel()] if status.size else np.empty(0, object)
    return pd.DataFrame(columns, columns=COLUMNS)


def logged_table(rows: Sequence[tuple[int, str, float]]) -> pd.DataFrame:
    """Lay the user's own scalars out with one column each.

    Args:
        rows: step, name, value, in the order of arrival.

    Returns:
        `step`, then a column for each name in the order of first arrival; one row for each step at
        which something was logged, NaN where a name was not. Logged twice at a step, the last counts.
    """
    table: dict[int, dict[str, float]] = {}
    names: dict[str, None] = {}
    for step, name, value in rows:
        names[name] = None
        table.setdefault(step, {})[name] = value
    steps = sorted(table)
    columns: dict[str, Any] = {"step": np.array(steps, np.int64)}
    for name in names:
        if name != "step":
            columns[name] = np.array([table[step].get(name, np.nan) for step in steps], np.float64)
    return pd.DataFrame(columns)


def event_table(rows: Sequence[tuple[int, float, str, str, str]]) -> pd.DataFrame:
    """Lay the events out.

    Args:
        rows: step, Unix time, kind, layer, text.

    Returns:
        Those columns, in the order of arrival; `time` as UTC timestamps.
    """
    table = pd.DataFrame(list(rows), columns=["step", "time", "kind", "layer", "text"])
    table["step"] = table["step"].astype(np.int64)
    table["time"] = pd.to_datetime(table["time"], unit="s", utc=True)
    return table


def overhead_table(seconds: dict[str, float], elapsed: float) -> pd.DataFrame:
    """Lay the account of the time spent out.

    Args:
        seconds: by part.
        elapsed: since the tracker was attached.

    Returns:
        `part`, `seconds`, and `share` of the elapsed time, with a row `total`.
    """
    parts = [*seconds.items(), ("total", sum(seconds.values()))]
    table = pd.DataFrame(parts, columns=["part", "seconds"])
    table["share"] = table["seconds"] / elapsed if elapsed > 0 else np.nan
    return table
