"""What an experiment found: means and deviations over seeds, beside what its source reports."""

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zanalysis._version import __version__
from zanalysis.experiments.jobs import Variant, protocol_of, variants
from zanalysis.experiments.recipes.schema import METRICS, Paper, Protocol, Recipe, Scale
from zanalysis.verify.verdict import Verdict

# Of the ways down, those that have settings of their own.
_OF_DECAY = {"milestones": ("milestones", "factor"), "every": ("period", "factor")}
_WORDS = {"lr": "learning rate", "kind": "decay", "warmup": "warm-up", "factor": "decay factor"}

__all__ = ["Outcome", "Row", "incomparable", "rows_of", "summary"]


@dataclass(frozen=True)
class Row:
    """A system in the table.

    Attributes:
        label: its name in files.
        title: its name.
        at: the value of what is swept.
        values: of the trainings that ended, in the order of their seeds.
        seeds: of these.
        diverged: the seeds whose training diverged.
        mean: of the values; None where there is none.
        std: their sample standard deviation; None where there are fewer than two.
        paper: what the source reports; None if nothing.
    """

    label: str
    title: str
    at: int | None
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    diverged: tuple[int, ...]
    mean: float | None
    std: float | None
    paper: Paper | None


@dataclass(frozen=True)
class Outcome:
    """What running an experiment left.

    Attributes:
        recipe: the experiment.
        scale: at which scale.
        rows: the table.
        incomparable: why the source's numbers are not those of this table; empty where they are.
        records: of each training, by name.
        notes: sentences: what was chosen here, what was assumed, what else was found.
        folder: where the results lie.
        results: the file with everything.
        picture: the figure.
        trainings: the folder that the run files lie in.
        verdicts: of an experiment that judges claims.
    """

    recipe: Recipe
    scale: Scale
    rows: tuple[Row, ...]
    incomparable: tuple[str, ...]
    records: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]
    folder: Path
    results: Path
    picture: Path
    trainings: Path
    verdicts: tuple[Verdict, ...] = ()


def rows_of(
    recipe: Recipe, compared: Sequence[Variant], records: Mapping[str, Mapping[str, Any]]
) -> tuple[Row, ...]:
    """Put trainings into rows.

    Args:
        recipe: the experiment.
        compared: its systems.
        records: of each training, by name.

    Returns:
        A row for each system that has a training.
    """
    rows = []
    for variant in compared:
        own = sorted(
            (
                record
                for record in records.values()
                if (record["settings"]["system"], record["settings"]["at"])
                == (variant.system.label, variant.at)
            ),
            key=lambda record: int(record["seed"]),
        )
        if not own:
            continue
        ended = [record for record in own if record["status"] == "ok"]
        values = tuple(float(record["best" if recipe.best else "value"]) for record in ended)
        rows.append(
            Row(
                variant.label,
                variant.system.title,
                variant.at,
                values,
                tuple(record["seed"] for record in ended),
                tuple(record["seed"] for record in own if record["status"] != "ok"),
                statistics.fmean(values) if values else None,
                statistics.stdev(values) if len(values) > 1 else None,
                variant.system.paper.get(variant.at),
            )
        )
    return tuple(rows)


def incomparable(recipe: Recipe, scale: Scale, used: Protocol) -> tuple[str, ...]:
    """Say why the numbers of the source are not those of a table.

    Args:
        recipe: the experiment.
        scale: at which it was run.
        used: the protocol it was run with.

    Returns:
        A clause for each difference from the source's own protocol.
    """
    paper = recipe.scales.get("paper")
    if paper is None:
        return ()
    reasons = [] if scale == "paper" else [f"scale {scale}"]
    if used.data != paper.data:
        reasons.append(f"{used.data} instead of {paper.data}")
    for name, what in (("train", "training"), ("test", "test")):
        if getattr(used, name) != getattr(paper, name):
            reasons.append(
                f"{_count(getattr(used, name))} {what} samples instead of {_count(getattr(paper, name))}"
            )
    if used.epochs != paper.epochs:
        reasons.append(f"{used.epochs} epochs instead of {paper.epochs}")
    if used.batch != paper.batch:
        reasons.append(f"batch {used.batch} instead of {paper.batch}")
    if recipe.metric == "perplexity" and used.length != paper.length:
        reasons.append(f"length {used.length} instead of {paper.length}")
    own = _OF_DECAY.get(used.decay.kind, ()) if used.decay.kind == paper.decay.kind else ()
    for part in ("optimizer", "decay", "augmentation"):
        one, other = getattr(used, part), getattr(paper, part)
        for item in dataclasses.fields(one):
            mine, theirs = getattr(one, item.name), getattr(other, item.name)
            if mine != theirs and (part != "decay" or item.name in ("kind", "warmup", *own)):
                reasons.append(
                    f"{_WORDS.get(item.name, item.name)} {_plain(mine)} instead of {_plain(theirs)}"
                )
    variant = variants(recipe, used)[0]
    here_, there_ = (protocol_of(recipe, protocol, variant).arguments for protocol in (used, paper))
    for name in dict.fromkeys([*here_, *there_]):
        if here_.get(name) != there_.get(name) and name != recipe.sweep:
            here, there = (_plain(side.get(name, "default")) for side in (here_, there_))
            reasons.append(f"{name} {here} instead of {there}")
    return tuple(reasons)


def summary(outcome: Outcome, protocol: Protocol) -> dict[str, Any]:
    """Return what `results.json` holds of an experiment.

    Args:
        outcome: what it found.
        protocol: how it was run.

    Returns:
        Names and values that JSON can hold.
    """
    recipe = outcome.recipe
    return {
        "experiment": recipe.name,
        "title": recipe.title,
        "source": recipe.source,
        "scale": outcome.scale,
        "metric": METRICS[recipe.metric],
        "counts": "the best epoch of each training" if recipe.best else "the last epoch of each training",
        "zanalysis": __version__,
        "protocol": dataclasses.asdict(protocol),
        "comparable_with_source": not outcome.incomparable,
        "not_comparable_because": list(outcome.incomparable),
        "notes": list(outcome.notes),
        "rows": [dataclasses.asdict(row) for row in outcome.rows],
        "trainings_in": os.path.relpath(outcome.trainings, outcome.results.parent),
        "trainings": dict(outcome.records),
    }


def _count(number: int | None) -> str:
    return "all" if number is None else f"{number:,}"


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "×".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
