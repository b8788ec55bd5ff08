"""Tucker-2 of a network's layers: what truncation costs it, and what it saves.

The mathematics of one kernel is in `tucker_kernel`, the choice of ranks in `tucker_rule`, the replacement of
convolutions in `compression`; all are offered here.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from zanalysis.analyzers._weights import Evaluate, model_weights, restored, score
from zanalysis.analyzers.compression import CompressedLayer, CompressionReport, compress
from zanalysis.analyzers.tucker_kernel import Tucker2, checked_ranks, tucker2, tucker2_error_surface
from zanalysis.analyzers.tucker_rule import tucker_parameters, tucker_ranks
from zanalysis.errors import InputError

__all__ = [
    "CompressedLayer",
    "CompressionReport",
    "Tucker2",
    "compress",
    "tucker2",
    "tucker2_error_surface",
    "tucker_curve",
    "tucker_parameters",
    "tucker_ranks",
]


def tucker_curve(
    model: nn.Module,
    evaluate: Evaluate,
    layer: str,
    ranks: Iterable[Sequence[int]],
    *,
    refine: bool = True,
) -> dict[str, list[str] | list[int] | list[float]]:
    """Score a model with one layer's weight at several Tucker-2 ranks.

    The weight is replaced by its approximation while `evaluate` runs, which computes what the three smaller
    convolutions of `compress` would, up to rounding. Afterwards, also after an exception, it is what it
    was, bit for bit; the model's mode, `.grad` and the random number generators are not touched.

    Args:
        model: any module; the same after the call.
        evaluate: takes the model and returns one number, such as the accuracy on held-out data.
        layer: the layer's name.
        ranks: pairs (r_out, r_in), in any order.
        refine: whether to improve each HOSVD by HOOI; see `tucker2`.

    Returns:
        Columns of equal length, one row for each pair in the order given: `layer`, `rank_out`, `rank_in`,
        `error` (relative, of the kernel; NaN for a zero kernel), `parameters` (of core and factors) and
        `score`. `pandas.DataFrame` takes it as it is.

    Raises:
        InputError: if `layer` is not one name. Also if the model has no such layer, or a rank does not fit.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.load_state_dict({"weight": torch.diag(torch.tensor([4.0, 3.0]))})
        >>> curve = tucker_curve(model, lambda m: m.weight.norm().item(), "weight", [(1, 1), (2, 2)])
        >>> [round(score, 6) for score in curve["score"]]
        [4.0, 5.0]
    """
    if not isinstance(layer, str):
        raise InputError(f"layer={layer!r}; expected one layer's name, such as 'features.3'.")
    weight = model_weights(model, layer)[layer]
    pairs = [checked_ranks(pair, weight.shape[:2]) for pair in ranks]
    kernel = weight.detach().clone()
    errors: list[float] = []
    scores: list[float] = []
    for pair in pairs:
        found = tucker2(kernel, pair, refine)
        errors.append(float(found.error))
        with restored([weight]):
            with torch.no_grad():
                weight.copy_(found.kernel())
            scores.append(score(evaluate, model))
    return {
        "layer": [layer] * len(pairs),
        "rank_out": [r_out for r_out, _ in pairs],
        "rank_in": [r_in for _, r_in in pairs],
        "error": errors,
        "parameters": [tucker_parameters(kernel.shape, pair) for pair in pairs],
        "score": scores,
    }
