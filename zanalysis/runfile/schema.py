"""Names, types and chunk sizes of schema version 1, shared by writer and reader.

The specification is the docstring of `zanalysis.runfile`.
"""

from hashlib import sha256
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from zanalysis.analyzers.naming import plain
from zanalysis.analyzers.statuses import STATUSES

__all__ = [
    "EVENT",
    "EVENT_WIDTHS",
    "FORMAT",
    "LIBVER",
    "MOST_DIMENSIONS",
    "NAME_BYTES",
    "OVERHEAD_PARTS",
    "SCHEMA_VERSION",
    "STATUSES",
    "Committed",
    "Initial",
    "Kept",
    "Series",
    "SpectrumKey",
    "TensorKey",
    "chunk_rows",
    "clip_utf8",
    "column_name",
    "plain",
    "strings",
]

FORMAT = "zanalysis-run"
SCHEMA_VERSION = 1
LIBVER = ("v110", "latest")
"""The oldest format that SWMR can be written in, so that tools built with HDF5 1.10 still read every dataset."""
NAME_BYTES = 128
"""Width of a logged scalar's name."""

OVERHEAD_PARTS = ("metrics", "writing")
"""The parts of the account of the time spent, where a writer is given no others."""

_TEXT = 512
EVENT = np.dtype(
    [
        ("step", "<i8"),
        ("time", "<f8"),
        ("kind", h5py.string_dtype("utf-8", 32)),
        ("layer", h5py.string_dtype("utf-8", NAME_BYTES)),
        ("text", h5py.string_dtype("utf-8", _TEXT)),
    ]
)
EVENT_WIDTHS = {"kind": 32, "layer": NAME_BYTES, "text": _TEXT}

_CHUNK_BYTES = 1 << 15
"""A run that has only just begun has one chunk of each dataset, whole."""

MOST_DIMENSIONS = 8
"""Of an activation; its extent has room for no more."""


class Series(NamedTuple):
    """What one column of ``/scalars`` is."""

    layer: str
    tensor: str
    reference: str
    tolerance_rule: str
    metric: str


class SpectrumKey(NamedTuple):
    """What one row of ``/spectra`` is."""

    layer: str
    tensor: str
    reference: str


class TensorKey(NamedTuple):
    """What one raw tensor is that is followed over the steps.

    Attributes:
        layer: the name of the parameter, not of one of its matrices.
        tensor: ``weight``, ``gradient``, ….
        dtype: as torch calls it; empty where it may differ from step to step.
        shape: None where it may differ from step to step.
    """

    layer: str
    tensor: str
    dtype: str = ""
    shape: tuple[int, ...] | None = None


class Kept(NamedTuple):
    """One raw tensor at one step.

    Attributes:
        status: one of `STATUSES`; ``ok`` where there are values.
        dtype: as torch calls it.
        values: in its shape, as `zanalysis.runfile.bits.bits_of` gives it; None where there is none.
    """

    status: str
    dtype: str = ""
    values: npt.NDArray[Any] | None = None


class Initial(NamedTuple):
    """The weights of one layer when the tracker was attached: what the reference ``init`` is.

    Attributes:
        layer: its name.
        dtype: the dtype it is stored in, as torch calls it.
        values: in the layer's own shape; the bits as unsigned integers where numpy lacks the dtype.
    """

    layer: str
    dtype: str
    values: npt.NDArray[Any]


class Committed(NamedTuple):
    """How much of a file is complete, in the order of ``/committed``."""

    steps: int
    logged: int
    names: int
    events: int
    size: int = 0


def column_name(name: str) -> str:
    """Return the name under which a scalar of the user's own is kept: other names, other columns.

    Args:
        name: any name.

    Returns:
        The name; where that has to be cut or escaped, it ends in ``…`` and a digest of the whole.
    """
    kept = plain(name)
    if kept == name and len(kept.encode()) <= NAME_BYTES:
        return kept
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    room = NAME_BYTES - len("…".encode()) - len(digest)
    return kept.encode()[:room].decode("utf-8", "ignore") + "…" + digest


def strings(words: list[str]) -> np.ndarray:
    """Return fixed-width UTF-8 strings, wide enough for the longest.

    Args:
        words: the strings.

    Returns:
        `[len(words)]`, of an HDF5 string dtype.
    """
    encoded = [plain(word).encode() for word in words]
    width = max([1, *map(len, encoded)])
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


def clip_utf8(text: str, width: int) -> bytes:
    """Return the text in at most `width` bytes of valid UTF-8, ending in ``…`` where it was cut.

    Args:
        text: any text.
        width: bytes there is room for.

    Returns:
        The encoded text.
    """
    encoded = plain(text).encode()
    if len(encoded) <= width:
        return encoded
    return encoded[: width - 3].decode("utf-8", "ignore").encode() + "…".encode()


def chunk_rows(row_bytes: int) -> int:
    """Return how many rows of this size make a chunk of about 32 KiB.

    Args:
        row_bytes: size of one row.

    Returns:
        At least 1, at most 512.
    """
    return max(1, min(512, _CHUNK_BYTES // max(1, row_bytes)))
