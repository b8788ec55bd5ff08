"""What alerts are made of: their types, and how they find their numbers in a table."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from zanalysis.analyzers.metrics import NONE
from zanalysis.analyzers.naming import Selection, selected
from zanalysis.errors import InputError, did_you_mean
from zanalysis.runfile import Series

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Alarm", "Alert", "Numbers", "OnAlert", "Predicate", "Recorded", "chosen", "recorded_layers"]


class Alarm(NamedTuple):
    """What a callback is given.

    Attributes:
        step: the recorded step, in completed optimizer steps.
        alert: the name of the alert.
        layer: the layer concerned; empty where it is no single one.
        text: what is the matter.
    """

    step: int
    alert: str
    layer: str
    text: str


class Recorded(NamedTuple):
    """What an alert may know before the first record.

    Attributes:
        series: what the rows of the table are.
        shapes: rows and columns of each weight's matrix, by its name.
        frozen: the names of those that are not trained.
    """

    series: Sequence[Series]
    shapes: Mapping[str, tuple[int, int]]
    frozen: frozenset[str]


Predicate = Callable[["pd.DataFrame"], bool | str | Mapping[str, str | bool | None] | None]
OnAlert = Callable[[Alarm], Any]


@dataclass(frozen=True)
class Alert:
    """An alert with a name and a callback of its own. The same one may be given to several trackers.

    Attributes:
        name: what it is called.
        begin: gives the predicate of one tracker, which may remember what it has seen.
        on_alert: called with each `Alarm` of this alert, beside the tracker's own callback.
    """

    name: str
    begin: Callable[[Recorded], Predicate] = field(repr=False)
    on_alert: OnAlert | None = field(default=None, repr=False)


def chosen(names: set[str], layers: Selection) -> list[str]:
    """Choose layers by their names.

    Args:
        names: those that there are.
        layers: names, globs, regular expressions or predicates of names; None for all.

    Returns:
        Those chosen.
    """
    return selected(layers, dict.fromkeys(sorted(names), _no_parameter))


def _no_parameter() -> Any:
    raise InputError("an alert chooses layers by their names; pass a predicate of one argument.")


def recorded_layers(
    recorded: Recorded, layers: Selection, metric: str, tensor: str, reference: str | None
) -> list[str]:
    """Choose the layers of which a number is recorded.

    Args:
        recorded: what is recorded.
        layers: as `chosen` takes them.
        metric: which number.
        tensor: of which tensor.
        reference: the name of what was subtracted; None for nothing.

    Returns:
        Their names.

    Raises:
        InputError: if it is recorded of none of them.
    """
    wanted = (tensor, reference or NONE, metric)
    names = {s.layer for s in recorded.series if (s.tensor, s.reference, s.metric) == wanted}
    if not names:
        there = dict.fromkeys(f"{s.metric} of {s.tensor} − {s.reference}" for s in recorded.series)
        asked = f"{metric} of {tensor} − {reference or NONE}"
        raise InputError(f"an alert looks at {asked}, which is not recorded; {did_you_mean(asked, there)}")
    return chosen(names, layers)


class Numbers:
    """Picks numbers of some layers out of table after table. All have the same rows: they are looked for once."""

    def __init__(self, names: Collection[str], metric: str, tensor: str, reference: str | None) -> None:
        """Say which.

        Args:
            names: of which layers.
            metric: which number.
            tensor: of which tensor.
            reference: the name of what was subtracted; None for every one.
        """
        self._names, self._wanted = set(names), {"metric": metric, "tensor": tensor}
        if reference is not None:
            self._wanted["reference"] = reference
        self._rows: Any = None
        self._keys: list[tuple[str, str]] = []

    def of(self, table: "pd.DataFrame") -> list[tuple[str, str, float]]:
        """Pick them out of a table.

        Args:
            table: of one record.

        Returns:
            Layer, reference and value of each.
        """
        if self._rows is None:
            kept = table["layer"].isin(self._names)
            for column, word in self._wanted.items():
                kept &= table[column] == word
            self._rows = kept.to_numpy().nonzero()[0]
            found = table.iloc[self._rows]
            self._keys = list(zip(found["layer"], found["reference"], strict=True))
        values = table["value"].to_numpy()[self._rows].tolist()
        return [(*key, value) for key, value in zip(self._keys, values, strict=True)]
