"""Distributed checkpoints of torch (a folder with `.metadata`), put together chunk by chunk.

`.metadata` is a pickle of torch's own dataclasses: sizes and dtypes, the chunks of every tensor, and in which
file, from where and how long each chunk's own `torch.save` lies. All of it is read as inert descriptions.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zanalysis.checkpoints.archives import read_saved
from zanalysis.checkpoints.contents import Checkpoint, StoredTensor
from zanalysis.checkpoints.faults import FaultError, naming, quoted
from zanalysis.checkpoints.folders import member
from zanalysis.checkpoints.globals import DTYPES, Built, Name
from zanalysis.checkpoints.names import natural, step_in_name, valid_step
from zanalysis.checkpoints.places import checked_shape
from zanalysis.checkpoints.rebuilders import Described
from zanalysis.checkpoints.streams import Window
from zanalysis.checkpoints.torchfiles import step_of
from zanalysis.checkpoints.unpickler import MOST_PICKLE_BYTES, Unpickler
from zanalysis.checkpoints.weights import children, find_weights

__all__ = ["describe_distributed"]

_MOST_CHUNKS = 10_000  # of one tensor
_DAMAGED = "is damaged: {}; restore the folder from a copy."


@dataclass(frozen=True)
class _Chunk:
    path: Path
    begin: int
    length: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def read(self, dtype: torch.dtype) -> Tensor:
        with naming(self.path), self.path.open("rb") as file:
            saved = read_saved(self.path, file, self.begin, self.length)
            tensor = saved.root
            if not isinstance(tensor, Described) or (tensor.shape, tensor.dtype) != (self.sizes, dtype):
                raise FaultError(_DAMAGED.format("a chunk is not the tensor that .metadata says"))
            place, why = saved.place(tensor)
            if place is None:
                raise FaultError(f"has a chunk that cannot be read: {why}.")
            return place.read()


@dataclass(frozen=True)
class _Chunked:
    """A tensor in chunks.

    Attributes:
        dtype: of all of them.
        shape: of the whole.
        chunks: they cover it, each element once.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[_Chunk, ...]

    def read(self) -> Tensor:
        whole = torch.empty(self.shape, dtype=self.dtype)
        for chunk in self.chunks:
            where = tuple(slice(at, at + n) for at, n in zip(chunk.offsets, chunk.sizes, strict=True))
            whole[where] = chunk.read(self.dtype)
        return whole


class _Listed(Described):
    """A tensor that `.metadata` lists, with its chunks still to be found."""

    __slots__ = ("chunks", "name")

    def __init__(self, name: str, dtype: torch.dtype | None, shape: Any, chunks: Any) -> None:
        super().__init__(dtype, shape)
        self.name, self.chunks = name, chunks


def describe_distributed(folder: Path) -> Checkpoint:
    """Describe a distributed checkpoint.

    Args:
        folder: that holds `.metadata`.

    Returns:
        Its weights, in natural order.

    Raises:
        FaultError: if it is damaged, or brings what is refused.
    """
    path = member(folder, ".metadata")
    with naming(path), path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        unpickler = Unpickler(Window(file, 0, length, MOST_PICKLE_BYTES))
        top = dict(children(unpickler.load()))
        if not {"state_dict_metadata", "storage_data"} <= top.keys():
            raise FaultError(_DAMAGED.format("it is not the metadata of a distributed checkpoint"))
        stores = _stores(top["storage_data"])
        root = _tree(top["state_dict_metadata"], top.get("planner_data"))
        found = find_weights(root)
        if not found.entries:
            raise FaultError("lists no weights (optimizer state does not count).")
        sizes: dict[str, int] = {}
        tensors = tuple(
            _stored(folder, entry.name, entry.tensor, stores, sizes)
            for entry in sorted(found.entries, key=lambda entry: natural(entry.name))
        )
        step = _step(folder, root, stores, sizes)
    theirs = ("torch.distributed.", "pathlib.")
    strange = tuple(name for name in unpickler.placeholders if not name.startswith(theirs))
    return Checkpoint(
        folder, "dcp", step_in_name(folder) if step is None else step, tensors, strange, tuple(found.notes)
    )


def _stores(storage: Any) -> dict[tuple[str, tuple[int, ...]], dict[str, Any]]:
    pairs = storage.pairs if isinstance(storage, Built) else None
    found = {}
    for index, info in pairs or ():
        key = dict(children(index))
        offset = () if key.get("offset") is None else checked_shape(key["offset"])
        if not isinstance(key.get("fqn"), str):
            raise FaultError(_DAMAGED.format("a chunk has no name"))
        found[key["fqn"], offset] = dict(children(info))
    return found


def _tree(listed: Any, paths: Any) -> Built:
    """Lay out what is listed as the nested mappings it was saved from.

    Args:
        listed: from names to what the metadata says.
        paths: from names to the keys that led there, or nothing.

    Returns:
        The outermost mapping; tensors are `_Listed`, other values the name under which they are stored.
    """
    roads = dict(children(paths)) if isinstance(paths, Built) else {}
    root: dict[str, Any] = {}
    for name, said in children(listed):
        road = roads.get(name, (name,))
        whole = isinstance(road, tuple) and 0 < len(road) < 50 and all(isinstance(k, str | int) for k in road)
        *folders, last = (
            [str(key)[:1000] for key in road if type(key) is not int or abs(key) < 1 << 63]
            if whole
            else [name]
        )
        at = root
        for key in folders:
            inner = at.setdefault(key, {})
            at = inner if isinstance(inner, dict) else {}
        at[last] = _leaf(name, said)
    return _as_built(root)


