"""Following one run file: what it holds, and in which state its writer is."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zanalysis.errors import RunFileError
from zanalysis.runfile.following import News, news
from zanalysis.runfile.lock import is_held
from zanalysis.runfile.mounts import network_filesystem
from zanalysis.watching.history import History

__all__ = ["FINISHED", "GONE", "SILENT", "TRAINING", "UNREADABLE", "WAITING", "Follower", "Look"]

WAITING, TRAINING, FINISHED = "waiting", "training", "finished"
GONE, SILENT, UNREADABLE = "writer gone", "silent", "unreadable"

_PATIENCE = 10.0  # seconds without a sign, after which a writer that is not seen counts as gone
_WINDOW = 60.0  # seconds over which the rate is taken


@dataclass(frozen=True)
class Look:
    """What one look at a run found.

    Attributes:
        path: the run file.
        state: one of the words of this module.
        detail: what the state rests on, in a clause; empty where the word says all.
        history: what is recorded; None before the file is there.
        change: another number after every change of the history.
        era: another number after the history began anew, with another file or a run taken up again.
        rate: steps in a second; None where it is not known.
        averaged: whether that is over the whole run, rather than over the last minute.
        age: seconds since the last record; None where there is none.
    """

    path: Path
    state: str
    detail: str = ""
    history: History | None = None
    change: int = 0
    era: int = 0
    rate: float | None = None
    averaged: bool = False
    age: float | None = None


class Follower:
    """Looks at a run file again and again, and reads each time only what is new.

    The file is opened for reading for a moment at each look, without a lock: the writer is never disturbed.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        seen: Callable[[Path], bool | None] = is_held,
    ) -> None:
        """Begin to follow.

        Args:
            path: the run file; it need not be there yet.
            clock: gives Unix time.
            seen: says whether a process is seen to write the file; None where that cannot be seen.
        """
        self.path = path
        self._clock, self._seen = clock, seen
        self._history: History | None = None
        self._elapsed = 0.0
        self._last: News | None = None
        self._writer_was_seen = False
        self._recorded: float | None = None
        self._passed: deque[tuple[float, int]] = deque()
        self._change = self._era = 0

    def look(self) -> Look:
        """Read what is new.

        Returns:
            What is known now. A file that cannot be read is no error but a state; what was read of it stays.
        """
        if not self.path.exists():
            return self._missing()
        try:
            state, detail = self._read()
            if state == GONE:
                # It may have closed the file between the two questions.
                state, detail = self._read()
        except RunFileError as error:
            if not self.path.exists():
                return self._missing()
            return self._found(UNREADABLE, str(error))
        return self._found(state, detail)

    def _missing(self) -> Look:
        folder = self.path.absolute().parent
        detail = f"{self.path} is not there yet"
        if not folder.is_dir():
            detail = f"the folder {folder} is not there yet"
        elif self._history is not None:
            detail = f"{self.path} was removed"
        return self._found(WAITING, detail)

    def _read(self) -> tuple[str, str]:
        found = news(self.path, self._last.place if self._last else None)
        self._take(found)
        if not found.marked:
            return FINISHED, ""
        return self._writer(found)

    def _take(self, found: News) -> None:
        now = self._clock()
        first = self._history is None
        if found.description is not None or self._history is None:
            assert found.description is not None
            self._history = History(found.description, found)
            self._era += 1
            self._change += 1
            self._passed.clear()
            self._recorded = found.modified if first or not found.marked else now
            self._writer_was_seen = False
        elif len(found.steps) or found.logged or found.events or found.raw != self._history.raw:
            if len(found.steps) or found.raw != self._history.raw:
                self._recorded = now
            self._history.extend(found)
            self._change += 1
        if not self._passed or self._history.reached > self._passed[-1][1]:
            self._passed.append((now, self._history.reached))
        while len(self._passed) > 2 and self._passed[1][0] < now - _WINDOW:
            self._passed.popleft()
        self._elapsed, self._last = found.elapsed, found

    def _writer(self, found: News) -> tuple[str, str]:
        seen = self._seen(self.path)
        if seen:
            self._writer_was_seen = True
            return TRAINING, ""
        silence = max(0.0, self._clock() - found.modified)
        if seen is False and self._writer_was_seen:
            return GONE, "its process ended without closing the file"
        if silence < _PATIENCE:
            return TRAINING, ""
        if seen is False and network_filesystem(self.path) is None:
            return GONE, "no process here holds its lock, and the file is not closed"
        return SILENT, "the writer cannot be seen from here: slow, stopped, or killed"

    def _found(self, state: str, detail: str) -> Look:
        history = self._history
        recorded = history is not None and (len(history.steps) > 0 or history.raw[0] > 0)
        age = self._clock() - self._recorded if recorded and self._recorded is not None else None
        rate, averaged = self._rate(state)
        return Look(
            self.path,
            state,
            detail,
            history,
            self._change,
            self._era,
            rate,
            averaged,
            None if age is None else max(0.0, age),
        )

    def _rate(self, state: str) -> tuple[float | None, bool]:
        if self._history is None or self._history.reached < 0:
            return None, False
        (begin, first), (end, last) = self._passed[0], self._passed[-1]
        # A writer that has not moved for long is not as fast as it was: the time since counts too.
        end = max(end, self._clock() - _PATIENCE)
        if state == TRAINING and last > first and end - begin >= 1:
            return (last - first) / (end - begin), False
        done = self._history.reached - self._history.start
        return (done / self._elapsed, True) if self._elapsed > 0 and done > 0 else (None, True)
