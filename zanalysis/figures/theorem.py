"""Figure 3 of the ZerO paper: the rank of the hidden matrix over training, and what bounds it."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from zanalysis.errors import InputError
from zanalysis.figures.canvas import sheet
from zanalysis.figures.files import save_figure
from zanalysis.figures.sources import labelled
from zanalysis.runfile.reader import Run, open_run
from zanalysis.verify.perceptron import Perceptron
from zanalysis.verify.theorem1 import SPAN

__all__ = ["figure_3", "panels_of_figure_3", "save_figure_3"]

Source = Run | str | os.PathLike[str]

_ABSOLUTE = "0.0001"
_BOUND = "0.25"
_NAMES = {
    "identity": "partial identity",
    "hadamard": "Hadamard",
    "random": "random (Kaiming)",
}
_SIZE = (11.0, 4.8)
_COLORS = {"identity": "C0", "hadamard": "C3", "random": "C2"}


def _kind(network: Perceptron) -> str:
    named = network.run.attributes.get("user", {}).get("initialization")
    if named in _NAMES:
        return str(named)
    starts = set(network.starts())
    return "identity" if starts == {"identity"} else "hadamard" if "hadamard" in starts else "random"


def _tracked(network: Perceptron) -> tuple[str, pd.DataFrame]:
    # The last square hidden layer is the one that the paper follows.
    square = [layer["name"] for layer in network.hidden if layer["shape"][0] == layer["shape"][1]]
    if not square:
        raise InputError(f"{network.run.path} has no square hidden layer, which Figure 3 follows.")
    seen = network.over_steps(square[-1])
    if f"rank ({_ABSOLUTE})" not in seen and "rank (default)" not in seen:
        raise InputError(
            f"{network.run.path} has no rank against the identity; record it with reference='identity'."
        )
    return square[-1], seen


def _counted(seen: pd.DataFrame) -> str:
    return "rank at $10^{-4}$" if f"rank ({_ABSOLUTE})" in seen else "rank at the default tolerance"


def _rank(seen: pd.DataFrame) -> pd.Series:
    column = f"rank ({_ABSOLUTE})"
    return seen[column] if column in seen else seen["rank (default)"]


def figure_3(
    left_runs: Sequence[Source], right_runs: Sequence[Source], axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw Figure 3 of the ZerO paper: the rank of the residual of the hidden matrix over training.

    Left: the partial identity at several widths, with the bound N_x. Right: initializations at one
    width. The rank is counted at the absolute tolerance 1e-4, as in the authors' notebook; at that
    tolerance Hadamard's may end under the bound, so what breaks it is drawn beside the rank: the exact
    support of the residual (dotted) and the span of the activations over data (diamonds).

    Args:
        left_runs: runs that start at the partial identity, or their paths.
        right_runs: runs of one width, or their paths.
        axes: two Axes to draw into; a new figure, which pyplot does not know, if None.

    Returns:
        The left and the right Axes.

    Raises:
        InputError: if a panel has no run, or a run has no recorded rank against the identity.
    """
    left = [Perceptron(run if isinstance(run, Run) else open_run(run)) for run in left_runs]
    right = [Perceptron(run if isinstance(run, Run) else open_run(run)) for run in right_runs]
    if not left or not right:
        raise InputError("Figure 3 needs at least one run for each panel.")
    left.sort(key=lambda network: max(network.widths))
    if axes is None:
        with sheet(*_SIZE) as figure:
            axes = list(figure.subplots(1, 2))
    one, two = axes
    _left_panel(one, left)
    _right_panel(two, right)
    for panel in (one, two):
        panel.set_xlabel("optimizer steps")
    one.set_ylabel(f"rank {_subject(left)}")
    two.set_ylabel(f"rank {_subject(right)}, span of activations")
    return one, two


def panels_of_figure_3(runs: Sequence[Source]) -> tuple[list[Run], list[Run]]:
    """Sort runs into the panels of Figure 3.

    Args:
        runs: runs of several initializations and widths, or their paths, or folders of such.

    Returns:
        Those that start at the partial identity, and those of the largest width.

    Raises:
        InputError: if there is none that Figure 3 shows.
    """
    opened = [one for _, one in labelled(list(runs)) if isinstance(one, Run)]
    drawn = [
        run
        for run in opened
        if run.attributes.get("user", {}).get("initialization", "random") in _NAMES
        and run.attributes.get("layers")
    ]
    networks = [Perceptron(run) for run in drawn]
    left = [network.run for network in networks if _kind(network) == "identity"]
    if not left:
        raise InputError(
            "no run starts at the partial identity, whose widths Figure 3 compares; pass such a run too."
        )
    largest = max(max(network.widths) for network in networks)
    return left, [network.run for network in networks if max(network.widths) == largest]


def save_figure_3(
    left_runs: Sequence[Source], right_runs: Sequence[Source], path: str | os.PathLike[str]
) -> None:
    """Draw Figure 3 into a file, with no window and no choice of backend.

    Args:
        left_runs: as for `figure_3`.
        right_runs: as for `figure_3`.
        path: where the picture is to lie; its suffix says of which kind.

    Raises:
        InputError: if a panel has no run, or a run has no recorded rank against the identity.
    """
    save_figure(figure_3(left_runs, right_runs), path, overwrite=True)


def _subject(networks: Sequence[Perceptron]) -> str:
    layers = {_tracked(network)[0] for network in networks}
    layer = min(layers)
    if len(layers) > 1:
        return "of the hidden matrix − αI"
    return f"of $W_{{{layer[1:]}}} - \\alpha I$" if layer.startswith("W") else f"of {layer} − αI"


