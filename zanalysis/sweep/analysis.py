"""Every layer of every checkpoint, measured: `za.analyze`."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zanalysis.analyzers.matrices import VIEWS, View
from zanalysis.analyzers.metrics import OF_GRADIENTS, UserMetric, plan
from zanalysis.analyzers.naming import Selection, inert
from zanalysis.analyzers.statuses import CODES
from zanalysis.checkpoints import StoredTensor
from zanalysis.errors import InputError, ZAnalysisError, did_you_mean
from zanalysis.sweep.cluster import connected
from zanalysis.sweep.journal import Journal, described, fingerprint
from zanalysis.sweep.layers import StoredLayer, layers_of, tensors_by_layer
from zanalysis.sweep.references import named_references, source_of
from zanalysis.sweep.running import Runner, carried_out, in_turn, on_every_core
from zanalysis.sweep.saving import checked_target, save
from zanalysis.sweep.splitting import Split, checked_split
from zanalysis.sweep.states import Paths, State, found, states
from zanalysis.sweep.table import Measured, tidy
from zanalysis.sweep.work import Outcome, Source, Work, columns_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Analysis", "Progress", "analyze", "check_workers"]

_log = logging.getLogger("zanalysis")

Progress = Callable[[int, int], None]
"""Told how many layers are done, and of how many; the latter is an estimate until all checkpoints are open."""


def analyze(
    paths: Paths,
    *,
    metrics: str | UserMetric | list[str | UserMetric] | tuple[str | UserMetric, ...] = (
        "rank",
        "stable_rank",
    ),
    reference: Any = None,
    tolerance: Any = "default",
    view: View = "out",
    layers: Selection = None,
    split: Split | None = None,
    workers: int | None = None,
    scheduler: Any = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Measure the weights of checkpoints, with the numbers that a tracker would have given live.

    One tensor at a time is in memory for each worker. Without `workers` and `scheduler` the cores of this
    machine are used, in threads. A script that passes `workers` starts processes, and needs the usual
    `if __name__ == "__main__":`.

    With `out` the table is written too, and the sweep can be interrupted: what is measured is kept in
    `OUT.part`, and the same call goes on from there.

    Args:
        paths: one checkpoint, several, or folders of them.
        metrics: as for `hooks.RankTracker`; `singular_values` gives the leading 16 as metrics
            `singular_values[0]`, ….
        reference: what is subtracted: None, ``"init"`` (the first checkpoint in natural order), ``"identity"``,
            the path of a checkpoint, which the table then names by its file name, a tensor, a mapping from
            layer names to tensors, or a list of these.
        tolerance: ``"default"``, ``"numpy"``, ``"rounding"``, an absolute number, or a list.
        view: how a kernel becomes a matrix: ``"out"``, ``"in"``, ``"taps"`` or a callable.
        layers: names, globs, compiled regular expressions or predicates; None for every weight. Checked on
            the first checkpoint that can be read.
        split: which parameters hold several matrices; see `zanalysis.sweep.splitting`.
        workers: start so many Dask workers on this machine.
        scheduler: the address of a Dask scheduler, or a `distributed.Client`.
        out: a ``.csv``, ``.parquet`` or ``.json`` file for the table.
        overwrite: whether `out`, and what an interrupted sweep with other settings left, may be replaced.
        progress: called with the number of layers done and an estimate of all.

    Returns:
        Columns checkpoint, step, layer, tensor, reference, tolerance_rule, metric, value, tolerance, status;
        checkpoints in natural order, each sorted by layer, reference, metric. `step` is the checkpoint's own,
        else the last number in its name, else its position. A checkpoint that cannot be read, among others
        that can, has rows with an empty layer and the status ``error``.

    Raises:
        InputError: if an argument is unknown, or options do not go together; before anything is measured.
        CheckpointError: if there is no checkpoint, or the only one cannot be read.

    Example:
        >>> import tempfile, torch, zanalysis as za
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"fc.weight": torch.diag(torch.tensor([2.0, 1.0, 0.0]))}, f"{folder}/step-7.pt")
        ...     table = za.analyze(f"{folder}/step-7.pt", metrics="rank")
        >>> table[["step", "layer", "metric", "value", "status"]].to_numpy().tolist()
        [[7, 'fc', 'rank', 2.0, 'ok']]
    """
    analysis = Analysis(
        paths,
        metrics=metrics,
        reference=reference,
        tolerance=tolerance,
        view=view,
        layers=layers,
        split=split,
        workers=workers,
        scheduler=scheduler,
        out=out,
        overwrite=overwrite,
    )
    return analysis.run(progress)


