"""What the recorded quantities are, in words a reader of the page needs, and what bounds them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Meaning", "bound_of", "meaning_of", "shapes_of"]


class Meaning(NamedTuple):
    """One quantity, for its caption and its axis.

    Attributes:
        unit: what one unit of it is.
        says: what it is, in one clause.
        whole: whether it counts something, and is drawn as steps.
        bounded_by: ``"least"`` for min(m, n), ``"rows"``, ``"columns"``, or the empty string.
    """

    unit: str
    says: str
    whole: bool = False
    bounded_by: str = ""


_WEIGHTS = "unit of the tensor"
_MEANINGS: Mapping[str, Meaning] = {
    "rank": Meaning("singular values", "how many singular values exceed the tolerance τ", True, "least"),
    "rank_margin": Meaning(_WEIGHTS, "distance of the nearest singular value from the tolerance τ"),
    "stable_rank": Meaning("no unit", "‖W‖_F² / σ₁², a soft rank", False, "least"),
    "effective_rank": Meaning("no unit", "exp of the entropy of σ / Σσ, a soft rank", False, "least"),
    "spectral_norm": Meaning(_WEIGHTS, "the largest singular value σ₁"),
    "frobenius_norm": Meaning(_WEIGHTS, "the root of the sum of all squared entries"),
    "nuclear_norm": Meaning(_WEIGHTS, "the sum of the singular values"),
    "condition_number": Meaning("no unit", "σ₁ / σ_min; no number where σ_min is rounding noise"),
    "support_rows": Meaning("rows", "how many rows are not exactly zero; bounds the rank", True, "rows"),
    "support_columns": Meaning(
        "columns", "how many columns are not exactly zero; bounds the rank", True, "columns"
    ),
    "identity_scale": Meaning("no unit", "α, the multiple of the identity that is still there"),
    "distinct_rows": Meaning("rows", "how many rows differ from each other", True, "rows"),
    "zero_gradient": Meaning("0 or 1", "1 where every entry of the gradient is exactly zero", True),
    "span_dimension": Meaning("dimensions", "dimension of the span of the activations", True),
}
_OWN = Meaning("as given", "a metric of the user's own")


def meaning_of(metric: str) -> Meaning:
    """Return what a metric is.

    Args:
        metric: its name in the table.

    Returns:
        Its meaning; a generic one for a function of the user's own.

    Example:
        >>> meaning_of("rank").unit
        'singular values'
    """
    return _MEANINGS.get(metric, _OWN)


def shapes_of(attributes: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Read the shapes of the recorded matrices, as the view of the run laid them out.

    Args:
        attributes: of a run; whatever is not as a tracker writes it is passed over.

    Returns:
        Rows and columns by the name of the matrix. Nothing for a view of the user's own, whose shapes
        are not recorded.
    """
    view, found = attributes.get("view", "out"), dict[str, tuple[int, int]]()
    layers = attributes.get("layers")
    for layer in layers if isinstance(layers, list) else []:
        if not isinstance(layer, dict) or view not in ("out", "in"):
            continue
        name, shape = layer.get("name"), layer.get("shape")
        if not isinstance(name, str) or not isinstance(shape, list) or not _is_shape(shape):
            continue
        names = layer.get("matrices")
        names = [one for one in names if isinstance(one, str)] if isinstance(names, list) else [name]
        found |= dict.fromkeys(names or [name], _matrix_shape(shape, str(view), names != [name]))
    return found


def _is_shape(shape: Sequence[Any]) -> bool:
    return len(shape) >= 2 and all(type(n) is int and n >= 0 for n in shape)


def _matrix_shape(shape: Sequence[int], view: str, batch: bool) -> tuple[int, int]:
    if len(shape) == 2 or batch:
        rows, columns = shape[-2:]
        return (columns, rows) if view == "in" else (rows, columns)
    first, second, *taps = shape
    if view == "in":
        return second, first * math.prod(taps)
    return first, second * math.prod(taps)


def bound_of(metric: str, tensor: str, shape: tuple[int, int] | None) -> tuple[int, str] | None:
    """Return what a quantity cannot exceed, whatever the training does.

    Args:
        metric: its name in the table.
        tensor: of what it was measured; only weights and their gradients have the weight's shape.
        shape: rows and columns of the weight, if they are known.

    Returns:
        The bound and its name; None where there is none, or it is not known.

    Example:
        >>> bound_of("rank", "weight", (128, 64))
        (64, 'min(m, n)')
    """
    if shape is None or tensor not in ("weight", "gradient"):
        return None
    rows, columns = shape
    by = meaning_of(metric).bounded_by
    known = {"least": (min(shape), "min(m, n)"), "rows": (rows, "rows m"), "columns": (columns, "columns n")}
    return known.get(by)
