"""One training with the tracker attached, which goes on where it stopped.

Interrupted at any step, also by a kill, and started again, it ends on a CPU with the same bits as one that
was left alone: batches and augmentation depend on the seed and the step alone, and the rest of what decides
is in the checkpoint.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hooks import RankTracker
from zanalysis.experiments import resuming
from zanalysis.experiments.feeding import Feed, feed_of
from zanalysis.experiments.jobs import Job
from zanalysis.experiments.measuring import measure_after
from zanalysis.experiments.optimizing import factor, optimizer_of, set_rate
from zanalysis.experiments.preparing import Prepared, isolated, prepared
from zanalysis.experiments.resuming import Files
from zanalysis.experiments.states import State, conclude, end_epoch, recording, schedule_of

__all__ = ["CHECKPOINT_SECONDS", "Progress", "train"]

Progress = Callable[[int, int], None]

CHECKPOINT_SECONDS = 30.0
_CHECK_EVERY = 20  # steps between looks at the loss on a GPU, each of which waits for it


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
        files.remove()
    ended = resuming.finished(files, settings)
    if ended is not None:
        return ended
    resuming.check_run(files, settings)
    saved = resuming.take_up(files, settings) if files.run.exists() else None
    with isolated(job):
        feed = feed_of(job)
        training = _Training(job, files, prepared(job), feed, progress, checkpoint_seconds)
        if saved is not None:
            training.load(saved)
        training.run(goes_on=saved is not None)
        return training.conclude()


class _Training:
    """The life of one training."""

    def __init__(
        self,
        job: Job,
        files: Files,
        network: Prepared,
        feed: Feed,
        progress: Progress,
        checkpoint_seconds: float,
    ) -> None:
        self._job, self._files, self._network, self._feed = job, files, network, feed
        self._model, self._progress = network.model, progress
        self._optimizer = optimizer_of(network.model, job.protocol.optimizer)
        self._total = job.protocol.epochs * feed.steps_per_epoch
        self._schedule = schedule_of(job, feed.steps_per_epoch)
        self._state = State()
        self._state.loss = self._state.loss.to(job.device)
        self._pause = checkpoint_seconds
        self._noted = self._saved = time.monotonic()

    def run(self, goes_on: bool) -> None:
        state = self._state
        tracker = recording(
            self._job, self._model, self._optimizer, self._files, self._schedule, state.step, goes_on
        )
        with tracker:
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
        rate = float(self._optimizer.param_groups[0]["lr"])
        end_epoch(self._job, self._state, tracker, epoch, rate, self._feed.evaluate(self._model))

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
        self._count_seconds()
        device = torch.device(self._job.device)
        resuming.save(
            self._files,
            self._job.settings(),
            {
                **self._state.saved(),
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "generator": self._network.generator.get_state(),
                "global": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            },
        )
        self._saved = time.monotonic()

    def load(self, saved: dict[str, Any]) -> None:
        self._state = State.loaded(saved, self._job.device)
        self._model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._network.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["global"])
        if saved["cuda"] is not None:
            torch.cuda.set_rng_state(saved["cuda"], self._job.device)

    def conclude(self) -> dict[str, Any]:
        measured = {}
        if self._state.diverged is None:
            measured = measure_after(self._job, self._model, self._feed, self._files)
        self._count_seconds()
        return conclude(self._job, self._state, self._model, self._files, self._network.notes, measured)

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self._state.seconds += now - self._noted
        self._noted = now
