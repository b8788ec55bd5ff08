"""What makes it right to train replicas together: modules that are alike, an optimizer that mixes no elements."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zanalysis.errors import InputError

__all__ = ["MakeOptimizer", "check_alike", "check_elementwise", "check_own", "explained"]

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]

# Recurrent layers have no batching rule; control flow that depends on values cannot have one.
_VMAP_REFUSALS = ("vmap", "Batching rule not implemented")
# Exact agreement is not asked for: fused and vectorized kernels round differently by position.
_PROBE_STEPS, _PROBE_RTOL, _PROBE_ATOL = 3, 1e-9, 1e-12
_PROBE_SIZE = 3


def check_alike(models: Sequence[nn.Module]) -> None:
    """Refuse modules that cannot be stacked.

    Args:
        models: the replicas.

    Raises:
        InputError: if there are none, or one differs from the first.
    """
    if not models:
        raise InputError("got no modules; give at least one.")
    if len({id(model) for model in models}) < len(models):
        raise InputError("one module was given twice; each replica must be a module of its own.")
    first = _description(models[0])
    for number, model in enumerate(models[1:], 1):
        here = _description(model)
        if here != first:
            name = next(name for name in {**first, **here} if first.get(name) != here.get(name))
            raise InputError(
                f"replica {number} differs from replica 0 in {name!r}: {here.get(name, 'absent')} instead of "
                f"{first.get(name, 'absent')}; replicas are trained together only if they are built alike."
            )


def _description(model: nn.Module) -> dict[str, Any]:
    """Return what replicas must have in common, by name.

    Args:
        model: the module.

    Returns:
        Kind and mode of every module; shape, dtype, device and gradient of every tensor.
    """
    facts: dict[str, Any] = {}
    for name, module in model.named_modules():
        facts[name or "the model"] = (type(module).__name__, "train" if module.training else "eval")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        facts[name] = (tuple(tensor.shape), str(tensor.dtype), str(tensor.device), tensor.requires_grad)
    return facts


def check_own(optimizer: torch.optim.Optimizer, stacked: Sequence[Tensor]) -> None:
    """Refuse an optimizer of other parameters, which would train something else in silence.

    Args:
        optimizer: what was made.
        stacked: the parameters it was to be made from.

    Raises:
        InputError: if it holds another one.
    """
    known = {id(tensor) for tensor in stacked}
    if not all(id(tensor) in known for group in optimizer.param_groups for tensor in group["params"]):
        raise InputError(
            "the optimizer holds parameters other than those it was given; make it from its argument: "
            "lambda parameters: Adam(parameters)."
        )


def check_elementwise(optimizer: MakeOptimizer, stacked: Sequence[Tensor]) -> None:
    """Try the optimizer on small tensors, stacked and apart.

    Args:
        optimizer: makes one from a list of parameters.
        stacked: the parameters it will have; their number and dimensions are kept.

    Raises:
        InputError: if the two disagree.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [[2, *(min(size, _PROBE_SIZE) for size in tensor.shape[1:])] for tensor in stacked]
    # Replicas of different magnitude, so that a norm over both is far from that of each.
    scale = torch.tensor([1.0, 100.0], dtype=torch.float64)

    def drawn() -> list[Tensor]:
        unit = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
        scaled = [values * scale.view(-1, *[1] * (values.ndim - 1)) for values in unit]
        return [values.to(tensor.device) for values, tensor in zip(scaled, stacked, strict=True)]

    starts, gradients = drawn(), [drawn() for _ in range(_PROBE_STEPS)]

    def after(rows: slice) -> list[Tensor]:
        parameters = [start[rows].clone().requires_grad_() for start in starts]
        made = optimizer(parameters)
        for gradient in gradients:
            for parameter, values in zip(parameters, gradient, strict=True):
                parameter.grad = values[rows].clone()
            made.step()
        return [parameter.detach() for parameter in parameters]

    try:
        together = after(slice(None))
        apart = [torch.cat(pair) for pair in zip(after(slice(0, 1)), after(slice(1, 2)), strict=True)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the optimizer cannot take stacked parameters ({error}); use one that works element by element, "
            "such as SGD or Adam."
        ) from error
    if not all(
        torch.allclose(one, other, rtol=_PROBE_RTOL, atol=_PROBE_ATOL)
        for one, other in zip(together, apart, strict=True)
    ):
        raise InputError(
            "the optimizer mixes elements of a tensor, so replicas would change each other; use one that "
            "works element by element, such as SGD or Adam."
        )


def explained(error: RuntimeError) -> Exception:
    """Put an error of vmap into words that help; another one is the caller's own.

    Args:
        error: as raised within the mapped call.

    Returns:
        What to raise.
    """
    text = str(error)
    if "randomness" in text:
        return InputError(
            "a layer of these modules draws random numbers, which replicas trained together draw in another "
            'order than separate ones; pass randomness="different" if that is wanted.'
        )
    if any(word in text for word in _VMAP_REFUSALS):
        first = text.splitlines()[0].split(". ")[0]
        return InputError(
            f"a layer of these modules, or the loss, cannot be computed for all replicas at once ({first}); "
            "train them one by one."
        )
    return error
