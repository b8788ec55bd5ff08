"""What a record is written to, and the record in memory: the file's twin."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from zanalysis.analyzers.statuses import CODES
from zanalysis.errors import InputError
from zanalysis.runfile.bits import tensor_of
from zanalysis.runfile.schema import Kept, Series, SpectrumKey, TensorKey, column_name, plain
from zanalysis.runfile.tensor_reader import (
    RecordedTensor,
    TensorSeries,
    chosen_steps,
    row_of,
    stacked,
    summary,
)
from zanalysis.runfile.tensor_writer import check_kept

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STEP_REFUSED", "Codes", "Floats", "MemoryWriter", "Writer"]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]

STEP_REFUSED = "a scalar named 'step' was not recorded: that is the axis itself; choose another name"


class Writer(Protocol):
    """What a tracker needs of the place its record goes to."""

    def append(self, step: int, value: Floats, tolerance: Floats, status: Codes, spectra: Floats) -> None:
        """Take the numbers of one recorded step: `[S]`, `[S]`, `[S]` and `[R, k]`."""

    def append_tensors(self, step: int, kept: Sequence[Kept]) -> None:
        """Take the raw tensors of one step; they are not needed any more when this returns."""

    def drop_tensors(self, steps: int = 1) -> None:
        """Count steps whose raw tensors were dropped."""

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
        keys: what the raw tensors are.
        dropped: how many steps of raw tensors were dropped.
    """

    def __init__(
        self,
        series: Sequence[Series],
        spectra: Sequence[SpectrumKey] = (),
        attributes: Mapping[str, Any] | None = None,
        tensors: Sequence[TensorKey] = (),
    ) -> None:
        """Start an empty record.

        Args:
            series: what the columns are.
            spectra: what the rows of the spectra are.
            attributes: facts stored with the run, JSON.
            tensors: what the raw tensors are.
        """
        self.series = tuple(Series(*map(plain, key)) for key in series)
        self.spectra = tuple(SpectrumKey(*map(plain, key)) for key in spectra)
        self.attributes: dict[str, Any] = json.loads(json.dumps(attributes or {}))
        self.rows: list[tuple[int, Floats, Floats, Codes, Floats]] = []
        self.logged: list[tuple[int, str, float]] = []
        self.events: list[tuple[int, float, str, str, str]] = []
        self.account: tuple[dict[str, float], float] = ({}, 0.0)
        self.keys = tuple(key._replace(layer=plain(key.layer)) for key in tensors)
        self.kept: list[tuple[int, tuple[Kept, ...]]] = []
        self.dropped = 0
        self._refused = False

    def append(self, step: int, value: Floats, tolerance: Floats, status: Codes, spectra: Floats) -> None:
        """Take the numbers of one recorded step."""
        self.rows.append((step, value.copy(), tolerance.copy(), status.copy(), spectra.copy()))

    def append_tensors(self, step: int, kept: Sequence[Kept]) -> None:
        """Take the raw tensors of one step.

        Args:
            step: completed optimizer steps, more than at the last call.
            kept: one for each key.

        Raises:
            InputError: if the step does not come after the last one, or a tensor is not what was announced.
        """
        if self.kept and step <= self.kept[-1][0]:
            raise InputError(
                f"step {step} does not come after step {self.kept[-1][0]}, which is recorded already."
            )
        check_kept(self.keys, kept)
        own = (one._replace(values=None if one.values is None else one.values.copy()) for one in kept)
        self.kept.append((step, tuple(own)))

    def drop_tensors(self, steps: int = 1) -> None:
        """Count steps whose raw tensors were dropped."""
        self.dropped += steps

    @property
    def tensors(self) -> list[RecordedTensor]:
        """The raw tensors, as `zanalysis.runfile.reader.Run.tensors` lists them."""
        found = []
        for index, key in enumerate(self.keys):
            there = [(step, kept[index]) for step, kept in self.kept if kept[index].values is not None]
            shapes = [one.values.shape for _, one in there if one.values is not None]
            shape, dtype = summary(shapes, [one.dtype for _, one in there])
            steps = np.array([step for step, _ in there], np.int64)
            shape, dtype = (shape, dtype) if key.shape is None else (key.shape, key.dtype)
            found.append(RecordedTensor(key.layer, key.tensor, shape, dtype, steps))
        return found

    def tensor_over_time(
        self, layer: str, tensor: str = "weight", steps: Sequence[int] | None = None
    ) -> TensorSeries:
        """Return one raw tensor over the steps, as `zanalysis.runfile.reader.Run.tensor_over_time` does."""
        return stacked(*self._at(layer, tensor, steps))

    def tensor(self, layer: str, tensor: str = "weight", step: int = 0) -> "Tensor":
        """Return one raw tensor, as `zanalysis.runfile.reader.Run.tensor` does."""
        return self._at(layer, tensor, [step])[1][0]

    def _at(self, layer: str, tensor: str, wanted: Sequence[int] | None) -> "tuple[Any, list[Tensor]]":
        index = row_of("the record", [key[:2] for key in self.keys], layer, tensor)
        steps = np.array([step for step, _ in self.kept], np.int64)
        codes = [CODES[kept[index].status] for _, kept in self.kept]
        rows = chosen_steps("the record", f"{tensor} of {layer!r}", steps, codes, wanted)
        found = [self.kept[row][1][index] for row in rows]
        return steps[rows], [
            tensor_of(one.dtype, one.values.copy()) for one in found if one.values is not None
        ]

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
