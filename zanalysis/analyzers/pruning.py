"""Magnitude pruning: how a network does without its smallest weights (Frankle & Carbin, ICLR 2019).

A weight is a floating parameter with two or more dimensions; tied ones count once, biases and normalization
are never touched. How many entries go is exact: `round(sparsity * entries)`, half to even, which is also the
count of `torch.nn.utils.prune`. Which ones go is exact too: ascending |w|, and where magnitudes are equal,
the layer that comes first in the model, and in it the entry that comes first in row-major order.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zanalysis.analyzers._weights import Evaluate, LayerChoice, fraction, model_weights, restored, score
from zanalysis.errors import InputError, did_you_mean

__all__ = ["pruned", "pruning_curve"]

_SCOPES = ("layer", "global")


class _Group:
    """Weights that are ranked together, and that ranking: one layer, or all of them."""

    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        for name, weight in weights.items():
            if torch.isnan(weight).any():
                raise InputError(
                    f"{name!r} holds NaN, which has no magnitude to rank by; expected numbers. "
                    "Take an earlier checkpoint, or leave the layer out with `layers`."
                )
        self.weights = list(weights.values())
        device = self.weights[0].device
        # Half precision is ranked in float32, where it is exact and sorts on every device.
        flat = [w.detach().to(device, torch.promote_types(w.dtype, torch.float32)) for w in self.weights]
        magnitudes = torch.cat([w.reshape(-1) for w in flat]).abs()
        self.order = torch.argsort(magnitudes, stable=True)

    def count(self, sparsity: float) -> int:
        return round(sparsity * len(self.order))

    def masks(self, sparsity: float) -> Iterator[Tensor]:
        mask = torch.zeros_like(self.order, dtype=torch.bool)
        mask[self.order[: self.count(sparsity)]] = True
        parts = torch.split(mask, [w.numel() for w in self.weights])
        for part, weight in zip(parts, self.weights, strict=True):
            yield part.view(weight.shape).to(weight.device)


def _groups(model: nn.Module, scope: str, layers: LayerChoice) -> list[_Group]:
    if scope not in _SCOPES:
        raise InputError(f"scope={scope!r} is not a scope; {did_you_mean(str(scope), _SCOPES)}")
    weights = model_weights(model, layers)
    if scope == "global":
        return [_Group(weights)]
    return [_Group({name: weight}) for name, weight in weights.items()]


@contextmanager
def _zeroed(groups: Sequence[_Group], sparsity: float) -> Iterator[None]:
    with restored([weight for group in groups for weight in group.weights]):
        with torch.no_grad():
            for group in groups:
                for weight, mask in zip(group.weights, group.masks(sparsity), strict=True):
                    weight.masked_fill_(mask, 0)
        yield


@contextmanager
def pruned(
    model: nn.Module, sparsity: float, scope: str = "layer", *, layers: LayerChoice = None
) -> Iterator[nn.Module]:
    """Set a model's smallest weights to zero for the length of a `with` block.

    Scope `"layer"` removes the same fraction from each layer (Frankle & Carbin, ICLR 2019, section 2),
    `"global"` ranks all layers together (their section 4). At the end, also after an exception, the weights
    are what they were, bit for bit. The random number generators, `.grad`, `requires_grad`, train/eval mode
    and the parameters' identity are not touched. Blocks nest: the inner one ranks what the outer one left,
    where zeros come first.

    Args:
        model: any module.
        sparsity: the fraction to remove, from 0 to 1; `round(sparsity * entries)` entries become zero.
        scope: `"layer"` or `"global"`.
        layers: which layers: their names, a predicate on the name, or `None` for all.

    Yields:
        The same model.

    Raises:
        InputError: before anything is changed: if the sparsity is outside [0, 1], the scope or a layer is unknown, a
            weight holds NaN, or the model has no weights.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, -3.0], [2.0, -0.5]])})
        >>> with pruned(model, 0.5):
        ...     model.weight.tolist()
        [[0.0, -3.0], [2.0, 0.0]]
        >>> model.weight.tolist()
        [[1.0, -3.0], [2.0, -0.5]]
    """
    wanted = fraction(sparsity, "sparsity")
    with _zeroed(_groups(model, scope, layers), wanted):
        yield model


def pruning_curve(
    model: nn.Module,
    evaluate: Evaluate,
    sparsities: Iterable[float],
    scope: str = "layer",
    *,
    layers: LayerChoice = None,
) -> dict[str, list[str] | list[int] | list[float]]:
    """Score a model at several sparsities, each from the same unpruned weights.

    The weights are ranked once. See `pruned` for what is removed and what is left as it was.

    Args:
        model: any module; the same after the call.
        evaluate: takes the pruned model and returns one number, such as the accuracy on held-out data.
        sparsities: fractions from 0 to 1, in any order.
        scope: `"layer"` or `"global"`.
        layers: which layers: their names, a predicate on the name, or `None` for all.

    Returns:
        Columns of equal length, one row for each sparsity in the order given: `scope`, `sparsity`, `pruned`
        and `kept` (entries of the chosen weights) and `score`. `pandas.DataFrame` takes it as it is.

    Raises:
        InputError: as for `pruned`; also if `evaluate` does not return one number.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, -3.0], [2.0, -0.5]])})
        >>> pruning_curve(model, lambda m: m.weight.sum().item(), [0.0, 0.5])["score"]
        [-0.5, -1.0]
    """
    fractions = [fraction(sparsity, "sparsity") for sparsity in sparsities]
    groups = _groups(model, scope, layers)
    entries = sum(len(group.order) for group in groups)
    removed = [sum(group.count(sparsity) for group in groups) for sparsity in fractions]
    scores: list[float] = []
    for sparsity in fractions:
        with _zeroed(groups, sparsity):
            scores.append(score(evaluate, model))
    return {
        "scope": [scope] * len(fractions),
        "sparsity": fractions,
        "pruned": removed,
        "kept": [entries - count for count in removed],
        "score": scores,
    }
