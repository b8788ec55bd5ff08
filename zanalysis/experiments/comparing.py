"""What the trainings of an experiment show beside their means, in sentences."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import f

from zanalysis.experiments.recipes.schema import Recipe
from zanalysis.experiments.results import Row

__all__ = ["deviation_ratio", "findings"]

_LEAST_SEEDS = 3
_CLOSE = 1.0  # percentage points that count as "without sacrificing accuracy"


def findings(
    recipe: Recipe, rows: Sequence[Row], records: Mapping[str, Mapping[str, Any]], folder: Path
) -> list[str]:
    """Say what a table does not show.

    Args:
        recipe: the experiment.
        rows: its table.
        records: of its trainings.
        folder: where their files lie.

    Returns:
        Sentences.
    """
    found = []
    if recipe.picture == "spread":
        found += _spread(rows)
    found += _symmetry(rows, records)
    if "pruning" in recipe.after:
        found += _complexity(rows, records, folder)
    for row in rows:
        if row.diverged:
            seeds = ", ".join(map(str, row.diverged))
            at = "" if row.at is None else f" at {recipe.sweep} {row.at}"
            found.append(f"{row.title}{at} diverged with seed {seeds}; no mean counts it.")
    return found


def deviation_ratio(one: Row, other: Row) -> tuple[float, float, float]:
    """Compare two deviations over seeds.

    With normally distributed values `(s₁² / σ₁²) / (s₂² / σ₂²)` has the F distribution of `n₁ − 1` and `n₂ − 1`
    degrees of freedom, which gives an interval for σ₁ / σ₂.

    Args:
        one: with at least two values.
        other: with at least two values.

    Returns:
        `s₁ / s₂`, and the ends of its 95 % interval.
    """
    assert one.std is not None
    assert other.std is not None
    ratio = one.std / other.std if other.std else math.inf
    degrees = len(one.values) - 1, len(other.values) - 1
    low, high = f.ppf((0.025, 0.975), *degrees)
    return ratio, ratio / math.sqrt(high), ratio / math.sqrt(low)


def _spread(rows: Sequence[Row]) -> list[str]:
    by_label = {row.label: row for row in rows}
    one, other = by_label.get("zero"), by_label.get("kaiming")
    if one is None or other is None or min(len(one.values), len(other.values)) < _LEAST_SEEDS:
        return [f"a deviation says little with fewer than {_LEAST_SEEDS} seeds of each system."]
    ratio, low, high = deviation_ratio(one, other)
    if high < 1:
        judged = "ZerO's deviation is smaller, as the paper says"
    elif low > 1:
        judged = "ZerO's deviation is larger, against what the paper says"
    else:
        judged = "with so many seeds it cannot be told whether it is smaller, as the paper says"
    return [
        f"deviation over {len(one.values)} and {len(other.values)} seeds: ZerO's is {ratio:.2f} of Kaiming's (95 % "
        f"interval {low:.2f} to {high:.2f}, F distribution); the paper reports 0.6 to 0.8; {judged}."
    ]


def _symmetry(rows: Sequence[Row], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        shares = []
        for seed in row.seeds:
            counted = records[f"{row.label}-{seed}"]["facts"].get("distinct_rows", {})
            total = sum(layer["rows"] for layer in counted.values())
            if total:
                shares.append(sum(layer["last"] or 0 for layer in counted.values()) / total)
        if shares and max(shares) < 0.5:
            found.append(
                f"{row.title}: {100 * sum(shares) / len(shares):.1f} % of the neurons are distinct after training; "
                "the others repeat one of their layer up to rounding."
            )
    return found


def _complexity(rows: Sequence[Row], records: Mapping[str, Mapping[str, Any]], folder: Path) -> list[str]:
    found = []
    for row in rows:
        kept = {"pruning": [], "tucker": []}  # type: dict[str, list[float]]
        for seed in row.seeds:
            for what, name in records[f"{row.label}-{seed}"]["measured"].items():
                frame = pd.read_csv(folder / name)
                whole = frame["score"].iloc[0]
                near = frame[frame["score"] >= whole - _CLOSE]
                if what == "pruning":
                    kept[what].append(100 * float(near["sparsity"].max()))
                else:
                    kept[what].append(100 * float(near["rank_out"].min() / frame["rank_out"].max()))
        for what, values in kept.items():
            if values:
                mean = sum(values) / len(values)
                said = (
                    f"{mean:.0f} % of the weights can go"
                    if what == "pruning"
                    else f"{mean:.0f} % of the ranks do"
                )
                found.append(f"{row.title}: {said} within {_CLOSE:g} point of the accuracy ({what}).")
    return found
