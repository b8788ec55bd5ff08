"""The table of the page: the latest number of every series, with a sketch of how it got there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zanalysis.reporting.gathering import Record
from zanalysis.reporting.text import number
from zanalysis.reporting.thinning import sampled

__all__ = ["Row", "latest"]

_WIDTH, _HEIGHT, _COLUMNS = 96, 22, 32


class Row(NamedTuple):
    """One line of the table. Numbers come twice: to be read, and (`…_key`) to be sorted by."""

    layer: str
    tensor: str
    metric: str
    reference: str
    rule: str
    value: str
    value_key: str
    tolerance: str
    tolerance_key: str
    bound: str
    bound_key: str
    most: str
    most_key: str
    status: str
    spark: str


def latest(record: Record, bounds: Sequence[tuple[int, str] | None]) -> list[Row]:
    """Return the last recorded number of each series.

    Args:
        record: the record.
        bounds: of each series.

    Returns:
        A row for each series, in their order; none where no step is recorded.
    """
    return [_row(record, s, bounds[s]) for s in range(len(record.series))] if len(record.steps) else []


def _row(record: Record, s: int, bound: tuple[int, str] | None) -> Row:
    one, value = record.series[s], record.value[:, s]
    finite = value[np.isfinite(value)]
    most = float(finite.max()) if len(finite) else None
    last, tolerance = float(value[-1]), float(record.tolerance[-1, s])
    return Row(
        one.layer, one.tensor, one.metric, one.reference, one.tolerance_rule,
        number(last), _key(last), number(tolerance, 4), _key(tolerance),
        "" if bound is None else number(bound[0]), "" if bound is None else str(bound[0]),
        number(most), _key(most),
        record.words[record.status[-1, s]], _spark(value),
    )  # fmt: skip


def _key(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else repr(value)


def _spark(value: npt.NDArray[np.float64]) -> str:
    """Sketch a series as the path of an SVG, a gap as a break.

    Args:
        value: `[T]`.

    Returns:
        The path; empty where no two neighbouring values are finite.
    """
    picked = value[sampled(len(value), _COLUMNS)]
    finite = picked[np.isfinite(picked)]
    if not len(finite):
        return ""
    low, high = float(finite.min()), float(finite.max())
    scale = (_HEIGHT - 4) / (high - low) if high > low else 0.0
    words, pen = [], "M"
    for i, one in enumerate(picked.tolist()):
        if not np.isfinite(one):
            pen = "M"
            continue
        x = 2 + i * (_WIDTH - 4) / max(1, len(picked) - 1)
        y = _HEIGHT - 2 - (one - low) * scale if scale else _HEIGHT / 2
        words.append(f"{pen}{x:.0f} {y:.1f}")
        pen = "L"
    # A lone point is drawn by the round cap of a line of no length.
    return "".join(words) + ("h0" if len(words) == 1 else "")
