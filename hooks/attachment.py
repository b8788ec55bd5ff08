"""What everything that is attached to a training has in common: where it writes, and its lifetime."""

import atexit
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from hooks.account import Account
from hooks.arguments import checked_attributes, checked_path
from hooks.journal import Journal
from hooks.layers import Layer, Root, select_layers
from hooks.schedules import Schedule
from hooks.staging import OnFull, StagedWriter
from hooks.structure import describe_layers, describe_model, describe_optimizer, resumed, versions
from hooks.taps import Taps, unwrapped
from zanalysis.errors import InputError
from zanalysis.runfile import RunWriter

__all__ = ["Attachment", "described", "staged"]


def described(
    model: nn.Module,
    layers: Sequence[Layer],
    optimizers: Sequence[Optimizer],
    schedule: Schedule,
    start: int,
    attributes: Mapping[str, Any] | None,
    **more: Any,
) -> dict[str, Any]:
    """Return the facts that are stored with a run.

    Args:
        model: the model.
        layers: the recorded layers.
        optimizers: the optimizers.
        schedule: `step -> bool`.
        start: steps completed before.
        attributes: facts of the user's own.
        **more: settings of what is attached.

    Returns:
        A JSON object.
    """
    return {
        "model": describe_model(model),
        "layers": describe_layers(layers),
        "optimizers": describe_optimizer(optimizers),
        "schedule": getattr(schedule, "__name__", repr(schedule)),
        **more,
        "start": start,
        "torch_seed": torch.initial_seed(),
        "versions": versions(),
        "user": checked_attributes(attributes),
        "resumed": [],
    }


def staged(
    undo: ExitStack,
    path: str | os.PathLike[str],
    make: Callable[[str], RunWriter],
    opened: Callable[[RunWriter], None],
    facts: Mapping[str, Any],
    flush_seconds: float,
    on_full: OnFull,
) -> tuple[Journal, StagedWriter]:
    """Open a run file, and start the thread that writes it.

    Args:
        undo: takes up what is to be done if the attachment fails later.
        path: where the file is to lie.
        make: opens it.
        opened: reads of it what is needed, before anything is written.
        facts: what is stored with the run.
        flush_seconds: how long something may wait to be flushed.
        on_full: what a full queue means.

    Returns:
        The journal, and the writer it writes to.
    """
    writer = make(checked_path(path))
    if not writer.resumed:
        undo.callback(writer.path.unlink, missing_ok=True)
    undo.callback(writer.close)
    opened(writer)
    thread = StagedWriter(writer, flush_seconds, on_full)
    journal = Journal(thread)
    undo.callback(journal.close)
    if writer.resumed:
        start = int(facts["start"])
        journal.event(start, "resumed", resumed(start, writer.before, facts))
    return journal, thread


