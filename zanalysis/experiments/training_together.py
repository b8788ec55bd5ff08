"""Several seeds of one system, trained as one batched computation; each leaves what a training alone leaves.

They share one checkpoint, `{system}-together.pt`, and end together. Up to the rounding of floating-point sums
the outcome is that of separate trainings.
"""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooks import RankTracker
from zanalysis.errors import InputError
from zanalysis.experiments import resuming
from zanalysis.experiments.feeding import EVALUATED_AT_ONCE, ImageFeed
from zanalysis.experiments.jobs import Job
from zanalysis.experiments.measuring import measure_after
from zanalysis.experiments.optimizing import factor, set_rate
from zanalysis.experiments.preparing import isolated, prepared
from zanalysis.experiments.recipes.schema import Optimizer
from zanalysis.experiments.resuming import Files
from zanalysis.experiments.states import State, conclude, end_epoch, recording, schedule_of
from zanalysis.experiments.together import Together, channels_last
from zanalysis.experiments.training import CHECKPOINT_SECONDS, Progress

__all__ = ["train_together"]


def train_together(
    jobs: Sequence[Job],
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda done, of: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> list[dict[str, Any]]:
    """Train several seeds of a system, or go on with them.

    Args:
        jobs: alike but for their seeds, and none of them finished.
        folder: where their files lie.
        overwrite: whether they start anew, whatever lies there.
        progress: told the steps made, and how many there are.
        checkpoint_seconds: the least time between two checkpoints.

    Returns:
        Their records.

    Raises:
        InputError: if the protocol cannot be carried out together.
        RunFileError: if what lies in the folder belongs to other trainings, or it cannot be written.
    """
    wanted = jobs[0].protocol.optimizer
    if wanted.clip is not None or wanted.scalars != 1:
        raise InputError(
            "replicas trained together have one optimizer and no common norm: leave out clipping and the learning "
            "rate of scalars."
        )
    common = Files(folder, f"{jobs[0].variant.label}-together")
    settings = {"seeds": [job.seed for job in jobs], "first": jobs[0].settings()}
    for job in jobs:
        files = Files(folder, job.name)
        if overwrite:
            files.remove()
            common.checkpoint.unlink(missing_ok=True)
        resuming.check_run(files, job.settings())
    saved = resuming.take_up(common, settings)
    if not all(Files(folder, job.name).run.exists() for job in jobs):
        saved = None
    with isolated(jobs[0]):
        training = _Several(jobs, folder, common, settings, progress, checkpoint_seconds)
        if saved is not None:
            training.load(saved)
        training.run(goes_on=saved is not None)
        return training.conclude()


class _Several:
    """The life of several trainings."""

    def __init__(
        self,
        jobs: Sequence[Job],
        folder: Path,
        common: Files,
        settings: dict[str, Any],
        progress: Progress,
        checkpoint_seconds: float,
    ) -> None:
        self._jobs, self._common, self._settings = jobs, common, settings
        self._files = [Files(folder, job.name) for job in jobs]
        self._feeds = [ImageFeed(job) for job in jobs]
        self._networks = [prepared(job) for job in jobs]
        self._job, self._progress = jobs[0], progress
        self._per_epoch = self._feeds[0].steps_per_epoch
        self._total = self._job.protocol.epochs * self._per_epoch
        self._schedule = schedule_of(self._job, self._per_epoch)
        for network in self._networks:
            network.model.train()
        self._together = Together(
            [network.model for network in self._networks],
            lambda parameters: _optimizer(parameters, self._job.protocol.optimizer),
        )
        self._states = [State() for _ in jobs]
        for state in self._states:
            state.loss = state.loss.to(self._job.device)
        self._pause = checkpoint_seconds
        self._noted = self._saved = time.monotonic()

    @property
    def _step_count(self) -> int:
        return self._together.steps

    def run(self, goes_on: bool) -> None:
        with ExitStack() as stack:
            trackers = [
                stack.enter_context(
                    recording(job, network.model, None, files, self._schedule, self._step_count, goes_on)
                )
                for job, network, files in zip(self._jobs, self._networks, self._files, strict=True)
            ]
            if not self._states[0].curves:
                self._end_epoch(trackers, 0)
            self._progress(self._step_count, self._total)
            while self._step_count < self._total:
                self._step()
                if self._schedule(self._step_count):
                    self._together.write_back()
                for tracker in trackers:
                    tracker.step()
                epoch, index = divmod(self._step_count, self._per_epoch)
                if index == 0:
                    self._end_epoch(trackers, epoch)
                self._progress(self._step_count, self._total)
                if self._is_due():
                    for tracker in trackers:
                        tracker.flush()
                    self._save()
            self._together.write_back()

    def _step(self) -> None:
        protocol = self._job.protocol
        epoch, index = divmod(self._step_count, self._per_epoch)
        set_rate(
            self._together.optimizer,
            factor(protocol.decay, self._step_count, self._per_epoch, protocol.epochs),
        )
        pairs = [feed.batch(epoch, index) for feed in self._feeds]
        inputs = channels_last(torch.stack([images for images, _ in pairs]))
        labels = torch.stack([targets for _, targets in pairs])
        with torch.autocast("cuda", torch.bfloat16, enabled=self._job.device.startswith("cuda")):
            losses = self._together.step(inputs, labels)
        count = inputs.shape[1]
        for state, loss in zip(self._states, losses.double().unbind(), strict=True):
            state.loss += loss * count
            state.samples += count
            if state.diverged is None:
                state.step = self._step_count

    def _end_epoch(self, trackers: Sequence[RankTracker], epoch: int) -> None:
        rate = float(self._together.optimizer.param_groups[0]["lr"])
        judged = self._evaluate()
        for job, state, tracker, seen in zip(self._jobs, self._states, trackers, judged, strict=True):
            if state.diverged is None:
                if not math.isfinite(state.loss.item()):
                    state.diverged = state.step
                end_epoch(job, state, tracker, epoch, rate, seen)

    def _evaluate(self) -> list[dict[str, float]]:
        """Return the test metrics of every replica, as `ImageFeed.evaluate` does of one."""
        test, device = self._feeds[0].test, self._job.device
        right, loss = torch.zeros(len(self._jobs), dtype=torch.int64), torch.zeros(len(self._jobs))
        loss = loss.double()
        for chunk in torch.split(torch.arange(len(test)), EVALUATED_AT_ONCE):
            images, labels = self._feeds[0].test_batch(chunk)
            shared = channels_last(images.expand(len(self._jobs), *images.shape))
            with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
                scores = self._together.predict(shared).float()
            right += (scores.argmax(-1) == labels).sum(-1).cpu()
            loss += torch.stack([_summed(one, labels) for one in scores]).double().cpu()
        count = len(test)
        return [
            {
                "test_accuracy": 100 * hits / count,
                "test_error": 100 * (count - hits) / count,
                "test_loss": total / count,
            }
            for hits, total in zip(right.tolist(), loss.tolist(), strict=True)
        ]

    def _is_due(self) -> bool:
        step = self._step_count
        waited = time.monotonic() - self._saved >= self._pause
        return step < self._total and not self._schedule(step) and waited

    def _save(self) -> None:
        self._count_seconds()
        resuming.save(
            self._common,
            self._settings,
            {
                "states": [state.saved() for state in self._states],
                "together": self._together.state_dict(),
                "generators": [network.generator.get_state() for network in self._networks],
                "global": torch.get_rng_state(),
            },
        )
        self._saved = time.monotonic()

    def load(self, saved: dict[str, Any]) -> None:
        self._states = [State.loaded(state, self._job.device) for state in saved["states"]]
        self._together.load_state_dict(saved["together"])
        self._together.write_back()
        for network, bits in zip(self._networks, saved["generators"], strict=True):
            network.generator.set_state(bits)
        torch.set_rng_state(saved["global"])

    def conclude(self) -> list[dict[str, Any]]:
        self._count_seconds()
        records = []
        for job, state, network, files, feed in zip(
            self._jobs, self._states, self._networks, self._files, self._feeds, strict=True
        ):
            measured = {} if state.diverged is not None else measure_after(job, network.model, feed, files)
            records.append(conclude(job, state, network.model, files, network.notes, measured))
        self._common.checkpoint.unlink(missing_ok=True)
        return records

    def _count_seconds(self) -> None:
        # What was spent together is shared: the seconds of the trainings add up to what they took.
        now = time.monotonic()
        for state in self._states:
            state.seconds += (now - self._noted) / len(self._states)
        self._noted = now


def _optimizer(parameters: list[Tensor], wanted: Optimizer) -> torch.optim.Optimizer:
    group = [{"params": parameters, "lr": wanted.lr, "peak": wanted.lr}]
    if wanted.kind == "adam":
        return torch.optim.Adam(group, lr=wanted.lr, weight_decay=wanted.weight_decay, fused=True)
    return torch.optim.SGD(group, lr=wanted.lr, momentum=wanted.momentum, weight_decay=wanted.weight_decay)


def _summed(scores: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
