"""Look into a model without leaving a trace: evaluation mode, hooks and names, all put back as they were."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from zanalysis.errors import InputError, did_you_mean

__all__ = ["evaluating", "find_modules", "first_tensor", "watching"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; restore each submodule's mode, buffers and RNG, come what may.

    The flags are set one by one: a model's own `train()` may do more than set them, such as merge an adapter.

    Args:
        model: the model.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module._buffers, name, buffer, buffer.detach().clone(), _version(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    tensors = [*model.parameters(), *model.buffers()]
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for home, name, buffer, kept, version in buffers:
                home[name] = buffer
                # Written only where it was: autograd objects to a write to what a pending backward needs.
                if version is None or buffer._version != version:
                    with torch.no_grad():
                        buffer.copy_(kept)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


@contextmanager
def watching(modules: Mapping[str, nn.Module], take: Callable[[str, object], None]) -> Iterator[None]:
    """Call `take(name, output)` whenever one of the modules has run; remove the hooks, come what may.

    Args:
        modules: what to watch, by name.
        take: what to do with an output; returns nothing, so that the output stays as it is.

    Yields:
        Nothing.
    """
    handles = []

    def hook(name: str, module: nn.Module, inputs: object, output: object) -> None:
        take(name, output)

    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(partial(hook, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Look up modules by name.

    Args:
        model: the model.
        names: as in `model.named_modules()`; a shared module goes by each of its names.

    Returns:
        The modules, in the order of the names.

    Raises:
        InputError: if a name is unknown.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for name in names:
        if name not in known:
            raise InputError(f"the model has no layer {name!r}: {did_you_mean(name, filter(None, known))}")
        found[name] = known[name]
    return found


def first_tensor(output: object, name: str) -> Tensor:
    """Take the activations from what a module returned: itself, or the first of several, as of an LSTM.

    Args:
        output: what the module returned.
        name: the module's name, for the error.

    Returns:
        The tensor.

    Raises:
        InputError: if there is none in first place.
    """
    while isinstance(output, list | tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(
            f"layer {name!r} returned {type(output).__name__}, not a tensor or a tuple that starts with one."
        )
    return output
