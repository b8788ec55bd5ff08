"""The states that a sweep goes over: each checkpoint in its place, with its step; opened when its turn comes."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zanalysis.analyzers.naming import inert, plain
from zanalysis.checkpoints import Checkpoint, find_checkpoints, open_checkpoints
from zanalysis.checkpoints.names import natural, step_in_name
from zanalysis.errors import InputError, ZAnalysisError
from zanalysis.sweep.journal import fingerprint

__all__ = ["Paths", "State", "found", "states"]

_log = logging.getLogger("zanalysis")

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class State:
    """One state of a network's weights.

    Attributes:
        place: the position of its path, and its own among those the path holds.
        label: how a table names it.
        step: its step.
        fingerprint: what changes when the file does.
        checkpoint: the open checkpoint; None where it could not be read.
        error: why not.
    """

    place: tuple[int, int]
    label: str
    step: int
    fingerprint: str
    checkpoint: Checkpoint | None
    error: ZAnalysisError | None = None


def found(paths: Paths) -> list[Path]:
    """Find the checkpoints.

    Args:
        paths: one checkpoint, several, or folders of them.

    Returns:
        Their paths, folders expanded, in natural order.

    Raises:
        InputError: if nothing was named, or there is none.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    if not isinstance(several, list | tuple) and not hasattr(several, "__iter__"):
        raise InputError(f"got {paths!r}, expected the path of a checkpoint, or several.")
    named = list(several)
    for path in named:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"got {path!r} among the checkpoints, expected a path.")
    checkpoints = find_checkpoints([Path(path) for path in named])
    if not checkpoints:
        raise InputError(
            f"there is no checkpoint in {', '.join(str(path) for path in named) or 'an empty list'}; name a file, or a "
            "folder that holds some."
        )
    # A shell expands `*.pt` so that step 10 comes before step 5.
    return sorted(dict.fromkeys(checkpoints), key=lambda path: natural(str(path)))


def states(paths: Sequence[Path], labels: Sequence[str] | None = None) -> Iterator[State]:
    """Open checkpoints, one when the one before is done with.

    Args:
        paths: as `found` returns them.
        labels: how a table names them; the paths themselves if None.

    Yields:
        Every state, in order. One that cannot be read is named in the log and yields its error.
    """
    for i, path in enumerate(paths):
        label = plain(str(path)) if labels is None else labels[i]
        try:
            mark = fingerprint(path)
            opened = open_checkpoints(path.absolute())
        except (ZAnalysisError, OSError) as error:
            known = (
                error if isinstance(error, ZAnalysisError) else InputError(f"{path} cannot be read: {error}.")
            )
            yield State((i, 0), label, _counted(step_in_name(path), i), "", None, known)
            continue
        for j, checkpoint in enumerate(opened):
            for note in _notes(checkpoint) if j == 0 else ():
                _log.info("%s: %s", inert(label), inert(note))
            step = _counted(checkpoint.step, i if len(opened) == 1 else j)
            yield State((i, j), label, step, f"{mark}:{j}", checkpoint)


def _counted(step: int | None, index: int) -> int:
    return index if step is None else step


def _notes(checkpoint: Checkpoint) -> list[Any]:
    named = ", ".join(checkpoint.placeholders)
    return [*checkpoint.notes, *([f"read as inert placeholders, not imported: {named}"] if named else [])]
