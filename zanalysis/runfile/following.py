"""Following a run file while it grows: what is new in it since the last look, and whether it is another by now."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zanalysis.errors import RunFileError
from zanalysis.runfile.opening import ask, check_regular, is_marked
from zanalysis.runfile.reader import settings_of
from zanalysis.runfile.schema import Committed, Series, SpectrumKey

__all__ = ["Description", "News", "Place", "news"]

_LOOKS = 3


class Place(NamedTuple):
    """How far a run file was read.

    Attributes:
        identity: of the file, device and inode.
        done: how much of it was complete.
        print: a fingerprint of its settings and of its last complete row.
    """

    identity: tuple[int, int]
    done: Committed
    print: bytes


@dataclass(frozen=True)
class Description:
    """What does not change over a run, as long as it is not taken up again.

    Attributes:
        attributes: facts stored with the run.
        series: what the columns are.
        spectra: which spectra there are.
    """

    attributes: Mapping[str, Any]
    series: tuple[Series, ...]
    spectra: tuple[SpectrumKey, ...]


@dataclass(frozen=True)
class News:
    """What a look found that the one before had not.

    Attributes:
        place: how far was read now.
        description: None unless everything was read again, because the file is another, or was taken up again.
        steps: int64 `[T]`, the new steps.
        value: float64 `[T, S]`.
        status: uint8 `[T, S]`, codes.
        logged: step, name and value of new scalars of the user's own, in the order of arrival.
        events: step, Unix time, kind, layer and text of what happened.
        raw: how many steps of raw tensors there are, and the last of them; none and -1 at first.
        elapsed: seconds since the writer was attached.
        marked: whether the file carries the marks of a writer, at it or killed.
        modified: when the file was last written, Unix time.
    """

    place: Place
    description: Description | None
    steps: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]
    logged: list[tuple[int, str, float]] = field(default_factory=list)
    events: list[tuple[int, float, str, str, str]] = field(default_factory=list)
    raw: tuple[int, int] = (0, -1)
    elapsed: float = 0.0
    marked: bool = True
    modified: float = 0.0


def news(path: Path, since: Place | None = None) -> News:
    """Read what is new in a run file.

    The file is opened for reading only, for a moment, and without a lock.

    Args:
        path: the file.
        since: how far it was read; None for the first look.

    Returns:
        What is complete now and was not then; everything, with a description, where what was read then is no
        longer what the file begins with.

    Raises:
        RunFileError: if the file is missing, not a run file, damaged, or replaced time and again.
    """
    for _ in range(_LOOKS):
        check_regular(path)
        try:
            before = path.stat()
            # Before the rows: a writer that closes meanwhile has then written all of them.
            marked = is_marked(path)
        except FileNotFoundError:
            continue
        identity = (before.st_dev, before.st_ino)
        known = since if since is not None and since.identity == identity else None
        found = ask(path, partial(_read, known=known, identity=identity))
        try:
            after = path.stat()
        except FileNotFoundError:
            continue
        if (after.st_dev, after.st_ino) == identity:
            return replace(found, marked=marked, modified=before.st_mtime)
    raise RunFileError(f"{path} is being replaced time and again; look again.")


def _read(file: Any, done: Committed, known: Place | None, identity: tuple[int, int]) -> News:
    text = file["attributes"][:].tobytes()
    again = known is None or not _goes_on(file, done, known, text)
    start = Committed(0, 0, 0, 0) if again or known is None else known.done
    place = Place(identity, done, _fingerprint(file, done, text))
    rows = slice(start.steps, done.steps)
    steps, value, status = (file[f"scalars/{name}"][rows] for name in ("step", "value", "status"))
    if len(steps) != done.steps - start.steps:
        raise ValueError("rows are committed that are not there")
    description = None
    if again:
        attributes, series, spectra, _ = settings_of(file, done)
        description = Description(attributes if isinstance(attributes, dict) else {}, series, spectra)
    names = file["logged/names"].asstr()[: done.names]
    new = slice(start.logged, done.logged)
    kept = (file[f"logged/{name}"][new].tolist() for name in ("step", "name", "value"))
    logged = [(step, str(names[row]), value) for step, row, value in zip(*kept, strict=True)]
    events = [
        (int(step), float(when), kind.decode(), layer.decode(), words.decode())
        for step, when, kind, layer, words in file["events"][start.events : done.events].tolist()
    ]
    elapsed = float(file["overhead/elapsed"][0])
    return News(place, description, steps, value, status, logged, events, _raw(file), elapsed)


def _raw(file: Any) -> tuple[int, int]:
    count = int(file["tensors/committed"][0]) if "tensors" in file else 0
    return count, int(file["tensors/step"][count - 1]) if count else -1


def _goes_on(file: Any, done: Committed, known: Place, text: bytes) -> bool:
    grown = all(now >= then for now, then in zip(done[:4], known.done[:4], strict=True))
    return grown and _fingerprint(file, known.done, text) == known.print


def _fingerprint(file: Any, done: Committed, text: bytes) -> bytes:
    digest = sha256(text)
    if done.steps:
        last = done.steps - 1
        digest.update(file["scalars/step"][last].tobytes())
        digest.update(file["scalars/value"][last].tobytes())
    return digest.digest()
