"""What Figure 6 is drawn from: pruning and Tucker-2 curves of trained networks, and where scores are equal."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from zanalysis.analyzers.naming import layer_name
from zanalysis.analyzers.tucker_kernel import tucker2_error_surface
from zanalysis.checkpoints.opening import open_checkpoint
from zanalysis.errors import InputError
from zanalysis.figures.sources import RESULTS, folder_trainings, read_json

__all__ = ["Crossing", "Measured", "equal_score", "higher_is_better", "read_measured", "tidy_curves"]

Curves = pd.DataFrame | Mapping[str, Any]
"""One table with a column `system`, or a mapping from systems to what `pruning_curve` or `tucker_curve` return."""


@dataclass(frozen=True)
class Measured:
    """What was measured on trained networks.

    Attributes:
        pruning: columns system, seed, sparsity, score; empty if nothing.
        tucker: columns system, seed, layer, rank_out, rank_in, error, score; empty if nothing.
        surfaces: of the layer that `tucker` is about, by system: relative errors, `[c_out, c_in]`.
        metric: what the scores are, with their unit.
    """

    pruning: pd.DataFrame
    tucker: pd.DataFrame
    surfaces: Mapping[str, npt.NDArray[np.float64]]
    metric: str


@dataclass(frozen=True)
class Crossing:
    """How far a system can be compressed at the common score.

    Attributes:
        system: its name.
        at: the sparsity, or the rank.
        end: whether that is where the curve ends, so that it may go further.
    """

    system: str
    at: float
    end: bool


def higher_is_better(metric: str) -> bool:
    """Tell in which direction scores improve, by their name.

    Args:
        metric: such as "test accuracy [%]".

    Returns:
        False for errors, losses and perplexities.

    Example:
        >>> higher_is_better("test accuracy [%]"), higher_is_better("test perplexity")
        (True, False)
    """
    return not any(word in metric.lower() for word in ("error", "loss", "perplexity"))


def tidy_curves(curves: Curves | None, needed: tuple[str, ...]) -> pd.DataFrame:
    """Put curves into one table.

    Args:
        curves: one table, or a mapping from systems to tables or to what the analyzers return; None for nothing.
        needed: the columns that each must have.

    Returns:
        Columns system, seed and all others; sorted as given.

    Raises:
        InputError: if a column is missing.
    """
    if curves is None:
        return pd.DataFrame(columns=["system", "seed", *needed])
    if isinstance(curves, pd.DataFrame):
        table = curves if "system" in curves else curves.assign(system="network")
    else:
        parts = [pd.DataFrame(part).assign(system=system) for system, part in curves.items()]
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["system", *needed])
    if missing := [name for name in needed if name not in table]:
        raise InputError(
            f"a curve has no column {missing[0]!r}; expected what za.pruning_curve or za.tucker_curve returns."
        )
    return table if "seed" in table else table.assign(seed=0)


def read_measured(folder: str | os.PathLike[str], surfaces: bool = True) -> Measured:
    """Read what an experiment such as `figure-6` measured on its trained networks.

    Args:
        folder: of the experiment, or its `results.json`.
        surfaces: whether to compute the error surface of the kernel that was decomposed, from the weights at the end;
            of the first seed of each system.

    Returns:
        The curves and surfaces.

    Raises:
        InputError: if nothing was measured, or a file is not what it should be.
    """
    path = Path(folder)
    results = path if path.name == RESULTS else path / RESULTS
    said = read_json(results)
    parts: dict[str, list[pd.DataFrame]] = {"pruning": [], "tucker": []}
    weights: dict[str, Path] = {}
    for title, home, record in folder_trainings(results, said):
        for what, name in record.get("measured", {}).items():
            if what in parts:
                parts[what].append(_csv(home / name).assign(system=title, seed=record["seed"]))
                weights.setdefault(title, (home / record["run"]).with_suffix(".safetensors"))
    if not any(parts.values()):
        raise InputError(
            f"nothing of pruning or Tucker-2 was measured in {results.parent}; pass the folder of the experiment "
            "figure-6."
        )
    pruning, tucker = (
        tidy_curves(pd.concat(parts[what], ignore_index=True) if parts[what] else None, needed)
        for what, needed in (
            ("pruning", ("sparsity", "score")),
            ("tucker", ("rank_out", "rank_in", "error", "score")),
        )
    )
    found = {}
    if surfaces and len(tucker) and "layer" in tucker:
        layer = str(tucker["layer"].iloc[0])
        found = {title: _surface(file, layer) for title, file in weights.items() if file.is_file()}
    return Measured(pruning, tucker, found, str(said.get("metric", "score")))


def _csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}.") from error


def _surface(path: Path, layer: str) -> npt.NDArray[np.float64]:
    for stored in open_checkpoint(path).tensors:
        if layer_name(stored.name) == layer:
            surface: npt.NDArray[np.float64] = tucker2_error_surface(stored.load()).numpy()
            return surface
    raise InputError(f"{path} has no layer {layer!r}, of which the Tucker-2 curve is.")


def equal_score(
    curves: pd.DataFrame, by: str, higher: bool, tolerance: float, fewer: bool
) -> tuple[float, list[Crossing]]:
    """Find how far each system can be compressed before its score falls under a common level.

    The level is the worse of the scores of the uncompressed networks, less the tolerance. Each curve (the mean over
    seeds) is followed from the uncompressed end until it is first under the level; between two points it is a line.

    Args:
        curves: columns system, seed, `by` and score.
        by: what is given up along the curve.
        higher: whether higher scores are better.
        tolerance: in the unit of the score.
        fewer: whether compression lowers `by` (ranks) or raises it (sparsity).

    Returns:
        The level, and the crossing of each system; at NaN for one that starts under the level.

    Example:
        >>> curve = pd.DataFrame({"system": "a", "seed": 0, "sparsity": [0.0, 0.5, 1.0], "score": [90.0, 89.5, 10.0]})
        >>> level, (crossing,) = equal_score(curve, "sparsity", higher=True, tolerance=1.0, fewer=False)
        >>> level, round(crossing.at, 4), crossing.end
        (89.0, 0.5031, False)
    """
    sign = 1.0 if higher else -1.0
    ordered = {
        str(system): (sign * part.groupby(by)["score"].mean()).sort_index(ascending=not fewer)
        for system, part in curves.groupby("system", sort=False)
    }
    level = min(float(curve.iloc[0]) for curve in ordered.values()) - tolerance
    return sign * level, [_crossing(system, curve, level) for system, curve in ordered.items()]


def _crossing(system: str, curve: "pd.Series[float]", level: float) -> Crossing:
    at, scores = curve.index.to_numpy(float), curve.to_numpy(float)
    under = np.flatnonzero(~(scores >= level))
    if not len(under):
        return Crossing(system, float(at[-1]), True)
    first = int(under[0])
    if first == 0 or math.isnan(scores[first]):
        return Crossing(system, math.nan if first == 0 else float(at[first - 1]), False)
    share = (scores[first - 1] - level) / (scores[first - 1] - scores[first])
    return Crossing(system, float(at[first - 1] + share * (at[first] - at[first - 1])), False)
