"""How large a run file becomes: the schema's own formula."""

import io
from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import h5py

from zanalysis.runfile.layout import lay_out
from zanalysis.runfile.schema import LIBVER, OVERHEAD_PARTS, Series, SpectrumKey, TensorKey
from zanalysis.runfile.tensor_layout import lay_out_tensors

__all__ = ["predicted_size"]


def predicted_size(
    series: Sequence[Series] = (),
    steps: int = 0,
    *,
    spectra: Sequence[SpectrumKey] = (),
    k: int = 16,
    attributes: Mapping[str, Any] | None = None,
    logged: int = 0,
    names: int = 0,
    events: int = 0,
    tensors: Sequence[TensorKey] = (),
    tensor_steps: int = 0,
    varying_bytes: int = 0,
    parts: Sequence[str] = OVERHEAD_PARTS,
) -> int:
    """Return how many bytes a run file will have, written without compression and in one go.

    What an empty file has, and for each dataset that grows `c·(b + 8)`: `c = ⌈rows / rows in a chunk⌉` chunks of `b`
    bytes, which are allocated whole, and an entry of 8 bytes for each in an extensible array, whose blocks grow with
    the square root of their number. In the long run that is 17 bytes for each number and step (value, tolerance,
    status), `8k` for each spectrum, 24 for each logged scalar, and for each raw tensor its bytes and 9 more.

    A run that was resumed is larger by what was cut, as far as that did not lie at the end of the file.

    Args:
        series: what the columns of numbers are.
        steps: how many steps of them are recorded.
        spectra: what the rows of the spectra are.
        k: how many singular values a spectrum keeps.
        attributes: facts stored with the run.
        logged: how many scalars of the user's own are logged.
        names: under how many names.
        events: how many events there are.
        tensors: what the raw tensors are.
        tensor_steps: how many steps of them are recorded.
        varying_bytes: of tensors of no fixed shape, over all steps and all of them.
        parts: what the account of the time spent is divided into.

    Returns:
        Bytes; within 1 % and 16 KiB of what it will be.

    Example:
        >>> columns = [Series(f"layer{i}", "weight", "none", "default", "rank") for i in range(50)]
        >>> round(predicted_size(columns, 10_000) / 1e6)
        9
    """
    with h5py.File(io.BytesIO(), "w", libver=LIBVER) as file:
        lay_out(file, series, spectra, k, dict(attributes or {}), parts)
        lay_out_tensors(file, tensors, None)
        file.flush()
        size: int = file.id.get_filesize()
        rows = {"scalars/step": steps, "logged/names": names, "events": events}
        rows |= dict.fromkeys(
            ("scalars/value", "scalars/tolerance", "scalars/status"), steps if series else 0
        )
        rows |= dict.fromkeys(("logged/step", "logged/name", "logged/value"), logged)
        if spectra:
            rows["spectra/value"] = steps
        if tensors:
            rows |= dict.fromkeys(("tensors/step", "tensors/status", "tensors/extent"), tensor_steps)
        varying = sum(key.shape is None for key in tensors)
        for index, key in enumerate(tensors):
            rows[f"tensors/data/{index}"] = (
                ceil(varying_bytes / varying) if key.shape is None else tensor_steps
            )
        return size + sum(_grown(file[name], count) for name, count in rows.items() if name in file)


def _grown(dataset: Any, rows: int) -> int:
    chunk = dataset.chunks
    parts = prod(ceil(n / c) for n, c in zip(dataset.shape[1:], chunk[1:], strict=True))
    count = ceil(rows / chunk[0]) * parts
    size: int = count * prod(chunk) * dataset.dtype.itemsize
    return size + _index(count)


def _index(chunks: int) -> int:
    """Return the bytes of an extensible array ("HDF5 File Format Specification", VII.C) with so many entries.

    Args:
        chunks: how many.

    Returns:
        Its header, index block, super blocks and data blocks, with HDF5's own parameters.
    """
    if not chunks:
        return 0
    total, left, level = 72 + 318, chunks - 4, 0
    while left > 0:
        blocks, entries = 2 ** (level // 2), 16 * 2 ** ((level + 1) // 2)
        used = min(blocks, ceil(left / entries))
        total += used * (26 + 8 * entries + 4 * (entries // 1024))
        if level >= 4:
            total += 26 + 8 * blocks
        left -= used * entries
        level += 1
    return total
