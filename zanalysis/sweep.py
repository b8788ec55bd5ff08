"""Analyzers over checkpoints, steps and layers, to one tidy table."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zanalysis.errors import NotBuiltYetError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["analyze", "compare"]

Path = str | os.PathLike[str]


def analyze(
    paths: Path | Sequence[Path],
    *,
    metrics: Any = ("rank", "stable_rank"),
    reference: Any = None,
    tolerance: Any = "default",
    view: Any = "out",
    layers: Any = None,
) -> "pd.DataFrame":
    """Measure the weights of checkpoints.

    Args:
        paths: one checkpoint, several, or a folder of them.
        metrics: as for `hooks.RankTracker`.
        reference: what is subtracted; ``"init"`` is the first checkpoint in natural order.
        tolerance: as for `rank`.
        view: how a kernel becomes a matrix.
        layers: which layers; None for all.

    Raises:
        NotBuiltYetError: always, in this version.
    """
    raise NotBuiltYetError("analyze")


def compare(a: Path, b: Path) -> "pd.DataFrame":
    """Set two checkpoints side by side, layer by layer.

    Args:
        a: one checkpoint.
        b: the other.

    Raises:
        NotBuiltYetError: always, in this version.
    """
    raise NotBuiltYetError("compare")
