"""The checks of what a tracker is given, each once, at the boundary."""

import json
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from zanalysis.errors import InputError, did_you_mean

__all__ = [
    "TENSORS",
    "check_settings",
    "checked_attributes",
    "checked_path",
    "checked_tensors",
    "logged_number",
]

TENSORS = ("weight", "gradient", "activation", "activation_gradient")


def check_settings(schedule: Any, start: Any, spectrum_size: Any, on_full: Any, flush_seconds: Any) -> None:
    """Check the plain arguments of a tracker.

    Args:
        schedule: a function, or None.
        start: steps completed before.
        spectrum_size: how many singular values a spectrum keeps.
        on_full: ``"block"`` or ``"drop"``.
        flush_seconds: how long a record may wait.

    Raises:
        InputError: if one of them is not what was expected.
    """
    if schedule is not None and not callable(schedule):
        raise InputError(f"got schedule = {schedule!r}, expected a function step -> bool such as every(50).")
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise InputError(f"got start = {start!r}, expected the number of steps completed before, 0 or more.")
    if isinstance(spectrum_size, bool) or not isinstance(spectrum_size, int) or spectrum_size < 1:
        raise InputError(f"got spectrum_size = {spectrum_size!r}, expected a whole number, 1 or more.")
    if on_full not in ("block", "drop"):
        raise InputError(f"got on_full = {on_full!r}, expected 'block' or 'drop'.")
    if not isinstance(flush_seconds, int | float) or not flush_seconds >= 0:
        raise InputError(f"got flush_seconds = {flush_seconds!r}, expected seconds, 0 or more.")


def checked_tensors(tensors: Sequence[str] | str) -> tuple[str, ...]:
    """Return which tensors of a layer are to be followed.

    Args:
        tensors: one name or several.

    Returns:
        The names, each once.

    Raises:
        InputError: if there is none, or an unknown one.
    """
    asked = [tensors] if isinstance(tensors, str) else list(tensors)
    if not asked:
        raise InputError(f"tensors is empty; pass some of {', '.join(TENSORS)}.")
    for tensor in asked:
        if tensor not in TENSORS:
            raise InputError(f"unknown tensor {tensor!r}; {did_you_mean(str(tensor), TENSORS)}")
    return tuple(dict.fromkeys(asked))


def checked_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the facts of the user's own, as they will be read.

    Args:
        attributes: a mapping, or None.

    Returns:
        What JSON makes of it.

    Raises:
        InputError: if JSON cannot hold it.
    """
    try:
        stored: dict[str, Any] = json.loads(json.dumps(dict(attributes or {})))
    except (TypeError, ValueError) as error:
        raise InputError(f"attributes must be what JSON can hold: {error}.") from error
    return stored


def logged_number(name: str, value: Any) -> float:
    """Return what is to be logged as a float.

    Args:
        name: under which name.
        value: a number, or a tensor or array that holds one.

    Returns:
        The number.

    Raises:
        InputError: if it is something else, or named like the axis itself.
    """
    if name == "step":
        raise InputError("the tracker counts the steps itself; choose another name")
    held = value.item() if _is_one(value) else value
    if not isinstance(held, Real):
        raise InputError(f"got {type(value).__name__}, expected one number")
    return float(held)


def _is_one(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, np.ndarray | np.generic) and value.size == 1


def checked_path(path: Any) -> str:
    """Return the name of the run file as text, whatever folder the loop may change to.

    Args:
        path: what was given.

    Returns:
        The name, from the root on.

    Raises:
        InputError: if it is no name of a file.
    """
    try:
        return str(Path(os.fsdecode(path)).absolute())
    except TypeError as error:
        raise InputError(f"got path = {path!r}, expected the name of a file, or None.") from error
