"""What a record is written to, and the record in memory: the file's twin."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zanalysis.runfile.schema import Series, SpectrumKey, column_name, plain

__all__ = ["STEP_REFUSED", "Codes", "Floats", "MemoryWriter", "Writer"]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]

STEP_REFUSED = "a scalar named 'step' was not recorded: that is the axis itself; choose another name"


class Writer(Protocol):
    """What a tracker needs of the place its record goes to."""

    def append(self, step: int, value: Floats, tolerance: Floats, status: Codes, spectra: Floats) -> None:
        """Take the numbers of one recorded step: `[S]`, `[S]`, `[S]` and `[R, k]`."""

    def log(self, step: int, name: str, value: float) -> None:
        """Take one scalar of the user's own."""

    def event(self, step: int, kind: str, text: str, layer: str = "") -> None:
        """Take note of something that happened."""

    def overhead(self, seconds: Mapping[str, float], elapsed: float) -> None:
        """Replace the account of the time spent."""

    def flush(self) -> None:
        """Make everything taken so far safe from a kill."""

    def close(self) -> None:
        """Flush and let go. Closing twice is harmless."""


class MemoryWriter:
    """A record in memory, for `RankTracker(path=None)` and for the tests of the file.

    Attributes:
        series: what the columns are.
        spectra: what the rows of the recorded spectra are.
        attributes: the facts stored with the run.
    """

    def __init__(
        self,
        series: Sequence[Series],
        spectra: Sequence[SpectrumKey] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Start an empty record.

        Args:
            series: what the columns are.
            spectra: what the rows of the spectra are.
            attributes: facts stored with the run, JSON.
        """
        self.series = tuple(Series(*map(plain, key)) for key in series)
        self.spectra = tuple(SpectrumKey(*map(plain, key)) for key in spectra)
        self.attributes: dict[str, Any] = json.loads(json.dumps(attributes or {}))
        self.rows: list[tuple[int, Floats, Floats, Codes, Floats]] = []
        self.logged: list[tuple[int, str, float]] = []
        self.events: list[tuple[int, float, str, str, str]] = []
        self.account: tuple[dict[str, float], float] = ({}, 0.0)
        self._refused = False

    def append(self, step: int, value: Floats, tolerance: Floats, status: Codes, spectra: Floats) -> None:
        """Take the numbers of one recorded step."""
        self.rows.append((step, value.copy(), tolerance.copy(), status.copy(), spectra.copy()))

    def log(self, step: int, name: str, value: float) -> None:
        """Take one scalar of the user's own."""
        if name == "step":
            if not self._refused:
                self._refused = True
                self.event(step, "log", STEP_REFUSED)
            return
        self.logged.append((step, column_name(name), value))

    def event(self, step: int, kind: str, text: str, layer: str = "") -> None:
        """Take note of something that happened."""
        self.events.append((step, time.time(), kind, layer, text))

    def overhead(self, seconds: Mapping[str, float], elapsed: float) -> None:
        """Replace the account of the time spent."""
        self.account = (dict(seconds), elapsed)

    def flush(self) -> None:
        """Do nothing: memory is lost with the process."""

    def close(self) -> None:
        """Do nothing: the record stays readable."""
