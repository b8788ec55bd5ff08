"""Writing a run to an HDF5 file that a kill cannot spoil."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile.lock import acquire, release
from zanalysis.runfile.memory import STEP_REFUSED, Codes, Floats
from zanalysis.runfile.mounts import network_filesystem
from zanalysis.runfile.opening import check_regular
from zanalysis.runfile.preparing import Contents, create, take_up
from zanalysis.runfile.schema import (
    EVENT,
    EVENT_WIDTHS,
    OVERHEAD_PARTS,
    Committed,
    Initial,
    Kept,
    Series,
    SpectrumKey,
    TensorKey,
    clip_utf8,
    column_name,
)
from zanalysis.runfile.tensor_layout import Compression
from zanalysis.runfile.tensor_writer import TensorWriter

__all__ = ["Mode", "RunWriter"]

Mode = Literal["x", "w", "a"]

_descriptors: dict[int, Path] = {}
"""The files open for writing in this process."""


def _let_go() -> None:
    # Where a forked child ends by exit(), its copy of the HDF5 library closes every file: that would take
    # the marks of SWMR off a file which the parent still writes. From now on the child can only read it.
    for descriptor, path in _descriptors.items():
        with contextlib.suppress(OSError):
            reading = os.open(path, os.O_RDONLY)
            os.dup2(reading, descriptor, inheritable=False)
            os.close(reading)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class RunWriter:
    """One HDF5 run file, open for writing. What was flushed survives a kill of the process.

    Attributes:
        path: where the file lies.
        last_step: the last recorded step, -1 if there is none.
        resumed: whether the file had been there before.
        before: the settings under which the part of the record that is kept was made; None where none is.
        network: the kind of network file system that the file lies on; None for a local one.
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
        initial: Iterable[Initial] = (),
        parts: Sequence[str] = OVERHEAD_PARTS,
        tensors: Sequence[TensorKey] = (),
        compression: Compression | None = None,
    ) -> None:
        """Create the file, or take up an existing one.

        Args:
            path: where the file is to lie; its folder must exist.
            series: what the columns are.
            spectra: what the rows of the spectra are.
            attributes: facts stored with the run, JSON.
            k: how many singular values a spectrum keeps.
            mode: ``"x"`` refuses an existing file, ``"w"`` replaces it, ``"a"`` goes on in it.
            start: with ``"a"``, rows at and after this step are cut. Where that is all there was, the record
                begins anew.
            initial: the weights that the reference ``init`` stands for; a resumed run keeps its own.
            parts: what the account of the time spent is divided into; a resumed run begins a new one.
            tensors: what the raw tensors are.
            compression: of the raw tensors: None, ``"lzf"`` or ``"gzip"``.

        Raises:
            RunFileError: if the file exists, cannot be written, is being written by another
                process, or (mode ``"a"``) is of another shape.
            InputError: if the mode is unknown.
        """
        if mode not in ("x", "w", "a"):
            raise InputError(f"unknown mode {mode!r}; expected 'x' (new), 'w' (replace) or 'a' (go on).")
        self.path = Path(path)
        self._spectra = tuple(spectra)
        self._rows: list[tuple[int, Floats, Floats, Codes, Floats]] = []
        self._logged: list[tuple[int, int, float]] = []
        self._new_names: list[str] = []
        self._events: list[tuple[int, float, bytes, bytes, bytes]] = []
        self._account: tuple[dict[str, float], float] | None = None
        self._refused = False
        self._parts = tuple(parts)
        self.before: dict[str, Any] | None = None
        self._check_place(mode)
        self.network = network_filesystem(self.path)
        self._lock = acquire(self.path)
        self.resumed = mode == "a" and self.path.exists()
        contents = Contents(
            series, spectra, k, dict(attributes or {}), initial, tuple(tensors), compression, tuple(parts)
        )
        try:
            if self.resumed:
                self._file, self.before = take_up(self.path, contents, start)
            else:
                self._file = create(self.path, contents)
        except BaseException as error:
            release(self._lock)
            if isinstance(error, OSError) and not isinstance(error, RunFileError):
                raise RunFileError(f"cannot write {self.path}: {error.strerror or error}.") from error
            raise
        self._committed = Committed(*(int(n) for n in self._file["committed"][:]))
        steps = self._file["scalars/step"]
        self.last_step = int(steps[self._committed.steps - 1]) if self._committed.steps else -1
        self._names = {name: row for row, name in enumerate(self._file["logged/names"].asstr()[:])}
        self._tensors = TensorWriter(self._file, contents.tensors) if contents.tensors else None
        self._descriptor: int = self._file.id.get_vfd_handle()
        _descriptors[self._descriptor] = self.path

    def _check_place(self, mode: Mode) -> None:
        if self.path.is_dir():
            raise RunFileError(f"{self.path} is a folder; pass the name of a file in it, such as run.h5.")
        if not self.path.parent.is_dir():
            raise RunFileError(
                f"cannot write {self.path}: the folder {self.path.parent} does not exist; create it first."
            )
        if self.path.exists():
            check_regular(self.path)
        if mode == "x" and self.path.exists():
            raise RunFileError(
                f"{self.path} exists already, and nothing is overwritten unasked: choose another name, "
                "or pass mode='w' to replace it or mode='a' to go on in it."
            )

    def initial(self) -> Iterator[Initial]:
        """Read the weights that the reference ``init`` stands for. Only before anything is written.

        Yields:
            One layer after the other.
        """
        group = self._file.get("initial", {})
        for index in range(len(group)):
            kept = group[str(index)]
            yield Initial(kept.attrs["layer"], kept.attrs["dtype"], kept[:])

    @property
    def reached(self) -> int:
        """The last step of which anything was taken, numbers or raw tensors; 0 where there is none."""
        return max(0, self.last_step, -1 if self._tensors is None else self._tensors.last_step)

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

    def append_tensors(self, step: int, kept: Sequence[Kept]) -> None:
        """Write the raw tensors of one step; they count from the next flush on.

        Args:
            step: completed optimizer steps, more than at the last call.
            kept: one for each of `tensors`; not needed any more when this returns.

        Raises:
            InputError: if the step does not come after the last one, or a tensor is not what was announced.
        """
        if self._tensors is None:
            raise InputError(f"{self.path} was not made for raw tensors.")
        self._tensors.append(step, kept)

    def drop_tensors(self, steps: int = 1) -> None:
        """Count steps whose raw tensors were dropped.

        Args:
            steps: how many.
        """
        if self._tensors is not None:
            self._tensors.dropped += steps

    def log(self, step: int, name: str, value: float) -> None:
        """Take one scalar of the user's own.

        Args:
            step: completed optimizer steps.
            name: up to 128 bytes; longer ones are cut, and end in a digest. Not ``step``.
            value: the number.
        """
        if name == "step":
            if not self._refused:
                self._refused = True
                self.event(step, "log", STEP_REFUSED)
            return
        name = column_name(name)
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
        self._check_there()
        done = self._committed
        more_tensors = self._tensors is not None and self._tensors.flush()
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
            self._replace("overhead/seconds", np.array([seconds.get(part, 0.0) for part in self._parts]))
            self._replace("overhead/elapsed", np.array([elapsed]))
        more = (len(self._rows), len(self._logged), len(self._new_names), len(self._events))
        if any(more) or more_tensors:
            counts = Committed(*(before + new for before, new in zip(done[:4], more, strict=True)))
            self._committed = counts._replace(size=os.fstat(self._descriptor).st_size)
            self._replace("committed", np.array(self._committed, np.int64))
        for buffer in (self._rows, self._logged, self._new_names, self._events):
            buffer.clear()
        self._account = None

    def _check_there(self) -> None:
        # What is written to a file that has lost its name is written to nowhere.
        there, held = self.path.stat(), os.fstat(self._descriptor)
        if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            raise RunFileError(f"{self.path} is another file by now")

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
            _descriptors.pop(self._descriptor, None)
            self._file.close()
            release(self._lock)

    def abandon(self) -> None:
        """Forget what is not flushed and let go, after an error that no flush would survive."""
        for buffer in (self._rows, self._logged, self._new_names, self._events):
            buffer.clear()
        self._account = None
        if self._tensors is not None:
            self._tensors.forget()
        if not self._file:
            return
        _descriptors.pop(self._descriptor, None)
        # Closing would try to write again, fail again, and crash the interpreter at its end. What HDF5 still
        # holds goes nowhere instead, and the file stays as a kill would have left it.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._descriptor, inheritable=False)
            os.close(nowhere)
        with contextlib.suppress(Exception):
            self._file.close()
        release(self._lock)
