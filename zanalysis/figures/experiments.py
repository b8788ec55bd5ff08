"""Figures of experiments: tidy tables in, one picture out. No window, and no choice of backend, is needed."""

import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["save_bars", "save_complexity", "save_spread", "save_sweep", "save_trajectories"]

Target = str | os.PathLike[str]

_REFERENCES = {
    "none": "the weights themselves",
    "init": "less the initialization",
    "identity": "less the identity",
}


@contextmanager
def _panels(rows: int, columns: int, title: str, path: Target, height: float = 4.2) -> Iterator[Any]:
    # A figure that pyplot does not know needs no display.
    figure = Figure(figsize=(5.2 * columns, height * rows + 0.6), layout="constrained")
    with sns.axes_style("whitegrid"):
        axes = figure.subplots(rows, columns, squeeze=False)
    lines = [wrapped for line in title.splitlines() for wrapped in textwrap.wrap(line, 60 * columns)]
    figure.suptitle("\n".join(lines), fontsize=11)
    yield axes
    figure.savefig(path, dpi=150, format="png")


def _colors(values: pd.DataFrame) -> dict[str, Any]:
    systems = list(dict.fromkeys(values["system"]))
    return dict(zip(systems, sns.color_palette("colorblind", max(len(systems), 1)), strict=False))


def _empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no training has ended", ha="center", va="center", transform=axes.transAxes)


def save_bars(values: pd.DataFrame, curves: pd.DataFrame, metric: str, title: str, path: Target) -> None:
    """Draw the mean of each system, with its deviation and each seed, beside the curves over epochs.

    Args:
        values: columns system, seed, value and paper, the source's number where it is comparable.
        curves: columns system, seed, epoch, value.
        metric: name of the axis.
        title: above the picture.
        path: where it is to lie.
    """
    colors = _colors(curves)
    with _panels(1, 2, title, path) as axes:
        left, right = axes[0]
        for place, (system, part) in enumerate(values.groupby("system", sort=False)):
            color = colors.get(str(system), "C0")
            mean, std = part["value"].mean(), part["value"].std()
            left.bar(place, mean, color=color, alpha=0.55, yerr=None if pd.isna(std) else std, capsize=4)
            left.plot([place] * len(part), part["value"], "o", color=color, markeredgecolor="white")
            if part["paper"].notna().any():
                left.plot(place, part["paper"].iloc[0], "k_", markersize=24)
        names = list(dict.fromkeys(values["system"]))
        left.set_xticks(range(len(names)), names, rotation=25, ha="right")
        if values.empty:
            _empty(left)
        _lines(right, curves, "epoch", "value", colors)
        right.set_xlabel("epoch")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        for panel in (left, right):
            panel.set_ylabel(metric)


def save_sweep(values: pd.DataFrame, what: str, metric: str, title: str, path: Target) -> None:
    """Draw a metric against what is swept, a line for each system.

    Args:
        values: columns system, at, seed, value and paper.
        what: is swept.
        metric: name of the axis.
        title: above the picture.
        path: where it is to lie.
    """
    colors = _colors(values)
    with _panels(1, 1, title, path) as axes:
        panel = axes[0][0]
        _lines(panel, values, "at", "value", colors, marker="o")
        reported = values.dropna(subset=["paper"])
        for system, part in reported.groupby("system", sort=False):
            part = part.drop_duplicates("at").sort_values("at")
            panel.plot(part["at"], part["paper"], "--", color=colors[str(system)], label=f"{system}, source")
        if not reported.empty:
            panel.legend()
        panel.set_xlabel(what)
        panel.set_ylabel(metric)
        panel.set_xticks(sorted(set(values["at"])))


