"""What the callbacks of several frameworks check alike."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from hooks.arguments import checked_path
from hooks.tracker import RankTracker
from zanalysis.errors import InputError, did_you_mean

__all__ = ["MODES", "check_options", "opening_mode"]

MODES = (None, "x", "w", "a")


def check_options(
    path: str | os.PathLike[str] | None, mode: str | None, options: Mapping[str, Any], own: Sequence[str]
) -> None:
    """Check what a callback was given for the tracker that it will make.

    Args:
        path: the run file, or None.
        mode: how it is opened, or None.
        options: arguments of `RankTracker`.
        own: those that the callback passes by itself.

    Raises:
        InputError: if one of them is unknown, or not the user's to give.
    """
    if path is not None:
        checked_path(path)
    if mode not in MODES:
        raise InputError(f"got mode = {mode!r}, expected 'x', 'w', 'a', or None.")
    known = [name for name in inspect.signature(RankTracker).parameters if name not in own]
    for name in options:
        if name in own:
            raise InputError(f"{name} is what the trainer has, and the callback passes it; leave it out.")
        if name not in known:
            raise InputError(f"unknown argument {name!r} of RankTracker; {did_you_mean(name, known)}")


def opening_mode(mode: str | None, start: int) -> Any:
    """Return how the run file is opened.

    Args:
        mode: what was asked for; None for what suits.
        start: completed steps: more than 0 where a training goes on.

    Returns:
        ``"a"`` where it goes on and nothing else was asked for, else ``"x"``.
    """
    return mode or ("a" if start else "x")
