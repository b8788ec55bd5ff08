"""One training with the tracker attached, which goes on where it stopped.

Interrupted at any step, also by a kill, and started again, it ends on a CPU with the same bits as one that
was left alone: batches and augmentation depend on the seed and the step alone, and the rest of what decides
is in the checkpoint.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hooks import RankTracker
from hooks.schedules import Schedule, logspaced
from zanalysis.experiments import resuming
from zanalysis.experiments.facts import facts_of
from zanalysis.experiments.feeding import Feed, feed_of
from zanalysis.experiments.jobs import Job
from zanalysis.experiments.measuring import measure_after
from zanalysis.experiments.optimizing import factor, optimizer_of, set_rate
from zanalysis.experiments.preparing import Prepared, isolated, prepared
from zanalysis.experiments.resuming import Files
from zanalysis.runfile.reader import open_run

__all__ = ["CHECKPOINT_SECONDS", "Progress", "best_of", "recording", "schedule_of", "train"]

Progress = Callable[[int, int], None]

CHECKPOINT_SECONDS = 30.0
_CHECK_EVERY = 20  # steps between looks at the loss on a GPU, each of which waits for it


@dataclass
class _State:
    """How far a training has come.

    Attributes:
        step: steps made.
        loss: summed over the samples of the epoch so far, float64.
        samples: of the epoch so far.
        seconds: spent before.
        diverged: the step whose loss was not finite.
        curves: by name, a value for each epoch, 0 for before the first.
    """

    step: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    samples: int = 0
    seconds: float = 0.0
    diverged: int | None = None
    curves: dict[str, list[float | None]] = field(default_factory=dict)


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


def recording(job: Job, model: nn.Module, optimizer: Any, path: Path, schedule: Schedule, start: int,
              mode: Any) -> RankTracker:  # fmt: skip
    """Attach the tracker that a protocol asks for.

    Args:
        job: the training.
        model: its network.
        optimizer: its optimizer; None to count steps by hand.
        path: the run file.
        schedule: when to record.
        start: steps made before.
        mode: `w` for a new file, `a` to go on in one.

    Returns:
        The tracker, live.
    """
    wanted = job.protocol.tracking
    return RankTracker(
        model,
        optimizer,
        path,
        schedule=schedule,
        layers=None if wanted.layers is None else list(wanted.layers),
        tensors=wanted.tensors,
        metrics=wanted.metrics,
        reference=list(wanted.references),
        view=wanted.view,  # type: ignore[arg-type]
        spectrum_size=wanted.spectrum_size,
        budget=wanted.budget,
        mode=mode,
        start=start,
        attributes=job.settings(),
    )


def best_of(values: Sequence[float], metric: str) -> float | None:
    """Return the best of the values of a metric.

    Args:
        values: one for each epoch.
        metric: of accuracies the largest is the best, of errors and perplexities the smallest.

    Returns:
        The value; None if there is none.
    """
    if not values:
        return None
    return max(values) if metric == "accuracy" else min(values)


def train(
    job: Job,
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda done, of: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Train, or go on with a training, or return the outcome of one that has ended.

    Args:
        job: the training.
        folder: where its files lie.
        overwrite: whether it starts anew, whatever lies there.
        progress: told the steps made, and how many there are.
        checkpoint_seconds: the least time between two checkpoints.

    Returns:
        The record: settings, status, value, best, curves, facts, seconds and more, as JSON holds it.

    Raises:
        InputError: if the protocol does not fit the data.
        RunFileError: if what lies in the folder belongs to another training, or it cannot be written.
    """
    files, settings = Files(folder, job.name), job.settings()
    if overwrite:
        for path in (files.record, files.checkpoint, files.run, files.weights):
            path.unlink(missing_ok=True)
    ended = resuming.finished(files, settings)
    if ended is not None:
        return ended
    saved = resuming.take_up(files, settings, job.device)
    with isolated(job):
        network = prepared(job)
        feed = feed_of(job)
        optimizer = optimizer_of(network.model, job.protocol.optimizer)
        training = _Training(job, files, network, feed, optimizer, progress, checkpoint_seconds)
        if saved is not None:
            training.load(saved)
        training.run(going_on=saved is not None)
        return training.conclude()


