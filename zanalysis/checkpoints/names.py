"""Names of files and tensors: their natural order, and the step that a name tells."""

import re
from pathlib import Path
from typing import Any

__all__ = ["natural", "step_in_name", "valid_step"]

_LONGEST_NUMBER = 18  # digits that surely fit in 64 bits


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return the key that sorts names as people do.

    Args:
        name: of a layer or a file.

    Returns:
        A key for `sorted`.

    Example:
        >>> sorted(["layer.10", "layer.9", "head"], key=natural)
        ['head', 'layer.9', 'layer.10']
    """
    parts = re.split("([0-9]{1,18})", name)
    return [(1, int(part), "") if i % 2 else (0, 0, part) for i, part in enumerate(parts)]


def step_in_name(path: Path) -> int | None:
    """Return the last number in a file's name.

    Args:
        path: the file or folder.

    Returns:
        The number; None if there is none.

    Example:
        >>> step_in_name(Path("runs7/model-v2_step=1500.pt")), step_in_name(Path("runs7/last.ckpt"))
        (1500, None)
    """
    stem = path.name if path.is_dir() else path.stem
    numbers = re.findall("[0-9]+", stem)
    return int(numbers[-1]) if numbers and len(numbers[-1]) <= _LONGEST_NUMBER else None


def valid_step(value: Any) -> int | None:
    """Return what a checkpoint gives as its step, if it can be one.

    Args:
        value: anything.

    Returns:
        A count from 0; None for everything else.

    Example:
        >>> valid_step(3.0), valid_step("12"), valid_step(True), valid_step(-1)
        (3, 12, None, None)
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _LONGEST_NUMBER:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < 1 << 63 else None