def _support(seen: pd.DataFrame) -> pd.Series | None:
    sides = ["support_rows", "support_columns"]
    return seen[sides].min(axis=1) if set(sides) <= set(seen) else None


def _spans(network: Perceptron) -> pd.Series | None:
    logged = network.run.logged()
    names = [column for column in map(str, logged.columns) if column.startswith(SPAN)]
    return logged.set_index("step")[names].max(axis=1).dropna() if names else None


def _curve(axes: Axes, values: pd.Series, depth: int, **style: Any) -> None:
    """Draw a curve; the deeper it lies, the wider, so that what coincides with it leaves its edges visible."""
    axes.plot(
        values.index, values, linewidth=1.8 + 2.4 * depth, markersize=4 + 2.6 * depth, clip_on=False,
        zorder=3 - depth / 10, **style,
    )  # fmt: skip


def _horizontal(axes: Axes, lines: Sequence[tuple[int, str, dict[str, Any]]]) -> None:
    """Draw bounds; one line for those of the same height, which names them all."""
    for height in sorted({height for height, _, _ in lines}):
        names = [name for at, name, _ in lines if at == height]
        style = next(style for at, _, style in lines if at == height)
        axes.axhline(height, label=f"{' = '.join(names)} = {height}", zorder=3.5, **style)


def _bounds(networks: Sequence[Perceptron]) -> list[tuple[int, str, dict[str, Any]]]:
    # A bound above N_h bounds nothing, and would flatten all there is to see.
    style = {"color": _BOUND, "linestyle": "--", "linewidth": 1.4}
    width = max(max(network.widths) for network in networks)
    return [
        (n_x, "bound $N_x$", style) for n_x in sorted({network.n_x for network in networks}) if n_x <= width
    ]


def _full(networks: Sequence[Perceptron]) -> list[tuple[int, str, dict[str, Any]]]:
    style = {"color": _BOUND, "linestyle": "-.", "linewidth": 1}
    n_x = min(network.n_x for network in networks)
    widths = sorted({max(network.widths) for network in networks})
    return [
        (width, "full rank $N_h$" if width >= n_x else f"$N_x$ = {n_x} > full rank $N_h$", style)
        for width in widths
    ]


def _cap(networks: Sequence[Perceptron]) -> list[tuple[int, str, dict[str, Any]]]:
    for network in networks:
        cap = (1 << (network.n_x - 1).bit_length()) + network.n_y
        if _kind(network) == "hadamard" and cap < max(network.widths):
            style = {"color": _COLORS["hadamard"], "linestyle": (0, (1, 3)), "linewidth": 1.2}
            return [(cap, "Hadamard: own cap $p + N_y$", style)]
    return []


def _finish(axes: Axes, title: str, columns: int) -> None:
    # The axes reach to the highest curve or bound, with room above for the legend.
    lines = axes.get_lines()
    highest = max(float(np.max(np.asarray(line.get_ydata()))) for line in lines)
    rows = -(-len(lines) // columns)
    axes.set_ylim(bottom=0, top=max(highest, 1) / (0.93 - 0.052 * rows))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=True, fontsize=8.5, loc="upper center", ncols=columns)


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(widths))))


def _left_panel(axes: Axes, networks: Sequence[Perceptron]) -> None:
    colors = sns.color_palette("flare" if len(networks) > 1 else "crest", len(networks))[::-1]
    supports = []
    for i, (network, color) in enumerate(zip(networks, colors, strict=True)):
        _, seen = _tracked(network)
        label = f"{_counted(seen)}, $N_h$ = {max(network.widths)}"
        depth = len(networks) - 1 - i
        _curve(axes, _rank(seen), depth, color=color, marker="osD^vP"[i % 6], label=label)
        if (support := _support(seen)) is not None:
            supports.append(support)
    if supports:
        most = pd.concat(supports, axis=1).max(axis=1)
        label = "exact support" + (", the largest of all $N_h$" if len(supports) > 1 else "")
        axes.plot(most.index, most, ":", color="C0", linewidth=2, label=label, clip_on=False, zorder=4)
    _horizontal(axes, _bounds(networks) or _full(networks))
    widths = [max(network.widths) for network in networks]
    _finish(axes, f"partial identity at $N_h$ = {_listed(widths)}", columns=1 if len(networks) < 4 else 2)


def _right_panel(axes: Axes, networks: Sequence[Perceptron]) -> None:
    order = sorted(networks, key=lambda network: list(_NAMES).index(_kind(network)))
    for i, network in enumerate(order):
        _, seen = _tracked(network)
        kind, depth = _kind(network), sum(_kind(later) != "random" for later in order[i + 1 :])
        color, name = _COLORS[kind], _NAMES[kind]
        _curve(axes, _rank(seen), depth, color=color, marker="o", label=f"{name}: {_counted(seen)}")
        if kind == "random":
            continue
        if (support := _support(seen)) is not None:
            # Dots of one curve stand in the gaps of the other, where both coincide.
            dots = (2.6 * (kind == "hadamard"), (1, 4.2))
            axes.plot(
                support.index, support, color=color, linestyle=dots, linewidth=2, clip_on=False, zorder=4,
                label=f"{name}: exact support",
            )  # fmt: skip
        if (widest := _spans(network)) is not None:
            axes.plot(
                widest.index, widest, linestyle="", marker="D", markersize=6 + 3 * depth,
                markerfacecolor="white", markeredgewidth=1.6, color=color, clip_on=False, zorder=6 - depth / 10,
                label=f"{name}: activation span",
            )  # fmt: skip
    widths = sorted({max(network.widths) for network in networks})
    _horizontal(axes, [*_bounds(networks), *_cap(networks), *_full(networks)])
    _finish(axes, f"initializations at $N_h$ = {_listed(widths)}", columns=2)
