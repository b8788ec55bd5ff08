"""One HTML page of a run."""

import os
from typing import Any

from zanalysis.errors import NotBuiltYetError

__all__ = ["report"]


def report(run: Any, out: str | os.PathLike[str]) -> None:
    """Write one self-contained HTML page of a run.

    Args:
        run: an open run, or its path.
        out: where the page is to lie.

    Raises:
        NotBuiltYetError: always, in this version.
    """
    raise NotBuiltYetError("report")
