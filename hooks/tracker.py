"""`RankTracker`: reduces weights, gradients and activations where they live, and keeps the numbers."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from hooks.account import Account, account_of
from hooks.agenda import Agenda
from hooks.alerting import OnAlert
from hooks.arguments import check_settings, checked_path, checked_tensors
from hooks.attachment import Attachment, described, staged
from hooks.audience import Audience, OnRecord, checked_alerts, checked_callback, recorded_of
from hooks.beside import Beside, settings_of
from hooks.budget import Budget, Due, checked_budget, own_answer
from hooks.columns import Columns, plans_of
from hooks.distributed import agree_on_zeros, check_supported, reshard, runnable, team_of
from hooks.guards import cpu_by_default
from hooks.journal import Journal
from hooks.layers import Selection, select_layers
from hooks.probing import JacobianOptions
from hooks.reducer import Reducer
from hooks.references import Initials, named_references, reference_of, take_up_initial
from hooks.schedules import Schedule, every
from hooks.staging import OnFull
from hooks.taps import Taps, unwrapped
from zanalysis.analyzers.matrices import View
from zanalysis.analyzers.metrics import UserMetric, checked_metrics, checked_tolerances
from zanalysis.runfile import Initial, MemoryWriter, RunWriter

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RankTracker"]


class RankTracker(Attachment):
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

    Two networks that train each other are two trackers with two files. What moves while they train, an optimizer that
    is replaced, a layer that is swapped, a model that is cast or moved, is followed: see `watch` and `hooks.changes`.

    A model that several processes hold (`DistributedDataParallel`, FSDP2, tensor parallelism) is attached to
    in each of them, with the same arguments; one of them writes. See `hooks.distributed`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with RankTracker(model, optimizer, schedule=every(2), metrics="rank") as tracker:
        ...     for _ in range(4):
        ...         model(torch.ones(4)).sum().backward()
        ...         optimizer.step()
        >>> tracker.table()["step"].tolist()
        [0, 2, 4]
    """

    @cpu_by_default()
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
        on_alert: OnAlert | None = None,
        spectrum_size: int = 16,
        attributes: Mapping[str, Any] | None = None,
        span_window: int = 1,
        span_max_features: int | None = None,
        jacobian: JacobianOptions | None = None,
    ) -> None:
        """Attach to a model.

        Args:
            model: the model.
            optimizer: one, a list (the first counts the steps), a wrapper with an ``optimizer``
                attribute, or None: then call `step` after each step.
            path: the run file; None keeps the record in memory.
            schedule: `step -> bool`; `every(50)` if None.
            layers: names, globs, compiled regular expressions or predicates; None for every weight. One of a
                single row or column is followed only where its name is written out.
            tensors: some of ``"weight"``, ``"gradient"``, ``"activation"``, ``"activation_gradient"``.
            metrics: names, or functions `matrix -> number`, which are given the matrix in the dtype it
                is stored in and are named by their ``__name__``.
            reference: what is subtracted from a weight: None, ``"init"``, ``"identity"``, a tensor, a mapping from
                layer names to tensors, or a list of these.
            tolerance: ``"default"``, ``"numpy"``, ``"rounding"``, an absolute number, or a list.
            view: how a kernel becomes a matrix.
            probe: a fixed batch, inputs without targets: a tensor, a tuple of positional arguments or a mapping of
                keyword arguments. Each record runs it through the model in eval mode, after the step;
                ``"activation"`` is then what the layers make of it, in place of the training's own, and
                ``"jacobian_singular_values"`` are taken at its samples.
            mode: ``"x"`` refuses an existing file, ``"w"`` replaces it, ``"a"`` goes on in it: reference
                ``"init"`` stays what it was, and an event names the settings that are other than before.
            start: steps completed before; with ``"a"``, rows at and after it are cut.
            flush_seconds: how long a record may wait before it is safe from a kill.
            on_full: whether a full queue makes the loop wait (``"block"``) or loses the record and
                counts it (``"drop"``).
            budget: the share of the time that recording may take, such as 0.02: due steps that would exceed it
                are left out, and counted in an event. Step 0 is recorded all the same.
            alerts: predicates over the table of the newest record, and those of `hooks.alerts`: logged,
                recorded as events and given to `on_alert`; they stop nothing.
            on_record: called with the step and the rows of each record, in the loop; recorded spectra are in their
                attribute `spectra`. With it, or with alerts, a GPU is waited for.
            on_alert: called with each `hooks.alerts.Alarm`, in the loop.
            spectrum_size: how many singular values a recorded spectrum keeps.
            attributes: facts of the user's own, stored with the run as JSON.
            span_window: how many steps, up to the recorded one, a ``"span_dimension"`` is of.
            span_max_features: layers wider than this are sketched for it, 4096 unless given: a span takes
                8 · features² bytes for each layer, while its window is open.
            jacobian: ``{"samples": n, "source": layer, "target": layer}``, each of them optional: of how many
                samples of the probe (16) the Jacobian is taken, with respect to which layer's output (the
                input) and of which one's (the model's).

        Raises:
            InputError: if an argument is not what was expected.
            RunFileError: if the file cannot be written.
        """
        followed = checked_tensors(tensors)
        check_settings(schedule, start, spectrum_size, on_full, flush_seconds)
        schedule = every(50) if schedule is None else schedule
        watched = checked_alerts(alerts)
        checked_callback("on_record", on_record)
        checked_callback("on_alert", on_alert)
        check_supported(model, followed)
        reshard(model)
        chosen = select_layers(model, layers, view)
        team = team_of(model, chosen)
        optimizers = unwrapped(optimizer)
        named = named_references(reference, chosen)
        asked, rules, share = checked_metrics(metrics), checked_tolerances(tolerance), checked_budget(budget)
        # What is subtracted has an identity's scale whether it is asked for or not.
        booked = [m if isinstance(m, str) else getattr(m, "__name__", type(m).__name__) for m in asked]
        booked += ["identity_scale"] if "identity" in named else []
        self._account = account_of(booked, chosen[0].parameter.device)
        plans = plans_of(followed, asked, tuple(named), tolerance, self._account.timed)
        settings = settings_of(
            runnable(model, team, probe),
            chosen,
            asked,
            followed,
            rules,
            probe,
            jacobian,
            span_window,
            span_max_features,
            spectrum_size,
        )
        references = {
            layer.name: {name: reference_of(given, layer) for name, given in named.items()}
            for layer in chosen
        }
        exchange, agree = None, own_answer
        reduces: Callable[..., Reducer] = Reducer
        if team is not None:
            # Loaded only where it is needed.
            from hooks.shared_opening import open_together
            from hooks.shared_reducer import SharedReducer, SpanExchange

            exchange, agree = SpanExchange(team), lambda allowed: bool(team.agreed(allowed))
            reduces = partial(SharedReducer, team, exchange)
        due = Due(schedule, None if share is None else Budget(share, self._account, agree))
        agenda = Agenda(due, settings.window, start)
        beside = Beside(chosen, settings, agenda, self._account, spectrum_size, exchange)
        self._columns = Columns(chosen, plans, spectrum_size, beside.series, beside.spectra)
        known = recorded_of(self._columns, chosen, view) if watched else None
        audience = Audience(self._columns, on_record, watched, known, on_alert)
        facts = described(
            model, chosen, optimizers, schedule, start, attributes,
            metrics=list(dict.fromkeys(series.metric for series in self._columns.series)),
            tensors=list(followed),
            references=list(named),
            tolerances=[str(rule) for rule in rules],
            view=view if isinstance(view, str) else getattr(view, "__name__", repr(view)),
            budget=share,
            **settings.described,
        )  # fmt: skip
        if team is not None:
            agree_on_zeros(model, facts["model"]["parameters"], team)
        self._memory: MemoryWriter | None = None
        self._path: str | None = None
        self._open = True
        with ExitStack() as undo:

            def open_file(initials: Iterable[Initial]) -> tuple[Journal, Iterable[Initial] | None]:
                if path is None:
                    self._memory = MemoryWriter(self._columns.series, self._columns.spectra, facts)
                    return Journal(self._memory), None
                kept: list[Initial] = []
                goes_on = False

                def look(writer: RunWriter) -> None:
                    nonlocal goes_on
                    goes_on = writer.before is not None
                    kept.extend(writer.initial() if goes_on else ())

                journal, _ = staged(
                    undo,
                    path,
                    lambda name: RunWriter(
                        name,
                        self._columns.series,
                        self._columns.spectra,
                        facts,
                        k=spectrum_size,
                        mode=mode,
                        start=start,
                        initial=initials,
                        parts=self._account.parts,
                    ),
                    look,
                    facts,
                    flush_seconds,
                    on_full,
                )
                self._path = checked_path(path)
                return journal, kept if goes_on else None

            if team is None:
                self._journal, kept = open_file(Initials(chosen, references) if "init" in named else ())
                if kept is not None:
                    take_up_initial(references, kept)
            else:
                self._journal = open_together(team, chosen, references, tuple(named), view, open_file)
            due.journal = beside.journal = self._journal
            reducer = reduces(
                chosen,
                plans,
                references,
                self._columns,
                view,
                agenda,
                beside,
                self._journal,
                self._account,
                due.budget,
                audience,
            )
            if start == 0 or due.scheduled(start):
                reducer.record(start)
            taps = Taps(model, optimizers, chosen, reducer, reducer.tensors, start)
            undo.callback(taps.remove)
            reducer.listen_to(taps)
            self._reducer = reducer
            undo.pop_all()
        self._beside = beside
        self._live(taps, chosen, team is not None, partial(_complete, due.budget))

    def table(self) -> "pd.DataFrame":
        """Return every number recorded so far.

        Returns:
            The columns of `zanalysis.open_run(path).table()`: step, layer, tensor, reference,
            tolerance_rule, metric, value, tolerance, status. Of a model that several processes hold, the
            one that writes has the rows; in the others the table is empty.
        """
        if self._path is not None:
            from zanalysis.runfile.reader import open_run

            self._journal.flush()
            return open_run(self._path).table()
        from zanalysis.runfile.tables import scalar_table

        # A process that does not write has no rows.
        rows, series = self._memory.rows if self._memory else [], self._columns.series
        steps = np.array([row[0] for row in rows], np.int64)
        value, tolerance, status = (
            np.array([row[i] for row in rows]).reshape(len(rows), len(series)) for i in (1, 2, 3)
        )
        return scalar_table(series, steps, value, tolerance, status.astype(np.uint8))

    @property
    def recorded(self) -> int | None:
        """The last step that was recorded, in completed optimizer steps; None where this process records none."""
        return self._reducer.recorded

    def _follow(self, model: nn.Module) -> None:
        self._beside.follow(model)

    def _detached(self) -> None:
        self._reducer.release()


def _complete(budget: Budget | None, journal: Journal, account: Account) -> None:
    """Write the last of the record, and close it."""
    if budget is not None and budget.summary:
        journal.event(budget.step, "budget", budget.summary)
    journal.overhead(account)
    journal.close()
