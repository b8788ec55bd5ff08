"""Safetensors files: a JSON header, checked as strictly as the format asks, then the bytes it describes."""

import json
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch

from zanalysis.checkpoints.contents import Checkpoint, StoredTensor, unfit
from zanalysis.checkpoints.faults import FaultError, quoted
from zanalysis.checkpoints.names import natural, step_in_name, valid_step
from zanalysis.checkpoints.places import Strided, checked_shape, dense_strides

__all__ = ["describe_safetensors", "unique_pairs"]

_MOST_HEADER = 32 << 20  # bytes: some 300,000 tensors
_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
    **{"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64},
}
_DTYPES = {
    **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
    **{"F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz},
    **{"BOOL": torch.bool, "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "U16": torch.uint16},
    **{"I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64},
}


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object, for `json.loads`.

    Args:
        pairs: its keys and values.

    Returns:
        The dict.

    Raises:
        FaultError: if a key is there twice.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        raise FaultError("is damaged: a name is there twice in its JSON; restore it from a copy.")
    return made


def describe_safetensors(path: Path, file: BinaryIO, length: int) -> Checkpoint:
    """Describe a safetensors file.

    Args:
        path: the file.
        file: it, open.
        length: its bytes.

    Returns:
        Its tensors in natural order: the format's writers sort them by dtype and letters.

    Raises:
        FaultError: if the header is damaged, or does not describe exactly the bytes that follow.
    """
    header, start = _header(file, length)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise FaultError("is damaged: its metadata is no mapping; restore it from a copy.")
    stored = []
    stretches = []
    for name in sorted(header, key=natural):
        tensor, stretch = _tensor(path, name, header[name], start, length - start)
        stored.append(tensor)
        stretches.append(stretch)
    _check_cover(sorted(stretches), length - start)
    if not stored:
        raise FaultError("holds no tensors.")
    steps = (valid_step(metadata.get(key)) for key in ("global_step", "step"))
    step = next((step for step in steps if step is not None), None)
    return Checkpoint(path, "safetensors", step_in_name(path) if step is None else step, tuple(stored))


def _header(file: BinaryIO, length: int) -> tuple[dict[str, Any], int]:
    file.seek(0)
    head = file.read(8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= size <= length - 8:
        raise FaultError(
            f"is truncated or no safetensors file: its header should have {size} bytes, {max(length - 8, 0)} "
            "follow; restore it from a copy."
        )
    if size > _MOST_HEADER:
        raise FaultError(f"has a header of {size} bytes; at most {_MOST_HEADER} are read.")
    header = json.loads(file.read(size), object_pairs_hook=unique_pairs)
    if not isinstance(header, dict):
        raise FaultError("is damaged: its header is no mapping; restore it from a copy.")
    return header, 8 + size


def _tensor(path: Path, name: str, entry: Any, start: int, room: int) -> tuple[StoredTensor, tuple[int, int]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FaultError(
            f"is damaged: its header describes no tensor {quoted(name)}; restore it from a copy."
        )
    kind, shape, offsets = entry["dtype"], checked_shape(entry["shape"]), entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _BITS:
        raise FaultError(f"has a tensor {quoted(name)} of an unknown dtype; upgrade zanalysis.")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)):
        raise FaultError(f"is damaged: tensor {quoted(name)} has no place; restore it from a copy.")
    begin, end = offsets
    if not 0 <= begin <= end <= room or (end - begin) * 8 != math.prod(shape) * _BITS[kind]:
        raise FaultError(
            f"is truncated or damaged: tensor {quoted(name)} does not fit the bytes it should lie in; restore "
            "it from a copy."
        )
    dtype = _DTYPES.get(kind)
    why = unfit(dtype) if dtype is not None else f"torch has no dtype {kind}"
    place = (
        None if dtype is None else Strided(path.absolute(), start + begin, dtype, shape, dense_strides(shape))
    )
    status = "skipped" if why else "ok"
    return StoredTensor(name, shape, dtype, status, why, path=path, place=place), (begin, end)


def _check_cover(stretches: list[tuple[int, int]], room: int) -> None:
    at = 0
    for begin, end in stretches:
        if begin != at:
            raise FaultError("is damaged: its tensors overlap or leave gaps; restore it from a copy.")
        at = end
    if at != room:
        raise FaultError(f"is damaged: {room - at} bytes belong to no tensor; restore it from a copy.")
