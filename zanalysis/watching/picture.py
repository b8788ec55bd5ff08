"""What of a run is shown: facts, a table of layers and metrics, and curves. Pure functions; no screen is known here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zanalysis.reporting.meanings import bound_of, meaning_of, shapes_of
from zanalysis.reporting.text import number, visible
from zanalysis.reporting.thinning import sampled, thinned
from zanalysis.runfile.schema import STATUSES, Series
from zanalysis.watching.follower import Look
from zanalysis.watching.history import History

__all__ = [
    "NOW",
    "Cell",
    "Curve",
    "Grid",
    "cell_of",
    "curve_of",
    "duration",
    "events_of",
    "facts_of",
    "grid_of",
    "logged_curve",
    "logged_facts",
    "shortened",
    "sparkline",
]

_BARS = "▁▂▃▄▅▆▇"  # no full block, which would touch the row above
_LEVEL = "─"

NOW = ("step", "records", "rate", "last record")
"""The facts that change while a run trains."""


@dataclass(frozen=True)
class Grid:
    """Where each series stands in the table.

    Attributes:
        rows: the names of the rows: a layer, and what of it was measured where that differs.
        columns: the names of the columns: a metric, and its tolerance rule where there are several.
        series: which series stands in row i and column j, by `(i, j)`.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    series: Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Attributes:
        latest: the number at the last record; its status where there is none.
        change: by how much it differs from the first one there was; or the status, where that is not ok.
        trend: all of it as a line of small bars.
    """

    latest: str
    change: str
    trend: str


@dataclass(frozen=True)
class Curve:
    """One line to draw.

    Attributes:
        title: what it is.
        unit: of the numbers.
        x: the steps.
        y: the numbers; NaN where there is a gap.
        whole: whether it counts something, and is drawn as steps.
    """

    title: str
    unit: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    whole: bool = False

    @property
    def pieces(self) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """The line, parted where there is no number."""
        there = np.isfinite(self.y)
        edges = np.flatnonzero(np.diff(there.astype(np.int8))) + 1
        parts = np.split(np.arange(len(there)), edges)
        return [(self.x[part], self.y[part]) for part in parts if len(part) and there[part[0]]]

    @property
    def drawn(self) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """The pieces as they are drawn: what counts something keeps its number until the next record."""
        if not self.whole:
            return self.pieces
        return [(np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]) for x, y in self.pieces]


def grid_of(series: Sequence[Series]) -> Grid:
    """Lay the series of a run out as a table of layers and metrics.

    Args:
        series: of the run.

    Returns:
        The table, rows and columns in the order in which they are recorded.

    Example:
        >>> a = Series("fc", "weight", "none", "default", "rank")
        >>> grid_of([a, a._replace(reference="init"), a._replace(metric="stable_rank")]).rows
        ('fc', 'fc − init')
    """
    tensors = {one.tensor for one in series}
    rules: dict[str, set[str]] = {}
    for one in series:
        rules.setdefault(one.metric, set()).add(one.tolerance_rule)
    rows: dict[tuple[str, str, str], int] = {}
    columns: dict[tuple[str, str], int] = {}
    cells = {}
    for s, one in enumerate(series):
        row = rows.setdefault((one.layer, one.tensor, one.reference), len(rows))
        column = columns.setdefault((one.metric, one.tolerance_rule), len(columns))
        cells[row, column] = s
    names = tuple(
        visible(layer)
        + (f" · {visible(tensor)}" if len(tensors) > 1 else "")
        + (f" − {visible(reference)}" if reference != "none" else "")
        for layer, tensor, reference in rows
    )
    headings = tuple(
        visible(metric) + (f" ({visible(rule)})" if len(rules[metric]) > 1 else "")
        for metric, rule in columns
    )
    return Grid(names, headings, cells)


def cell_of(history: History, s: int, width: int = 12) -> Cell:
    """Say how a series stands, and how it came there.

    Args:
        history: of the run.
        s: which series.
        width: characters of the trend.

    Returns:
        Latest number, change and trend; all empty before the first record.
    """
    value, status = history.value[:, s], history.status[:, s]
    if not len(value):
        return Cell("", "", "")
    word = STATUSES[status[-1]] if status[-1] < len(STATUSES) else f"code {status[-1]}"
    trend = sparkline(value, width)
    if not np.isfinite(value[-1]):
        return Cell(word if word != "ok" else number(float(value[-1])), "", trend)
    first = value[np.isfinite(value)][0]
    change = _signed(float(value[-1] - first)) if len(value) > 1 else ""
    return Cell(number(float(value[-1]), 4), change if word == "ok" else word, trend)


def _signed(difference: float) -> str:
    if difference == 0:
        return "0"
    text = number(abs(difference), 3)
    return ("+" if difference > 0 else "−") + text


def sparkline(values: npt.NDArray[np.float64], width: int) -> str:
    """Draw numbers as a line of small bars, from their smallest to their largest.

    Args:
        values: `[T]`; what is not finite is a gap.
        width: how many characters at most.

    Returns:
        One character for each number, or for `width` of them, evenly spread, the first and the last among them; a
        plain line where all are the same.

    Example:
        >>> sparkline(np.array([1.0, 2.0, 4.0, np.nan, 8.0]), 8)
        '▁▂▄ ▇'
        >>> sparkline(np.array([3.0, 3.0]), 8)
        '──'
    """
    if not len(values) or width < 1:
        return ""
    if len(values) > width:
        values = values[sampled(len(values), width)] if width > 1 else values[-1:]
    there = np.isfinite(values)
    if not there.any():
        return " " * len(values)
    low, high = float(values[there].min()), float(values[there].max())
    if low == high:
        return "".join(_LEVEL if one else " " for one in there)
    # Halved, so that the difference of the largest numbers there are stays finite.
    with np.errstate(invalid="ignore"):
        share = (values / 2 - low / 2) / (high / 2 - low / 2)
    levels = np.where(there, np.floor(np.where(there, share, 0) * (len(_BARS) - 1) + 0.5), -1).astype(int)
    return "".join(" " if level < 0 else _BARS[level] for level in levels)


def curve_of(history: History, s: int, limit: int = 1000) -> Curve:
    """Return one series as a line to draw.

    Args:
        history: of the run.
        s: which series.
        limit: about how many points at most; no extreme is left out.

    Returns:
        The line, with what it is, how it is bounded, and its unit.
    """
    one = history.series[s]
    meaning = meaning_of(one.metric)
    bound = bound_of(one.metric, one.tensor, shapes_of(history.attributes).get(one.layer))
    title = f"{visible(one.metric)} of {visible(one.layer)}"
    title += f", {visible(one.tensor)}" if one.tensor != "weight" else ""
    title += f" − {visible(one.reference)}" if one.reference != "none" else ""
    title += f", τ {visible(one.tolerance_rule)}" if one.tolerance_rule not in ("none", "default") else ""
    title += f", at most {bound[0]}" if bound and one.reference == "none" else ""
    x, y = _thinned(history.steps, history.value[:, s], limit)
    return Curve(title, meaning.unit, x, y, meaning.whole)


def logged_curve(history: History, name: str, limit: int = 1000) -> Curve:
    """Return one of the user's own scalars as a line to draw.

    Args:
        history: of the run.
        name: of the scalar.
        limit: about how many points at most; no extreme is left out.

    Returns:
        The line.
    """
    steps, values = history.logged[name]
    order = np.argsort(np.array(steps, np.int64), kind="stable")
    x, y = _thinned(np.array(steps, np.int64)[order], np.array(values, np.float64)[order], limit)
    return Curve(f"{visible(name)}, as logged", "as logged", x, y)


def _thinned(
    steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64], limit: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if not len(steps):
        return np.empty(0), np.empty(0)
    rows = thinned(steps, values[:, None], limit)[0].rows
    return steps[rows].astype(np.float64), np.where(np.isfinite(values[rows]), values[rows], np.nan)


def facts_of(look: Look) -> list[tuple[str, str]]:
    """Say in what state a run is.

    Args:
        look: what was found.

    Returns:
        Names and facts, those that change most often first; what is not known is left out.
    """
    history = look.history
    if history is None:
        return []
    facts = []
    if history.reached >= 0:
        facts.append(("step", number(history.reached)))
        count = len(history.steps) or history.raw[0]
        facts.append(("records", number(count)))
    if look.rate is not None:
        facts.append(("rate", _speed(look.rate) + (" on average" if look.averaged else "")))
    if look.age is not None:
        facts.append(("last record", f"{duration(look.age)} ago"))
    facts += _settings(history)
    return [(name, fact) for name, fact in facts if fact]


def _speed(rate: float) -> str:
    if rate == 0:
        return "0 steps/s"
    return f"{number(rate, 3)} steps/s" if rate >= 1 else f"{number(1 / rate, 3)} s/step"


def _settings(history: History) -> list[tuple[str, str]]:
    attributes = history.attributes
    model = attributes.get("model")
    optimizers = attributes.get("optimizers")
    layers = {one.layer for one in history.series if one.tensor != "jacobian"}
    layers |= {key.layer for key in history.spectra if key.tensor != "jacobian"}
    optimizers = optimizers if isinstance(optimizers, list) else []
    types = [one.get("type") for one in optimizers if isinstance(one, Mapping)]
    return [
        ("model", _text(model.get("type")) if isinstance(model, Mapping) else ""),
        ("layers", number(len(layers)) if layers else ""),
        ("optimizer", ", ".join(map(_text, types))),
        ("schedule", _text(attributes.get("schedule"))),
    ]


def _text(value: Any) -> str:
    return "" if value is None else visible(value)


def logged_facts(history: History) -> list[tuple[str, str]]:
    """Return the last of each of the user's own scalars.

    Args:
        history: of the run.

    Returns:
        Names and numbers.
    """
    return [(visible(name), number(values[-1], 4)) for name, (_, values) in history.logged.items() if values]


def events_of(history: History, count: int = 3) -> list[str]:
    """Return the last events, one line each, the newest first.

    Args:
        history: of the run.
        count: how many at most.

    Returns:
        The lines.
    """
    return [
        f"step {number(step)}: {visible(kind)}{f' ({visible(layer)})' if layer else ''}: {visible(text)}"
        for step, _, kind, layer, text in reversed(history.events[-count:])
    ]


def duration(seconds: float) -> str:
    """Write a duration for a reader.

    Args:
        seconds: at least 0.

    Returns:
        The largest two units of it.

    Example:
        >>> duration(4.2), duration(75), duration(7260)
        ('4 s', '1 min 15 s', '2 h 1 min')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def shortened(name: str, width: int) -> str:
    """Cut a name in its middle, where names of layers differ least.

    Args:
        name: any name.
        width: characters there is room for, at least 1.

    Returns:
        The name, or its two ends with ``…`` between.

    Example:
        >>> shortened("model.layers.11.attention.query", 15)
        'model.l…n.query'
    """
    if len(name) <= width:
        return name
    right = width // 2
    return name[: width - 1 - right] + "…" + (name[-right:] if right else "")