class Attachment:
    """The life of what is attached to a training: it counts, logs, and is closed, whatever happens."""

    _taps: Taps
    _journal: Journal
    _account: Account
    _finalizer: "weakref.finalize[[Journal, Account], Any]"
    _layers: Sequence[Layer]
    _shared = False
    _open = True

    def _live(
        self,
        taps: Taps,
        layers: Sequence[Layer],
        shared: bool,
        complete: Callable[[Journal, Account], None] | None = None,
    ) -> None:
        """Begin.

        Args:
            taps: what is installed.
            layers: the recorded layers.
            shared: whether several processes hold the model.
            complete: writes the last of the record and closes it; the account and no more, if None.
        """
        self._taps, self._layers, self._shared = taps, layers, shared
        # Runs at the latest when the interpreter ends. What is installed outlives an attachment that nobody kept.
        self._finalizer = weakref.finalize(taps, complete or _complete, self._journal, self._account)
        # Ahead of what h5py does then, in this thread, while the other may still write: last in is first out,
        # but all finalizers have the place of the first one ever made.
        self._finalizer.atexit = False
        atexit.register(self._finalizer)

    def step(self) -> None:
        """Count a completed step, and record it if it is due. For a loop without a torch optimizer."""
        if self._open:
            self._taps.count()

    @property
    def completed(self) -> int:
        """How many optimizer steps are complete: the step that `log` writes at."""
        return self._taps.step

    def watch(self, model: nn.Module | None = None, *, optimizer: Any = None) -> None:
        """Go on with what the training goes on with: another optimizer, another model, or a part that was swapped.

        What is in the place of a layer counts, so that a swapped layer is found by itself at the next record
        (see `hooks.changes` for what becomes of its numbers); with the model, or the part of it, given here it is
        found at once. An optimizer that is replaced has to be given, or its steps are not seen. Like every call
        behind construction this raises nothing: what cannot be followed is logged, and recorded as an event.

        Args:
            model: the model or a part of it that has changed; or another model, whose layers of the same names take
                the place of those recorded. What it has besides is not recorded: the columns of a file are fixed.
            optimizer: what the tracker takes: the new optimizers in the place of all former ones. The count of the
                steps goes on, those of the first one are counted. An empty list: none, call `step`.

        Example:
            >>> from hooks import RankTracker, every
            >>> model = torch.nn.Linear(4, 3)
            >>> tracker = RankTracker(model, torch.optim.SGD(model.parameters()), schedule=every(1), metrics="rank")
            >>> optimizer = torch.optim.AdamW(model.parameters())
            >>> tracker.watch(optimizer=optimizer)
            >>> model(torch.ones(4)).sum().backward()
            >>> optimizer.step()
            >>> tracker.close()
            >>> tracker.table()["step"].tolist()
            [0, 1]
        """
        if not self._open:
            self._journal.say_once("closed watch", "watch() was called after the tracker was closed.")
            return
        try:
            if optimizer is not None:
                self._watch_optimizers(unwrapped(optimizer))
            if model is not None:
                self._watch_model(model)
        except Exception as error:
            self._journal.note(self._taps.step, "watch", repr(error), f"watch() changed nothing: {error}")

    def _watch_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        self._taps.change_optimizers(optimizers)
        names = ", ".join(type(one).__name__ for one in optimizers) or "none: step() counts"
        text = f"the optimizers are others from step {self._taps.step} on: {names}"
        self._journal.event(self._taps.step, "watch", text)

    def _watch_model(self, model: nn.Module) -> None:
        root = self._layers[0].root if self._layers else None
        if root is None:
            return
        if not (isinstance(model, nn.Module) and any(one is model for one in root.model.modules())):
            if self._shared:
                raise InputError("several processes hold the model; attach to the other one anew.")
            self._replace(root, model)
        self._taps.look_again()

    def _replace(self, root: Root, model: nn.Module) -> None:
        found = {layer.name: layer for layer in select_layers(model)}
        here = [layer for layer in self._layers if layer.name in found]
        if not here:
            raise InputError(
                f"{type(model).__name__} has none of the recorded layers; pass the model or a part of it that has "
                f"changed, or one that has some of {', '.join(layer.name for layer in self._layers[:5])}."
            )
        root.model = model
        root.moved = {layer.path: found[layer.name].path for layer in here}
        self._follow(model)
        missing = [layer.name for layer in self._layers if layer.name not in found]
        others = [name for name in found if name not in {layer.name for layer in self._layers}]
        text = f"another model, {type(model).__name__}, is followed from step {self._taps.step} on"
        text += f"; it has no {', '.join(missing)}" if missing else ""
        text += f"; not recorded: {', '.join(others)}" if others else ""
        self._journal.event(self._taps.step, "watch", text)

    def _follow(self, model: nn.Module) -> None:
        """Follow another model with what is not read from layers."""

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

    def flush(self) -> None:
        """Wait until what was recorded and logged so far is safe from a kill."""
        if self._open:
            self._journal.flush()

    def close(self) -> None:
        """Detach from the model and the optimizers, and complete and close the file. Twice is harmless."""
        if not self._open:
            return
        self._open = False
        self._taps.remove()
        self._detached()
        self._finalizer()
        atexit.unregister(self._finalizer)

    def _detached(self) -> None:
        """Let go of what only a training in progress needs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._open:
            text = f"the loop was left by {kind.__name__}: {error}"
            self._journal.event(self._taps.step, "exception", text)
        self.close()


def _complete(journal: Journal, account: Account) -> None:
    journal.overhead(account)
    journal.close()
