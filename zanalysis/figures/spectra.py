"""What the paper lacks: the singular values of a layer over training, as a heat map and as a staircase."""

import math
import os
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from zanalysis.analyzers.naming import selected
from zanalysis.errors import InputError, did_you_mean
from zanalysis.figures.canvas import caption, legend, over_steps, single, titled
from zanalysis.figures.recorded import maximal_rank
from zanalysis.figures.sources import against
from zanalysis.runfile.reader import Run, open_run
from zanalysis.runfile.tables import Spectra
from zanalysis.verify.verdict import Verdict

__all__ = ["FLOOR", "LINES", "Source", "opened", "shades", "spectrum_heatmap", "staircase"]

Source = Run | str | os.PathLike[str]
Array = npt.NDArray[np.float64]
FLOOR = 1e-8
"""Below this share of the largest, a singular value of float32 weights is rounding."""
LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))


def opened(run: Source) -> Run:
    """Return an open run.

    Args:
        run: a run, or the path of one.

    Returns:
        The run.
    """
    return run if isinstance(run, Run) else open_run(run)


def _spectrum(run: Run, layer: str | None, tensor: str, reference: str | None) -> tuple[str, str, Spectra]:
    """Find a recorded spectrum.

    Args:
        run: the run.
        layer: a name or glob; the only layer if None.
        tensor: of which tensor.
        reference: what was subtracted; the update since the start, else the first that is recorded, if None.

    Returns:
        The layer, the reference and the spectrum.

    Raises:
        InputError: if there is none, or more than one layer.
    """
    own = [key for key in run.spectrum_keys if key.tensor == tensor]
    names = list(dict.fromkeys(key.layer for key in own))
    if not names:
        raise InputError(
            f"{run.path} has no spectrum of a {tensor}; record it with metrics=(…, 'singular_values')."
        )
    if layer is None and len(names) > 1:
        raise InputError(
            f"{run.path} has spectra of {len(names)} layers; choose one: {', '.join(names[:20])}."
        )
    name = names[0] if layer is None else layer
    chosen = selected(name, dict.fromkeys(names))  # type: ignore[arg-type]
    if len(chosen) > 1:
        raise InputError(f"{name!r} stands for {len(chosen)} layers, {', '.join(chosen[:20])}; choose one.")
    references = [key.reference for key in own if key.layer == chosen[0]]
    which = reference or ("init" if "init" in references else references[0])
    if which not in references:
        raise InputError(
            f"{run.path} has no spectrum of {chosen[0]!r} against {which!r}; {did_you_mean(which, references)}"
        )
    found = run.spectra(chosen[0], tensor, which)
    # A file has room for more values than a small matrix has.
    width = int(np.isfinite(found.values).any(axis=0).sum())
    return chosen[0], which, Spectra(found.steps, found.values[:, :width])


def _missing(spectra: Spectra) -> list[str]:
    """Say at which steps there is no singular value at all.

    Args:
        spectra: over time.

    Returns:
        A sentence, or none.
    """
    at = spectra.steps[np.isnan(spectra.values).all(axis=1)]
    if not len(at):
        return []
    where = f"step {at[0]}" if len(at) == 1 else f"{len(at)} steps from {at[0]} to {at[-1]}"
    return [
        f"Gap at {where}: no singular value was recorded (a zero matrix has none above zero; else see the run's table)."
    ]


def _edges(steps: npt.NDArray[np.int64]) -> Array:
    middles = (steps[1:] + steps[:-1]) / 2
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    return np.array(
        [steps[0] - (middles[0] - steps[0]), *middles, steps[-1] + (steps[-1] - middles[-1])], float
    )


