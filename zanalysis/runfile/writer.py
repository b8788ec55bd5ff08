"""Writing a run: to an HDF5 file that a kill cannot spoil, or to memory.

`MemoryWriter` is the file's twin: what it holds is what a reader of the file must find.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import filelock
import h5py
import numpy as np
import numpy.typing as npt

from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile.repair import repair
from zanalysis.runfile.schema import (
    EVENT,
    EVENT_WIDTHS,
    FORMAT,
    NAME_BYTES,
    SCHEMA_VERSION,
    STATUSES,
    Committed,
    Series,
    SpectrumKey,
    chunk_rows,
    clip_utf8,
    strings,
)

__all__ = ["MemoryWriter", "Mode", "RunWriter", "Writer"]

Mode = Literal["x", "w", "a"]
Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]

OVERHEAD_PARTS = ("metrics", "writing")


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
        self.series = tuple(series)
        self.spectra = tuple(spectra)
        self.attributes: dict[str, Any] = json.loads(json.dumps(attributes or {}))
        self.rows: list[tuple[int, Floats, Floats, Codes, Floats]] = []
        self.logged: list[tuple[int, str, float]] = []
        self.events: list[tuple[int, float, str, str, str]] = []
        self.account: tuple[dict[str, float], float] = ({}, 0.0)

    def append(self, step: int, value: Floats, tolerance: Floats, status: Codes, spectra: Floats) -> None:
        """Take the numbers of one recorded step."""
        self.rows.append((step, value.copy(), tolerance.copy(), status.copy(), spectra.copy()))

    def log(self, step: int, name: str, value: float) -> None:
        """Take one scalar of the user's own."""
        self.logged.append((step, name, value))

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


