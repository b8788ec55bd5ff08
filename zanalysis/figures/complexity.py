"""Figure 6 of the ZerO paper: how complex trained networks are, by rank, by pruning and by Tucker-2."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from zanalysis.analyzers.naming import Selection
from zanalysis.errors import InputError
from zanalysis.figures.canvas import GREY, Style, caption, legend, panels, styles, titled
from zanalysis.figures.measured import (
    Crossing,
    Curves,
    Measured,
    equal_score,
    higher_is_better,
    read_measured,
    tidy_curves,
)
from zanalysis.figures.recorded import layers_of, trajectories
from zanalysis.figures.sources import RESULTS, Labelled, Sources, against, labelled
from zanalysis.figures.trajectories import METRICS, draw_trajectories, explained

__all__ = ["figure_6"]

Surfaces = Mapping[str, npt.ArrayLike]
_LEVELS = (0.1, 0.25, 0.5, 0.75)


def figure_6(
    runs: Sources,
    pruning: Curves | None = None,
    tucker: Curves | None = None,
    surfaces: Surfaces | None = None,
    *,
    layers: Selection = None,
    reference: str = "init",
    metric: str = "stable_rank",
    score: str = "test accuracy [%]",
    tolerance: float = 1.0,
    axes: Sequence[Axes] | None = None,
) -> tuple[Axes, ...]:
    """Draw Figure 6 of the ZerO paper: kernel rank, pruning, and Tucker-2 of trained networks.

    Above: the rank of a kernel over training with its maximum; the score against the share of each layer's smallest
    weights that is removed; the score against the Tucker-2 ranks of one kernel. Below: the relative error of that
    kernel at every pair of ranks, a heat map for each system, and along the ranks of the curve. Where the scores are
    equal, at the worse of the uncompressed ones less the tolerance, the sparsity and the rank are marked.

    Args:
        runs: the folder of the experiment `figure-6`, which has everything; or runs as for `figure_5`, and the rest:
        pruning: columns system, sparsity and score, or a mapping from systems to what `za.pruning_curve` returns.
        tucker: columns system, rank_out, rank_in, error and score, or a mapping to what `za.tucker_curve` returns.
        surfaces: by system, what `za.tucker2_error_surface` returns.
        layers: which one layer's rank is drawn; the kernel of the Tucker-2 curve, or the first of the last, if None.
        reference: of the rank; see `figure_5`.
        metric: ``"stable_rank"`` or ``"rank"``.
        score: what the scores are; a folder says so itself.
        tolerance: how much of the score may be lost, in its unit.
        axes: six to draw into, row by row; a new figure if None.

    Returns:
        The Axes: rank, pruning, Tucker-2, and two heat maps and the error.

    Raises:
        InputError: if there is nothing to draw, or more than two systems have surfaces.
    """
    measured = _measured(runs, pruning, tucker, surfaces, score)
    if len(measured.surfaces) > 2:
        raise InputError(
            f"got the error surfaces of {len(measured.surfaces)} systems; there is room for two."
        )
    shown = panels(axes, 2, 3, (2.6, 2.7))
    sources = labelled(runs)
    systems = [*(label for label, _ in sources), *measured.pruning["system"], *measured.tucker["system"]]
    look = styles([*systems, *measured.surfaces])
    said = _ranks(shown[0], sources, layers, reference, metric, measured)
    said += _pruning(shown[1], measured, look, tolerance)
    said += _tucker(shown[2], shown[5], measured, look, tolerance)
    _heat_maps(shown[3:5], measured)
    legend(shown[:3], columns=4)
    caption(shown, *said)
    return tuple(shown)


def _measured(
    runs: Sources, pruning: Curves | None, tucker: Curves | None, surfaces: Surfaces | None, score: str
) -> Measured:
    folder = isinstance(runs, str | os.PathLike) and (Path(runs).is_dir() or Path(runs).name == RESULTS)
    if folder and pruning is None and tucker is None:
        return read_measured(runs)  # type: ignore[arg-type]
    return Measured(
        tidy_curves(pruning, ("sparsity", "score")),
        tidy_curves(tucker, ("rank_out", "rank_in", "error", "score")),
        {system: np.asarray(surface, float) for system, surface in (surfaces or {}).items()},
        score,
    )


def _ranks(
    axes: Axes,
    sources: Sequence[Labelled],
    layers: Selection,
    reference: str,
    metric: str,
    measured: Measured,
) -> list[str]:
    names = layers_of(sources, layers)
    if layers is None:
        kernel = (
            str(measured.tucker["layer"].iloc[0])
            if "layer" in measured.tucker and len(measured.tucker)
            else ""
        )
        names = [kernel] if kernel in layers_of(sources, "*") else names[-1:]
    if len(names) != 1:
        raise InputError(
            f"{len(names)} layers were chosen, {', '.join(names[:4])} …; choose one, with layers=…."
        )
    gaps = draw_trajectories(axes, trajectories(sources, names[0], metric, reference), metric)
    axes.set_title(f"{titled(names[0])}\n{against(reference)}", fontsize=8.5)
    return [METRICS.get(metric, ""), *explained(gaps)]


def _nothing(axes: Axes, what: str) -> list[str]:
    axes.annotate(f"{what}\nwas not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center",
                  color=GREY, fontsize=8)  # fmt: skip
    axes.set(xticks=[], yticks=[])
    return []


def _curves(axes: Axes, curves: pd.DataFrame, by: str, value: str, look: Mapping[str, Style]) -> None:
    for system, part in curves.groupby("system", sort=False):
        over = part.groupby(by)[value]
        mean, std = over.mean(), over.std()
        style = look[str(system)]
        axes.plot(mean.index, mean, label=f"_{system}", **{**style.of_points, "markersize": 4})
        if std.notna().any():
            axes.fill_between(mean.index, mean - std, mean + std, color=style.color, alpha=0.18, linewidth=0)


def _pruning(axes: Axes, measured: Measured, look: Mapping[str, Style], tolerance: float) -> list[str]:
    axes.set_title("Magnitude pruning\nof each layer", fontsize=8.5)
    if measured.pruning.empty:
        return _nothing(axes, "pruning")
    table = measured.pruning.assign(percent=100 * measured.pruning["sparsity"])
    _curves(axes, table, "percent", "score", look)
    axes.set_xlabel("weights removed [%]")
    axes.set_ylabel(measured.metric)
    level, crossings = equal_score(
        table, "percent", higher_is_better(measured.metric), tolerance, fewer=False
    )
    _mark(axes, level, crossings, look)
    found = _compared(crossings, "{:.0f} %")
    return [f"Pruned at equal scores ({level:.4g}, the worse of the unpruned less {tolerance:g}): {found}. "
            "The paper: 25 % more for ZerO."]  # fmt: skip


def _tucker(
    axes: Axes, errors: Axes, measured: Measured, look: Mapping[str, Style], tolerance: float
) -> list[str]:
    table = measured.tucker
    layer = str(table["layer"].iloc[0]) if "layer" in table and len(table) else "one kernel"
    axes.set_title(f"Tucker-2 of\n{titled(layer)}", fontsize=8.5)
    errors.set_title("Tucker-2 error\nalong the curve above", fontsize=8.5)
    if table.empty:
        _nothing(errors, "the error of Tucker-2")
        return _nothing(axes, "Tucker-2")
    _curves(axes, table, "rank_out", "score", look)
    _curves(errors, table, "rank_out", "error", look)
    axes.set_ylabel(measured.metric)
    errors.set_ylabel(r"relative error of the kernel")
    errors.set_ylim(bottom=0)
    for panel in (axes, errors):
        panel.set_xlabel("rank over output channels*")
        # The axis falls, so that compression grows to the right as it does beside it.
        panel.set_xlim(table["rank_out"].max() * 1.04, 0)
    level, crossings = equal_score(
        table, "rank_out", higher_is_better(measured.metric), tolerance, fewer=True
    )
    _mark(axes, level, crossings, look)
    full = table["rank_out"].max()
    found = _compared([Crossing(c.system, 100 * c.at / full, c.end) for c in crossings], "{:.0f} %")
    return [
        f"Rank needed at equal scores ({level:.4g}, the worse of the whole less {tolerance:g}), of {full}: "
        f"{found}. The paper: 30 % less for ZerO.",
        "* The rank over input channels falls in proportion; the axis runs from the whole kernel to nothing.",
    ]


def _mark(axes: Axes, level: float, crossings: Sequence[Crossing], look: Mapping[str, Style]) -> None:
    axes.axhline(
        level, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), label="score taken as equal", zorder=1.5
    )
    low = axes.get_ylim()[0]
    axes.set_ylim(bottom=low)
    for crossing in crossings:
        if math.isnan(crossing.at):
            continue
        style = look[crossing.system]
        axes.plot(
            [crossing.at] * 2,
            [low, level],
            color=style.color,
            linestyle=style.line,
            linewidth=1,
            label="_drop",
        )
        axes.plot([crossing.at], [level], marker=style.marker, markersize=8, markerfacecolor="none",
                  markeredgewidth=1.5, color=style.color, linestyle="", label="_equal")  # fmt: skip


def _compared(crossings: Sequence[Crossing], form: str) -> str:
    said = []
    for crossing in crossings:
        if math.isnan(crossing.at):
            said.append(f"{crossing.system} nowhere")
        else:
            said.append(
                f"{crossing.system} {form.format(crossing.at)}{' or further' if crossing.end else ''}"
            )
    return ", ".join(said)


def _heat_maps(shown: Sequence[Axes], measured: Measured) -> None:
    drawn: Any = None
    for axes, system in zip(shown, [*measured.surfaces, *[None] * len(shown)], strict=False):
        if system is None:
            axes.set_title("Tucker-2 error surface", fontsize=8.5)
            _nothing(axes, "another error surface" if measured.surfaces else "the error surface")
            axes.grid(visible=False)
            continue
        surface = np.asarray(measured.surfaces[system], float)
        out, into = surface.shape
        drawn = axes.imshow(surface, origin="lower", extent=(0.5, into + 0.5, 0.5, out + 0.5), vmin=0, vmax=1,
                            cmap="cividis", aspect="auto", interpolation="nearest")  # fmt: skip
        lines = axes.contour(np.arange(1, into + 1), np.arange(1, out + 1), surface, levels=_LEVELS, colors="white",
                             linewidths=0.8) if min(out, into) > 1 else None  # fmt: skip
        if lines is not None:
            axes.clabel(lines, fmt="%g", fontsize=6.5)
        path = measured.tucker[measured.tucker["system"] == system].drop_duplicates(["rank_out", "rank_in"])
        axes.plot(path["rank_in"], path["rank_out"], ".", color="white", markersize=3, label="_curve")
        axes.set_title(f"{system}: error of the kernel\nat every pair of ranks", fontsize=8.5)
        axes.set_xlabel("rank over input channels")
        axes.set_ylabel("rank over output channels")
        axes.grid(visible=False)
    if drawn is not None:
        last = [axes for axes in shown if axes.images][-1]
        bar = last.figure.colorbar(drawn, ax=last, shrink=0.9, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("relative error", fontsize=7.5)
