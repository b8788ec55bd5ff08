"""Guards around a measurement: what the tracker borrows, it gives back as it was."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = [
    "cpu_by_default",
    "default_of_training",
    "full_precision",
    "is_quiet",
    "preserved_attributes",
    "preserved_rng",
    "quiet",
    "undisturbed",
    "without_autocast",
]

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_default: ContextVar[torch.device | None] = ContextVar("default", default=None)


@contextmanager
def quiet() -> Iterator[None]:
    """Let no hook of this package take note of a forward pass that is not the training's own."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Say whether what runs is a forward pass of ours, which no hook is to take note of.

    Returns:
        Whether `quiet` is in force here.
    """
    return _quiet.get()


@contextmanager
def preserved_attributes(model: nn.Module) -> Iterator[None]:
    """Give every module back the attributes it had: a forward pass may count its calls, or keep a tensor.

    What it changes inside a list or a dict of its own stays changed.

    Args:
        model: the model.

    Yields:
        Nothing.
    """
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
            for name, value in attributes.items():
                if module.__dict__.get(name, module) is not value:
                    module.__dict__[name] = value


@contextmanager
def without_autocast() -> Iterator[None]:
    """Keep the arithmetic in its own precision where a step is taken under autocast."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


EXACT = frozenset({"none", "ieee"})


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 as float32, where the training lets its own products run in TF32 or bfloat16."""
    # From version 2.9 on there is a setting for each backend beside the one word for all.
    backends: list[Any] = [
        getattr(one, "matmul", None) for one in (torch.backends.cuda, torch.backends.mkldnn)
    ]
    before = [(backend, backend.fp32_precision) for backend in backends if hasattr(backend, "fp32_precision")]
    word = _matmul_precision()
    if word == "highest" and all(precision in EXACT for _, precision in before):
        yield
        return
    if word != "highest":
        torch.set_float32_matmul_precision("highest")
    for backend, precision in before:
        if precision not in EXACT:
            backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        if word != "highest":
            torch.set_float32_matmul_precision(word)
        for backend, precision in before:
            # One that follows the setting for all backends goes on following it.
            backend.fp32_precision = "none"
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # a backend was set to something of its own: the word is as it was at the start
        return "highest"


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Make tensors on the host where no device is named, whatever default the training has set."""
    try:
        default = torch.get_default_device()
    except AttributeError:  # torch 2.6 cannot tell after set_default_device(None), which is the host
        default = torch.device("cpu")
    if default.type == "cpu":
        yield
        return
    token = _default.set(default)
    try:
        with torch.device("cpu"):
            yield
    finally:
        _default.reset(token)


@contextmanager
def default_of_training() -> Iterator[None]:
    """Give the model's own code the default device back that `cpu_by_default` has put aside."""
    default = _default.get()
    if default is None:
        yield
        return
    with default:
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
    with torch.no_grad(), without_autocast(), full_precision(), preserved_rng(runs_user_code):
        yield
