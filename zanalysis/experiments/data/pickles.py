"""The pickles of CIFAR, read without running anything that they bring.

They were written by Python 2 with numpy: a dict of the pixels, an array, and the labels, a list of integers.
The stack machine of `zanalysis.checkpoints` turns them into descriptions; here those become arrays.
"""

import io
import math
import warnings
from typing import Any

import numpy as np

from zanalysis.checkpoints.faults import FaultError
from zanalysis.checkpoints.globals import Built
from zanalysis.checkpoints.streams import Window
from zanalysis.checkpoints.unpickler import Unpickler
from zanalysis.errors import ZAnalysisError

__all__ = ["read_batch"]

_BYTES = ("u1", "|u1", "uint8")


def read_batch(content: bytes, where: str) -> dict[str, Any]:
    """Read a dict of arrays of bytes and of lists of integers.

    Args:
        content: the pickle.
        where: what to call it in a message.

    Returns:
        The arrays, uint8, and the lists of integers by name; what is neither is left out.

    Raises:
        ZAnalysisError: if it is damaged, no such dict, or names or calls something that is refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python's own, of a backslash in a name
            made = Unpickler(Window(io.BytesIO(content), 0, len(content), 2 * len(content))).load()
        return _values(made)
    except (FaultError, ValueError, EOFError, OverflowError, RecursionError) as error:
        what = str(error).replace("\n", " ").split(";")[0].rstrip(".")
        raise ZAnalysisError(
            f"{where} is no batch of CIFAR: it {what if isinstance(error, FaultError) else 'is damaged'}. "
            "Nothing in it was run; fetch it again."
        ) from error


def _values(made: Any) -> dict[str, Any]:
    if not isinstance(made, Built) or made.kind != "builtins.dict":
        raise FaultError("holds no dict")
    found: dict[str, Any] = {}
    for key, value in made.pairs or []:
        name = _text(key)
        array = _array(value) if isinstance(value, Built) else None
        if name is None:
            continue
        if array is not None:
            found[name] = array
        elif isinstance(value, list) and all(type(item) is int for item in value):
            found[name] = value
    return found


def _text(value: Any) -> str | None:
    raw = _raw(value)
    return raw if isinstance(raw, str) else raw.decode("latin-1") if raw is not None else None


def _raw(value: Any) -> str | bytes | None:
    # The bytes of Python 2 are texts here, one character each; those of Python 3 at protocol 2 an encoded text.
    if isinstance(value, Built) and value.kind == "_codecs.encode" and value.args:
        value = value.args[0]
    if isinstance(value, bytearray):
        return bytes(value)
    return value if isinstance(value, str | bytes) else None


def _array(made: Built) -> np.ndarray | None:
    short = made.kind.rpartition(".")[2]
    if short == "_reconstruct" and isinstance(made.state, tuple) and len(made.state) == 5:
        _, shape, dtype, columns_first, raw = made.state
    elif short == "_frombuffer" and len(made.args) == 4:
        raw, dtype, shape, order = made.args
        columns_first = order == "F"
    else:
        return None
    content = _raw(raw)
    kind = _text(dtype.args[0]) if isinstance(dtype, Built) and dtype.args else None
    if kind not in _BYTES or content is None or not isinstance(shape, tuple):
        return None
    if not all(type(size) is int and size >= 0 for size in shape):
        raise FaultError("is damaged")
    encoded = content.encode("latin-1") if isinstance(content, str) else content
    if math.prod(shape) != len(encoded):
        raise FaultError("is damaged: an array of it is not as long as it says")
    return np.frombuffer(encoded, np.uint8).reshape(shape, order="F" if columns_first else "C")
