"""The datasets of raw tensors: how they are chunked, created and found again."""

from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile.bits import DTYPES
from zanalysis.runfile.schema import MOST_DIMENSIONS, STATUSES, TensorKey, chunk_rows, plain, strings

__all__ = [
    "COMPRESSIONS",
    "EXTENT",
    "FLAT_CHUNK",
    "Compression",
    "check_same_tensors",
    "chunk_shape",
    "lay_out_tensors",
    "shorten_tensors",
    "tensor_keys",
]

Compression = Literal["lzf", "gzip"]
COMPRESSIONS = ("lzf", "gzip")

EXTENT = 3 + MOST_DIMENSIONS
"""Numbers that say where a tensor of no fixed shape lies: offset, dtype, number of dimensions, dimensions."""

FLAT_CHUNK = 1 << 16
"""Bytes of a chunk of tensors of no fixed shape."""

_MOST_BYTES = 1 << 26


def chunk_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the chunk of a tensor that is followed over the steps: one step, whole up to 64 MiB.

    Each chunk is written once, at its final place and with its final size. Smaller chunks gain nothing: one
    step of all layers and one layer over all steps are read at the same speed (see `benchmarks/rows_recording.py`).

    Args:
        shape: the tensor's own.
        itemsize: bytes of an element.

    Returns:
        The shape of a chunk of a dataset `[steps, *shape]`.

    Example:
        >>> chunk_shape((1024, 784), 4)
        (1, 1024, 784)
        >>> chunk_shape((50_000, 1024), 4)
        (1, 12500, 1024)
    """
    if not shape:
        return (1,)
    parts = ceil(prod(shape) * itemsize / _MOST_BYTES) or 1
    return (1, max(1, ceil(shape[0] / parts)), *(max(1, n) for n in shape[1:]))


def lay_out_tensors(file: Any, keys: Sequence[TensorKey], compression: Compression | None) -> None:
    """Create the datasets of raw tensors, empty; nothing where none are recorded.

    Args:
        file: an open, new `h5py.File`.
        keys: what is recorded.
        compression: of the tensors.

    Raises:
        InputError: if a dtype or a compression is unknown.
    """
    if compression is not None and compression not in COMPRESSIONS:
        raise InputError(f"unknown compression {compression!r}; expected None, 'lzf' or 'gzip'.")
    if not keys:
        return
    group = file.create_group("tensors")

    def dataset(name: str, data: Any, chunk: int, what: str, **settings: Any) -> Any:
        made = group.create_dataset(
            name,
            data=data,
            maxshape=(None, *data.shape[1:]),
            chunks=(chunk, *data.shape[1:]),
            **settings,
        )
        made.attrs["description"] = what
        return made

    for field in ("layer", "tensor", "dtype"):
        words = strings([getattr(key, field) for key in keys])
        dataset(field, words, len(keys), f"{field} of a raw tensor")
    step = dataset("step", np.empty(0, "<i8"), chunk_rows(8), "completed optimizer steps")
    step.attrs["units"] = "steps"
    step.make_scale("step")
    status = dataset(
        "status", np.empty((0, len(keys)), "u1"), chunk_rows(len(keys)), "index into the attribute words"
    )
    status.attrs["words"] = list(STATUSES)
    status.dims[0].attach_scale(step)
    flat = [index for index, key in enumerate(keys) if key.shape is None]
    if flat:
        dataset("varying", np.array(flat, "<i4"), len(flat), "which of the tensors have no fixed shape")
        what = "offset in bytes, index into the attribute dtypes, number of dimensions, dimensions"
        row = 8 * len(flat) * EXTENT
        extents = dataset("extent", np.empty((0, len(flat), EXTENT), "<i8"), chunk_rows(row), what)
        extents.attrs["dtypes"] = list(DTYPES)
        extents.dims[0].attach_scale(step)
    dataset("committed", np.zeros(2, "<i8"), 2, "complete steps; steps that were dropped")
    filters = {} if compression is None else {"compression": compression, "shuffle": True}
    for index, key in enumerate(keys):
        _lay_out_one(group, str(index), key, step, filters)


def _lay_out_one(group: Any, name: str, key: TensorKey, step: Any, filters: dict[str, Any]) -> None:
    if key.shape is None:
        made = group.create_dataset(
            f"data/{name}", (0,), "u1", maxshape=(None,), chunks=(FLAT_CHUNK,), **filters
        )
    else:
        if key.dtype not in DTYPES:
            raise InputError(f"{key.layer}: a tensor of dtype {key.dtype} cannot be recorded; pass dtype=….")
        stored = DTYPES[key.dtype]
        made = group.create_dataset(
            f"data/{name}",
            (0, *key.shape),
            stored,
            maxshape=(None, *key.shape),
            chunks=chunk_shape(key.shape, stored.itemsize),
            **filters,
        )
        made.dims[0].attach_scale(step)
    made.attrs["layer"], made.attrs["tensor"], made.attrs["dtype"] = plain(key.layer), key.tensor, key.dtype


def tensor_keys(file: Any) -> tuple[TensorKey, ...]:
    """Return which raw tensors a file records.

    Args:
        file: an open run file.

    Returns:
        Them, in the order of the file; empty where there are none.
    """
    if "tensors" not in file:
        return ()
    group = file["tensors"]
    words = zip(*(group[field].asstr()[:] for field in ("layer", "tensor", "dtype")), strict=True)
    varying = set(group["varying"][:].tolist()) if "varying" in group else set()
    return tuple(
        TensorKey(layer, tensor, dtype, None if index in varying else group[f"data/{index}"].shape[1:])
        for index, (layer, tensor, dtype) in enumerate(words)
    )


def check_same_tensors(
    file: Any, keys: Sequence[TensorKey], compression: Compression | None, path: Path
) -> None:
    """Check that a file records the raw tensors that a recorder would.

    Args:
        file: an open run file.
        keys: what is to be recorded.
        compression: of the tensors.
        path: the file's name, for the error.

    Raises:
        RunFileError: if it records something else.
    """
    same = tensor_keys(file) == tuple(key._replace(layer=plain(key.layer)) for key in keys)
    if not same or (keys and file["tensors/data/0"].compression != compression):
        raise RunFileError(
            f"{path} records other layers or tensors, or in another shape, dtype or compression, than this recorder "
            "would; attach with the settings it was made with, or choose another name."
        )


def shorten_tensors(file: Any, start: int) -> None:
    """Cut every raw tensor at and after a step, and what was not committed.

    Args:
        file: an open run file, not in SWMR mode.
        start: the first step that is not kept.
    """
    if "tensors" not in file:
        return
    group = file["tensors"]
    done, dropped = group["committed"][:].tolist()
    keep = int(np.searchsorted(group["step"][:done], start))
    varying = group["varying"][:].tolist() if "varying" in group else []
    ends = flat_ends(group, keep) if varying else []
    for name in ("step", "status", "extent"):
        if name in group:
            group[name].resize(keep, axis=0)
    for index in range(len(group["data"])):
        rows = ends[varying.index(index)] if index in varying else keep
        group[f"data/{index}"].resize(rows, axis=0)
    group["committed"][:] = [keep, dropped]


def flat_ends(group: Any, rows: int) -> list[int]:
    """Return how many bytes of each tensor of no fixed shape belong to the first rows.

    Args:
        group: ``/tensors`` of an open file.
        rows: how many steps.

    Returns:
        Bytes, `[varying]`.
    """
    extent = group["extent"][:rows]
    sizes = np.array([DTYPES[str(word)].itemsize for word in group["extent"].attrs["dtypes"]])
    dimensions = np.where(np.arange(MOST_DIMENSIONS) < extent[..., 2:3], extent[..., 3:], 1)
    count = np.where(extent[..., 2] < 0, 0, dimensions.prod(axis=-1))
    ends = extent[..., 0] + count * sizes[extent[..., 1]]
    return [int(end) for end in ends.max(axis=0, initial=0)]
