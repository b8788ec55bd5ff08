"""Names, types and chunk sizes of schema version 1, shared by writer and reader.

The specification is the docstring of `zanalysis.runfile`.
"""

from typing import NamedTuple

import h5py
import numpy as np

from zanalysis.analyzers.statuses import STATUSES

__all__ = [
    "EVENT",
    "EVENT_WIDTHS",
    "FORMAT",
    "NAME_BYTES",
    "OVERHEAD_PARTS",
    "SCHEMA_VERSION",
    "STATUSES",
    "Committed",
    "Series",
    "SpectrumKey",
    "chunk_rows",
    "clip_utf8",
    "strings",
]

FORMAT = "zanalysis-run"
SCHEMA_VERSION = 1
NAME_BYTES = 128
"""Width of a logged scalar's name."""

OVERHEAD_PARTS = ("metrics", "writing")
"""The parts of the account of the time spent."""

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

_CHUNK_BYTES = 1 << 18


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


class Committed(NamedTuple):
    """How much of a file is complete, in the order of ``/committed``."""

    steps: int
    logged: int
    names: int
    events: int
    size: int = 0


def strings(words: list[str]) -> np.ndarray:
    """Return fixed-width UTF-8 strings, wide enough for the longest.

    Args:
        words: the strings.

    Returns:
        `[len(words)]`, of an HDF5 string dtype.
    """
    encoded = [word.encode() for word in words]
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
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= width:
        return encoded
    return encoded[: width - 3].decode("utf-8", "ignore").encode() + "…".encode()


def chunk_rows(row_bytes: int) -> int:
    """Return how many rows of this size make a chunk of about a quarter of a mebibyte.

    Args:
        row_bytes: size of one row.

    Returns:
        At least 1, at most 1,024.
    """
    return max(1, min(1024, _CHUNK_BYTES // max(1, row_bytes)))
