"""`RankTracker`: reduces the weights where they live, after optimizer steps, and keeps the numbers."""

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hooks.arguments import check_settings, check_tensors, checked_attributes, checked_path, logged_number
from hooks.guards import preserved_rng, without_autocast
from hooks.layers import Layer, Selection, select_layers
from hooks.measuring import Measured, groups_of, measure
from hooks.references import initial_of, initial_tensor, named_references, reference_of
from hooks.schedules import Schedule, every
from hooks.staging import OnFull, StagedWriter
from hooks.structure import describe_layers, describe_model, describe_optimizer, differences, versions
from hooks.taps import StepTap, unwrapped
from zanalysis.analyzers.lanczos import WarmStart
from zanalysis.analyzers.matrices import View
from zanalysis.analyzers.metrics import Key, UserMetric, plan
from zanalysis.analyzers.statuses import STATUSES
from zanalysis.errors import NotBuiltYetError
from zanalysis.runfile import Initial, MemoryWriter, RunWriter, Series, SpectrumKey

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RankTracker"]

_log = logging.getLogger("hooks")

OnRecord = Callable[[int, list[dict[str, Any]]], None]


class RankTracker:
    """Follow the rank of a model's weights through its training.

    Attached to an optimizer, it finds the end of each step by itself. It changes nothing: weights,
    buffers, optimizer state and random number generators are bit for bit what they would be without
    it. After construction, none of its failures reaches the training loop.

    Step k is the state after k completed optimizer steps; step 0 is always recorded.

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
            tensors: which tensors of a layer; this version follows ``"weight"``.
            metrics: names, or functions `matrix -> number`, which are given the matrix in the dtype it
                is stored in and are named by their ``__name__``.
            reference: what is subtracted: None, ``"init"``, ``"identity"``, a tensor, a mapping from
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
        check_tensors(tensors)
        check_settings(schedule, start, spectrum_size, on_full, flush_seconds)
        self._schedule = every(50) if schedule is None else schedule
        self._layers = select_layers(model, layers, view)
        optimizers = unwrapped(optimizer)
        references = named_references(reference, self._layers)
        self._plan = plan(metrics, tuple(references), tolerance)
        self._references = {
            layer.name: {name: reference_of(given, layer) for name, given in references.items()}
            for layer in self._layers
        }
        self._groups = groups_of(self._layers, view, self._plan)
        self._warm = {layer.name: WarmStart() for layer in self._layers}
        self._view = view
        self._spectrum_size = spectrum_size
        self._on_record = on_record
        self._runs_user_code = self._plan.has_user_metrics or callable(view) or on_record is not None
        self._step = start
        self._told: set[str] = set()
        self._seconds = {"metrics": 0.0, "writing": 0.0}
        self._attached = time.perf_counter()
        self._series = tuple(
            Series(matrix, "weight", *key)
            for layer in self._layers
            for matrix in layer.matrices
            for key in self._plan.keys
        )
        spectra = tuple(
            SpectrumKey(matrix, "weight", name)
            for layer in self._layers
            for name in (references if self._plan.wants_spectrum else ())
            for matrix in layer.matrices
        )
        self._spectrum_rows = {key: row for row, key in enumerate(spectra)}
        described = {
            "model": describe_model(model),
            "layers": describe_layers(self._layers),
            "optimizers": describe_optimizer(optimizers),
            "schedule": getattr(self._schedule, "__name__", repr(self._schedule)),
            "metrics": list(dict.fromkeys(key.metric for key in self._plan.keys)),
            "references": list(references),
            "tolerances": [str(t) for t in self._plan.tolerances],
            "view": view if isinstance(view, str) else getattr(view, "__name__", repr(view)),
            "start": start,
            "torch_seed": torch.initial_seed(),
            "versions": versions(),
            "user": checked_attributes(attributes),
            "resumed": [],
        }
        self._memory: MemoryWriter | None = None
        self._path: str | None = None
        self._hooks = ExitStack()
        self._open = True
        with ExitStack() as undo:
            if optimizers:
                undo.callback(self._hooks.close)
                self._hooks.callback(StepTap(optimizers[0], self.step).remove)
            if path is None:
                self._memory = MemoryWriter(self._series, spectra, described)
                self._writer: MemoryWriter | StagedWriter = self._memory
            else:
                self._path = checked_path(path)
                writer = RunWriter(
                    path,
                    self._series,
                    spectra,
                    described,
                    k=spectrum_size,
                    mode=mode,
                    start=start,
                    initial=_Initial(self._layers, self._references) if "init" in references else (),
                )
                if not writer.resumed:
                    undo.callback(writer.path.unlink, missing_ok=True)
                undo.callback(writer.close)
                if writer.before is not None:
                    self._refer_to(writer.initial())
                self._writer = StagedWriter(writer, flush_seconds, on_full)
                if writer.resumed:
                    self._writer.event(start, "resumed", _resumed(start, writer.before, described))
            undo.pop_all()
        # Runs at the latest when the interpreter ends; it must not keep the tracker alive.
        self._finalizer = weakref.finalize(self, self._writer.close)
        if start == 0 or self._due(start):
            self._record()

    def _refer_to(self, initial: Iterable[Initial]) -> None:
        """Take up the reference ``init`` of the run that goes on."""
        layers = {layer.name: layer for layer in self._layers}
        for kept in initial:
            layer, now = layers[kept.layer], self._references[kept.layer]["init"]
            assert isinstance(now, Tensor)
            self._references[layer.name]["init"] = initial_tensor(kept).to(now.device).reshape(now.shape)

    def step(self) -> None:
        """Count a completed step, and record it if it is due. For a loop without a torch optimizer."""
        if not self._open:
            return
        self._step += 1
        if self._due(self._step):
            self._record()

    def log(self, /, **scalars: Any) -> None:
        """Record scalars of the user's own at the current step.

        Args:
            **scalars: numbers, or tensors and arrays that hold one. The step is counted already: one
                given under the name `step` is not recorded, which is said once.
        """
        if not self._open:
            self._say_once("closed", "log() was called after the tracker was closed; nothing was recorded.")
            return
        for name, value in scalars.items():
            try:
                self._writer.log(self._step, name, logged_number(name, value))
            except Exception as error:
                self._note("log", name, f"log({name}=…) was not recorded: {error}")

    def table(self) -> "pd.DataFrame":
        """Return every number recorded so far.

        Returns:
            The columns of `zanalysis.open_run(path).table()`: step, layer, tensor, reference,
            tolerance_rule, metric, value, tolerance, status.
        """
        if self._path is not None:
            from zanalysis.runfile.reader import open_run

            self._writer.flush()
            return open_run(self._path).table()
        from zanalysis.runfile.tables import scalar_table

        assert self._memory is not None
        rows, shape = self._memory.rows, (len(self._memory.rows), len(self._series))
        steps = np.array([row[0] for row in rows], np.int64)
        value, tolerance, status = (np.array([row[i] for row in rows]).reshape(shape) for i in (1, 2, 3))
        return scalar_table(self._series, steps, value, tolerance, status.astype(np.uint8))

    def close(self) -> None:
        """Detach from the optimizer, and complete and close the file. Twice is harmless."""
        if not self._open:
            return
        self._open = False
        self._hooks.close()
        self._writer.overhead(self._seconds, time.perf_counter() - self._attached)
        self._finalizer()

    def __enter__(self) -> "RankTracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None and self._open:
                self._writer.event(self._step, "exception", f"the loop was left by {kind.__name__}: {error}")
        except Exception as failure:
            self._say_once("event", f"an event could not be recorded: {failure!r}")
        finally:
            self.close()

    def _due(self, step: int) -> bool:
        try:
            return bool(self._schedule(step))
        except Exception as error:
            self._note("schedule", "schedule", f"the schedule failed at step {step}: {error!r}; not recorded")
            return False

    def _record(self) -> None:
        began = time.perf_counter()
        try:
            with torch.no_grad(), without_autocast(), preserved_rng(self._runs_user_code):
                numbers, spectra = self._measure()
                measured = time.perf_counter()
                value, tolerance, status = numbers
                self._writer.append(self._step, value, tolerance, status, spectra)
                self._tell(value, tolerance, status)
        except Exception as error:
            self._note("record", "record", f"step {self._step} could not be recorded: {error!r}")
            return
        now = time.perf_counter()
        self._seconds["metrics"] += measured - began
        self._seconds["writing"] += now - measured
        self._writer.overhead(self._seconds, now - self._attached)

    def _measure(self) -> tuple[tuple[Any, Any, Any], Any]:
        measured: dict[str, Measured] = {}
        for group in self._groups:
            measured |= measure(
                group, self._plan, self._references, self._view, self._warm, self._failed_metric
            )
        spectra = np.full((len(self._spectrum_rows), self._spectrum_size), np.nan)
        for layer in self._layers:
            for name, values in measured[layer.name].spectra.items():
                for matrix, row in zip(layer.matrices, values.cpu().numpy(), strict=True):
                    kept = row[: self._spectrum_size]
                    spectra[self._spectrum_rows[SpectrumKey(matrix, "weight", name)], : len(kept)] = kept
        # On the layers' devices until all of them are done.
        table = torch.cat(
            [measured[layer.name].numbers.reshape(-1, 3).cpu() for layer in self._layers]
        ).numpy()
        return (table[:, 0].copy(), table[:, 1].copy(), table[:, 2].astype(np.uint8)), spectra

    def _failed_metric(self, layer: Layer, key: Key, error: Exception) -> None:
        text = f"{key.metric} (reference {key.reference}) of {layer.name}: {error}"
        self._note("error", f"{layer.name}/{key}", text, layer.name)

    def _tell(self, value: Any, tolerance: Any, status: Any) -> None:
        if self._on_record is None:
            return
        rows = [
            {
                "step": self._step,
                **s._asdict(),
                "value": float(v),
                "tolerance": float(t),
                "status": STATUSES[c],
            }
            for s, v, t, c in zip(self._series, value, tolerance, status, strict=True)
        ]
        try:
            self._on_record(self._step, rows)
        except Exception as error:
            self._note("on_record", "on_record", f"on_record failed: {error!r}")

    def _note(self, kind: str, what: str, text: str, layer: str = "") -> None:
        """Say a failure once, in the log and in the record; never raise.

        Args:
            kind: a word.
            what: what the failure is identified by.
            text: a sentence.
            layer: the layer concerned.
        """
        if f"{kind}/{what}" in self._told:
            return
        self._say_once(f"{kind}/{what}", text)
        try:
            self._writer.event(self._step, kind, text, layer)
        except Exception as error:
            self._say_once("event", f"an event could not be recorded: {error!r}")

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning("%s", text)


class _Initial(Iterable[Initial]):
    """The initial weights of the layers, brought to the CPU one at a time, as often as asked for."""

    def __init__(self, layers: Sequence[Layer], references: Mapping[str, Mapping[str, Any]]) -> None:
        self._layers, self._references = layers, references

    def __iter__(self) -> Iterator[Initial]:
        for layer in self._layers:
            yield initial_of(layer, self._references[layer.name]["init"])


def _resumed(step: int, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    if before is None:
        return f"nothing recorded before step {step} is kept: the record begins anew"
    other = differences(before, now)
    return f"recording goes on from step {step}" + (f"; now {'; '.join(other)}" if other else "")
