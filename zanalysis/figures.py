"""Figures: tables of runs in, matplotlib Axes out. Legible in print and on a screen."""

import os
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from zanalysis.errors import InputError
from zanalysis.runfile.reader import Run, open_run
from zanalysis.verify.perceptron import Perceptron
from zanalysis.verify.theorem1 import SPAN

__all__ = ["figure_3"]

Source = Run | str | os.PathLike[str]

_ABSOLUTE = "0.0001"
_BOUND = "0.25"
_NAMES = {
    "identity": "partial identity",
    "hadamard": "Hadamard",
    "random": "random (Kaiming)",
}
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


def _rank(seen: pd.DataFrame) -> pd.Series:
    column = f"rank ({_ABSOLUTE})"
    return seen[column] if column in seen else seen["rank (default)"]


def _bound_line(axes: Axes, networks: Sequence[Perceptron]) -> None:
    for n_x in sorted({network.n_x for network in networks}):
        axes.axhline(n_x, color=_BOUND, linestyle="--", linewidth=1.4, label=f"bound $N_x$ = {n_x}", zorder=1)


def _cap_line(axes: Axes, networks: Sequence[Perceptron]) -> None:
    for network in networks:
        cap = (1 << (network.n_x - 1).bit_length()) + network.n_y
        if _kind(network) == "hadamard" and cap < max(network.widths):
            label = f"Hadamard: own cap $p + N_y$ = {cap}"
            axes.axhline(
                cap, color=_COLORS["hadamard"], linestyle=(0, (1, 3)), linewidth=1.2, label=label, zorder=1
            )
            return


def figure_3(
    left_runs: Sequence[Source], right_runs: Sequence[Source], axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw Figure 3 of the ZerO paper: the rank of the residual of the hidden matrix over training.

    Left: the partial identity at several widths stays under the bound N_x. Right: initializations at
    one width. The rank is counted at the absolute tolerance 1e-4, as in the authors' notebook; at that
    tolerance Hadamard's may end under the bound, so what breaks it is drawn beside the rank: the exact
    support of the residual (dotted) and the span of the activations over data (diamonds).

    Args:
        left_runs: runs that start at the partial identity, or their paths.
        right_runs: runs of one width, or their paths.
        axes: two Axes to draw into; a new figure if None.

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
        with sns.axes_style("whitegrid"):
            _, made = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
        one, two = made
    else:
        one, two = axes
    layer = _left_panel(one, left)
    _right_panel(two, right)
    for panel in (one, two):
        panel.set_xlabel("optimizer steps")
        panel.set_ylim(bottom=0)
    two.set_ylabel("rank, support and span (of $N_h$)")
    one.set_ylabel(
        f"rank of $W_{{{layer.removeprefix('W')}}} - \\alpha I$"
        if layer.startswith("W")
        else f"rank of {layer} − αI"
    )
    return one, two


def _left_panel(axes: Axes, networks: Sequence[Perceptron]) -> str:
    layer = ""
    colors = sns.color_palette("flare" if len(networks) > 1 else "crest", len(networks))[::-1]
    markers = "osD^vP"
    for i, (network, color) in enumerate(zip(networks, colors, strict=True)):
        layer, seen = _tracked(network)
        # The curves often coincide: the later ones are thinner, so that each remains visible.
        style: dict[str, Any] = {"color": color, "linewidth": 2 + 2.5 * (len(networks) - 1 - i)}
        style |= {"marker": markers[i % 6], "markersize": 4 + 3 * (len(networks) - 1 - i)}
        axes.plot(seen.index, _rank(seen), label=f"rank, $N_h$ = {max(network.widths)}", **style)
    supports = [
        seen[["support_rows", "support_columns"]].min(axis=1).rename(network.label)
        for network, seen in ((n, _tracked(n)[1]) for n in networks)
        if "support_rows" in seen
    ]
    if supports:
        most = pd.concat(supports, axis=1).max(axis=1)
        axes.plot(
            most.index, most, ":", color="C0", linewidth=2, label="exact support, every $N_h$ (largest)"
        )
    _bound_line(axes, networks)
    axes.set_title("(ii) partial identity: bounded at every width", fontsize=11)
    axes.legend(frameon=True, fontsize=8.5, loc="best")
    axes.set_ylim(top=1.3 * max(network.n_x for network in networks))
    return layer


def _right_panel(axes: Axes, networks: Sequence[Perceptron]) -> None:
    for network in networks:
        _, seen = _tracked(network)
        kind = _kind(network)
        color, name = _COLORS[kind], _NAMES[kind]
        axes.plot(
            seen.index, _rank(seen), "-o", color=color, linewidth=1.8, markersize=4, label=f"{name}: rank"
        )
        if kind == "random":
            continue
        if "support_rows" in seen:
            support = seen[["support_rows", "support_columns"]].min(axis=1)
            axes.plot(support.index, support, ":", color=color, linewidth=2, label=f"{name}: exact support")
        logged = network.run.logged()
        spans = [column for column in map(str, logged.columns) if column.startswith(SPAN)]
        if spans:
            widest = logged.set_index("step")[spans].max(axis=1).dropna()
            axes.plot(
                widest.index, widest, linestyle="", marker="D", markersize=8, markerfacecolor="white",
                markeredgewidth=1.8, color=color, clip_on=False, zorder=5, label=f"{name}: activation span",
            )  # fmt: skip
    _bound_line(axes, networks)
    _cap_line(axes, networks)
    width = max(max(network.widths) for network in networks)
    axes.axhline(width, color=_BOUND, linestyle="-.", linewidth=1, label=f"full rank $N_h$ = {width}")
    axes.set_title(f"(i), (iii): initializations at $N_h$ = {width}", fontsize=11)
    axes.set_ylim(top=1.5 * width)
    axes.legend(frameon=True, fontsize=8.5, loc="upper center", ncols=2)