class Analysis:
    """One sweep: checked when it is made, carried out once, its table there also where it was interrupted.

    Attributes:
        measured: what is done so far, in the order in which it came.
        unread: the checkpoints that could not be read, and why.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        metrics: Any = ("rank", "stable_rank"),
        reference: Any = None,
        tolerance: Any = "default",
        view: View = "out",
        layers: Selection = None,
        split: Split | None = None,
        workers: int | None = None,
        scheduler: Any = None,
        out: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Check what was asked for, and find the checkpoints.

        Args:
            paths: as for `analyze`, like all others.
            metrics: names or functions.
            reference: what is subtracted.
            tolerance: one rule or several.
            view: how a kernel becomes a matrix.
            layers: which.
            split: which parameters hold several matrices.
            workers: how many Dask workers to start.
            scheduler: whose Dask workers to use.
            out: the file for the table.
            overwrite: whether it may be replaced.

        Raises:
            InputError: if something of this is not as expected, or there is no checkpoint.
        """
        check_workers(workers, scheduler)
        if not callable(view) and view not in VIEWS:
            raise InputError(f"unknown view {view!r}; {did_you_mean(str(view), VIEWS)} Or pass a callable.")
        self._out = None if out is None else checked_target(out, overwrite)
        self._overwrite = overwrite
        self._workers, self._scheduler = workers, scheduler
        self._view, self._layers, self._split = view, layers, checked_split(split)
        asked = plan(metrics, ("none",), tolerance)  # the settings first, without reading anything
        if OF_GRADIENTS in asked.metrics:
            raise InputError(
                f"{OF_GRADIENTS} is a number of gradients, and a checkpoint has none; record it with RankTracker("
                "tensors='gradient')."
            )
        self._paths = self._found(paths)
        self._references = named_references(reference)
        self._plan = plan(metrics, tuple(self._references), tolerance)
        self._columns = columns_of(self._plan)
        self._first: dict[str, StoredTensor] | None = None
        self._total = 0
        self.measured: list[Measured] = []
        self.unread: list[ZAnalysisError] = []

    @property
    def table(self) -> "pd.DataFrame":
        """The rows that there are so far."""
        return tidy(self.measured, self._columns)

    def run(self, progress: Progress | None = None) -> "pd.DataFrame":
        """Carry the sweep out.

        Args:
            progress: as for `analyze`.

        Returns:
            The table. It is written to the file that was named, too.
        """
        with ExitStack() as stack:
            # Dask first: where it is missing nothing has been touched yet.
            runner = (
                stack.enter_context(connected(self._workers, self._scheduler))
                if self._on_dask
                else self._here
            )
            journal = None
            if self._out is not None:
                journal = Journal(self._out, self._settings(), self._overwrite)
                stack.callback(journal.close)
            for work, outcome in carried_out(self._work(), runner, journal, Outcome.from_json):
                self.measured.append(Measured(work.place, work.checkpoint, work.step, outcome))
                if progress is not None:
                    progress(len(self.measured), max(self._total, len(self.measured)))
            if not self.measured or all(measured.outcome.names == ("",) for measured in self.measured):
                raise self._nothing_measured()
            table = self.table
            if journal is not None and self._out is not None:
                journal.finish(partial(save, table, self._out))
        return table

    def _found(self, paths: Paths) -> list[Path]:
        return found(paths)

    def _states(self) -> Iterator[State]:
        return states(self._paths)

    @property
    def _on_dask(self) -> bool:
        return self._workers is not None or self._scheduler is not None

    @property
    def _here(self) -> Runner[Work]:
        # Code of a user's own need not be safe in threads.
        return (
            partial(in_turn, sparing=True)
            if self._plan.has_user_metrics or callable(self._view)
            else on_every_core
        )

    def _settings(self) -> dict[str, Any]:
        tensors: dict[str, Any] = {}
        for name, given in self._references.items():
            files = (
                {t.path for t in given.values() if isinstance(t, StoredTensor)}
                if isinstance(given, dict)
                else ()
            )
            tensors[name] = [fingerprint(f) for f in sorted(files)] if files else described(given)
        if "init" in self._references:
            tensors["init"] = fingerprint(self._paths[0])
        return {
            "metrics": described(self._plan.metrics),
            "references": tensors,
            "tolerances": described(self._plan.tolerances),
            "view": described(self._view),
            "split": described(self._split),
        }

    def _work(self) -> Iterator[Work]:
        opened = planned = 0
        for state in self._states():
            opened += state.place[1] == 0
            if state.checkpoint is None:
                self._not_read(state)
                continue
            if self._first is None:
                self._first = tensors_by_layer(state.checkpoint)
            layers = layers_of(state.checkpoint, self._layers, self._view, self._split, strict=planned == 0)
            planned += len(layers)
            self._total = round(planned * len(self._paths) / opened)
            for layer in layers:
                yield Work(
                    state.place,
                    f"{state.fingerprint}:{layer.name}",
                    state.label,
                    state.step,
                    layer,
                    self._sources(layer),
                    self._plan,
                    self._view,
                )

    def _sources(self, layer: StoredLayer) -> dict[str, Source]:
        return {name: source_of(given, layer, self._first) for name, given in self._references.items()}

    def _not_read(self, state: State) -> None:
        assert state.error is not None
        self.unread.append(state.error)
        if len(self._paths) > 1:
            _log.warning("%s", inert(str(state.error)))
        numbers = np.full((1, len(self._columns), 3), np.nan)
        numbers[..., 2] = CODES["error"]
        self.measured.append(Measured(state.place, state.label, state.step, Outcome(("",), numbers)))

    def _nothing_measured(self) -> ZAnalysisError:
        if self.unread:
            return self.unread[0]
        return InputError(
            f"{inert(str(self._paths[0]))} has no weight to measure: no floating tensor with at least two rows and two "
            "columns; name a checkpoint that holds the weights of a network."
        )


def check_workers(workers: Any, scheduler: Any) -> None:
    """Check where the work is to be done.

    Args:
        workers: a number, or None.
        scheduler: an address, a client, or None.

    Raises:
        InputError: if both are given, or the number is none.
    """
    if workers is not None and scheduler is not None:
        raise InputError(
            "got workers and scheduler; a scheduler has workers of its own, pass one of the two."
        )
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise InputError(f"got workers = {workers!r}, expected how many processes to start, 1 or more.")
