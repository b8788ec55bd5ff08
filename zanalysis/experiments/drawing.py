"""The picture of an experiment: its trainings as tables, handed to the figures."""

from pathlib import Path
from typing import Any

import pandas as pd

from zanalysis.experiments.recipes.schema import METRICS
from zanalysis.experiments.results import Outcome
from zanalysis.figures.experiments import (
    save_bars,
    save_complexity,
    save_spread,
    save_sweep,
    save_trajectories,
)
from zanalysis.runfile.reader import open_run

__all__ = ["draw"]

_TRAJECTORY_LAYERS = 3


def draw(outcome: Outcome, path: Path) -> None:
    """Draw an experiment into a file.

    Args:
        outcome: the experiment.
        path: where the picture is to lie, a PNG.
    """
    recipe = outcome.recipe
    title = f"{recipe.title}\nscale {outcome.scale}, {_data(outcome)}"
    metric, values = METRICS[recipe.metric], _values(outcome)
    if recipe.picture == "sweep":
        save_sweep(values, str(recipe.sweep), metric, title, path)
    elif recipe.picture == "trajectories":
        save_trajectories(_trajectories(outcome, ("stable_rank",), _TRAJECTORY_LAYERS), title, path)
    elif recipe.picture == "complexity":
        ranks = _trajectories(outcome, ("rank", "stable_rank"), 1)
        save_complexity(
            ranks, _measured(outcome, "pruning"), _measured(outcome, "tucker"), metric, title, path
        )
    elif recipe.picture == "spread":
        save_spread(values, metric, title, path)
    else:
        save_bars(values, _curves(outcome), metric, title, path)


def _data(outcome: Outcome) -> str:
    for record in outcome.records.values():
        return str(record["settings"]["data"])
    return "nothing trained yet"


def _values(outcome: Outcome) -> pd.DataFrame:
    """Return one row for each training that ended: system, title, at, seed, value."""
    comparable = not outcome.incomparable
    return pd.DataFrame(
        [
            (
                row.title,
                row.at,
                seed,
                value,
                row.paper.mean if comparable and row.paper is not None else None,
            )
            for row in outcome.rows
            for seed, value in zip(row.seeds, row.values, strict=True)
        ],
        columns=["system", "at", "seed", "value", "paper"],
    )


def _each(outcome: Outcome) -> list[tuple[str, int, dict[str, Any]]]:
    titles = {row.label: row.title for row in outcome.rows}
    found = []
    for name, record in outcome.records.items():
        label = name.removesuffix(f"-{record['seed']}")
        found.append((titles[label], int(record["seed"]), dict(record)))
    return found


def _curves(outcome: Outcome) -> pd.DataFrame:
    """Return the metric after each epoch: system, seed, epoch, value."""
    key = f"test_{outcome.recipe.metric}"
    return pd.DataFrame(
        [
            (title, seed, epoch, value)
            for title, seed, record in _each(outcome)
            for epoch, value in zip(record["curves"]["epoch"], record["curves"][key], strict=True)
            if value is not None
        ],
        columns=["system", "seed", "epoch", "value"],
    )


def _trajectories(outcome: Outcome, metrics: tuple[str, ...], most: int) -> pd.DataFrame:
    """Return a metric over training: system, seed, step, layer, reference, metric, value.

    Args:
        outcome: the experiment.
        metrics: which.
        most: layers; the first convolutions of the last groups of blocks.

    Returns:
        The rows, without those that are not numbers.
    """
    parts = []
    for title, seed, record in _each(outcome):
        table = open_run(outcome.trainings / record["run"]).table()
        layers = [f"layer{i}.0.conv1" for i in range(5 - most, 5)]
        chosen = table[
            table["metric"].isin(metrics) & table["layer"].isin(layers) & table["tensor"].eq("weight")
        ]
        parts.append(chosen.assign(system=title, seed=seed))
    columns = ["system", "seed", "step", "layer", "reference", "metric", "value"]
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts)[columns].dropna(subset=["value"])


def _measured(outcome: Outcome, what: str) -> pd.DataFrame:
    """Return the curves measured on trained networks: system, seed, share, score."""
    parts = []
    for title, seed, record in _each(outcome):
        if what in record["measured"]:
            frame = pd.read_csv(outcome.trainings / record["measured"][what])
            share = frame["sparsity"] if what == "pruning" else frame["rank_out"] / frame["rank_out"].max()
            parts.append(
                pd.DataFrame({"system": title, "seed": seed, "share": share, "score": frame["score"]})
            )
    return pd.concat(parts) if parts else pd.DataFrame(columns=["system", "seed", "share", "score"])
