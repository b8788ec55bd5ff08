"""Making a run file, and taking one up again, so that a kill or an error on the way costs nothing.

A new file is made under another name, so that a reader finds all of it or nothing. A file that is taken up
again is cut at the step it goes on from. The cut is worked out over the file as it is, which stays untouched
(see `overlay`); then a small file is copied, the copy cut, and put in its place, so that a program that has the
file open keeps what it opened; a large one, of raw tensors, is cut in place by way of a journal.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from zanalysis.errors import RunFileError
from zanalysis.runfile.change_journal import apply, journal_of, recover, write_journal
from zanalysis.runfile.layout import (
    check_same,
    lay_out,
    lay_out_initial,
    lay_out_overhead,
    same_initial,
)
from zanalysis.runfile.overlay import Overlay
from zanalysis.runfile.repair import check_mendable
from zanalysis.runfile.schema import (
    LIBVER,
    OVERHEAD_PARTS,
    SCHEMA_VERSION,
    Committed,
    Initial,
    Series,
    SpectrumKey,
    TensorKey,
)
from zanalysis.runfile.superblock import SUPERBLOCK_BYTES, without_marks
from zanalysis.runfile.tensor_layout import (
    Compression,
    check_same_tensors,
    lay_out_tensors,
    shorten_tensors,
)

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["COPIED_BYTES", "Contents", "create", "take_up"]

COPIED_BYTES = 64 << 20
"""A larger file is not copied to be taken up again."""

_SETTINGS = (
    "model",
    "layers",
    "optimizers",
    "schedule",
    "probe",
    "jacobian",
    "budget",
    "torch_seed",
    "versions",
    "user",
)
"""What may be otherwise when a run goes on, and is then stored beside what it was."""

_LOOKS, _PAUSE = 10, 0.05  # seconds; a reader locks a closed file while it looks at it
T = TypeVar("T")


@dataclass(frozen=True)
class Contents:
    """What a run file is to hold.

    Attributes:
        series: what the columns of numbers are.
        spectra: what the rows of the spectra are.
        k: how many singular values a spectrum keeps.
        attributes: facts stored with the run.
        initial: the weights that the reference ``init`` stands for.
        tensors: what the raw tensors are.
        compression: of the raw tensors.
        parts: what the account of the time spent is divided into.
    """

    series: Sequence[Series] = ()
    spectra: Sequence[SpectrumKey] = ()
    k: int = 16
    attributes: Mapping[str, Any] = field(default_factory=dict)
    initial: Iterable[Initial] = ()
    tensors: Sequence[TensorKey] = ()
    compression: Compression | None = None
    parts: Sequence[str] = OVERHEAD_PARTS


def create(path: Path, contents: Contents) -> Any:
    """Make a run file, in the place of one that may be there.

    Args:
        path: where it is to lie.
        contents: what it is to hold.

    Returns:
        The open `h5py.File`, in SWMR mode.
    """

    def make(part: Path) -> None:
        with h5py.File(part, "w", libver=LIBVER) as new:
            facts = dict(contents.attributes)
            lay_out(new, contents.series, contents.spectra, contents.k, facts, contents.parts)
            lay_out_initial(new, contents.initial)
            lay_out_tensors(new, contents.tensors, contents.compression)

    file = _under_another_name(path, make)
    journal_of(path).unlink(missing_ok=True)
    return file


def take_up(path: Path, contents: Contents, start: int) -> tuple[Any, dict[str, Any] | None]:
    """Open a run file to go on in it: everything at and after a step goes, and what was not committed.

    Args:
        path: the file; the caller holds its lock.
        contents: what would be recorded into it.
        start: the first step that is not kept.

    Returns:
        The open `h5py.File`, in SWMR mode; and the settings under which the part that is kept was made, None
        where none is.

    Raises:
        RunFileError: if it is no run file, is damaged, records something else, or another program has it open.
    """
    recover(path)
    check_mendable(path)
    with path.open("rb") as raw:
        overlay = Overlay(raw)
        block = raw.read(SUPERBLOCK_BYTES)
        overlay.write(without_marks(block, raw.seek(0, os.SEEK_END)))
        try:
            with h5py.File(overlay, "r+", libver=LIBVER) as file:
                before = _cut(file, path, contents, start)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunFileError(f"{path} is damaged: {error}; choose another name.") from error
        change = overlay.change()
    if path.stat().st_size > COPIED_BYTES:
        _undisturbed(path, lambda: _in_place(path, change))
        return _undisturbed(path, lambda: _opened(path)), before

    def make(part: Path) -> None:
        shutil.copyfile(path, part)
        apply(part, change)

    return _under_another_name(path, make), before


def _under_another_name(path: Path, make: Callable[[Path], None]) -> Any:
    part = path.with_name(f".{path.name}.part")
    file = None
    try:
        make(part)
        file = h5py.File(part, "r+", libver=LIBVER)
        file.swmr_mode = True
        part.replace(path)
    except BaseException:
        if file is not None:
            file.close()
        raise
    finally:
        part.unlink(missing_ok=True)
    return file


def _in_place(path: Path, change: Any) -> None:
    with path.open("rb") as held:
        if fcntl is not None:
            # As HDF5 does: a program that reads the file must not have it changed under its hands.
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_journal(path, change)
        recover(path)


def _opened(path: Path) -> Any:
    # In one stroke: between opening a file and `swmr_mode = True` it bears marks that a kill would leave there,
    # and that cannot be told from those of another program.
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_LATEST)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    return h5py.File(h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE, access))


def _undisturbed(path: Path, act: Callable[[], T]) -> T:
    """Act on a file that nobody else has open; wait a little for those who only look.

    Args:
        path: the file.
        act: fails with `BlockingIOError` where somebody has it open.

    Returns:
        What it returns.

    Raises:
        RunFileError: if somebody has the file open, and keeps it open.
    """
    for _ in range(_LOOKS):
        try:
            return act()
        except BlockingIOError as error:
            failure = error
            time.sleep(_PAUSE)
    raise RunFileError(
        f"{path} is open in another program, and would be changed under its hands; close it there."
    ) from failure


def _cut(file: Any, path: Path, contents: Contents, start: int) -> dict[str, Any] | None:
    if file.attrs.get("schema_version") != SCHEMA_VERSION:
        raise RunFileError(f"{path} is no run file of schema {SCHEMA_VERSION}; choose another name.")
    check_same(file, contents.series, contents.spectra, contents.k, contents.attributes, path)
    check_same_tensors(file, contents.tensors, contents.compression, path)
    before = _take_over(file, path, contents, start)
    lay_out_overhead(file, contents.parts)
    _shorten(file, start)
    shorten_tensors(file, start)
    return before


def _take_over(file: Any, path: Path, contents: Contents, start: int) -> dict[str, Any] | None:
    """Store under which settings the record goes on, beside those of the part that stays.

    Args:
        file: the file, open.
        path: its name.
        contents: what will be recorded, with its settings.
        start: the first step that is not kept.

    Returns:
        The settings of the part that stays; None where none does.

    Raises:
        RunFileError: if the weights are asked for that the run began with, and it did not keep them.
    """
    attributes = contents.attributes
    stored = json.loads(file["attributes"][:].tobytes())
    before = None
    if start <= stored.get("start", 0):
        stored = dict(attributes)
        lay_out_initial(file, contents.initial)
    else:
        if not same_initial(file, contents.initial):
            raise RunFileError(
                f"{path} does not keep the initial weights of these layers, which reference 'init' "
                "needs; choose another name, or pass them as a mapping: reference={name: tensor, …}."
            )
        earlier = [part for part in stored.get("resumed", []) if part["start"] < start]
        before = {**stored, **earlier[-1]} if earlier else dict(stored)
        now = {key: attributes[key] for key in _SETTINGS if key in attributes}
        stored["resumed"] = [*earlier, {**now, "start": start}]
    text = np.frombuffer(json.dumps(stored).encode(), dtype=np.uint8)
    file["attributes"].resize(len(text), axis=0)
    file["attributes"][:] = text
    return before


def _shorten(file: Any, start: int) -> None:
    committed = Committed(*(int(n) for n in file["committed"][:]))
    steps = file["scalars/step"][: committed.steps]
    keep = int(np.searchsorted(steps, start))
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
    file["committed"][:] = Committed(keep, int(early.sum()), committed.names, committed.events)
