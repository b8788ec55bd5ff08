"""What all figures share: the sheet they are drawn on, the look of a system, legends and captions.

A sheet is a `matplotlib.figure.Figure` that pyplot never hears of: no window, no backend, nothing to close, and
no setting outside it changes. A system keeps its colour, line and marker in every figure, and no two differ by
colour alone, so that they stay apart in grey print and for colour-blind readers (colours of Okabe & Ito 2008).
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, SymmetricalLogLocator

from zanalysis.errors import InputError
from zanalysis.figures.labels import SIZE, fitting

__all__ = [
    "GREY",
    "Sheet",
    "Style",
    "caption",
    "legend",
    "note",
    "over_steps",
    "panels",
    "sheet",
    "single",
    "styles",
    "titled",
]

GREY = "0.35"
_ON_SCREEN = 110
_MOST_SENTENCES = 6


class Sheet(Figure):
    """A figure that pyplot does not know, and that a notebook shows nevertheless."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=_ON_SCREEN)
        return out.getvalue()


@dataclass(frozen=True)
class Style:
    """How one system looks.

    Attributes:
        color: of Okabe and Ito's.
        line: the dashes.
        marker: the shape of its points.
    """

    color: str
    line: Any
    marker: str

    @property
    def of_line(self) -> dict[str, Any]:
        """What `Axes.plot` is to be given for a curve without points."""
        return {"color": self.color, "linestyle": self.line, "linewidth": 1.7}

    @property
    def of_points(self) -> dict[str, Any]:
        """What `Axes.plot` is to be given for a curve with points."""
        return {
            **self.of_line,
            "marker": self.marker,
            "markersize": 5.5,
            "markeredgecolor": "white",
            "markeredgewidth": 0.5,
        }


_STYLES = (
    Style("#0072B2", "-", "o"),
    Style("#D55E00", (0, (5, 1.5)), "s"),
    Style("#000000", (0, (1, 1.2)), "^"),
    Style("#009E73", (0, (6, 1.5, 1, 1.5)), "D"),
    Style("#CC79A7", (0, (3, 1, 1, 1, 1, 1)), "v"),
    Style("#E69F00", (0, (8, 3)), "P"),
    Style("#56B4E9", (0, (2, 2)), "X"),
    Style("#666666", (0, (1, 3)), "p"),
)
_FIXED = {
    "ZerO": 0,
    "Kaiming": 1,
    "standard": 1,
    "random": 1,
    "Xavier": 2,
    "Kaiming with BatchNorm": 2,
    "Fixup": 3,
    "ReZero": 4,
    "SkipInit": 5,
    "ConstNet": 6,
    "ConstNet*": 7,
}


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """Return how systems look: those of the paper always the same, others what is left.

    Args:
        labels: their names; a name may stand more than once.

    Returns:
        A style for each, of which none occurs twice among eight.

    Example:
        >>> styles(["mine", "ZerO"])["ZerO"].color
        '#0072B2'
    """
    names = list(dict.fromkeys(labels))
    taken: dict[str, int] = {}
    for name in names:
        if name in _FIXED and _FIXED[name] not in taken.values():
            taken[name] = _FIXED[name]
    for name in names:
        if name not in taken:
            free = [place for place in range(len(_STYLES)) if place not in taken.values()]
            taken[name] = free[0] if free else len(taken) % len(_STYLES)
    return {name: _STYLES[taken[name]] for name in names}


@contextmanager
def sheet(width: float, height: float) -> Iterator[Sheet]:
    """Make a new sheet; axes added within the block are white with a grid.

    Args:
        width: in inches; 7 is the text width of a page.
        height: in inches.

    Yields:
        The sheet.
    """
    look = {
        **sns.axes_style("whitegrid"), **sns.plotting_context("paper"),
        "grid.color": "0.88", "axes.edgecolor": "0.6", "axes.titlesize": 9.5, "axes.labelsize": 9,
        "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "xtick.bottom": True, "ytick.left": True,
    }  # fmt: skip
    with mpl.rc_context(look):
        yield Sheet(figsize=(width, height), layout="constrained")


