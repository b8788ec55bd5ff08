"""Between torch tensors and what HDF5 can hold: a dtype that numpy lacks is kept as the bits it is made of."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["DTYPES", "bits_of", "flat_bytes", "tensor_of", "word_of"]

_AS_BITS = {
    "bfloat16": "<u2",
    "float8_e4m3fn": "u1",
    "float8_e4m3fnuz": "u1",
    "float8_e5m2": "u1",
    "float8_e5m2fnuz": "u1",
    "float8_e8m0fnu": "u1",
    "bool": "u1",
}
_OWN = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "uint8": "u1",
    "int8": "i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "complex64": "<c8",
    "complex128": "<c16",
}
DTYPES: dict[str, np.dtype[Any]] = {word: np.dtype(code) for word, code in {**_OWN, **_AS_BITS}.items()}
"""How each dtype, in torch's words, is stored."""


def word_of(dtype: "torch.dtype") -> str:
    """Return the name of a dtype, as torch calls it.

    Args:
        dtype: any.

    Returns:
        Its name without ``torch.``.
    """
    return str(dtype).removeprefix("torch.")


def bits_of(tensor: "Tensor") -> npt.NDArray[Any]:
    """Return a tensor as the array that a file stores.

    Args:
        tensor: of a dtype in `DTYPES`, of any layout, on any device.

    Returns:
        An array of its shape, in C order; the same memory where the tensor is contiguous and on the CPU.

    Example:
        >>> import torch
        >>> bits_of(torch.tensor([1.0, -2.0], dtype=torch.bfloat16)).tolist()
        [16256, 49152]
    """
    import torch

    word = word_of(tensor.dtype)
    held = tensor.detach().cpu().contiguous()
    if word in _OWN:
        return held.numpy()
    bits = torch.uint8 if held.element_size() == 1 else torch.int16
    return held.view(bits).numpy().view(DTYPES[word])


def flat_bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the bytes of an array in C order, without a copy where it has that order.

    Args:
        values: any array.

    Returns:
        uint8 `[bytes]`.
    """
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def tensor_of(word: str, values: npt.NDArray[Any]) -> "Tensor":
    """Return a stored array as a tensor: the inverse of `bits_of`.

    Args:
        word: the dtype, as torch calls it.
        values: as `bits_of` gives it; it must be writable, and it becomes the tensor's memory.

    Returns:
        A tensor of that dtype and shape, on the CPU.

    Example:
        >>> tensor_of("bfloat16", np.array([16256, 49152], np.uint16))
        tensor([ 1., -2.], dtype=torch.bfloat16)
    """
    import torch

    if word in _OWN:
        return torch.from_numpy(values)
    return torch.from_numpy(values.view(f"i{values.itemsize}")).view(getattr(torch, word))