class RunWriter:
    """One HDF5 run file, open for writing. What was flushed survives a kill of the process.

    Attributes:
        path: where the file lies.
        last_step: the last recorded step, -1 if there is none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        series: Sequence[Series],
        spectra: Sequence[SpectrumKey] = (),
        attributes: Mapping[str, Any] | None = None,
        *,
        k: int = 16,
        mode: Mode = "x",
        start: int = 0,
    ) -> None:
        """Create the file, or take up an existing one.

        Args:
            path: where the file is to lie; its folder must exist.
            series: what the columns are.
            spectra: what the rows of the spectra are.
            attributes: facts stored with the run, JSON.
            k: how many singular values a spectrum keeps.
            mode: ``"x"`` refuses an existing file, ``"w"`` replaces it, ``"a"`` goes on in it.
            start: with ``"a"``, rows at and after this step are cut.

        Raises:
            RunFileError: if the file exists, cannot be written, is being written by another
                process, or (mode ``"a"``) is of another shape.
            InputError: if the mode is unknown.
        """
        if mode not in ("x", "w", "a"):
            raise InputError(f"unknown mode {mode!r}; expected 'x' (new), 'w' (replace) or 'a' (go on).")
        self.path = Path(path)
        self.last_step = -1
        self._series, self._spectra, self._k = tuple(series), tuple(spectra), k
        self._rows: list[tuple[int, Floats, Floats, Codes, Floats]] = []
        self._logged: list[tuple[int, int, float]] = []
        self._new_names: list[str] = []
        self._events: list[tuple[int, float, bytes, bytes, bytes]] = []
        self._account: tuple[dict[str, float], float] | None = None
        self._names: dict[str, int] = {}
        self._check_place(mode)
        self._lock = self._locked()
        try:
            if mode == "a" and self.path.exists():
                self._cut(start)
            else:
                self._create(dict(attributes or {}))
            self._file = h5py.File(self.path, "r+", libver="latest")
            self._file.swmr_mode = True
        except BaseException:
            self._unlock()
            raise
        self._committed = Committed(*(int(n) for n in self._file["committed"][:]))

    def _check_place(self, mode: Mode) -> None:
        if self.path.is_dir():
            raise RunFileError(f"{self.path} is a folder; pass the name of a file in it, such as run.h5.")
        if not self.path.parent.is_dir():
            raise RunFileError(
                f"cannot write {self.path}: the folder {self.path.parent} does not exist; create it first."
            )
        if mode == "x" and self.path.exists():
            raise RunFileError(
                f"{self.path} exists already, and nothing is overwritten unasked: choose another name, "
                "or pass mode='w' to replace it or mode='a' to go on in it."
            )

    def _locked(self) -> filelock.FileLock:
        # HDF5's own locks are released once SWMR begins: a second writer would truncate a live file.
        lock = filelock.FileLock(f"{self.path}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunFileError(
                f"{self.path} is being written by another tracker; close that one first, "
                "or choose another name."
            ) from None
        except OSError as error:
            raise RunFileError(
                f"cannot write {self.path}: {error.strerror or error}; choose a folder that you may write to."
            ) from error
        return lock

    def _unlock(self) -> None:
        with contextlib.suppress(OSError):
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _create(self, attributes: dict[str, Any]) -> None:
        # Built under another name, so that whoever finds the file finds all of it.
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            with h5py.File(part, "w", libver="latest") as file:
                _lay_out(file, self._series, self._spectra, self._k, attributes)
            part.replace(self.path)
        except OSError as error:
            raise RunFileError(f"cannot write {self.path}: {error}.") from error
        finally:
            part.unlink(missing_ok=True)

    def _cut(self, start: int) -> None:
        # Everything at and after `start` goes, also what was written but never committed.
        repair(self.path)
        with h5py.File(self.path, "r+", libver="latest") as file:
            if file.attrs.get("format") != FORMAT or file.attrs.get("schema_version") != SCHEMA_VERSION:
                raise RunFileError(
                    f"{self.path} is no run file of schema {SCHEMA_VERSION}; choose another name."
                )
            _check_same(file, self._series, self._spectra, self._k, self.path)
            committed = Committed(*(int(n) for n in file["committed"][:]))
            steps = file["scalars/step"][: committed.steps]
            keep = int(np.searchsorted(steps, start))
            self.last_step = int(steps[keep - 1]) if keep else -1
            for name in ("step", "value", "tolerance", "status"):
                file[f"scalars/{name}"].resize(keep, axis=0)
            if "spectra" in file:
                file["spectra/value"].resize(keep, axis=0)
            logged = {n: file[f"logged/{n}"][: committed.logged] for n in ("step", "name", "value")}
            early = logged["step"] < start
            for name, values in logged.items():
                file[f"logged/{name}"].resize(int(early.sum()), axis=0)
                file[f"logged/{name}"][:] = values[early]
            file["logged/names"].resize(committed.names, axis=0)
            file["events"].resize(committed.events, axis=0)
            self._names = {n: i for i, n in enumerate(file["logged/names"].asstr()[:])}
            file["committed"][:] = Committed(keep, int(early.sum()), committed.names, committed.events)

    def append(self, step: int, value: Floats, tolerance: Floats, status: Codes, spectra: Floats) -> None:
        """Take the numbers of one recorded step; they reach the file at the next flush.

        Args:
            step: completed optimizer steps, more than at the last call.
            value: float64 `[S]`.
            tolerance: float64 `[S]`.
            status: uint8 `[S]`.
            spectra: float64 `[R, k]`.

        Raises:
            InputError: if the step does not come after the last one.
        """
        if step <= self.last_step:
            raise InputError(
                f"step {step} does not come after step {self.last_step}, which is recorded already."
            )
        self.last_step = step
        self._rows.append((step, value, tolerance, status, spectra))

    def log(self, step: int, name: str, value: float) -> None:
        """Take one scalar of the user's own.

        Args:
            step: completed optimizer steps.
            name: up to 128 bytes; longer ones are cut.
            value: the number.
        """
        name = clip_utf8(name, NAME_BYTES).decode()
        if name not in self._names:
            self._names[name] = len(self._names)
            self._new_names.append(name)
        self._logged.append((step, self._names[name], value))

    def event(self, step: int, kind: str, text: str, layer: str = "") -> None:
        """Take note of something that happened.

        Args:
            step: completed optimizer steps.
            kind: a word.
            text: a sentence; what is longer than 512 bytes is cut.
            layer: the layer concerned, if any.
        """
        words = {"kind": kind, "layer": layer, "text": text}
        clipped = {field: clip_utf8(word, EVENT_WIDTHS[field]) for field, word in words.items()}
        self._events.append((step, time.time(), clipped["kind"], clipped["layer"], clipped["text"]))

    def overhead(self, seconds: Mapping[str, float], elapsed: float) -> None:
        """Replace the account of the time spent.

        Args:
            seconds: by part.
            elapsed: since the tracker was attached.
        """
        self._account = (dict(seconds), elapsed)

    def flush(self) -> None:
        """Write what was taken, dataset by dataset, and the counters last."""
        if not self._file:
            return
        done = self._committed
        if self._rows:
            steps, values, tolerances, statuses, spectra = zip(*self._rows, strict=True)
            self._extend("scalars/step", np.array(steps, np.int64))
            self._extend("scalars/value", np.stack(values))
            self._extend("scalars/tolerance", np.stack(tolerances))
            self._extend("scalars/status", np.stack(statuses))
            if self._spectra:
                self._extend("spectra/value", np.stack(spectra))
        if self._new_names:
            names = [name.encode() for name in self._new_names]
            self._extend("logged/names", np.array(names, dtype=self._file["logged/names"].dtype))
        if self._logged:
            logged_steps, logged_names, logged_values = zip(*self._logged, strict=True)
            self._extend("logged/step", np.array(logged_steps, np.int64))
            self._extend("logged/name", np.array(logged_names, np.int32))
            self._extend("logged/value", np.array(logged_values, np.float64))
        if self._events:
            self._extend("events", np.array(self._events, dtype=EVENT))
        if self._account is not None:
            seconds, elapsed = self._account
            self._replace("overhead/seconds", np.array([seconds.get(part, 0.0) for part in OVERHEAD_PARTS]))
            self._replace("overhead/elapsed", np.array([elapsed]))
        self._committed = Committed(
            done.steps + len(self._rows),
            done.logged + len(self._logged),
            done.names + len(self._new_names),
            done.events + len(self._events),
        )
        if self._committed != done:
            self._replace("committed", np.array(self._committed, np.int64))
        for buffer in (self._rows, self._logged, self._new_names, self._events):
            buffer.clear()
        self._account = None

    def _extend(self, name: str, rows: npt.NDArray[Any]) -> None:
        dataset = self._file[name]
        before = self._written(name)
        dataset.resize(before + len(rows), axis=0)
        dataset[before:] = rows
        dataset.flush()

    def _written(self, name: str) -> int:
        done = self._committed
        if name.startswith(("scalars", "spectra")):
            return done.steps
        if name == "events":
            return done.events
        return done.names if name == "logged/names" else done.logged

    def _replace(self, name: str, values: npt.NDArray[Any]) -> None:
        self._file[name][:] = values
        self._file[name].flush()

    def close(self) -> None:
        """Flush and close the file, and let others write it."""
        if not self._file:
            return
        try:
            self.flush()
        finally:
            self._file.close()
            self._unlock()

    def abandon(self) -> None:
        """Forget what is not flushed and let go, after an error that no flush would survive."""
        for buffer in (self._rows, self._logged, self._new_names, self._events):
            buffer.clear()
        self._account = None
        with contextlib.suppress(Exception):
            self._file.close()
        self._unlock()


def _lay_out(
    file: Any, series: Sequence[Series], spectra: Sequence[SpectrumKey], k: int, attributes: dict[str, Any]
) -> None:
    """Create every dataset of the schema, empty."""
    file.attrs["format"] = FORMAT
    file.attrs["schema_version"] = SCHEMA_VERSION

    def dataset(name: str, data: npt.NDArray[Any], what: str, chunk: int | None = None) -> Any:
        row = int(np.prod(data.shape[1:])) * data.dtype.itemsize
        rows = chunk or chunk_rows(row)
        made = file.create_dataset(
            name,
            data=data,
            maxshape=(None, *data.shape[1:]),
            chunks=(rows, *(max(1, n) for n in data.shape[1:])),
        )
        made.attrs["description"] = what
        return made

    text = np.frombuffer(json.dumps(attributes).encode(), dtype=np.uint8)
    dataset("attributes", text, "UTF-8 JSON: the model, the optimizer, the settings", max(1, len(text)))
    count = len(series)
    step = dataset("scalars/step", np.empty(0, np.int64), "completed optimizer steps")
    step.make_scale("step")
    column = dataset("scalars/series", np.arange(count, dtype=np.int32), "one number followed over the steps")
    column.make_scale("series")
    for field in Series._fields:
        made = dataset(
            f"scalars/{field}", strings([getattr(s, field) for s in series]), f"{field} of a series"
        )
        made.dims[0].attach_scale(column)
    for name, dtype, what in (
        ("value", np.float64, "the number; NaN where undefined, see status"),
        (
            "tolerance",
            np.float64,
            "the threshold in force, in the unit of the weights; NaN where there is none",
        ),
        ("status", np.uint8, "how the value is to be read: index into the attribute words"),
    ):
        made = dataset(f"scalars/{name}", np.empty((0, count), dtype), what)
        made.dims[0].attach_scale(step)
        made.dims[1].attach_scale(column)
    file["scalars/status"].attrs["words"] = list(STATUSES)
    if spectra:
        _lay_out_spectra(file, dataset, spectra, k, step)
    dataset("logged/step", np.empty(0, np.int64), "completed optimizer steps")
    dataset("logged/name", np.empty(0, np.int32), "row of names")
    dataset("logged/value", np.empty(0, np.float64), "the user's own scalar")
    dataset(
        "logged/names", np.empty(0, h5py.string_dtype("utf-8", NAME_BYTES)), "names of the user's scalars", 64
    )
    dataset("events", np.empty(0, EVENT), "what went wrong or deserves to be known", 64)
    dataset("overhead/part", strings(list(OVERHEAD_PARTS)), "where the time went")
    dataset("overhead/seconds", np.zeros(len(OVERHEAD_PARTS)), "seconds spent inside the training loop")
    dataset("overhead/elapsed", np.zeros(1), "seconds since the tracker was attached")
    dataset("committed", np.zeros(4, np.int64), "complete steps, logged scalars, their names, events", 4)


def _lay_out_spectra(file: Any, dataset: Any, spectra: Sequence[SpectrumKey], k: int, step: Any) -> None:
    row = dataset(
        "spectra/spectrum", np.arange(len(spectra), dtype=np.int32), "one spectrum followed over the steps"
    )
    row.make_scale("spectrum")
    index = dataset("spectra/index", np.arange(k, dtype=np.int32), "0 for the largest singular value")
    index.make_scale("index")
    for field in SpectrumKey._fields:
        words = strings([getattr(s, field) for s in spectra])
        dataset(f"spectra/{field}", words, f"{field} of a spectrum").dims[0].attach_scale(row)
    value = dataset(
        "spectra/value",
        np.empty((0, len(spectra), k)),
        "singular values, descending, in the unit of the weights",
    )
    for axis, scale in enumerate((step, row, index)):
        value.dims[axis].attach_scale(scale)


def _check_same(
    file: Any, series: Sequence[Series], spectra: Sequence[SpectrumKey], k: int, path: Path
) -> None:
    def rows(group: str, fields: Sequence[str]) -> list[tuple[str, ...]]:
        return list(zip(*(file[f"{group}/{field}"].asstr()[:] for field in fields), strict=True))

    same = rows("scalars", Series._fields) == [tuple(s) for s in series]
    if "spectra" in file:
        same = same and rows("spectra", SpectrumKey._fields) == [tuple(s) for s in spectra]
        same = same and file["spectra/value"].shape[2] == k
    else:
        same = same and not spectra
    if not same:
        raise RunFileError(
            f"{path} records other layers, metrics, references or tolerances than this tracker would; attach "
            "with the settings it was made with, or choose another name."
        )
