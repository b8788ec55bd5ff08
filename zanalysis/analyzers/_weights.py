"""What the analyzers that change a model for a moment share: which weights, by which names, and back again.

A weight is a floating parameter with two or more dimensions. Its layer name is the parameter's qualified
name less a final `.weight`, a leading `module.` (data parallel) and every `_orig_mod.` (compiled).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from zanalysis.analyzers.naming import layer_name
from zanalysis.errors import InputError, did_you_mean

__all__ = [
    "Evaluate",
    "LayerChoice",
    "chosen",
    "fraction",
    "layer_name",
    "model_weights",
    "restored",
    "score",
]

Evaluate = Callable[[nn.Module], float]
LayerChoice = str | Iterable[str] | Callable[[str], bool] | None


def chosen(names: Iterable[str], layers: LayerChoice) -> list[str]:
    """Keep the names that a user asked for, in model order.

    Args:
        names: all layer names there are.
        layers: `None` for all, one name, several names, or a predicate on the name.

    Returns:
        The names asked for.

    Raises:
        InputError: if a name asked for is not among `names`.
    """
    known = list(names)
    if layers is None:
        return known
    if callable(layers):
        return [name for name in known if layers(name)]
    asked = [layers] if isinstance(layers, str) else list(layers)
    for name in asked:
        if name not in known:
            raise InputError(f"The model has no layer {name!r} to work on; {did_you_mean(str(name), known)}")
    return [name for name in known if name in asked]


def model_weights(model: nn.Module, layers: LayerChoice = None) -> dict[str, nn.Parameter]:
    """Collect a model's weights, tied ones once under their first name.

    Args:
        model: any module.
        layers: which of them; see `chosen`.

    Returns:
        Layer name -> parameter, in model order; never empty.

    Raises:
        InputError: if the model has no such weight, or has one whose shape is not known yet.
    """
    weights: dict[str, nn.Parameter] = {}
    seen: set[object] = set()
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(
                f"The shape of {name!r} is not known yet; run the model once on an example first."
            )
        # Two Parameters over one storage are tied as surely as one Parameter under two names.
        place = (parameter.data_ptr(), parameter.shape, parameter.stride()) if parameter.data_ptr() else name
        if parameter.ndim >= 2 and parameter.is_floating_point() and place not in seen:
            seen.add(place)
            weights[layer_name(name)] = parameter
    names = chosen(weights, layers)
    if not names:
        raise InputError(
            f"{type(model).__name__} has no weight to work on: expected at least one floating parameter "
            "with two or more dimensions; check the model, and `layers` if you gave it."
        )
    return {name: weights[name] for name in names}


@contextmanager
def restored(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Give parameters their present values back at the end, bit for bit, whatever happens in between.

    The values are copied into the parameters, so that their identity, their storage, `.grad` and
    `requires_grad` stay as they are.

    Args:
        parameters: the parameters to keep.

    Yields:
        Nothing.
    """
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)


def score(evaluate: Evaluate, model: nn.Module) -> float:
    """Call a user's evaluation and insist on a number.

    Args:
        evaluate: takes the model, returns a number or a tensor of one element.
        model: what it is called with.

    Returns:
        The number; NaN and infinities pass, since a diverged evaluation is an answer.

    Raises:
        InputError: if what came back is not one number.
    """
    answer: object = evaluate(model)
    try:
        return float(answer.detach() if isinstance(answer, Tensor) else answer)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"evaluate(model) returned {type(answer).__name__}; expected one number, such as an accuracy."
        ) from error


def fraction(value: object, name: str) -> float:
    """Check a number between 0 and 1.

    Args:
        value: what the user gave.
        name: what the user calls it.

    Returns:
        The number.

    Raises:
        InputError: if it is no number, NaN, or outside [0, 1].
    """
    number = math.nan
    if not isinstance(value, (str, bytes, bool)):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
    if not 0 <= number <= 1:
        raise InputError(f"{name} is {value!r}; expected a number from 0 to 1, such as 0.8.")
    return number
