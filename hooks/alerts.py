"""What to be told of while a training runs: predicates over the newest record, some of them ready-made.

An alert is any function of a table that says whether something is the matter: False or None where it is not;
True or a sentence where it is; or such an answer for each layer concerned, as a mapping from names. The table is
that of `RankTracker.table`, but of the newest record alone: one step, a row for each number. A function that
needs to know more remembers it.

What an alert says is logged, recorded as an event of kind ``alert``, and given to the callbacks, once for each
layer until it is over, which is an event of kind ``alert_over``. Nothing stops the training: a callback that
wants to sets a flag that the loop looks at. A function that fails stands down, with an event. After a resume
nothing is remembered: what is still the matter is said again.

Alerts run in the loop, after each record; what they cost counts as ``writing`` in `run.overhead`. On a GPU the
numbers are waited for. Of a model that several processes hold, the one that writes has the alerts.

    from hooks import RankTracker, alerts, every

    def too_large(table):
        return table["value"].max() > 1e6

    with RankTracker(model, optimizer, "run.h5", schedule=every(50), metrics=("rank", "frobenius_norm"),
                     alerts=[alerts.rank_collapse(below=0.1), alerts.nonfinite(), too_large],
                     on_alert=lambda alarm: print(alarm.step, alarm.layer, alarm.text)):
        ...
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from hooks.alerting import Alarm, Alert, Numbers, OnAlert, Predicate, Recorded, chosen, recorded_layers
from zanalysis.analyzers.metrics import NONE
from zanalysis.analyzers.naming import Selection
from zanalysis.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Alarm",
    "Alert",
    "OnAlert",
    "Predicate",
    "Recorded",
    "dead",
    "nonfinite",
    "rank_collapse",
    "stable_rank_above",
    "value",
]

_NORMS = frozenset({"frobenius_norm", "spectral_norm", "nuclear_norm"})
_EXACT = "frobenius_norm"
"""Found from record to record in the same way: an unmoved weight gives the same number to the bit."""


def rank_collapse(
    below: float, layers: Selection = None, *, tensor: str = "weight", on_alert: OnAlert | None = None
) -> Alert:
    """Tell where a rank has fallen.

    Args:
        below: a rank of less than this; less than 1 is a share of the rank that the matrix could have, min(m, n).
        layers: names, globs, regular expressions or predicates of names; None for all.
        tensor: of which tensor.
        on_alert: called with each `Alarm`.

    Returns:
        The alert. It looks at ``rank`` without a reference, by every tolerance that is recorded.

    Raises:
        InputError: if the bound is not above 0; a share of anything but weights and gradients, or a metric or a layer
            that is not recorded, is refused when the tracker is made.

    Example:
        >>> rank_collapse(below=0.1).name
        'rank_collapse(below=0.1)'
    """
    _number(below, "below")
    if not below > 0:
        raise InputError(f"got below = {below!r}, expected a rank, or a share of the full rank, above 0.")

    def begin(recorded: Recorded) -> Predicate:
        names = recorded_layers(recorded, layers, "rank", tensor, None)
        share = below < 1
        unknown = [name for name in names if name not in recorded.shapes] if share else []
        if unknown or (share and tensor not in ("weight", "gradient")):
            raise InputError(
                f"rank_collapse(below={below:g}) is a share of min(m, n), which is known of weights and gradients "
                "alone; pass a whole number for activations."
            )
        bounds = {name: below * min(recorded.shapes[name]) if share else below for name in names}
        ranks = Numbers(names, "rank", tensor, NONE)

        def predicate(table: "pd.DataFrame") -> dict[str, str]:
            return {
                layer: f"the rank of {layer} is {rank:g}, below {bounds[layer]:g}"
                for layer, _, rank in ranks.of(table)
                if rank < bounds[layer]
            }

        return predicate

    return Alert(f"rank_collapse(below={below:g})", begin, on_alert)


def nonfinite(layers: Selection = None, *, on_alert: OnAlert | None = None) -> Alert:
    """Tell where a tensor is not finite any more, or a number of it is infinite.

    Args:
        layers: names, globs, regular expressions or predicates of names; None for all.
        on_alert: called with each `Alarm`.

    Returns:
        The alert. It looks at every tensor and metric that is recorded.

    Raises:
        InputError: when the tracker is made: if a layer is not recorded.

    Example:
        >>> nonfinite().name
        'nonfinite'
    """

    def begin(recorded: Recorded) -> Predicate:
        names = chosen({series.layer for series in recorded.series}, layers)

        def predicate(table: "pd.DataFrame") -> dict[str, str]:
            bad = table[(table["status"] == "nonfinite") | table["value"].abs().eq(float("inf"))]
            found: dict[str, list[str]] = {}
            for layer, tensor in dict.fromkeys(zip(bad["layer"], bad["tensor"], strict=True)):
                if layer in names:
                    found.setdefault(layer, []).append(tensor.replace("_", " "))
            return {
                layer: f"the {' and the '.join(tensors)} of {layer} hold{'s' * (len(tensors) == 1)} NaN or infinity"
                for layer, tensors in found.items()
            }

        return predicate

    return Alert("nonfinite", begin, on_alert)


def dead(steps: int, layers: Selection = None, *, on_alert: OnAlert | None = None) -> Alert:
    """Tell of layers that have stopped learning: no gradient but zero, or a weight that does not move.

    Args:
        steps: for how many records in a row.
        layers: names, globs, regular expressions or predicates of names; None for all.
        on_alert: called with each `Alarm`.

    Returns:
        The alert. It looks at gradients (``zero_gradient``, or a norm of them) and at ``frobenius_norm`` of weights,
        which is the same number from record to record where a weight has not moved; with ``reference="init"`` too
        it misses no move along a sphere. One of them has to be recorded. Weights that are frozen when the tracker
        is made are not looked at.

    Raises:
        InputError: if steps is no whole number of 1 or more.

    Example:
        >>> dead(steps=20).name
        'dead(steps=20)'
    """
    given: Any = steps
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 1:
        raise InputError(f"got steps = {steps!r}, expected a number of records, 1 or more.")

    def begin(recorded: Recorded) -> Predicate:
        useful = {s.layer for s in recorded.series if _tells_of_death(s.tensor, s.metric)} - recorded.frozen
        if not useful:
            raise InputError(
                "dead() needs tensors=(…, 'gradient') with metrics=(…, 'zero_gradient'), or metrics=(…, "
                "'frobenius_norm') of weights that are trained; add one of them."
            )
        names = chosen(useful, layers)
        still, zero = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        before: dict[str, tuple[Any, ...]] = {}
        norms = Numbers(names, _EXACT, "weight", None)
        gradients = {
            metric: Numbers(names, metric, "gradient", NONE) for metric in ("zero_gradient", *_NORMS)
        }

        def predicate(table: "pd.DataFrame") -> dict[str, str]:
            now: dict[str, tuple[Any, ...]] = {}
            for layer, reference, norm in norms.of(table):
                if norm == norm:
                    now[layer] = (*now.get(layer, ()), reference, norm)
            flat = {
                layer
                for metric, numbers in gradients.items()
                for layer, _, number in numbers.of(table)
                if number == (1 if metric == "zero_gradient" else 0)
            }
            for name in names:
                zero[name] = zero[name] + 1 if name in flat else 0
                still[name] = still[name] + 1 if name in now and now[name] == before.get(name) else 0
            before.clear()
            before.update(now)
            return _deaths(steps, zero, still)

        return predicate

    return Alert(f"dead(steps={steps})", begin, on_alert)


def stable_rank_above(
    bound: float, layers: Selection = None, *, tensor: str = "weight", on_alert: OnAlert | None = None
) -> Alert:
    """Tell where a stable rank is above a bound.

    Args:
        bound: the bound.
        layers: names, globs, regular expressions or predicates of names; None for all.
        tensor: of which tensor.
        on_alert: called with each `Alarm`.

    Returns:
        The alert; ``value("stable_rank", above=bound, reference=None)``.

    Raises:
        InputError: if the bound is no number; when the tracker is made: if stable rank or a layer is not recorded.

    Example:
        >>> stable_rank_above(8).name
        'stable_rank above 8'
    """
    return value("stable_rank", above=bound, layers=layers, tensor=tensor, reference=NONE, on_alert=on_alert)


def value(
    metric: str,
    *,
    above: float | None = None,
    below: float | None = None,
    layers: Selection = None,
    tensor: str = "weight",
    reference: str | None = NONE,
    on_alert: OnAlert | None = None,
) -> Alert:
    """Tell where a number leaves its bounds. One that is missing (NaN) is outside of none.

    Args:
        metric: which number, as the table names it.
        above: tell where it is above this.
        below: tell where it is below this.
        layers: names, globs, regular expressions or predicates of names; None for all.
        tensor: of which tensor.
        reference: the name of what was subtracted, as the table shows it; ``"none"`` or None for nothing.
        on_alert: called with each `Alarm`.

    Returns:
        The alert.

    Raises:
        InputError: if there is no bound, or one that is no number.

    Example:
        >>> value("condition_number", above=1e8, layers="decoder*").name
        'condition_number above 1e+08'
    """
    bounds = {"above": above, "below": below}
    given = {word: bound for word, bound in bounds.items() if bound is not None}
    if not given:
        raise InputError(f"value({metric!r}) has no bound; pass above=…, below=…, or both.")
    for word, bound in given.items():
        _number(bound, word)

    def begin(recorded: Recorded) -> Predicate:
        numbers = Numbers(
            recorded_layers(recorded, layers, metric, tensor, reference), metric, tensor, reference or NONE
        )

        def predicate(table: "pd.DataFrame") -> dict[str, str]:
            found = {}
            for layer, _, number in numbers.of(table):
                for word, bound in given.items():
                    if (number > bound) if word == "above" else (number < bound):
                        found[layer] = f"{metric} of {layer} is {number:g}, {word} {bound:g}"
            return found

        return predicate

    return Alert(" and ".join(f"{metric} {word} {bound:g}" for word, bound in given.items()), begin, on_alert)


def _number(bound: Any, what: str) -> None:
    if isinstance(bound, bool) or not isinstance(bound, Real) or bound != bound:
        raise InputError(f"got {what} = {bound!r}, expected a number.")


def _tells_of_death(tensor: str, metric: str) -> bool:
    if tensor == "gradient":
        return metric == "zero_gradient" or metric in _NORMS
    return tensor == "weight" and metric == _EXACT


def _deaths(steps: int, zero: Mapping[str, int], still: Mapping[str, int]) -> dict[str, str]:
    found = {}
    for name, count in zero.items():
        if count >= steps:
            found[name] = f"the gradient of {name} was exactly zero at {steps} records in a row"
        elif still[name] >= steps:
            found[name] = f"the weight of {name} has not moved over {steps} records"
    return found
