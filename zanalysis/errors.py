"""The errors a user meets: each says what was wrong, what was expected and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CheckpointError",
    "InputError",
    "RunFileError",
    "ZAnalysisError",
    "did_you_mean",
]


class ZAnalysisError(Exception):
    """Any error that zanalysis raises on purpose."""


class InputError(ZAnalysisError, ValueError):
    """An argument is not of the kind, shape or range that was expected."""


class CheckpointError(InputError):
    """A checkpoint is missing, foreign or damaged, or brings something that is not read."""


class RunFileError(ZAnalysisError, OSError):
    """A run file is missing, foreign, damaged, in use or cannot be written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name what a user may have meant, and everything there is.

    Args:
        name: the word that was not recognized.
        known: the words that would have been.

    Returns:
        A clause to append to an error after a semicolon: the nearest word, if any, then all of them (at
        most 20).

    Example:
        >>> did_you_mean("rnak", ["rank", "support"])
        "did you mean 'rank'? Known: rank, support."
        >>> did_you_mean("loss", ["rank", "support"])
        'known: rank, support.'
    """
    words = list(known)
    near = get_close_matches(name, words, n=1)
    listed = ", ".join(words[:20]) + (f", and {len(words) - 20} more" if len(words) > 20 else "")
    return f"did you mean '{near[0]}'? Known: {listed}." if near else f"known: {listed}."
