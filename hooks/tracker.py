"""`RankTracker`: reduces weights, gradients and activations where they live, and keeps the numbers."""

import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from hooks.account import Account
from hooks.arguments import check_settings, checked_attributes, checked_path, checked_tensors
from hooks.columns import Columns, plans_of
from hooks.journal import Journal
from hooks.layers import Selection, select_layers
from hooks.reducer import OnRecord, Reducer
from hooks.references import Initials, named_references, reference_of, take_up_initial
from hooks.schedules import Schedule, every
from hooks.staging import OnFull, StagedWriter
from hooks.structure import describe_layers, describe_model, describe_optimizer, resumed, versions
from hooks.taps import Taps, unwrapped
from zanalysis.analyzers.matrices import View
from zanalysis.analyzers.metrics import UserMetric
from zanalysis.errors import NotBuiltYetError
from zanalysis.runfile import MemoryWriter, RunWriter

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RankTracker"]


class RankTracker:
    """Follow the rank of a model's weights, gradients and activations through its training.

    Attached to an optimizer, it finds the end of each step by itself. It changes nothing: weights,
    buffers, optimizer state and random number generators are bit for bit what they would be without
    it. After construction, none of its failures reaches the training loop.

    Step k is the state after k completed optimizer steps: the weights after update k, and the gradients
    and activations that produced it. Step 0 is always recorded; of the others there are none yet, and
    their status is ``skipped``.

    - A gradient is what the optimizer uses: summed over micro-batches, clipped, without a scaler's factor;
      of several evaluations of a closure that of the first. Without one the status says why:
      ``no_gradient`` of a frozen parameter, ``unused`` of one that had no part in the loss, ``skipped``
      where its optimizer made no step.
    - An activation is the output of the module that owns the weight, `[samples, features]`, and has the
      layer's name; of several micro-batches, or calls in one forward, the last. A forward counts if
      gradients are enabled. ``unused``: the module was not called; ``no_gradient``, of the gradient of an
      activation: no backward reached it.
    - The metrics, spectra and tolerances are those of weights. References apply to weights alone, as does
      `identity_scale`; `zero_gradient`, 1 where a gradient is exactly zero, is one of gradients.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with RankTracker(model, optimizer, schedule=every(2), metrics="rank") as tracker:
        ...     for _ in range(4):
        ...         model(torch.ones(4)).sum().backward()
        ...         optimizer.step()
        >>> tracker.table()["step"].tolist()
        [0, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        path: str | os.PathLike[str] | None = None,
        *,
        schedule: Schedule | None = None,
        layers: Selection = None,
        tensors: Sequence[str] | str = ("weight",),
        metrics: str | UserMetric | Sequence[str | UserMetric] = ("rank", "stable_rank"),
        reference: Any = None,
        tolerance: Any = "default",
        view: View = "out",
        probe: Any = None,
        mode: Literal["x", "w", "a"] = "x",
        start: int = 0,
        flush_seconds: float = 0.5,
        on_full: OnFull = "block",
        budget: float | None = None,
        alerts: Sequence[Any] = (),
        on_record: OnRecord | None = None,
        spectrum_size: int = 16,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Attach to a model.

        Args:
            model: the model.
            optimizer: one, a list (the first counts the steps), a wrapper with an ``optimizer``
                attribute, or None: then call `step` after each step.
            path: the run file; None keeps the record in memory.
            schedule: `step -> bool`; `every(50)` if None.
            layers: names, globs, compiled regular expressions or predicates; None for every weight.
            tensors: some of ``"weight"``, ``"gradient"``, ``"activation"``, ``"activation_gradient"``.
            metrics: names, or functions `matrix -> number`, which are given the matrix in the dtype it
                is stored in and are named by their ``__name__``.
            reference: what is subtracted from a weight: None, ``"init"``, ``"identity"``, a tensor, a mapping from
                layer names to tensors, or a list of these.
            tolerance: ``"default"``, ``"numpy"``, ``"rounding"``, an absolute number, or a list.
            view: how a kernel becomes a matrix.
            probe: a fixed batch for activations; not in this version.
            mode: ``"x"`` refuses an existing file, ``"w"`` replaces it, ``"a"`` goes on in it: reference
                ``"init"`` stays what it was, and an event names the settings that are other than before.
            start: steps completed before; with ``"a"``, rows at and after it are cut.
            flush_seconds: how long a record may wait before it is safe from a kill.
            on_full: whether a full queue makes the loop wait (``"block"``) or loses the record and
                counts it (``"drop"``).
            budget: share of the time to stay under; not in this version.
            alerts: predicates over the table; not in this version.
            on_record: called with the step and the rows of each record.
            spectrum_size: how many singular values a recorded spectrum keeps.
            attributes: facts of the user's own, stored with the run as JSON.

        Raises:
            InputError: if an argument is not what was expected.
            RunFileError: if the file cannot be written.
            NotBuiltYetError: if an option is asked for that this version does not have.
        """
        for name, given in (("probe", probe), ("budget", budget), ("alerts", alerts or None)):
            if given is not None:
                raise NotBuiltYetError(f"RankTracker({name}=…)")
        followed = checked_tensors(tensors)
        check_settings(schedule, start, spectrum_size, on_full, flush_seconds)
        schedule = every(50) if schedule is None else schedule
        chosen = select_layers(model, layers, view)
        optimizers = unwrapped(optimizer)
        named = named_references(reference, chosen)
        plans = plans_of(followed, metrics, tuple(named), tolerance)
        references = {
            layer.name: {name: reference_of(given, layer) for name, given in named.items()}
            for layer in chosen
        }
        self._columns = Columns(chosen, plans, spectrum_size)
        self._account = Account()
        described = {
            "model": describe_model(model),
            "layers": describe_layers(chosen),
            "optimizers": describe_optimizer(optimizers),
            "schedule": getattr(schedule, "__name__", repr(schedule)),
            "metrics": list(dict.fromkeys(series.metric for series in self._columns.series)),
            "tensors": list(plans),
            "references": list(named),
            "tolerances": [str(t) for t in next(iter(plans.values())).tolerances],
            "view": view if isinstance(view, str) else getattr(view, "__name__", repr(view)),
            "start": start,
            "torch_seed": torch.initial_seed(),
            "versions": versions(),
            "user": checked_attributes(attributes),
            "resumed": [],
        }
        self._memory: MemoryWriter | None = None
        self._path: str | None = None
        self._open = True
        with ExitStack() as undo:
            if path is None:
                self._memory = MemoryWriter(self._columns.series, self._columns.spectra, described)
                self._journal = Journal(self._memory)
            else:
                self._path = checked_path(path)
                writer = RunWriter(
                    path,
                    self._columns.series,
                    self._columns.spectra,
                    described,
                    k=spectrum_size,
                    mode=mode,
                    start=start,
                    initial=Initials(chosen, references) if "init" in named else (),
                )
                if not writer.resumed:
                    undo.callback(writer.path.unlink, missing_ok=True)
                undo.callback(writer.close)
                if writer.before is not None:
                    take_up_initial(references, writer.initial())
                self._journal = Journal(StagedWriter(writer, flush_seconds, on_full))
                undo.callback(self._journal.close)
                if writer.resumed:
                    self._journal.event(start, "resumed", resumed(start, writer.before, described))
            reducer = Reducer(
                chosen,
                plans,
                references,
                self._columns,
                view,
                schedule,
                self._journal,
                self._account,
                on_record,
            )
            if start == 0 or reducer.due(start):
                reducer.record(start)
            self._taps = Taps(model, optimizers, chosen, reducer, plans, start)
            reducer.listen_to(self._taps)
            self._reducer = reducer
            undo.pop_all()
        # Runs at the latest when the interpreter ends. What is installed outlives a tracker that nobody kept.
        self._finalizer = weakref.finalize(self._taps, self._journal.close)

    def step(self) -> None:
        """Count a completed step, and record it if it is due. For a loop without a torch optimizer."""
        if self._open:
            self._taps.count()

    def log(self, /, **scalars: Any) -> None:
        """Record scalars of the user's own at the current step.

        Args:
            **scalars: numbers, or tensors and arrays that hold one. The step is counted already: one
                given under the name `step` is not recorded, which is said once.
        """
        if self._open:
            self._journal.log(self._taps.step, scalars)
        else:
            self._journal.say_once(
                "closed", "log() was called after the tracker was closed; nothing was recorded."
            )

    def table(self) -> "pd.DataFrame":
        """Return every number recorded so far.

        Returns:
            The columns of `zanalysis.open_run(path).table()`: step, layer, tensor, reference,
            tolerance_rule, metric, value, tolerance, status.
        """
        if self._path is not None:
            from zanalysis.runfile.reader import open_run

            self._journal.flush()
            return open_run(self._path).table()
        from zanalysis.runfile.tables import scalar_table

        assert self._memory is not None
        rows, series = self._memory.rows, self._columns.series
        steps = np.array([row[0] for row in rows], np.int64)
        value, tolerance, status = (
            np.array([row[i] for row in rows]).reshape(len(rows), len(series)) for i in (1, 2, 3)
        )
        return scalar_table(series, steps, value, tolerance, status.astype(np.uint8))

    def close(self) -> None:
        """Detach from the model and the optimizers, and complete and close the file. Twice is harmless."""
        if not self._open:
            return
        self._open = False
        self._taps.remove()
        self._journal.overhead(self._account)
        self._finalizer()

    def __enter__(self) -> "RankTracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._open:
            text = f"the loop was left by {kind.__name__}: {error}"
            self._journal.event(self._taps.step, "exception", text)
        self.close()
