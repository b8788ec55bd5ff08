"""Run an experiment: train what is missing, and put what there is into a table, a picture and a file.

What was trained before with exactly the same settings is used again, and what was interrupted is gone on
with. After each training the results are written, so that what has finished counts.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zanalysis.errors import InputError, RunFileError
from zanalysis.experiments.asking import (
    check_device,
    checked_scale,
    checked_seeds,
    chosen_variants,
    loaded_data,
    on_data,
    stretched,
    using_threads,
)
from zanalysis.experiments.comparing import findings
from zanalysis.experiments.data import TextDataset
from zanalysis.experiments.jobs import Job, protocol_of, variants
from zanalysis.experiments.recipes import RECIPES, find
from zanalysis.experiments.recipes.schema import Protocol, Recipe, Scale
from zanalysis.experiments.results import Outcome, incomparable, rows_of, summary
from zanalysis.experiments.resuming import Files, finished, write, write_json
from zanalysis.experiments.training import CHECKPOINT_SECONDS, Progress, train

__all__ = ["RESULTS", "Watch", "folder_of", "run_experiment"]

Watch = Callable[[str, int, int], Progress]
RESULTS = "results.json"
_log = logging.getLogger(__name__)


def folder_of(name: str, scale: str, out: str | os.PathLike[str] = "runs") -> Path:
    """Return where an experiment's results lie.

    Args:
        name: of the recipe.
        scale: of it.
        out: the folder above.

    Returns:
        The folder.
    """
    return Path(out) / f"{name}-{scale}"


def run_experiment(
    name: str,
    scale: str = "small",
    *,
    seeds: int | Sequence[int] | None = None,
    epochs: int | None = None,
    data: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    out: str | os.PathLike[str] = "runs",
    only: Sequence[str] = (),
    overwrite: bool = False,
    threads: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    watch: Watch = lambda name, number, count: lambda done, of: None,
) -> Outcome:
    """Run an experiment of the seeds.

    Args:
        name: of the recipe; `zanalysis.experiments.recipes.RECIPES` has them.
        scale: ``"smoke"``, ``"small"`` or ``"paper"``.
        seeds: how many trainings of each system (0, 1, …), or which seeds; as the recipe has it if None.
        epochs: other than the recipe's; warm-up and decays are stretched with them.
        data: another data set than the recipe's.
        data_dir: where the data lie; the environment variable ``ZANALYSIS_DATA`` if None.
        device: where the networks are trained.
        out: the folder that the experiment's own folder, `{name}-{scale}`, is made in.
        only: labels of the systems to train; all if empty. The table has what lies in the folder.
        overwrite: whether trainings start anew, finished ones too.
        threads: of the processor, while it lasts.
        checkpoint_seconds: least time between two checkpoints.
        watch: given each training's name, its number and how many there are (0: not known); what it returns
            is told of the progress.

    Returns:
        The table, and where everything lies.

    Raises:
        InputError: if an argument is not what was expected.
        ZAnalysisError: if the data cannot be had.
        RunFileError: if something cannot be written, or would have to be overwritten.
    """
    recipe, checked = find(name), checked_scale(scale)
    chosen = checked_seeds(seeds)
    check_device(device)
    if recipe.picture == "theorem":
        if epochs is not None:
            raise InputError(f"{recipe.name} has a fixed number of steps at each scale; leave out --epochs.")
        # Loaded only where it is needed.
        from zanalysis.experiments.theorem1_recipe import run_theorem1

        return run_theorem1(
            recipe,
            checked,
            chosen,
            data,
            data_dir,
            device,
            folder_of(name, checked, out),
            only,
            overwrite,
            watch,
        )
    protocol = recipe.scales[checked]
    if data is not None:
        protocol = on_data(protocol, data)
    if epochs is not None:
        protocol = stretched(protocol, epochs)
    compared = chosen_variants(recipe, protocol, only)
    loaded, protocol, notes = loaded_data(protocol, data_dir)
    numbers = chosen if chosen is not None else tuple(range(protocol.seeds))
    owner = RECIPES[recipe.trainings] if recipe.trainings else recipe
    jobs = [
        Job(
            owner.name,
            checked,
            variant,
            protocol_of(recipe, protocol, variant),
            loaded,
            seed,
            recipe.metric,
            device,
            owner.after,
            owner.together,
        )
        for seed in numbers
        for variant in compared
    ]
    running = _Running(recipe, checked, protocol, jobs, Path(out), tuple(notes))
    with using_threads(threads):
        return running.run(overwrite, checkpoint_seconds, watch)


class _Running:
    """The life of one run of an experiment."""

    def __init__(
        self,
        recipe: Recipe,
        scale: Scale,
        protocol: Protocol,
        jobs: list[Job],
        out: Path,
        notes: tuple[str, ...],
    ) -> None:
        self._recipe, self._scale, self._protocol = recipe, scale, protocol
        self._jobs, self._notes = jobs, notes
        self._folder = folder_of(recipe.name, scale, out)
        self._trainings = folder_of(jobs[0].experiment, scale, out)
        for folder in (self._folder, self._trainings):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RunFileError(
                    f"cannot make the folder {folder}: {error.strerror}; choose another with --out."
                ) from error

    def run(self, overwrite: bool, checkpoint_seconds: float, watch: Watch) -> Outcome:
        # What is in the way is found before anything is trained.
        ended = set()
        if not overwrite:
            ended = {job.name for job in self._jobs if self._finished(job) is not None}
        if ended:
            _log.info("%d of %d trainings have finished before", len(ended), len(self._jobs))
        for group in self._groups(ended, overwrite):
            number = self._jobs.index(group[0]) + 1
            name = (
                group[0].name if len(group) == 1 else f"{group[0].variant.label}, {len(group)} seeds together"
            )
            progress = watch(name, number, len(self._jobs))
            if len(group) > 1:
                from zanalysis.experiments.training_together import train_together

                train_together(
                    group,
                    self._trainings,
                    overwrite=overwrite,
                    progress=progress,
                    checkpoint_seconds=checkpoint_seconds,
                )
            else:
                train(
                    group[0],
                    self._trainings,
                    overwrite=overwrite,
                    progress=progress,
                    checkpoint_seconds=checkpoint_seconds,
                )
            self._write(picture=False)
        return self._write(picture=True)

    def _finished(self, job: Job) -> dict[str, Any] | None:
        return finished(Files(self._trainings, job.name), job.settings())

    def _groups(self, ended: set[str], overwrite: bool) -> Iterator[list[Job]]:
        """Yield what is trained at once: the seeds of a system, or one of them."""
        left = [job for job in self._jobs if overwrite or job.name not in ended]
        if not self._recipe.together:
            yield from ([job] for job in left)
            return
        by_system: dict[str, list[Job]] = {}
        for job in left:
            by_system.setdefault(job.variant.label, []).append(job)
        yield from by_system.values()

    def _write(self, picture: bool) -> Outcome:
        outcome = self._outcome()
        write_json(outcome.results, summary(outcome, self._protocol))
        if picture:
            # Here, because the training path loads no plotting library.
            from zanalysis.experiments.drawing import draw

            write(outcome.picture, lambda beside: draw(outcome, beside))
        return outcome

    def _outcome(self) -> Outcome:
        records = self._records()
        compared = variants(self._recipe, self._protocol)
        rows = rows_of(self._recipe, compared, records)
        notes = [self._setting(), *self._notes, *self._protocol.ours]
        if self._recipe.best:
            notes.append(
                "each training counts with the best of its epochs, chosen by the test samples themselves"
            )
        shown = {row.title for row in rows}
        for system in self._recipe.systems:
            if system.title in shown:
                notes += [f"{system.title}: {sentence}" for sentence in system.ours]
        reasons = incomparable(self._recipe, self._scale, self._protocol)
        notes += findings(self._recipe, rows, records, self._trainings)
        return Outcome(
            self._recipe,
            self._scale,
            rows,
            reasons,
            records,
            tuple(notes),
            self._folder,
            self._folder / RESULTS,
            self._folder / f"{self._recipe.name.replace('/', '-')}.png",
            self._trainings,
        )

    def _setting(self) -> str:
        job, protocol = self._jobs[0], self._protocol
        what = "tokens" if isinstance(job.data, TextDataset) else "images"
        count = len(job.data.train)
        return f"{protocol.data}, {count:,} training {what}, {protocol.epochs} epochs, {job.precision} on {job.device}"

    def _records(self) -> dict[str, dict[str, Any]]:
        """Return every finished training of this experiment in the folder, also those of earlier calls."""
        found = {}
        sample = self._jobs[0]
        for variant in variants(self._recipe, self._protocol):
            protocol = protocol_of(self._recipe, self._protocol, variant)
            for path in sorted(self._trainings.glob(f"{variant.label}-*.json")):
                seed = path.stem.removeprefix(f"{variant.label}-")
                if not seed.isdecimal():
                    continue
                job = dataclasses.replace(sample, variant=variant, protocol=protocol, seed=int(seed))
                try:
                    record = self._finished(job)
                except RunFileError:
                    continue
                if record is not None:
                    found[job.name] = record
        return found
