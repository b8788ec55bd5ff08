"""From layers to the rows of a record: small layers of one shape together, the others one by one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hooks.layers import Layer
from zanalysis.analyzers.lanczos import WarmStart
from zanalysis.analyzers.matrices import Reference, View, matricize
from zanalysis.analyzers.metrics import NONE, Key, Plan
from zanalysis.analyzers.norms import SMALL
from zanalysis.analyzers.small import stable_ranks
from zanalysis.analyzers.statuses import CODES
from zanalysis.errors import InputError

__all__ = ["Measured", "OnError", "groups_of", "matrix_shape", "measure"]

STABLE_RANKS = "stable ranks"
OnError = Callable[[Layer, Key, Exception], None]


class Measured(NamedTuple):
    """What was measured of one layer.

    Attributes:
        numbers: value, tolerance and status code of each matrix and key: float64 `[matrices, keys, 3]`.
        spectra: the singular values of each matrix by reference: `[matrices, min(m, n)]`.
    """

    numbers: Tensor
    spectra: dict[str, Tensor]


def groups_of(layers: Sequence[Layer], view: View, plan: Plan | None = None) -> list[list[Layer]]:
    """Put the layers together that one batched decomposition can serve.

    Args:
        layers: the layers.
        view: how a kernel becomes a matrix.
        plan: what will be measured.

    Returns:
        Groups: small matrices of one shape and dtype, or of any where nothing but their stable rank is
        wanted, or a single layer.
    """
    groups: dict[Any, list[Layer]] = {}
    for layer in layers:
        key: Any = layer.name
        if not callable(view) and len(layer.matrices) == 1 and min(matrix_shape(layer, view)) <= SMALL:
            if plan is not None and _only_stable_ranks(plan) and layer.dtype.itemsize <= 4:
                key = STABLE_RANKS
            elif len(layer.shape) == 2:
                key = (layer.shape, layer.dtype)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def matrix_shape(layer: Layer, view: View) -> tuple[int, int]:
    """Return the shape of a layer's matrices.

    Args:
        layer: the layer.
        view: how a kernel becomes a matrix.

    Returns:
        Rows and columns.
    """
    meta = torch.empty(layer.shape, device="meta")
    shape = matricize(meta.unsqueeze(-1) if meta.ndim == 3 else meta, view).shape
    return shape[-2], shape[-1]


def _only_stable_ranks(plan: Plan) -> bool:
    return plan.metrics == ("stable_rank",) and plan.references == (NONE,)


def measure(
    layers: Sequence[Layer],
    plan: Plan,
    references: Mapping[str, Mapping[str, Reference]],
    view: View,
    warm: Mapping[str, WarmStart],
    on_error: OnError,
) -> dict[str, Measured]:
    """Measure the layers of one group as they are now.

    Args:
        layers: as `groups_of` put them together.
        plan: what is measured.
        references: by layer and by name.
        view: how a kernel becomes a matrix.
        warm: the state of each layer from its last record.
        on_error: told of what failed; the numbers concerned have the status ``error``.

    Returns:
        What was measured, by layer.
    """
    if len(layers) > 1 and not plan.has_user_metrics:
        if _only_stable_ranks(plan):
            alone = _stable_ranks_together(layers, plan, view)
            rest = [layer for layer in layers if layer.name not in alone]
            return alone | {
                layer.name: _measured(layer, plan, references, view, warm, on_error) for layer in rest
            }
        together = _measured_together(layers, plan, references, view)
        if together is not None:
            return together
    return {layer.name: _measured(layer, plan, references, view, warm, on_error) for layer in layers}


def _stable_ranks_together(layers: Sequence[Layer], plan: Plan, view: View) -> dict[str, Measured]:
    # What is zero, not finite or in any other way remarkable is left to be measured by itself.
    try:
        matrices = [matricize(layer.read(), view) for layer in layers]
        if any(matrix.ndim != 2 or matrix.dtype.itemsize > 4 for matrix in matrices):
            return {}
        with plan.book("stable_rank"):
            values = stable_ranks(matrices)
    except Exception:
        return {}
    numbers = torch.stack(
        [values, torch.full_like(values, torch.nan), torch.full_like(values, CODES["ok"])], -1
    )
    known = values.isfinite().tolist()
    return {
        layer.name: Measured(numbers[i].reshape(1, 1, 3), {}) for i, layer in enumerate(layers) if known[i]
    }


def _measured_together(
    layers: Sequence[Layer], plan: Plan, references: Mapping[str, Mapping[str, Reference]], view: View
) -> dict[str, Measured] | None:
    # Whatever is the matter with one of them shows when they are measured one by one.
    try:
        weights = [layer.read() for layer in layers]
        if len({(weight.shape, weight.dtype, weight.device) for weight in weights}) > 1:
            return None
        stacked = {
            name: _stacked([references[layer.name][name] for layer in layers]) for name in plan.references
        }
        measurements, spectra = plan.evaluate(torch.stack(weights), stacked, view)
    except Exception:
        return None
    numbers = torch.stack([torch.stack([part.double() for part in m], -1) for m in measurements], 1)
    return {
        layer.name: Measured(
            numbers[i : i + 1], {name: values[i : i + 1] for name, values in spectra.items()}
        )
        for i, layer in enumerate(layers)
    }


def _stacked(references: list[Reference]) -> Reference:
    tensors = [reference for reference in references if isinstance(reference, Tensor)]
    return torch.stack(tensors) if tensors else references[0]


def _measured(
    layer: Layer,
    plan: Plan,
    references: Mapping[str, Mapping[str, Reference]],
    view: View,
    warm: Mapping[str, WarmStart],
    on_error: OnError,
) -> Measured:
    count = len(layer.matrices)
    try:
        tensor = layer.read()
        if tensor.ndim == 2 < len(layer.shape) and count > 1:
            raise InputError(
                f"its shape is {list(tensor.shape)}, but {list(layer.shape)} held {count} matrices."
            )
        measurements, spectra = plan.evaluate(
            tensor,
            references[layer.name],
            view,
            lambda key, error: on_error(layer, key, error),
            warm[layer.name],
        )
        for sentence in warm[layer.name].missed:
            on_error(layer, Key(NONE, NONE, "stable_rank"), RuntimeError(sentence))
        warm[layer.name].missed.clear()
        # What is one number for the whole parameter, such as the scale of its identity, counts for each matrix.
        parts = [torch.stack([p.double().reshape(-1).expand(count) for p in m], -1) for m in measurements]
        numbers = torch.stack(parts, 1) if parts else torch.empty(count, 0, 3, dtype=torch.float64)
        return Measured(numbers, {name: values.reshape(count, -1) for name, values in spectra.items()})
    except Exception as error:
        on_error(layer, Key(NONE, NONE, "every metric"), error)
        nothing = torch.tensor([torch.nan, torch.nan, CODES["error"]], dtype=torch.float64)
        return Measured(nothing.expand(count, len(plan.keys), 3), {})
