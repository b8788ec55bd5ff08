"""Whether a run shows the greedy low-rank learning trajectory."""

from collections.abc import Sequence
from typing import Any

from zanalysis.errors import NotBuiltYetError
from zanalysis.verify.verdict import Verdict

__all__ = ["verify_glrl"]


def verify_glrl(run: Any, layers: Sequence[str] | None = None, reference: str | None = None) -> Verdict:
    """Judge the trajectory of each recorded spectrum.

    Args:
        run: an open run, or its path.
        layers: which layers; None for all.
        reference: which reference; None for all recorded ones.

    Raises:
        NotBuiltYetError: always, in this version.
    """
    raise NotBuiltYetError("verify_glrl")
