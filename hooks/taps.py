"""What is installed on a model and its optimizers, and what it tells: everything of one step, in its order."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hooks.activation_tap import ActivationTap
from hooks.gradients import gradient_of, parameters_of
from hooks.layers import Layer
from hooks.optimizer_tap import StepTap, unwrapped

__all__ = ["Observer", "Taps", "unwrapped"]

NOTHING: frozenset[str] = frozenset()


class Observer:
    """What taps tell, in the order of one step; a subclass overrides what it wants to hear.

    What it is told it may keep only until it returns. None of its failures reaches the training: they
    come back to `note`.
    """

    def wants(self, step: int) -> frozenset[str]:
        """Say, once and ahead of the step, which tensors are to be told of it; nothing where it is not due.

        Args:
            step: the step that is about to begin.

        Returns:
            Some of ``weight``, ``gradient``, ``activation``, ``activation_gradient``.
        """
        return NOTHING

    def activation(self, layer: Layer, z: Tensor) -> None:
        """Take the output of a layer's module, inside the forward: detached, in the module's own layout.

        Args:
            layer: under whose name.
            z: the first tensor of the output. What comes next may overwrite it.
        """

    def activation_gradient(self, layer: Layer, g: Tensor) -> None:
        """Take the gradient with respect to such an output, inside the backward: detached.

        Args:
            layer: under whose name.
            g: of the shape of the output.
        """

    def gradient(self, layer: Layer, g: Tensor | None, status: str) -> None:
        """Take the gradient that the optimizer is about to use: accumulated, unscaled, clipped.

        A step that a fused optimizer skips under a scaler is told too, and once more when it is taken.

        Args:
            layer: whose.
            g: in the layout of `Layer.read`; None where there is none.
            status: ``ok``; else ``no_gradient`` (frozen), ``unused`` (no part in the loss), ``skipped``.
        """

    def gradients_told(self) -> None:
        """Take note that every gradient of one optimizer's step was told: it changes the weights next."""

    def completed(self, step: int) -> None:
        """Take note that a step that was due is complete; weights are to be read now.

        Args:
            step: how many are complete.
        """

    def note(self, step: int, kind: str, what: str, text: str, layer: str = "") -> None:
        """Take note of a failure or of something that is to be said; it must not raise.

        Args:
            step: how many steps are complete.
            kind: a word.
            what: what it is identified by: it is said once.
            text: a sentence.
            layer: the layer concerned.
        """


class Taps:
    """Everything installed on a model and its optimizers. Counts the steps. Leaves no trace when removed.

    Attributes:
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
        self.step = start
        self._layers = list(layers)
        self._observer = observer
        self._tensors = frozenset(tensors)
        self._optimizers = tuple(optimizers)
        self._model = model
        self._due = NOTHING
        self._open = True
        self._told: set[str] = set()
        self._activations: ActivationTap | None = None
        with ExitStack() as undo:
            for optimizer in self._optimizers:
                undo.callback(StepTap(optimizer, self._is_due, self._ready, self._stepped).remove)
            if self._tensors & {"activation", "activation_gradient"}:
                self._activations = ActivationTap(
                    layers,
                    self._guarded(observer.activation),
                    self._guarded(observer.activation_gradient),
                    self._note,
                )
                undo.callback(self._activations.remove)
            self._installed = undo.pop_all()
        self._begin()

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
        self._installed.close()

    def _is_due(self) -> bool:
        return bool(self._due)

    def _ready(self, optimizer: Optimizer) -> None:
        # The gradients are what this optimizer will use.
        first = optimizer is self._optimizers[0]
        if "gradient" in self._due:
            self._guarded(self._tell_of)(optimizer, first)
        if first and self._activations is not None:
            # Of several evaluations of a closure the first one counts.
            self._activations.listening = False

    def _tell_of(self, optimizer: Optimizer, first: bool) -> None:
        own = parameters_of(optimizer)
        # What no optimizer trains is read when the first one steps.
        others = set().union(*(parameters_of(one) for one in self._optimizers)) if first else set()
        chosen = [
            layer
            for layer in self._layers
            if id(layer.trained) in own or (first and id(layer.trained) not in others)
        ]
        self._tell(chosen, getattr(optimizer, "grad_scale", None))

    def _tell(self, layers: Sequence[Layer], scale: Tensor | None) -> None:
        for layer in layers:
            found = self._guarded(gradient_of)(layer, scale)
            if found is None:
                continue
            if found.remark:
                self._note("gradient", f"gradient/{layer.name}", found.remark, layer.name)
            self._told.add(layer.name)
            self._guarded(self._observer.gradient)(layer, found.gradient, found.status)
        self._guarded(self._observer.gradients_told)()

    def _stepped(self, optimizer: Optimizer) -> None:
        if optimizer is not self._optimizers[0]:
            return
        # A fused optimizer runs its hooks also on the steps that a scaler makes it skip.
        skipped = getattr(optimizer, "found_inf", None)
        if skipped is None or not bool(skipped):
            self._complete()
        elif self._activations is not None:
            self._activations.begin(self._due)

    def _complete(self) -> None:
        self.step += 1
        if self._due:
            # Nothing that the observer does is told to itself.
            if self._activations is not None:
                self._activations.listening = False
            self._due = NOTHING
            self._guarded(self._observer.completed)(self.step)
        self._begin()

    def _begin(self) -> None:
        if not self._open:
            return
        self._told.clear()
        wanted = self._guarded(self._observer.wants)(self.step + 1)
        self._due = (wanted or NOTHING) & self._tensors
        if self._activations is not None:
            self._guarded(self._activations.begin)(self._due)

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, whose failures go to the observer and not to the training."""

        def guarded(*args: Any) -> Any:
            try:
                with torch.no_grad():
                    return call(*args)
            except Exception as error:
                name = getattr(call, "__name__", "tap")
                self._note("error", name, f"{name} failed at step {self.step}: {error!r}", "")
                return None

        return guarded

    def _note(self, kind: str, what: str, text: str, layer: str) -> None:
        self._observer.note(self.step, kind, what, text, layer)