class _Training:
    """The life of one training."""

    def __init__(
        self,
        job: Job,
        files: Files,
        network: Prepared,
        feed: Feed,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        checkpoint_seconds: float,
    ) -> None:
        self._job, self._files, self._network, self._feed = job, files, network, feed
        self._model, self._optimizer, self._progress = network.model, optimizer, progress
        self._total = job.protocol.epochs * feed.steps_per_epoch
        self._schedule = schedule_of(job, feed.steps_per_epoch)
        self._state = _State()
        self._state.loss = self._state.loss.to(job.device)
        self._pause = checkpoint_seconds
        self._began = self._saved = time.monotonic()

    def run(self, going_on: bool) -> None:
        state = self._state
        start = state.step
        mode = "a" if going_on else "w"
        with recording(
            self._job, self._model, self._optimizer, self._files.run, self._schedule, start, mode
        ) as tracker:
            if not state.curves:
                self._end_epoch(tracker, 0)
            self._progress(state.step, self._total)
            while state.step < self._total and state.diverged is None:
                self._step()
                epoch, index = divmod(state.step, self._feed.steps_per_epoch)
                self._look_at_loss(index)
                if index == 0 and state.diverged is None:
                    self._end_epoch(tracker, epoch)
                self._progress(state.step, self._total)
                if self._is_due():
                    tracker.flush()
                    self.save()

    def _step(self) -> None:
        job, state = self._job, self._state
        epoch, index = divmod(state.step, self._feed.steps_per_epoch)
        share = factor(job.protocol.decay, state.step, self._feed.steps_per_epoch, job.protocol.epochs)
        set_rate(self._optimizer, share)
        inputs, targets = self._feed.batch(epoch, index)
        self._model.train()
        self._optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=job.device.startswith("cuda")):
            scores = self._model(inputs)
            if scores.ndim == 3:
                scores, targets = scores.flatten(0, 1), targets.flatten()
            loss = nn.functional.cross_entropy(scores, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if job.protocol.optimizer.clip is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), job.protocol.optimizer.clip)
        self._optimizer.step()
        state.loss += loss.detach().double() * len(scores)
        state.samples += len(scores)
        state.step += 1

    def _look_at_loss(self, index: int) -> None:
        on_cpu = self._state.loss.device.type == "cpu"
        if (on_cpu or index % _CHECK_EVERY == 0) and not math.isfinite(self._state.loss.item()):
            self._state.diverged = self._state.step

    def _end_epoch(self, tracker: RankTracker, epoch: int) -> None:
        state, metric = self._state, f"test_{self._job.metric}"
        seen: dict[str, float | None] = {
            "epoch": epoch,
            "train_loss": state.loss.item() / state.samples if state.samples else None,
            "lr": float(self._optimizer.param_groups[0]["lr"]) if epoch else None,
            **self._feed.evaluate(self._model),
        }
        tracker.log(**{name: value for name, value in seen.items() if value is not None})
        if not math.isfinite(seen.get(metric) or 0.0):
            state.diverged = state.step
        for name, value in seen.items():
            state.curves.setdefault(name, []).append(value if value is None or math.isfinite(value) else None)
        state.loss.zero_()
        state.samples = 0

    def _is_due(self) -> bool:
        # A recorded step would be recorded anew when the training goes on, but then without its gradient.
        state = self._state
        return (
            state.step < self._total
            and state.diverged is None
            and not self._schedule(state.step)
            and time.monotonic() - self._saved >= self._pause
        )

    def save(self) -> None:
        state, job = self._state, self._job
        device = torch.device(job.device)
        resuming.save(
            self._files,
            job.settings(),
            {
                "step": state.step,
                "loss": state.loss,
                "samples": state.samples,
                "seconds": state.seconds + time.monotonic() - self._began,
                "curves": state.curves,
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "generator": self._network.generator.get_state(),
                "global": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            },
        )
        self._saved = time.monotonic()

    def load(self, saved: dict[str, Any]) -> None:
        state = self._state
        state.step, state.samples, state.seconds = saved["step"], saved["samples"], saved["seconds"]
        state.loss, state.curves = saved["loss"].to(self._job.device), saved["curves"]
        self._model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._network.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["global"])
        if saved["cuda"] is not None:
            torch.cuda.set_rng_state(saved["cuda"], self._job.device)

    def conclude(self) -> dict[str, Any]:
        state, job, files = self._state, self._job, self._files
        measured = {} if state.diverged is not None else measure_after(job, self._model, self._feed, files)
        run = open_run(files.run)
        values = [value for value in state.curves.get(f"test_{job.metric}", []) if value is not None]
        record = {
            "settings": job.settings(),
            "seed": job.seed,
            "status": "ok" if state.diverged is None else "diverged",
            "diverged_at": state.diverged,
            "value": values[-1] if state.diverged is None else None,
            "best": best_of(values, job.metric),
            "steps": state.step,
            "seconds": round(state.seconds + time.monotonic() - self._began, 3),
            "threads": torch.get_num_threads(),
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "curves": state.curves,
            "facts": facts_of(run),
            "measured": measured,
            "notes": list(self._network.notes),
            "events": run.events["text"].tolist(),
            "run": files.run.name,
            "weights": files.weights.name,
        }
        resuming.write_weights(files.weights, self._model)
        resuming.write_json(files.record, record)
        files.checkpoint.unlink(missing_ok=True)
        return record
