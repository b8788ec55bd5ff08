"""What stands in a legend: names as they are, in as many columns as find room."""

from collections.abc import Sequence

import numpy as np
from matplotlib.textpath import TextPath

__all__ = ["SIZE", "fitting", "plain"]

SIZE = 8
"""Of a legend's letters, in points."""


def fitting(labels: Sequence[str], most: int, width: float) -> int:
    """Return in how many columns labels of a legend find room.

    Args:
        labels: in their order.
        most: the most columns.
        width: of the sheet, in points.

    Returns:
        The number, 1 or more.
    """
    widths = [TextPath((0, 0), label, size=SIZE).get_extents().width for label in labels]
    for count in range(most, 1, -1):
        columns = np.array_split(np.asarray(widths), count)
        # Beside each text its line, in a legend 2.8 letters long, and between columns two letters.
        taken = sum(column.max() + 4.8 * SIZE for column in columns)
        if taken <= width:
            return count
    return 1


def plain(label: str) -> str:
    r"""Return a name for a legend as it is, which leaves out what begins with an underscore, and reads $ as formulas.

    Args:
        label: the name.

    Returns:
        A label that shows it.

    Example:
        >>> plain("_best"), plain("cost_$")
        (' _best', 'cost_\\$')
    """
    return f"{' ' * label.startswith('_')}{label}".replace("$", r"\$")
