"""A run in other hands' formats."""

from typing import Any

from zanalysis.errors import NotBuiltYetError
from zanalysis.runfile.reader import Run

__all__ = ["to_xarray"]


def to_xarray(run: Run) -> Any:
    """Return the run as an xarray dataset with named dimensions.

    Args:
        run: an open run.

    Raises:
        NotBuiltYetError: always, in this version.
    """
    raise NotBuiltYetError("to_xarray")
