"""Hooks on an optimizer: just before its update, and after it."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
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
    """Tells when the gradients are what an optimizer is about to use, and when it has stepped.

    A closure (LBFGS, Lightning) computes the gradients inside the step: it is wrapped, and they are
    ready when it returns, for the first time where it is evaluated several times.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        due: Callable[[], bool],
        ready: Callable[[Optimizer], None],
        stepped: Callable[[Optimizer], None],
    ) -> None:
        """Install the hooks.

        Args:
            optimizer: whose steps are observed.
            due: whether the step is due; where it is not, the closure stays as it is.
            ready: called ahead of the update; it must not raise.
            stepped: called after each step, taken or skipped; it must not raise.
        """
        self._due = due
        self._ready = ready
        self._stepped = stepped
        with ExitStack() as undo:
            undo.callback(optimizer.register_step_pre_hook(self._before).remove)
            undo.callback(optimizer.register_step_post_hook(self._after).remove)
            self._hooks = undo.pop_all()

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._due():
            return None
        # The first positional argument is the optimizer itself.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._ready(optimizer)
            return None
        wrapped = self._wrapped(closure, optimizer)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), dict(kwargs)
        return args, {**kwargs, "closure": wrapped}

    def _wrapped(self, closure: Callable[..., Any], optimizer: Optimizer) -> Callable[..., Any]:
        told = False

        @wraps(closure)
        def evaluated(*args: Any, **kwargs: Any) -> Any:
            nonlocal told
            loss = closure(*args, **kwargs)
            if not told:
                told = True
                self._ready(optimizer)
            return loss

        return evaluated

    def _after(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._stepped(optimizer)

    def remove(self) -> None:
        """Remove the hooks; twice is harmless."""
        self._hooks.close()