def save_spread(values: pd.DataFrame, metric: str, title: str, path: Target) -> None:
    """Draw every seed of each system, with mean and deviation.

    Args:
        values: columns system, seed, value.
        metric: name of the axis.
        title: above the picture.
        path: where it is to lie.
    """
    colors = _colors(values)
    with _panels(1, 1, title, path) as axes:
        panel = axes[0][0]
        names = []
        for place, (system, part) in enumerate(values.groupby("system", sort=False)):
            mean, std = part["value"].mean(), part["value"].std()
            panel.plot([place] * len(part), part["value"], "o", color=colors[str(system)], alpha=0.7)
            panel.errorbar(place + 0.15, mean, None if pd.isna(std) else std, fmt="D", color="0.2", capsize=5)
            names.append(f"{system}\nstd {std:.2f}, {len(part)} seeds")
        panel.set_xticks(range(len(names)), names)
        panel.set_xlim(-0.6, max(len(names), 1) - 0.4)
        panel.set_ylabel(metric)
        if values.empty:
            _empty(panel)


def save_trajectories(ranks: pd.DataFrame, title: str, path: Target) -> None:
    """Draw stable rank over training: a column for each layer, a row for each reference.

    Args:
        ranks: columns system, seed, step, layer, reference, metric, value.
        title: above the picture.
        path: where it is to lie.
    """
    layers = sorted(set(ranks["layer"])) or [""]
    references = [name for name in _REFERENCES if name in set(ranks["reference"])] or [""]
    colors = _colors(ranks)
    with _panels(len(references), len(layers), title, path, height=3.2) as axes:
        for line, reference in zip(axes, references, strict=True):
            for panel, layer in zip(line, layers, strict=True):
                part = ranks[(ranks["reference"] == reference) & (ranks["layer"] == layer)]
                _lines(panel, part, "step", "value", colors)
                panel.set_xscale("symlog", linthresh=1)
                panel.set_title(f"{layer}, {_REFERENCES.get(reference, reference)}", fontsize=10)
                panel.set_xlabel("optimizer steps")
                panel.set_ylabel("stable rank")


def save_complexity(
    ranks: pd.DataFrame, pruning: pd.DataFrame, tucker: pd.DataFrame, metric: str, title: str, path: Target
) -> None:
    """Draw Figure 6: rank over training, the score against sparsity, and against Tucker-2 ranks.

    Args:
        ranks: columns system, seed, step, layer, reference, metric, value.
        pruning: columns system, seed, share (of weights that are gone), score.
        tucker: columns system, seed, share (of the channels that are kept as ranks), score.
        metric: name of the scores.
        title: above the picture.
        path: where it is to lie.
    """
    colors = _colors(ranks if not ranks.empty else pruning)
    with _panels(1, 3, title, path) as axes:
        left, middle, right = axes[0]
        update = ranks[(ranks["metric"] == "stable_rank") & (ranks["reference"] == "init")]
        _lines(left, update, "step", "value", colors)
        layer = ", ".join(sorted(set(update["layer"])))
        left.set_title(f"{layer}, less the initialization", fontsize=10)
        left.set_xlabel("optimizer steps")
        left.set_ylabel("stable rank")
        _lines(middle, pruning, "share", "score", colors, marker="o")
        middle.set_xlabel("share of each layer's weights set to zero")
        _lines(right, tucker, "share", "score", colors, marker="o")
        right.set_xlabel("Tucker-2 ranks as a share of the channels")
        for panel in (middle, right):
            panel.set_ylabel(metric)


def _lines(axes: Axes, rows: pd.DataFrame, x: str, y: str, colors: dict[str, Any], marker: str = "") -> None:
    """Draw the mean of each system over its seeds, and a band of one deviation around it."""
    if rows.empty:
        _empty(axes)
        return
    for system, part in rows.groupby("system", sort=False):
        over = part.groupby(x)[y]
        mean, std = over.mean(), over.std().fillna(0)
        color = colors[str(system)]
        axes.plot(mean.index, mean, color=color, label=str(system), marker=marker)
        if (std > 0).any():
            axes.fill_between(mean.index, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
    axes.legend(fontsize=9)
