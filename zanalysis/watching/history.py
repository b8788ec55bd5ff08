"""What a run has recorded so far, kept in memory and grown at its end."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from zanalysis.runfile.following import Description, News
from zanalysis.runfile.schema import Series

__all__ = ["History"]

_EVENTS = 50


class _Column:
    """Rows that grow at the end, in memory that is doubled when it is full."""

    def __init__(self, like: npt.NDArray[Any]) -> None:
        self._rows = like.copy()
        self._count = len(like)

    def extend(self, rows: npt.NDArray[Any]) -> None:
        needed = self._count + len(rows)
        if needed > len(self._rows):
            grown = np.empty((max(needed, 2 * len(self._rows), 64), *rows.shape[1:]), rows.dtype)
            grown[: self._count] = self._rows[: self._count]
            self._rows = grown
        self._rows[self._count : needed] = rows
        self._count = needed

    @property
    def rows(self) -> npt.NDArray[Any]:
        return self._rows[: self._count]


class History:
    """Everything a run has recorded, as far as it is shown.

    Attributes:
        attributes: facts stored with the run.
        series: what the columns are.
        logged: the user's own scalars by name: their steps and their values.
        events: the last events: step, time, kind, layer, text.
        happened: how many events there were in all.
        raw: how many steps of raw tensors there are, and the last of them.
    """

    def __init__(self, description: Description, news: News) -> None:
        """Begin with all there is.

        Args:
            description: of the run.
            news: what was found at the first look.
        """
        self.attributes: Mapping[str, Any] = description.attributes
        self.series: tuple[Series, ...] = description.series
        self.spectra = description.spectra
        self.logged: dict[str, tuple[list[int], list[float]]] = {}
        self.events: list[tuple[int, float, str, str, str]] = []
        self.happened = 0
        self.raw = (0, -1)
        self._steps, self._value, self._status = (
            _Column(part) for part in (news.steps[:0], news.value[:0], news.status[:0])
        )
        self.extend(news)

    def extend(self, news: News) -> None:
        """Take in what is new.

        Args:
            news: what was found at a look.
        """
        self._steps.extend(news.steps)
        self._value.extend(news.value)
        self._status.extend(news.status)
        for step, name, value in news.logged:
            steps, values = self.logged.setdefault(name, ([], []))
            if steps and steps[-1] == step:
                values[-1] = value  # logged twice at a step, the last counts, as in `Run.logged`
            else:
                steps.append(step)
                values.append(value)
        self.happened += len(news.events)
        self.events = [*self.events, *news.events][-_EVENTS:]
        self.raw = news.raw

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """The recorded steps, int64 `[T]`."""
        return self._steps.rows

    @property
    def value(self) -> npt.NDArray[np.float64]:
        """Float64 `[T, S]`; NaN where undefined."""
        return self._value.rows

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        """Codes, uint8 `[T, S]`."""
        return self._status.rows

    @property
    def reached(self) -> int:
        """The last step of which anything is known; -1 where there is none."""
        recorded = int(self.steps[-1]) if len(self.steps) else -1
        logged = max((steps[-1] for steps, _ in self.logged.values() if steps), default=-1)
        return max(recorded, logged, self.raw[1])

    @property
    def start(self) -> int:
        """The step at which the writer that is, or was, at the run began."""
        resumed = self.attributes.get("resumed")
        last = resumed[-1] if isinstance(resumed, list) and resumed else self.attributes
        start = last.get("start", 0) if isinstance(last, Mapping) else 0
        return start if isinstance(start, int) else 0