def panels(
    axes: Axes | Sequence[Axes] | None, rows: int, columns: int, size: tuple[float, float]
) -> list[Axes]:
    """Return the axes to draw into, row by row: those that were given, or new ones.

    Args:
        axes: as the user gave them.
        rows: how many are needed.
        columns: how many are needed.
        size: of one new panel, in inches.

    Returns:
        `rows * columns` of them.

    Raises:
        InputError: if another number was given.
    """
    count = rows * columns
    if axes is None:
        with sheet(size[0] * columns, size[1] * rows) as figure:
            return list(figure.subplots(rows, columns, squeeze=False).flat)
    given = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).flat)
    if len(given) != count or not all(isinstance(one, Axes) for one in given):
        raise InputError(
            f"got {len(given)} axes, expected {count} matplotlib Axes ({rows} × {columns}); leave axes out to get them."
        )
    return given


def single(axes: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the one axes to draw into: the one given, or a new one.

    Args:
        axes: as the user gave it.
        size: of a new one, in inches.

    Returns:
        The axes.
    """
    return panels(axes, 1, 1, size)[0]


def legend(shown: Sequence[Axes], columns: int = 3) -> None:
    """Put one legend of everything that is labelled in some axes outside of the data.

    Args:
        shown: the axes; it stands above them on a sheet of ours, else right of the last.
        columns: of the legend, at most.
    """
    entries: dict[str, Any] = {}
    for axes in shown:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    # Bounds come last.
    entries = dict(sorted(entries.items(), key=lambda entry: entry[0].startswith("maximum")))
    if not entries:
        return
    figure = shown[0].figure
    given = (list(entries.values()), list(entries))
    if isinstance(figure, Sheet):
        ncols = fitting(list(entries), min(columns, len(entries)), 72 * figure.get_figwidth())
        figure.legend(*given, loc="outside upper center", ncols=ncols, frameon=False, fontsize=SIZE)
    else:
        shown[-1].legend(*given, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=8)


def over_steps(axes: Axes, steps: Iterable[float]) -> None:
    """Lay the horizontal axis out for optimizer steps: logarithmic where the record is, with room for step 0.

    Args:
        axes: the axes.
        steps: every recorded step that is drawn.
    """
    axes.set_xlabel("optimizer steps")
    distinct = np.unique(np.asarray(list(steps), float))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(distinct) < 4 or distinct[-1] <= 0:
        return
    # Records that thin out are drawn so that they stand about evenly.
    if np.median(distinct) < 0.25 * distinct[-1]:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        axes.set_xlim(-0.15, distinct[-1] * 1.15)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(SymmetricalLogLocator(linthresh=1, base=10))
        axes.xaxis.set_major_formatter(FuncFormatter(_count))
        axes.set_xlabel("optimizer steps (log scale)")


def _count(value: float, _: int) -> str:
    return f"{value:,.0f}" if value < 10_000 else f"$10^{{{np.log10(value):.0f}}}$"


def note(axes: Axes, *sentences: str, below: float = 34, width: int = 96) -> None:
    """Write small sentences under some axes: what a reader must know to read them rightly.

    Args:
        axes: the axes.
        *sentences: empty ones are left out.
        below: how far under the axes, in points.
        width: characters in a line.
    """
    said = "\n".join(fill(sentence, width) for sentence in sentences if sentence)
    axes.annotate(
        said, (0, 0), xytext=(0, -below), xycoords="axes fraction", textcoords="offset points",
        ha="left", va="top", fontsize=7, color=GREY, annotation_clip=False,
    )  # fmt: skip


def titled(layer: str) -> str:
    """Return what a layer is called above a panel; a bare number says nothing by itself.

    Args:
        layer: its name.

    Returns:
        A title.

    Example:
        >>> titled("2"), titled("layer2.0.conv1")
        ('layer 2', 'layer2.0.conv1')
    """
    return f"layer {layer}" if layer[:1].isdigit() else layer


def caption(shown: Sequence[Axes], *sentences: str) -> None:
    """Write small sentences under several axes; see `note`.

    Args:
        shown: the axes; on a sheet of ours the sentences stand under all of them, else under the last.
        *sentences: empty ones are left out.
    """
    said = [sentence for sentence in sentences if sentence]
    if len(said) > _MOST_SENTENCES:
        said = [*said[: _MOST_SENTENCES - 1], f"And {len(said) - _MOST_SENTENCES + 1} more like these."]
    figure = shown[0].figure
    if not said:
        return
    if not isinstance(figure, Sheet):
        note(shown[-1], *said)
        return
    width = int(figure.get_figwidth() * 21)
    figure.supxlabel(
        "\n".join(fill(sentence, width) for sentence in said), x=0.01, ha="left", fontsize=7, color=GREY
    )
