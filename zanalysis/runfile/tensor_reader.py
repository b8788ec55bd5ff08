"""Reading raw tensors back, from a file or from memory, in the dtype they were stored in."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zanalysis.analyzers.statuses import CODES, STATUSES
from zanalysis.errors import InputError, did_you_mean
from zanalysis.runfile.bits import DTYPES, tensor_of
from zanalysis.runfile.schema import TensorKey
from zanalysis.runfile.tensor_layout import tensor_keys

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "RecordedTensor",
    "TensorSeries",
    "chosen_steps",
    "described",
    "row_of",
    "stacked",
    "summary",
    "tensor_at",
    "tensors_at",
]

Steps = npt.NDArray[np.int64]


class RecordedTensor(NamedTuple):
    """What was recorded of one raw tensor.

    Attributes:
        layer: the name of the parameter.
        tensor: ``weight``, ``gradient``, ….
        shape: with None for a dimension that differs between steps; None if their number does, or nothing is there.
        dtype: as torch calls it; ``mixed`` if it differs between steps, empty if nothing is there.
        steps: `[T]`, at which it is there.
    """

    layer: str
    tensor: str
    shape: tuple[int | None, ...] | None
    dtype: str
    steps: Steps


class TensorSeries(NamedTuple):
    """One raw tensor over the steps.

    Attributes:
        steps: `[T]`, completed optimizer steps.
        values: `[T, *shape]`, in the dtype it was stored in, on the CPU; a list of T tensors where their shapes or
            dtypes differ.
    """

    steps: Steps
    values: "Tensor | list[Tensor]"


class _Rows(NamedTuple):
    """The steps and statuses of every raw tensor: `[T]` and `[T, N]`."""

    steps: Steps
    status: npt.NDArray[np.uint8]


def _rows(group: Any) -> _Rows:
    done = int(group["committed"][0])
    rows = _Rows(group["step"][:done], group["status"][:done])
    if len(rows.steps) != done or len(rows.status) != done:
        raise ValueError(f"{done} steps of raw tensors are committed, {len(rows.steps)} are there")
    return rows


def _extents(group: Any, rows: int) -> tuple[npt.NDArray[np.int64], list[str], dict[int, int]]:
    extent = group["extent"]
    words = [str(word) for word in extent.attrs["dtypes"]]
    columns = {index: column for column, index in enumerate(group["varying"][:].tolist())}
    return extent[:rows], words, columns


def described(file: Any) -> list[RecordedTensor]:
    """Return what raw tensors a file holds.

    Args:
        file: an open run file.

    Returns:
        One entry for each tensor that is followed, in the order of the file.
    """
    if "tensors" not in file:
        return []
    group = file["tensors"]
    rows, keys = _rows(group), tensor_keys(file)
    found = []
    for index, key in enumerate(keys):
        there = rows.status[:, index] == CODES["ok"]
        shape: tuple[int | None, ...] | None = key.shape
        dtype = key.dtype
        if key.shape is None:
            extent, words, columns = _extents(group, len(rows.steps))
            shape, dtype = summary(
                [_shape_of(one) for one in extent[there, columns[index]]],
                [words[one[1]] for one in extent[there, columns[index]]],
            )
        found.append(RecordedTensor(key.layer, key.tensor, shape, dtype, rows.steps[there]))
    return found


def _shape_of(extent: npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(extent[3 : 3 + extent[2]].tolist())


def summary(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]
) -> tuple[tuple[int | None, ...] | None, str]:
    """Say what the shapes and dtypes of several tensors have in common.

    Args:
        shapes: one for each tensor.
        dtypes: one for each tensor.

    Returns:
        As in `RecordedTensor`.

    Example:
        >>> summary([(8, 10), (3, 10)], ["float32", "float32"])
        ((None, 10), 'float32')
    """
    words = set(dtypes)
    dtype = words.pop() if len(words) == 1 else "mixed" if words else ""
    if len({len(shape) for shape in shapes}) != 1:
        return None, dtype
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)), dtype


def row_of(name: str, keys: Sequence[tuple[str, str]], layer: str, tensor: str) -> int:
    """Find a raw tensor, or say what there is.

    Args:
        name: of the run, for the error.
        keys: layer and tensor of everything recorded.
        layer: what is looked for.
        tensor: what is looked for.

    Returns:
        Its position.

    Raises:
        InputError: if it was not recorded.
    """
    if not keys:
        raise InputError(f"{name} holds no raw tensors; record them with hooks.Recorder.")
    layers = list(dict.fromkeys(known for known, _ in keys))
    if layer not in layers:
        raise InputError(f"{name} has no raw tensors of layer {layer!r}; {did_you_mean(layer, layers)}")
    there = [kind for known, kind in keys if known == layer]
    if tensor not in there:
        raise InputError(f"{name} has no {tensor} of layer {layer!r}; {did_you_mean(tensor, there)}")
    return [tuple(key) for key in keys].index((layer, tensor))


def chosen_steps(name: str, what: str, steps: Steps, codes: Any, wanted: Sequence[int] | None) -> list[int]:
    """Find the rows of the steps that are asked for.

    Args:
        name: of the run, for the error.
        what: which tensor, in words.
        steps: the recorded steps, `[T]`.
        codes: its status at each, `[T]`.
        wanted: steps; None for all at which it is there.

    Returns:
        Row numbers.

    Raises:
        InputError: if it was not recorded at one of them.
    """
    there = np.flatnonzero(np.asarray(codes) == CODES["ok"])
    if wanted is None:
        return [int(row) for row in there]
    found = []
    for step in wanted:
        row = int(np.searchsorted(steps, step))
        if row == len(steps) or steps[row] != step:
            raise InputError(f"{name} has no {what} at step {step}; {_what_there_is(steps[there], step)}.")
        if codes[row] != CODES["ok"]:
            why = STATUSES[codes[row]]
            raise InputError(
                f"{name} has no {what} at step {step} (status {why}); {_what_there_is(steps[there], step)}."
            )
        found.append(row)
    return found


def _what_there_is(steps: Steps, wanted: int) -> str:
    if not len(steps):
        return "no step of it was recorded"
    near = np.unique(
        np.clip([np.searchsorted(steps, wanted) - 1, np.searchsorted(steps, wanted)], 0, len(steps) - 1)
    )
    nearest = " and ".join(str(steps[i]) for i in near)
    return f"the nearest of its {len(steps)} steps, {steps[0]} to {steps[-1]}, are {nearest}"


def tensors_at(
    file: Any, name: str, layer: str, tensor: str, steps: Sequence[int] | None
) -> "tuple[Steps, list[Tensor] | Tensor]":
    """Read one raw tensor at several steps.

    Args:
        file: an open run file.
        name: of the run, for errors.
        layer: its layer.
        tensor: which of the layer's tensors.
        steps: at which; None for all.

    Returns:
        The steps; and `[T, *shape]` where the shape is fixed, else one tensor for each.

    Raises:
        InputError: if it was not recorded, or not at one of the steps.
    """
    keys = tensor_keys(file)
    index = row_of(name, [key[:2] for key in keys], layer, tensor)
    group, key = file["tensors"], keys[index]
    known = _rows(group)
    rows = chosen_steps(name, f"{tensor} of {layer!r}", known.steps, known.status[:, index], steps)
    data = group[f"data/{index}"]
    if key.shape is None:
        extent, words, columns = _extents(group, len(known.steps))
        return known.steps[rows], [_flat(data, extent[row, columns[index]], words) for row in rows]
    return known.steps[rows], tensor_of(key.dtype, _stack(data, key, rows))


def _stack(data: Any, key: TensorKey, rows: Sequence[int]) -> npt.NDArray[Any]:
    assert key.shape is not None
    if len(data) <= max(rows, default=-1):
        raise ValueError(f"{max(rows) + 1} steps of {key.layer} are committed, {len(data)} are there")
    values = np.empty((len(rows), *key.shape), data.dtype)
    start = 0
    while start < len(rows):  # a stretch without gaps in one go
        end = start + 1
        while end < len(rows) and rows[end] == rows[end - 1] + 1:
            end += 1
        data.read_direct(values, np.s_[rows[start] : rows[end - 1] + 1], np.s_[start:end])
        start = end
    return values


def _flat(data: Any, extent: npt.NDArray[np.int64], words: Sequence[str]) -> "Tensor":
    word, shape = words[extent[1]], _shape_of(extent)
    stored = DTYPES[word]
    content = np.empty(int(np.prod(shape, dtype=np.int64)) * stored.itemsize, np.uint8)
    if len(data) < extent[0] + len(content):
        raise ValueError(f"{extent[0] + len(content)} bytes are committed, {len(data)} are there")
    if len(content):
        data.read_direct(content, np.s_[extent[0] : extent[0] + len(content)])
    return tensor_of(word, content.view(stored).reshape(shape))


def tensor_at(file: Any, name: str, layer: str, tensor: str, step: int) -> "Tensor":
    """Read one raw tensor at one step.

    Args:
        file: an open run file.
        name: of the run, for errors.
        layer: its layer.
        tensor: which of the layer's tensors.
        step: a recorded step.

    Returns:
        The tensor.
    """
    return tensors_at(file, name, layer, tensor, [step])[1][0]


def stacked(steps: Steps, values: "list[Tensor] | Tensor") -> TensorSeries:
    """Return one raw tensor over the steps, in one where that is possible.

    Args:
        steps: `[T]`.
        values: what `tensors_at` returns.

    Returns:
        Steps and values.
    """
    import torch

    if isinstance(values, list) and len({(tuple(one.shape), one.dtype) for one in values}) == 1:
        values = torch.stack(values)
    return TensorSeries(steps, values)
