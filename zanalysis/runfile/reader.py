"""Reading a run: closed, still being written, or left behind by a killed writer."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from zanalysis.errors import InputError, NotBuiltYetError, RunFileError, did_you_mean
from zanalysis.runfile.repair import SWMR, read_superblock
from zanalysis.runfile.schema import FORMAT, SCHEMA_VERSION, Committed, Series, SpectrumKey
from zanalysis.runfile.tables import Spectra, event_table, logged_table, overhead_table, scalar_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "open_run"]


def open_run(path: str | os.PathLike[str]) -> "Run":
    """Open a run file for reading, also while it is being written or after its writer was killed.

    Args:
        path: the file.

    Returns:
        The run. It holds no file open: every question is answered with what is complete by then.

    Raises:
        RunFileError: if the file is missing, not HDF5, not a run file, damaged, or of a newer schema.
    """
    return Run(path)


class Run:
    """A recorded run.

    Attributes:
        path: where the file lies.
        attributes: the model's structure, the optimizer, the settings, and what the user added.
        series: what is recorded, in the order of the file's columns.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read what does not change over a run.

        Args:
            path: the file.
        """
        self.path = Path(path)
        with self._open() as (file, _):
            self.attributes: dict[str, Any] = json.loads(file["attributes"][:].tobytes())
            self.series = tuple(Series(*row) for row in _rows(file, "scalars", Series._fields))
            self._spectra = tuple(
                SpectrumKey(*row) for row in _rows(file, "spectra", SpectrumKey._fields) if "spectra" in file
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.steps)} steps of {len(self.layers)} layers)"

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Committed]]:
        with _opened(self.path) as file:
            try:
                done = Committed(*(int(n) for n in file["committed"][:]))
                size = self.path.stat().st_size
                if file.swmr_mode and size < done.size:
                    raise RunFileError(_truncated(self.path, size, done.size))
                yield file, done
            except RunFileError:
                raise
            except (KeyError, OSError, RuntimeError, ValueError) as error:
                raise RunFileError(
                    f"{self.path} is damaged: {error}. What can be salvaged is what h5dump still shows."
                ) from error

    def table(self) -> "pd.DataFrame":
        """Return every number recorded so far.

        Returns:
            Columns step, layer, tensor, reference, tolerance_rule, metric, value, tolerance, status;
            value and tolerance float64, in the unit of the metric and of the weights; sorted by step,
            layer, tensor, reference, metric. Empty if nothing is recorded yet.
        """
        with self._open() as (file, done):
            group, n = file["scalars"], done.steps
            arrays = [group[name][:n] for name in ("step", "value", "tolerance", "status")]
        return scalar_table(self.series, *arrays)

    def spectra(self, layer: str, tensor: str = "weight", reference: str | None = None) -> Spectra:
        """Return the recorded singular values of one layer.

        Args:
            layer: its name.
            tensor: ``"weight"``, …
            reference: the name of what was subtracted, None for nothing.

        Returns:
            `.steps` `[T]` and `.values` `[T, k]`, descending, NaN-padded.

        Raises:
            InputError: if no such spectrum was recorded.
        """
        key = SpectrumKey(layer, tensor, reference or "none")
        if key not in self._spectra:
            known = [f"{s.layer} ({s.tensor}, reference {s.reference})" for s in self._spectra]
            raise InputError(
                f"{self.path} has no spectrum of layer {layer!r}, tensor {tensor!r}, reference {key.reference!r}; "
                + (
                    f"it has: {'; '.join(known)}."
                    if known
                    else "record it with metrics=(…, 'singular_values')."
                )
            )
        with self._open() as (file, done):
            return Spectra(
                file["scalars/step"][: done.steps],
                file["spectra/value"][: done.steps, self._spectra.index(key)],
            )

    def logged(self) -> "pd.DataFrame":
        """Return the scalars given to `tracker.log`.

        Returns:
            `step`, then one float64 column for each name; NaN where a name was not logged at a step.
        """
        with self._open() as (file, done):
            group, n = file["logged"], done.logged
            names = group["names"].asstr()[: done.names]
            rows = zip(
                group["step"][:n].tolist(), names[group["name"][:n]], group["value"][:n].tolist(), strict=True
            )
            return logged_table(list(rows))

    @property
    def events(self) -> "pd.DataFrame":
        """What went wrong or deserved to be known: step, time (UTC), kind, layer, text."""
        with self._open() as (file, done):
            rows = [
                (int(step), float(when), kind.decode(), layer.decode(), text.decode())
                for step, when, kind, layer, text in file["events"][: done.events].tolist()
            ]
        return event_table(rows)

    @property
    def overhead(self) -> "pd.DataFrame":
        """What recording cost: part, seconds inside the training loop, share of the elapsed time."""
        with self._open() as (file, _):
            group = file["overhead"]
            seconds = dict(zip(group["part"].asstr()[:], group["seconds"][:].tolist(), strict=True))
            return overhead_table(seconds, float(group["elapsed"][0]))

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """The recorded steps, `[T]`, increasing."""
        with self._open() as (file, done):
            steps: npt.NDArray[np.int64] = file["scalars/step"][: done.steps]
            return steps

    @property
    def layers(self) -> list[str]:
        """The recorded layers, in the order of the model."""
        return list(dict.fromkeys([s.layer for s in self.series] + [s.layer for s in self._spectra]))

    def tensor(self, layer: str, tensor: str = "weight", step: int = 0) -> Any:
        """Return one recorded tensor.

        Args:
            layer: its name.
            tensor: ``"weight"``, …
            step: a recorded step.

        Raises:
            InputError: if the layer is unknown.
            NotBuiltYetError: otherwise: raw tensors come with `hooks.Recorder`.
        """
        if layer not in self.layers:
            raise InputError(f"{self.path} has no layer {layer!r}; {did_you_mean(layer, self.layers)}")
        raise NotBuiltYetError("Run.tensor (raw tensors are recorded by hooks.Recorder)")


def _rows(file: Any, group: str, fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    if group not in file:
        return []
    return list(zip(*(file[f"{group}/{field}"].asstr()[:] for field in fields), strict=True))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a run file whatever state its writer left it in.

    Args:
        path: the file.

    Yields:
        The open `h5py.File`.

    Raises:
        RunFileError: if it is missing, not HDF5, not a run file, damaged, or of a newer schema.
    """
    if path.is_dir():
        raise RunFileError(f"{path} is a folder; pass the path of a run file in it.")
    if not path.exists():
        raise RunFileError(f"{path} does not exist; pass the path given to RankTracker.")
    file = _readable(path)
    with file:
        if file.attrs.get("format") != FORMAT:
            raise RunFileError(
                f"{path} is an HDF5 file, but no run file; pass the path given to RankTracker."
            )
        version = file.attrs.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RunFileError(
                f"{path} has schema version {version}, this zanalysis reads {SCHEMA_VERSION}; "
                "upgrade zanalysis."
            )
        yield file


