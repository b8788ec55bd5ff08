"""What an observer of a training is told: the order of one step, and what each thing told is."""

from torch import Tensor

from hooks.layers import Layer

__all__ = ["NOTHING", "Observer"]

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

        What is told later in the same step takes its place.

        Args:
            layer: whose.
            g: in the layout of `Layer.read`; None where there is none.
            status: ``ok``; else ``no_gradient`` (frozen), ``unused`` (no part in the loss), ``skipped``.
        """

    def gradients_told(self) -> None:
        """Take note that every gradient of one optimizer's step was told: it changes the weights next."""

    def discarded(self) -> None:
        """Take note that the step was not taken, so that it begins anew: what was told of it did not happen.

        It is known only of a fused optimizer; another one is not called where a scaler finds an overflow.
        """

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