def _leaf(name: str, said: Any) -> Any:
    facts = dict(children(said))
    if "size" not in facts:
        return name
    properties = facts.get("properties")
    state = properties.state if isinstance(properties, Built) else None
    dtype = state[0] if isinstance(state, tuple) and state else dict(children(properties)).get("dtype")
    known = DTYPES.get(dtype.full) if isinstance(dtype, Name) else None
    return _Listed(name, known, facts["size"], facts.get("chunks"))


def _as_built(mapping: dict[str, Any]) -> Built:
    made = Built("builtins.dict")
    made.pairs = [
        (key, _as_built(child) if isinstance(child, dict) else child) for key, child in mapping.items()
    ]
    return made


def _stored(
    folder: Path, name: str, tensor: Any, stores: dict[Any, Any], sizes: dict[str, int]
) -> StoredTensor:
    why, place = tensor.why, None
    if tensor.dtype is not None:
        chunks = [_chunk(folder, tensor, said, stores, sizes) for said in _listed_chunks(tensor)]
        packed = next((chunk for chunk in chunks if isinstance(chunk, str)), "")
        why = why or packed
        if not packed:
            whole = tuple(chunk for chunk in chunks if isinstance(chunk, _Chunk))
            _check_cover(tensor, whole)
            place = _Chunked(tensor.dtype, tensor.shape, whole)
    status = "skipped" if why else "ok"
    return StoredTensor(name, tensor.shape, tensor.dtype, status, why, path=folder, place=place)


def _listed_chunks(tensor: _Listed) -> list[Any]:
    if not isinstance(tensor.chunks, list) or not 0 < len(tensor.chunks) <= _MOST_CHUNKS:
        raise FaultError(_DAMAGED.format(f"{quoted(tensor.name)} has no list of chunks"))
    return tensor.chunks


def _chunk(
    folder: Path, tensor: _Listed, said: Any, stores: dict[Any, Any], sizes: dict[str, int]
) -> _Chunk | str:
    facts = dict(children(said))
    offsets, shape = checked_shape(facts.get("offsets")), checked_shape(facts.get("sizes"))
    info = stores.get((tensor.name, offsets)) or stores.get((tensor.name, ()))
    if info is None or tensor.dtype is None:
        raise FaultError(_DAMAGED.format(f"a chunk of {quoted(tensor.name)} is in no file"))
    if info.get("transform_descriptors"):
        return "its chunks are compressed"
    path, begin, length = _stretch(folder, info, sizes)
    if math.prod(shape) * tensor.dtype.itemsize > length:
        raise FaultError(
            _DAMAGED.format(f"a chunk of {quoted(tensor.name)} is larger than its place in the file")
        )
    return _Chunk(path, begin, length, offsets, shape)


def _stretch(folder: Path, info: dict[str, Any], sizes: dict[str, int]) -> tuple[Path, int, int]:
    name, begin, length = (info.get(key) for key in ("relative_path", "offset", "length"))
    if not isinstance(name, str) or type(begin) is not int or type(length) is not int:
        raise FaultError(_DAMAGED.format("a chunk has no place"))
    path = member(folder.absolute(), name)
    if name not in sizes:
        with naming(path):
            sizes[name] = path.stat().st_size
    if not (begin >= 0 and length > 0 and begin + length <= sizes[name]):
        raise FaultError(
            f"is truncated or damaged: {quoted(name)} ends before a chunk of it does; restore the folder."
        )
    return path, begin, length


def _check_cover(tensor: _Listed, chunks: tuple[_Chunk, ...]) -> None:
    axes = len(tensor.shape)
    if any(len(chunk.offsets) != axes or len(chunk.sizes) != axes for chunk in chunks):
        raise FaultError(_DAMAGED.format(f"a chunk of {quoted(tensor.name)} has other axes than it"))
    begins = np.array([chunk.offsets for chunk in chunks], dtype=np.int64).reshape(len(chunks), axes)
    ends = begins + np.array([chunk.sizes for chunk in chunks], dtype=np.int64).reshape(len(chunks), axes)
    inside = bool((ends <= np.array(tensor.shape, dtype=np.int64)).all())
    total = sum(math.prod(chunk.sizes) for chunk in chunks)
    filled = [i for i, chunk in enumerate(chunks) if math.prod(chunk.sizes)]
    apart = all(
        not ((begins[i] < ends[filled[k + 1 :]]) & (begins[filled[k + 1 :]] < ends[i])).all(axis=1).any()
        for k, i in enumerate(filled)
    )
    if not inside or not apart or total != math.prod(tensor.shape):
        raise FaultError(_DAMAGED.format(f"the chunks of {quoted(tensor.name)} do not cover it once"))


def _step(folder: Path, root: Built, stores: dict[Any, Any], sizes: dict[str, int]) -> int | None:
    for key, value in children(root):
        if key in ("global_step", "step") and isinstance(value, str) and (value, ()) in stores:
            path, begin, length = _stretch(folder, stores[value, ()], sizes)
            with naming(path), path.open("rb") as file:
                saved = read_saved(path, file, begin, length)
                step = valid_step(saved.root)
                return step_of({"step": saved.root}, saved) if step is None else step
    return None