def spectrum_heatmap(
    run: Source,
    layer: str | None = None,
    reference: str | None = None,
    tensor: str = "weight",
    axes: Axes | None = None,
) -> Axes:
    """Draw the singular values of one layer over training as a heat map.

    Each column is a record, each line the i-th largest singular value, its colour logarithmic. What is zero, or
    below 1e-8 of the largest, is white; what was not recorded is hatched.

    Args:
        run: a run with spectra, or its path.
        layer: its name, or a glob that matches one; may be left out where only one has a spectrum.
        reference: what was subtracted: ``"none"``, ``"init"``, ``"identity"``; if None ``"init"`` where that is
            recorded, else the first that is.
        tensor: ``"weight"``, ``"gradient"``, ….
        axes: to draw into; a new figure if None.

    Returns:
        The Axes.

    Raises:
        InputError: if no such spectrum is recorded, or no number is in it.
    """
    record = opened(run)
    name, reference, spectra = _spectrum(record, layer, tensor, reference)
    values = np.asarray(spectra.values, float)
    known = values[np.isfinite(values)]
    if not len(known):
        raise InputError(f"{record.path} has no singular value of {name!r} yet; there is nothing to draw.")
    shown = single(axes, (6.4, 3.8))
    largest = float(known.max()) or 1.0
    lowest = max(float(known[known > 0].min(initial=largest)), FLOOR * largest)
    lowest = min(lowest, largest / 10)
    norm = LogNorm(lowest, largest)
    shown.set_facecolor("white")
    shown.fill_between([0, 1], 0, 1, transform=shown.transAxes, facecolor="none", hatch="////", edgecolor="0.8",
                       linewidth=0, zorder=0, label="_unrecorded")  # fmt: skip
    k = values.shape[1]
    colors = _palette()
    edges = _edges(spectra.steps)
    # Zero has no logarithm: it is drawn as what lies below the scale.
    visible = np.ma.masked_invalid(np.maximum(values, 0.1 * lowest))
    drawn = shown.pcolormesh(edges, np.arange(k + 1) + 0.5, visible.T, norm=norm, cmap=colors, zorder=2)
    shown.set_ylim(k + 0.5, 0.5)
    shown.grid(visible=False)
    over_steps(shown, spectra.steps)
    shown.set_xlim(edges[0], edges[-1])
    most = maximal_rank(record, name)
    shown.set_ylabel(f"index i of $\\sigma_i$ ({k}{'' if math.isnan(most) else f' of {most:g}'} recorded)")
    shown.set_title(f"{titled(name)}, {tensor}: {against(reference)}", fontsize=9)
    under = bool((known < lowest).any())
    bar = shown.figure.colorbar(drawn, ax=shown, extend="min" if under else "neither", pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(r"singular value $\sigma_i$, logarithmic", fontsize=8)
    caption([shown], *_missing(spectra), "White: zero, or below 1e-8 of the largest." if under else "",
            "Hatched: not recorded." if np.isnan(values).any() else "")  # fmt: skip
    return shown


def _palette() -> Any:
    return mpl.colormaps["cividis_r"].with_extremes(under="white", bad=(0, 0, 0, 0))


def staircase(
    run: Source | Spectra,
    layer: str | None = None,
    reference: str | None = None,
    *,
    emergence: pd.DataFrame | Verdict | Sequence[float] | None = None,
    theory: Spectra | Sequence[float] | None = None,
    most: int = 8,
    logarithmic: bool = False,
    axes: Axes | None = None,
) -> Axes:
    """Draw singular values over training as lines: under greedy low-rank learning, one after another rises.

    Args:
        run: a run with spectra, its path, or a spectrum over time: `.steps` `[T]` and `.values` `[T, k]`.
        layer: its name, or a glob that matches one; may be left out where only one has a spectrum.
        reference: what was subtracted; if None ``"init"``, the update, where that is recorded, else the first that is.
        emergence: when each value emerges: steps, largest value first; or what `za.verify_glrl` found, its evidence.
        theory: what is expected: a spectrum over time, drawn dashed; or steps of emergence, drawn as triangles.
        most: how many values are drawn.
        logarithmic: whether the axis of the values is.
        axes: to draw into; a new figure if None.

    Returns:
        The Axes.

    Raises:
        InputError: if no such spectrum is recorded, or no number is in it.

    Example:
        >>> import numpy as np
        >>> spectrum = Spectra(np.array([0, 10, 20]), np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0]]))
        >>> axes = staircase(spectrum, emergence=[5, 15])
        >>> [float(y) for y in axes.get_lines()[1].get_ydata()]
        [0.0, 0.0, 1.0]
    """
    if isinstance(run, Spectra):
        name, reference, spectra = layer or "", reference or "init", run
    else:
        name, reference, spectra = _spectrum(opened(run), layer, "weight", reference)
    values = np.asarray(spectra.values, float)
    if not np.isfinite(values).any():
        raise InputError(f"there is no singular value of {name!r} to draw yet.")
    shown = single(axes, (6.4, 3.9))
    count = min(most, values.shape[1])
    colors = shades(count)
    for i in range(count):
        shown.plot(spectra.steps, values[:, i], color=colors[i], linestyle=LINES[i % 4], linewidth=1.7,
                   label=f"$\\sigma_{{{i + 1}}}$")  # fmt: skip
    if logarithmic:
        shown.set_yscale("log")
    _emergences(shown, spectra, _steps_of(emergence, name, reference), colors)
    _theory(shown, theory, count)
    shown.set_ylabel("singular value" + (", logarithmic" if logarithmic else ""))
    shown.set_title((f"{titled(name)}: " if name else "") + against(reference), fontsize=9)
    over_steps(shown, spectra.steps)
    legend([shown], columns=6)
    fewer = f"The {count} largest of {values.shape[1]} recorded values." if count < values.shape[1] else ""
    caption([shown], *_missing(spectra), fewer)
    return shown


def shades(count: int) -> list[Any]:
    """Return colours for singular values in their order, from dark to middling.

    Args:
        count: how many.

    Returns:
        The colours.
    """
    # The lightest is still seen on white.
    return [mpl.colormaps["viridis"](0.85 * i / max(count - 1, 1)) for i in range(count)]


def _steps_of(given: Any, layer: str, reference: str) -> list[float]:
    """Return when each singular value emerges.

    Args:
        given: steps, a table of evidence, or a verdict with one.
        layer: its name.
        reference: what was subtracted.

    Returns:
        Steps, largest value first; NaN where it does not emerge.

    Raises:
        InputError: if a table lacks a column.
    """
    table = given.evidence if isinstance(given, Verdict) else given
    if table is None:
        return []
    if not isinstance(table, pd.DataFrame):
        return [float(step) for step in table]
    rows = table[table["criterion"] == "emergence"] if "criterion" in table else table
    for column, wanted in (("layer", layer), ("reference", reference)):
        if column in rows:
            rows = rows[rows[column] == wanted]
    if not {"index", "value"} <= set(rows.columns):
        raise InputError(
            "the table of emergence times has no columns index and value; pass the evidence of verify_glrl."
        )
    steps = [math.nan] * (int(rows["index"].max()) + 1 if len(rows) else 0)
    for index, value in zip(rows["index"], rows["value"], strict=True):
        steps[int(index)] = float(value)
    return steps


def _emergences(axes: Axes, spectra: Spectra, at: Sequence[float], colors: Sequence[Any]) -> None:
    drawn = [(i, step) for i, step in enumerate(at[: len(colors)]) if math.isfinite(step)]
    for place, (i, step) in enumerate(drawn):
        known = np.isfinite(spectra.values[:, i])
        height = float(np.interp(step, spectra.steps[known], spectra.values[known, i]))
        axes.plot([step], [height], marker="o", markersize=6.5, color=colors[i], markeredgecolor="black", linestyle="",
                  zorder=5, label="emerges" if place == 0 else "_emerges")  # fmt: skip
        axes.axvline(step, color=colors[i], linewidth=0.7, linestyle=(0, (2, 3)), zorder=1, label="_at")


def _theory(axes: Axes, theory: Spectra | Sequence[float] | None, count: int) -> None:
    if theory is None:
        return
    if isinstance(theory, Spectra):
        for i in range(min(count, theory.values.shape[1])):
            axes.plot(theory.steps, theory.values[:, i], color="black", linewidth=0.9, linestyle=(0, (4, 2)), zorder=4,
                      label="theory" if i == 0 else "_theory")  # fmt: skip
        return
    at = [float(step) for step in theory][:count]
    axes.plot(at, [0] * len(at), marker=7, markersize=8, color="black", linestyle="", clip_on=False, zorder=6,
              transform=axes.get_xaxis_transform(), label="theory: emerges")  # fmt: skip
