"""How far a training has come, what is noted after each epoch, and the record it ends with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hooks import RankTracker
from hooks.schedules import Schedule, logspaced
from zanalysis.experiments.facts import facts_of
from zanalysis.experiments.jobs import Job
from zanalysis.experiments.resuming import Files, write_json, write_weights
from zanalysis.runfile.reader import open_run

__all__ = ["State", "best_of", "conclude", "end_epoch", "recording", "schedule_of"]


@dataclass
class State:
    """How far a training has come.

    Attributes:
        step: steps made.
        loss: summed over the samples of the epoch so far, float64.
        samples: of the epoch so far.
        seconds: spent.
        diverged: the step at which its loss was not finite.
        curves: by name, a value for each epoch, the first for before any step.
    """

    step: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    samples: int = 0
    seconds: float = 0.0
    diverged: int | None = None
    curves: dict[str, list[float | None]] = field(default_factory=dict)

    def saved(self) -> dict[str, Any]:
        """Return it as a checkpoint holds it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def loaded(cls, saved: Mapping[str, Any], device: str) -> "State":
        """Return what a checkpoint holds.

        Args:
            saved: of `saved`.
            device: where the loss is to be.

        Returns:
            The state.
        """
        state = cls(**{name: saved[name] for name in cls.__dataclass_fields__})
        state.loss = state.loss.to(device)
        return state


def schedule_of(job: Job, steps_per_epoch: int) -> Schedule:
    """Return when a training is recorded: densely at first, then after epochs, and at the end.

    Args:
        job: the training.
        steps_per_epoch: of it.

    Returns:
        `step -> bool`.
    """
    tracking, last = job.protocol.tracking, job.protocol.epochs * steps_per_epoch
    early, period = logspaced(tracking.per_decade), tracking.epochs * steps_per_epoch

    def schedule(step: int) -> bool:
        return step <= last and (early(step) or step % period == 0 or step == last)

    schedule.__name__ = f"logspaced({tracking.per_decade}) and every({period})"
    return schedule


def recording(
    job: Job, model: nn.Module, optimizer: Any, files: Files, schedule: Schedule, start: int, goes_on: bool
) -> RankTracker:
    """Attach the tracker that a protocol asks for.

    Args:
        job: the training.
        model: its network.
        optimizer: its optimizer; None to count steps by hand.
        files: of the training.
        schedule: when to record.
        start: steps made before.
        goes_on: whether the run file is gone on with; else it is made anew.

    Returns:
        The tracker, live.
    """
    wanted = job.protocol.tracking
    return RankTracker(
        model,
        optimizer,
        files.run,
        schedule=schedule,
        layers=None if wanted.layers is None else list(wanted.layers),
        tensors=wanted.tensors,
        metrics=wanted.metrics,
        reference=list(wanted.references),
        view=wanted.view,
        spectrum_size=wanted.spectrum_size,
        budget=wanted.budget,
        mode="a" if goes_on else "w",
        start=start,
        attributes=job.settings(),
    )


def end_epoch(
    job: Job, state: State, tracker: RankTracker, epoch: int, rate: float, judged: Mapping[str, float]
) -> None:
    """Note what an epoch came to, in the run file and in the curves.

    Args:
        job: the training.
        state: of it; its sums start anew.
        tracker: of it.
        epoch: how many have been made.
        rate: the last learning rate.
        judged: the test metrics.
    """
    seen: dict[str, float | None] = {
        "epoch": epoch,
        "train_loss": state.loss.item() / state.samples if state.samples else None,
        "lr": rate if epoch else None,
        **judged,
    }
    tracker.log(**{name: value for name, value in seen.items() if value is not None})
    if not math.isfinite(judged[f"test_{job.metric}"]):
        state.diverged = state.step
    for name, value in seen.items():
        state.curves.setdefault(name, []).append(value if value is None or math.isfinite(value) else None)
    state.loss.zero_()
    state.samples = 0


def best_of(values: Sequence[float], metric: str) -> float | None:
    """Return the best of the values of a metric.

    Args:
        values: one for each epoch.
        metric: of accuracies the largest is the best, of errors and perplexities the smallest.

    Returns:
        The value; None if there is none.

    Example:
        >>> best_of([3.0, 1.0, 2.0], "error")
        1.0
    """
    if not values:
        return None
    return max(values) if metric == "accuracy" else min(values)


def conclude(
    job: Job, state: State, model: nn.Module, files: Files, notes: Sequence[str], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the weights and, last, the record of a training that has ended.

    Args:
        job: the training.
        state: of it.
        model: its network.
        files: of it; the checkpoint is removed.
        notes: what its initialization assumed.
        measured: names of the tables that were made of the trained network.

    Returns:
        The record.
    """
    run = open_run(files.run)
    values = [value for value in state.curves.get(f"test_{job.metric}", []) if value is not None]
    ended = state.diverged is None
    record: dict[str, Any] = {
        "settings": job.settings(),
        "seed": job.seed,
        "status": "ok" if ended else "diverged",
        "diverged_at": state.diverged,
        "value": values[-1] if ended else None,
        "best": best_of(values, job.metric),
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "curves": state.curves,
        "facts": facts_of(run),
        "measured": dict(measured),
        "notes": list(notes),
        "events": run.events["text"].tolist(),
        "run": files.run.name,
        "weights": files.weights.name,
    }
    write_weights(files.weights, model)
    write_json(files.record, record)
    files.checkpoint.unlink(missing_ok=True)
    return record
