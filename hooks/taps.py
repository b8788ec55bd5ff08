"""What is installed on a model and its optimizers, and what it tells: everything of one step, in its order."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hooks.activation_tap import ActivationTap, capturing
from hooks.changes import Changes, Remark
from hooks.gradients import Found, gradient_of, parameters_of
from hooks.guards import cpu_by_default
from hooks.layers import Layer
from hooks.observer import NOTHING, Observer
from hooks.optimizer_tap import StepTap, unwrapped

__all__ = ["Observer", "Taps", "unwrapped"]

CAPTURED = (
    "an optimizer step is being captured in a CUDA graph, whose replays call no hooks: call tracker.step() after "
    "each replay; weights and gradients are then recorded, activations are not"
)
UNSEEN = (
    "no output of {names} was seen at step {step}, though the weight has a gradient: its module was compiled before "
    "the tracker was attached or with fullgraph=True, or lends its weight without being called"
)
UNTRAINED = "; no optimizer that is followed trains it: pass the one that does to watch(optimizer=…)"


class Taps:
    """Everything installed on a model and its optimizers. Counts the steps. Leaves no trace when removed.

    Attributes:
        model: the model that they were installed on.
        step: completed optimizer steps. The first optimizer counts them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        layers: Sequence[Layer],
        observer: Observer,
        tensors: Iterable[str],
        start: int = 0,
    ) -> None:
        """Install.

        Args:
            model: the model.
            optimizers: whose steps are observed; where there are none, `count` is to be called.
            layers: which parameters, and the outputs of whose modules.
            observer: who is told.
            tensors: everything that the observer will ever want.
            start: steps completed before.
        """
        self.model = model
        self.step = start
        self._layers = list(layers)
        self._observer = observer
        self._tensors = frozenset(tensors)
        self._optimizers = tuple(optimizers)
        self._due = NOTHING
        self._open = True
        self._told: set[str] = set()
        self._activations: ActivationTap | None = None
        self._changes = Changes(layers)
        self._on_optimizers = ExitStack()
        with ExitStack() as undo:
            self._on_optimizers = self._tapped(self._optimizers)
            undo.callback(self._on_optimizers.close)
            if self._tensors & {"activation", "activation_gradient"}:
                self._activations = ActivationTap(
                    layers,
                    torch.no_grad()(observer.activation),
                    torch.no_grad()(observer.activation_gradient),
                    self._note,
                    self._guarded,
                )
                undo.callback(self._activations.remove)
            self._installed = undo.pop_all()
        self._begin()

    def _tapped(self, optimizers: Iterable[Optimizer]) -> ExitStack:
        with ExitStack() as undo:
            for optimizer in optimizers:
                undo.callback(StepTap(optimizer, self._is_due, self._ready, self._stepped).remove)
            return undo.pop_all()

    def change_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Follow other optimizers in the place of those before; the count of the steps goes on.

        Args:
            optimizers: whose steps are observed from now on.
        """
        before, self._on_optimizers = self._on_optimizers, self._tapped(optimizers)
        self._optimizers = tuple(optimizers)
        before.close()

    def look_again(self) -> None:
        """Follow what is in the place of the layers now, and say what has changed; it does not raise."""
        if self._activations is not None:
            self._guarded(self._activations.follow)()
        self._guarded(self._say_changes)()

    def _say_changes(self) -> None:
        for remark in self._changes.look(self.step):
            text = remark.text + (UNTRAINED if self._is_untrained(remark) else "")
            self._note(remark.kind, f"{self.step}/{remark.text}", text, remark.layer)

    def _is_untrained(self, remark: Remark) -> bool:
        if remark.kind != "replaced" or not self._optimizers:
            return False
        trained = next(layer.trained for layer in self._layers if layer.name == remark.layer)
        known = set().union(*map(parameters_of, self._optimizers))
        return trained is not None and trained.requires_grad and id(trained) not in known

    def called(self, layer: Layer) -> bool:
        """Return whether the layer's module was called in the step that is being completed.

        Args:
            layer: one of those that activations are recorded under.

        Returns:
            Whether an output of it counted.
        """
        return self._activations is not None and self._activations.called(layer)

    def count(self) -> None:
        """Count a completed step of a loop without a torch optimizer."""
        if "gradient" in self._due:
            self._tell([layer for layer in self._layers if layer.name not in self._told], None)
        self._complete()

    def remove(self) -> None:
        """Remove everything; twice is harmless."""
        self._open = False
        self._due = NOTHING
        self._on_optimizers.close()
        self._installed.close()

    def _is_due(self) -> bool:
        return bool(self._due) and not capturing()

    def _ready(self, optimizer: Optimizer) -> None:
        first = optimizer is self._optimizers[0]
        if "gradient" in self._due:
            self._guarded(self._tell_of)(optimizer, first)
        if first and self._activations is not None:
            # Of several evaluations of a closure the first one counts.
            self._activations.listening = False

    def _tell_of(self, optimizer: Optimizer, first: bool) -> None:
        own = parameters_of(optimizer)
        all_of_them = set().union(*map(parameters_of, self._optimizers))

        def told_here(layer: Layer) -> bool:
            identity = self._identity(layer)
            # What no optimizer trains is read when the first one steps.
            return identity in own or (first and identity not in all_of_them)

        self._tell(list(filter(told_here, self._layers)), getattr(optimizer, "grad_scale", None))

    def _identity(self, layer: Layer) -> int | None:
        try:
            return id(layer.trained)
        except AttributeError:  # it is no longer there
            return None

    def _tell(self, layers: Sequence[Layer], scale: Tensor | None) -> None:
        for layer in layers:
            found = self._guarded(gradient_of)(layer, scale) or Found(None, "error")
            if found.remark:
                self._note("gradient", f"gradient/{layer.name}", found.remark, layer.name)
            self._told.add(layer.name)
            self._guarded(self._observer.gradient)(layer, found.gradient, found.status)
        self._guarded(self._observer.gradients_told)()

    def _stepped(self, optimizer: Optimizer) -> None:
        if capturing():
            self._note("cuda_graph", "captured", CAPTURED, "")
            return
        # A fused optimizer runs its hooks also on the steps that a scaler makes it skip.
        found_inf = getattr(optimizer, "found_inf", None)
        skipped = found_inf is not None and bool(found_inf)
        if optimizer is not self._optimizers[0]:
            if skipped and "gradient" in self._due:
                self._guarded(self._take_back)(optimizer)
        elif not skipped:
            self._complete()
        elif self._due:
            self._told.clear()
            self._guarded(self._observer.discarded)()
            if self._activations is not None:
                self._guarded(self._activations.begin)(self._due)

    def _take_back(self, optimizer: Optimizer) -> None:
        own = parameters_of(optimizer)
        for layer in self._layers:
            if self._identity(layer) in own:
                self._guarded(self._observer.gradient)(layer, None, "skipped")

    def _complete(self) -> None:
        self.step += 1
        if self._due:
            # Nothing that the observer does is told to itself.
            if self._activations is not None:
                self._activations.listening = False
                self._guarded(self._say_unseen)(self._activations)
            self._due = NOTHING
            self._guarded(self._say_changes)()
            self._guarded(torch.no_grad()(self._observer.completed))(self.step)
        self._begin()

    def _say_unseen(self, activations: ActivationTap) -> None:
        # Said rather than silently nothing: the weight was used, the call of its module was not seen.
        unseen = [
            layer.name
            for layer in activations.layers
            if layer.name not in activations.ever and getattr(layer.trained, "grad", None) is not None
        ]
        activations.follow()
        if unseen and self._due & {"activation", "activation_gradient"}:
            names = ", ".join(unseen[:3]) + (f" and {len(unseen) - 3} more" if len(unseen) > 3 else "")
            self._note("activation", "unseen", UNSEEN.format(step=self.step, names=names), unseen[0])

    def _begin(self) -> None:
        if not self._open:
            return
        self._told.clear()
        wanted = self._guarded(self._observer.wants)(self.step + 1)
        # At most steps nothing is due, and the less is done then the better.
        self._due = wanted & self._tensors if wanted else NOTHING
        if self._activations is not None and (self._due or self._activations.used):
            self._guarded(self._activations.begin)(self._due)

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        # Failures go to the observer, not to the training.

        def guarded(*args: Any) -> Any:
            try:
                with cpu_by_default():
                    return call(*args)
            except Exception as error:
                name = getattr(call, "__name__", "tap")
                self._note("error", name, f"{name} failed at step {self.step}: {error!r}", "")
                return None

        return guarded

    def _note(self, kind: str, what: str, text: str, layer: str) -> None:
        self._observer.note(self.step, kind, what, text, layer)
