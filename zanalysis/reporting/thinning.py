"""Fewer points than were recorded, without hiding any extreme: what a screen can show.

A bucket of neighbouring steps keeps its first, smallest, largest and last value, and a gap where
there was one (M4: Jugel, Jerzak, Hackenbroich & Markl, VLDB 2014): on a screen with no more columns
of pixels than buckets the line is the one that all points would draw. Where values repeat, only the
ends of a repetition are kept, which loses nothing at all.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Gap", "Thinned", "gaps", "sampled", "significant", "thinned"]

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

_MOST_GAPS = 200


class Thinned(NamedTuple):
    """The points of one series that are drawn.

    Attributes:
        rows: which of the recorded points, increasing.
        exact: whether those left out lie on the line that is drawn.
        buckets: into how many the steps were parted, if not.
    """

    rows: npt.NDArray[np.intp]
    exact: bool
    buckets: int = 0


class Gap(NamedTuple):
    """Steps at which there is no number, for one reason.

    Attributes:
        first: the first step.
        last: the last step.
        records: how many recorded steps in between have no number.
        code: the status; -1 where several reasons stand side by side.
    """

    first: int
    last: int
    records: int
    code: int


def thinned(steps: Steps, value: Floats, limit: int) -> list[Thinned]:
    """Choose the points to draw of each series.

    Args:
        steps: `[T]`, increasing.
        value: `[T, S]`; what is not finite is a gap.
        limit: about how many points to keep of each, at least 8.

    Returns:
        One choice for each series. Where T is at most `limit`, all points.
    """
    count = len(steps)
    if count <= limit:
        return [Thinned(np.arange(count), True)] * value.shape[1]
    finite = np.where(np.isfinite(value), value, np.nan)
    ends = _ends_of_repetitions(finite)
    few = ends.sum(axis=0) <= limit
    buckets = max(2, limit // 5)
    picks = _bucketed(steps, finite[:, ~few], buckets)
    many = iter(picks)
    return [
        Thinned(np.flatnonzero(ends[:, s]), True) if few[s] else Thinned(next(many), False, buckets)
        for s in range(value.shape[1])
    ]


def _ends_of_repetitions(finite: Floats) -> npt.NDArray[np.bool_]:
    same = (finite[1:] == finite[:-1]) | (np.isnan(finite[1:]) & np.isnan(finite[:-1]))
    inside = np.zeros(finite.shape, np.bool_)
    inside[1:-1] = same[1:] & same[:-1]
    return ~inside


def _bucketed(steps: Steps, finite: Floats, buckets: int) -> list[npt.NDArray[np.intp]]:
    edges = np.linspace(float(steps[0]), float(steps[-1]), buckets + 1)[1:-1]
    starts = np.unique(np.concatenate([[0], np.searchsorted(steps, edges)]))
    kept = []
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        block = finite[start:end]
        absent = np.isnan(block)
        last = len(block) - 1
        kept.append(
            start
            + np.stack(
                [
                    (~absent).argmax(axis=0),
                    np.where(absent, np.inf, block).argmin(axis=0),
                    np.where(absent, -np.inf, block).argmax(axis=0),
                    last - (~absent[::-1]).argmax(axis=0),
                    absent.argmax(axis=0),  # the first gap, or the first point once more
                ]
            )
        )
    rows = np.concatenate(kept)
    return [np.unique(rows[:, s]) for s in range(finite.shape[1])]


def gaps(steps: Steps, value: Floats, status: npt.NDArray[np.uint8]) -> list[Gap]:
    """Find where one series has no number, and why.

    Args:
        steps: `[T]`.
        value: `[T]`.
        status: `[T]`, codes.

    Returns:
        The gaps in order; where there are very many, neighbouring ones as one.
    """
    bad = np.flatnonzero(~np.isfinite(value))
    if not len(bad):
        return []
    codes = status[bad].astype(np.int64)
    breaks = np.flatnonzero((np.diff(bad) > 1) | (np.diff(codes) != 0)) + 1
    parts = np.split(np.arange(len(bad)), breaks)
    if len(parts) > _MOST_GAPS:
        parts = [part for part in np.array_split(np.arange(len(bad)), _MOST_GAPS) if len(part)]
    found = []
    for part in parts:
        seen = codes[part]
        code = int(seen[0]) if (seen == seen[0]).all() else -1
        found.append(Gap(int(steps[bad[part[0]]]), int(steps[bad[part[-1]]]), len(part), code))
    return found


def sampled(count: int, most: int) -> npt.NDArray[np.intp]:
    """Choose evenly spread rows, the first and the last among them.

    Args:
        count: how many rows there are.
        most: how many to choose at most, at least 2.

    Returns:
        Increasing indices.

    Example:
        >>> sampled(9, 3).tolist()
        [0, 4, 8]
    """
    if count <= most:
        return np.arange(count)
    return np.unique(np.round(np.linspace(0, count - 1, most)).astype(np.intp))


def significant(values: Floats, digits: int = 6) -> list[float | int | None]:
    """Round to significant digits, as JSON can hold them.

    Args:
        values: any shape; taken flat.
        digits: how many.

    Returns:
        Numbers, whole ones as integers; None for what is not finite.

    Example:
        >>> significant(np.array([1.23456789e-9, 64.0, np.nan]), 3)
        [1.23e-09, 64, None]
    """
    flat = np.asarray(values, np.float64).ravel()
    if flat.size and np.isfinite(flat).all() and (flat == np.rint(flat)).all() and abs(flat).max() < 1e15:
        return list(flat.astype(np.int64).tolist())
    return [_short(value, digits) for value in flat.tolist()]


def _short(value: float, digits: int) -> float | int | None:
    if value != value or value in (float("inf"), float("-inf")):
        return None
    if value.is_integer() and abs(value) < 10**digits:
        return int(value)
    return float(f"{value:.{digits}g}")
