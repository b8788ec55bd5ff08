"""Numbers over training, taken from runs and tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zanalysis.analyzers.naming import Selection, selected
from zanalysis.errors import InputError, did_you_mean
from zanalysis.figures.sources import Labelled
from zanalysis.runfile.reader import Run

__all__ = ["Trajectory", "layers_of", "maximal_rank", "trajectories"]


@dataclass(frozen=True)
class Trajectory:
    """One number over training.

    Attributes:
        label: the system.
        layer: whose weight.
        reference: what was subtracted.
        steps: `[T]`, completed optimizer steps.
        values: `[T]`, NaN where there is none.
        statuses: `[T]`, why.
        maximum: the most that a rank of this layer can be; NaN where the shape is not known.
    """

    label: str
    layer: str
    reference: str
    steps: np.ndarray
    values: np.ndarray
    statuses: tuple[str, ...]
    maximum: float


def maximal_rank(run: Run, layer: str) -> float:
    """Return the most that a rank of a recorded matrix can be.

    Args:
        run: the run.
        layer: a layer's name, or that of one of its matrices.

    Returns:
        min(m, n) in the recorded view; NaN where that is not known.
    """
    view = run.attributes.get("view", "out")
    for entry in run.attributes.get("layers", []):
        shape = [int(size) for size in entry.get("shape", [])]
        if len(shape) < 2 or layer not in (entry.get("name"), *entry.get("matrices", ())):
            continue
        if layer != entry.get("name") or view == "taps":
            return float(min(shape[:2] if view == "taps" else shape[-2:]))
        if view in ("out", "in"):
            rows = shape[0 if view == "out" else 1]
            return float(min(rows, math.prod(shape) // max(rows, 1)))
    return math.nan


def layers_of(sources: Sequence[Labelled], layers: Selection, tensor: str = "weight") -> list[str]:
    """Choose layers that occur in any of the runs.

    Args:
        sources: as `labelled` returns them.
        layers: names, globs, patterns or predicates; the first convolutions of the second, third and fourth groups
            of residual blocks if None and there are such, else all.
        tensor: of which.

    Returns:
        Their names, in the order of the model.

    Raises:
        InputError: if there is none.
    """
    names: dict[str, None] = {}
    for _, one in sources:
        if isinstance(one, Run):
            names |= dict.fromkeys(s.layer for s in one.series if s.tensor == tensor)
            order = {name: place for place, name in enumerate(one.layers)}
            names = dict.fromkeys(sorted(names, key=lambda name: order.get(name, len(order))))
        else:
            names |= dict.fromkeys(one.loc[one["tensor"] == tensor, "layer"])
    if not names:
        raise InputError(
            f"there is nothing to draw: nothing of a {tensor} is recorded, or no step was recorded yet."
        )
    if layers is None:
        usual = [f"layer{group}.0.conv1" for group in (2, 3, 4)]
        return usual if set(usual) <= set(names) else list(names)
    return selected(layers, dict.fromkeys(names))  # type: ignore[arg-type]


def trajectories(
    sources: Sequence[Labelled], layer: str, metric: str, reference: str, tensor: str = "weight"
) -> list[Trajectory]:
    """Take one number of one layer over training from each run that has it.

    Args:
        sources: as `labelled` returns them.
        layer: its name.
        metric: which number.
        reference: what was subtracted.
        tensor: of which tensor.

    Returns:
        One for each run that recorded it.

    Raises:
        InputError: if none did; with what there is.
    """
    found, known = list[Trajectory](), dict[str, None]()
    for label, one in sources:
        table = one.table() if isinstance(one, Run) else one
        rows = table[(table["layer"] == layer) & (table["tensor"] == tensor)]
        known |= dict.fromkeys(f"{m} ({r})" for m, r in zip(rows["metric"], rows["reference"], strict=True))
        rows = rows[(rows["metric"] == metric) & (rows["reference"] == reference)]
        if not len(rows):
            continue
        if "tolerance_rule" in rows and rows["tolerance_rule"].nunique() > 1:
            first = "default" if "default" in set(rows["tolerance_rule"]) else rows["tolerance_rule"].iloc[0]
            rows = rows[rows["tolerance_rule"] == first]
        rows = rows.sort_values("step")
        values = rows["value"].to_numpy(float)
        words = tuple(map(str, rows["status"])) if "status" in rows else ("missing",) * len(rows)
        most = maximal_rank(one, layer) if isinstance(one, Run) else math.nan
        found.append(Trajectory(label, layer, reference, rows["step"].to_numpy(), values, words, most))
    if not found:
        raise InputError(
            f"no run has {metric} of {layer} against the reference {reference!r}; "
            + (did_you_mean(f"{metric} ({reference})", known) if known else "nothing of it is recorded.")
        )
    return found
