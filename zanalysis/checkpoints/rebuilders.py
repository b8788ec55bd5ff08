"""What stands for torch's tensor rebuilders: each gives a description of a tensor, and reads nothing."""

from collections.abc import Callable
from typing import Any

import torch

from zanalysis.checkpoints.contents import unfit
from zanalysis.checkpoints.faults import FaultError
from zanalysis.checkpoints.globals import DTYPES, STORAGES, Built, Name
from zanalysis.checkpoints.places import checked_shape

__all__ = ["REBUILDERS", "Described", "StorageTag", "storage_tag"]

_LONGEST_KEY = 200
_DAMAGED = "is damaged: {}; restore it from a copy."


class StorageTag:
    """The storage that a persistent id names.

    Attributes:
        dtype: of its elements.
        key: under which the file has it.
        count: its elements, as the pickle says.
        skip: the elements that a view of it begins with; not 0 in legacy files only.
    """

    __slots__ = ("count", "dtype", "key", "skip")

    def __init__(self, dtype: torch.dtype, key: str, count: int, skip: int = 0) -> None:
        self.dtype, self.key, self.count, self.skip = dtype, key, count, skip


class Described:
    """A tensor of a pickle.

    Attributes:
        dtype: as stored.
        shape: its sizes.
        storage: where its numbers are; None where they cannot be read.
        strides: in elements, unchecked.
        offset: in elements, unchecked.
        why: why it cannot be measured, or empty.
    """

    __slots__ = ("dtype", "offset", "shape", "storage", "strides", "why")

    def __init__(
        self,
        dtype: torch.dtype | None,
        shape: Any,
        why: str = "",
        storage: StorageTag | None = None,
        strides: Any = (),
        offset: Any = 0,
    ) -> None:
        self.dtype = dtype
        self.shape = checked_shape(shape)
        self.why = why or unfit(dtype)
        self.storage, self.strides, self.offset = storage, strides, offset


def storage_tag(pid: Any) -> StorageTag | Name:
    """Read a persistent id.

    Args:
        pid: as torch writes it: ``("storage", type, key, location, count)``, in legacy files with a view or
            None behind it, or there ``("module", class, file, source)``.

    Returns:
        The storage's tag; for a module the class's name.

    Raises:
        FaultError: if torch writes nothing like it.
    """
    if isinstance(pid, tuple) and len(pid) == 4 and _text(pid[0]) == "module" and isinstance(pid[1], Name):
        return pid[1]
    if isinstance(pid, tuple) and len(pid) in (5, 6) and _text(pid[0]) == "storage":
        kind, key, count = pid[1], _text(pid[2]), pid[4]
        dtype = STORAGES.get(kind.full.rpartition(".")[2]) if isinstance(kind, Name) else None
        view = pid[5] if len(pid) == 6 else None
        if dtype is not None and key is not None and _counts(count):
            if view is None:
                return StorageTag(dtype, key, count)
            if isinstance(view, tuple) and len(view) == 3 and _counts(view[1]) and _counts(view[2]):
                return StorageTag(dtype, key, count, view[1])
    raise FaultError(_DAMAGED.format("it refers to something that is no storage"))


def _text(value: Any) -> str | None:
    if isinstance(value, str | bytes) and len(value) > _LONGEST_KEY:
        return None
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if type(value) is int and 0 <= value < 1 << 64:
        return str(value)
    return value if isinstance(value, str) else None


def _counts(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _strided(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: Any = None, meta: Any = None
) -> Described:
    if not isinstance(storage, StorageTag):
        raise FaultError(_DAMAGED.format("a tensor has no storage"))
    if isinstance(meta, Built) and meta.pairs:
        return Described(dtype or storage.dtype, shape, "its numbers are stored conjugated or negated")
    return Described(dtype or storage.dtype, shape, "", storage, strides, offset)


def _tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, meta: Any = None
) -> Described:
    return _strided(storage, offset, shape, strides, meta=meta)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    meta: Any = None,
) -> Described:
    return _strided(storage, offset, shape, strides, dtype=_dtype(dtype), meta=meta)


def _dtype(name: Any) -> torch.dtype:
    if isinstance(name, Name) and name.full in DTYPES:
        return DTYPES[name.full]
    raise FaultError(_DAMAGED.format("a tensor has no dtype"))


def _itself(data: Any, *rest: Any) -> Any:
    if not isinstance(data, Described):
        raise FaultError(_DAMAGED.format("a parameter has no tensor"))
    return data


def _of_type(function: Any, kind: Any, args: Any, state: Any) -> Described:
    if (
        isinstance(function, Name)
        and function.full != "torch._tensor._rebuild_from_type_v2"
        and function.full in REBUILDERS
        and isinstance(args, tuple)
    ):
        return REBUILDERS[function.full](*args)
    raise FaultError(_DAMAGED.format("a tensor is made by no rebuilder of torch"))


def _quantized(storage: Any, offset: Any, shape: Any, *rest: Any) -> Described:
    return Described(storage.dtype if isinstance(storage, StorageTag) else None, shape, "it is quantized")


def _sparse(layout: Any, data: Any) -> Described:
    parts = data if isinstance(data, tuple) and len(data) <= 5 else ()
    values = [part for part in parts if isinstance(part, Described)]
    shapes = [part for part in parts if isinstance(part, tuple)]
    if not values or not shapes:
        raise FaultError(_DAMAGED.format("a sparse tensor lacks its parts"))
    return Described(values[-1].dtype, shapes[-1], "it is sparse")


def _nested(data: Any, *rest: Any) -> Described:
    return Described(_itself(data).dtype, (), "it is nested: a list of tensors of several shapes")


def _meta(dtype: Any, shape: Any, *rest: Any) -> Described:
    return Described(_dtype(dtype), shape, "it was saved without its numbers (device meta)")


def _wrapper(kind: Any, dtype: Any, shape: Any, *rest: Any) -> Described:
    what = kind.full if isinstance(kind, Name) else "a subclass"
    return Described(_dtype(dtype), shape, f"it is a {what}, whose numbers are elsewhere")


def _from_numpy(data: Any, dtype: Any, *rest: Any) -> Described:
    return Described(_dtype(dtype), (), "it was saved as a numpy array from another device")


REBUILDERS: dict[str, Callable[..., Described]] = {
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _itself,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_parameter": _itself,
    "torch._utils._rebuild_parameter_with_state": _itself,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_tensor": _strided,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._utils._rebuild_xla_tensor": _from_numpy,
    "torch.nn.parameter.Buffer": _itself,
    "torch.nn.parameter.Parameter": _itself,
}
