"""Guards around a measurement: what the tracker borrows, it gives back as it was."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

__all__ = ["preserved_rng", "undisturbed", "without_autocast"]


@contextmanager
def without_autocast() -> Iterator[None]:
    """Keep the arithmetic in its own precision where a step is taken under autocast."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def preserved_rng(needed: bool) -> Iterator[None]:
    """Give every random number generator back as it was: a user's function may draw from it."""
    if not needed:
        yield
        return
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def undisturbed(runs_user_code: bool) -> Iterator[None]:
    """Measure: without gradients, in the arithmetic's own precision, and without a random number less.

    Args:
        runs_user_code: whether functions of the user's own will run.
    """
    with torch.no_grad(), without_autocast(), preserved_rng(runs_user_code):
        yield
