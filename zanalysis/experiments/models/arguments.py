"""Checks of the builders' arguments: each returns what it proved."""

from collections.abc import Iterable
from typing import Any

from zanalysis.errors import InputError, did_you_mean

__all__ = ["choice", "fraction", "image_shape", "patches_of", "whole"]


def whole(name: str, value: Any, least: int = 1) -> int:
    """Check a whole number.

    Args:
        name: of the argument.
        value: what was passed.
        least: the smallest number that makes sense.

    Returns:
        The number.

    Raises:
        InputError: if it is no whole number, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"got {name} = {value!r}, expected a whole number of {least} or more.")
    return value


def fraction(name: str, value: Any) -> float:
    """Check a share, such as a probability of dropping.

    Args:
        name: of the argument.
        value: what was passed.

    Returns:
        The number, in [0, 1).

    Raises:
        InputError: if it is no number, or outside [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"got {name} = {value!r}, expected a number from 0 to just below 1.")
    return float(value)


def choice(name: str, value: Any, known: Iterable[Any]) -> Any:
    """Check one of a few words.

    Args:
        name: of the argument.
        value: what was passed.
        known: the values there are.

    Returns:
        The value.

    Raises:
        InputError: if it is none of them; the nearest is named.
    """
    values = list(known)
    for candidate in values:
        if type(candidate) is type(value) and candidate == value:
            return candidate
    raise InputError(f"unknown {name} {value!r}; {did_you_mean(str(value), map(str, values))}")


def image_shape(image: Any) -> tuple[int, int, int]:
    """Check the shape of one image.

    Args:
        image: channels, height, width.

    Returns:
        The three numbers.

    Raises:
        InputError: if it is not three positive whole numbers.
    """
    sizes = tuple(image) if isinstance(image, tuple | list) else ()
    if len(sizes) != 3 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
        raise InputError(
            f"got image = {image!r}, expected its shape as three whole numbers: channels, height, width."
        )
    return sizes


def patches_of(image: tuple[int, int, int], patch: Any) -> int:
    """Count the square patches that an image is cut into.

    Args:
        image: channels, height, width.
        patch: side of a patch, in pixels.

    Returns:
        How many there are.

    Raises:
        InputError: if the side does not divide height and width; those that do are named.
    """
    _, height, width = image
    side = whole("patch", patch)
    if height % side or width % side:
        fit = [s for s in range(1, min(height, width) + 1) if not height % s and not width % s]
        raise InputError(
            f"patches of {side}×{side} pixels do not tile an image of {height}×{width}; use a side that "
            f"divides both: {', '.join(map(str, fit))}."
        )
    return (height // side) * (width // side)
