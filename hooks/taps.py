"""Hooks on the optimizer: installed, and removed without a trace."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch.optim import Optimizer

from zanalysis.errors import InputError

__all__ = ["StepTap", "unwrapped"]


def unwrapped(optimizer: Any) -> list[Optimizer]:
    """Return the torch optimizers behind what the user passed.

    Args:
        optimizer: one, several, wrappers of them with an ``optimizer`` attribute (accelerate's, and so
            the Hugging Face Trainer's), or None.

    Returns:
        The optimizers, in the order given; the first counts the steps.

    Raises:
        InputError: if one of them is no torch optimizer.
    """
    if optimizer is None:
        return []
    several = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    result = []
    for one in several:
        inner = one
        while not isinstance(inner, type) and isinstance(getattr(inner, "optimizer", None), Optimizer):
            inner = inner.optimizer
        if not isinstance(inner, Optimizer):
            raise InputError(
                f"got {type(one).__name__} as the optimizer, expected a torch.optim.Optimizer, a list of "
                "them, or None and a call of tracker.step() after each step."
            )
        result.append(inner)
    return result


class StepTap:
    """Tells when an optimizer has completed a step.

    A fused optimizer under a gradient scaler runs its hooks also on the steps it skips; those are
    recognized by `found_inf` and not told.
    """

    def __init__(self, optimizer: Optimizer, completed: Callable[[], None]) -> None:
        """Install the hook.

        Args:
            optimizer: whose steps count.
            completed: called after each; it must not raise.
        """
        self._completed = completed
        self._hooks = ExitStack()
        handle = optimizer.register_step_post_hook(self._after)
        self._hooks.callback(handle.remove)

    def _after(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        skipped = getattr(optimizer, "found_inf", None)
        if skipped is None or not bool(skipped):
            self._completed()

    def remove(self) -> None:
        """Remove the hook; twice is harmless."""
        self._hooks.close()