def _readable(path: Path) -> Any:
    """Open an HDF5 file, plainly or for SWMR reading, whichever its state asks for.

    Args:
        path: the file.

    Returns:
        The open `h5py.File`.

    Raises:
        RunFileError: if it cannot be read.
    """
    # A writer may open or close the file between two looks at it: look again before refusing.
    for attempt in range(_LOOKS):
        if attempt:
            time.sleep(0.02)
        try:
            return h5py.File(path, "r")
        except PermissionError as error:
            raise RunFileError(
                f"cannot read {path}: {error.strerror}; ask for permission to read it."
            ) from error
        except OSError as error:
            failure = error
        superblock = read_superblock(path)
        if superblock is None:
            raise RunFileError(_unreadable(path, failure)) from failure
        size = path.stat().st_size
        if size < superblock.end:
            # Said here, because HDF5 waits for a very long time for metadata that never comes.
            raise RunFileError(_truncated(path, size, superblock.end)) from failure
        if superblock.flags & SWMR:
            try:
                return h5py.File(path, "r", swmr=True)
            except (OSError, ValueError) as error:
                failure = OSError(str(error))
    raise RunFileError(_unreadable(path, failure)) from failure


_LOOKS = 5


def _truncated(path: Path, size: int, expected: int) -> str:
    return f"{path} is truncated: it has {size} bytes of at least {expected}; restore it from a copy."


def _unreadable(path: Path, error: OSError) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        return f"{path} is empty; pass the path of a run file."
    if start != b"\x89HDF\r\n\x1a\n":
        return f"{path} is not an HDF5 file; pass the path given to RankTracker."
    if isinstance(error, BlockingIOError):
        return f"{path} is open for writing in another program; close it there."
    return f"{path} is truncated or damaged ({error}); restore it from a copy."
