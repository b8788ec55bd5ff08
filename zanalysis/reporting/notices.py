"""What a reader has to know before trusting the pictures: warnings, in sentences."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zanalysis.reporting.gathering import ABSENT, Record
from zanalysis.reporting.text import number

__all__ = ["Notice", "notices"]

_REASONS = {
    "nonfinite": "the tensor holds NaN or infinity",
    "empty": "the matrix has no entries",
    "too_few_samples": "too few samples were seen",
    "not_converged": "an iteration did not converge",
    "no_gradient": "there was no gradient",
    "unused": "the layer was not used",
    "skipped": "the layer was skipped",
    "dropped": "the record was dropped",
    "no_common_diagonal": "the diagonal differs where nothing was learned",
    "error": "the metric failed, see the events",
    "ok": "the value itself is not finite",
}


class Notice(NamedTuple):
    """One warning.

    Attributes:
        kind: a word that stands before it.
        layer: the layer concerned, if any.
        text: the sentence.
    """

    kind: str
    layer: str
    text: str


def notices(record: Record, shapes: Mapping[str, tuple[int, int]]) -> list[Notice]:
    """Look a record through for what deserves a warning.

    Args:
        record: the record.
        shapes: rows and columns of the weights, by layer.

    Returns:
        The warnings: on the run as a whole first, then layer by layer.
    """
    found = list(_on_run(record))
    found += _without_number(record)
    if len(record.steps):
        found += _dead(record)
        found += _tied(record, shapes)
    return found


def _on_run(record: Record) -> Iterator[Notice]:
    if not record.finished:
        yield Notice(
            "unfinished", "", "The file was not closed: the run is still being written, or its writer was killed. "
            "The page shows what was complete when it was made.",
        )  # fmt: skip
    if not len(record.steps):
        yield Notice("empty", "", "Nothing is recorded yet: the file has no step.")
    elif not record.series and not record.spectrum_keys:
        yield Notice("empty", "", "No layer is recorded.")
    resumed = record.attributes.get("resumed")
    if isinstance(resumed, list) and resumed:
        starts = [part.get("start") for part in resumed if isinstance(part, dict)]
        text = f"The run was resumed at step {', '.join(map(str, starts))}: see the settings of each part."
        yield Notice("resumed", "", text)
    for note in record.notes:
        yield Notice("note", "", note)
    for _, event in record.events.iterrows():
        if event["kind"] != "resumed":
            yield Notice(str(event["kind"]), str(event["layer"]), f"Step {event['step']}: {event['text']}")
    for name in map(str, record.logged.columns[1:]):
        infinite = int(np.isinf(record.logged[name].to_numpy(np.float64)).sum())
        if infinite:
            yield Notice("infinite", "", f"The logged scalar {name} is infinite {_times(infinite)}.")


def _before_any(record: Record) -> npt.NDArray[np.bool_]:
    # At the step where a recording begins there is no gradient and no activation yet, as it should be.
    resumed = record.attributes.get("resumed")
    parts = resumed if isinstance(resumed, list) else []
    starts = [
        0,
        record.attributes.get("start"),
        *(part.get("start") for part in parts if isinstance(part, dict)),
    ]
    at_start = np.isin(record.steps, [start for start in starts if isinstance(start, int)])
    other = np.array([one.tensor != "weight" for one in record.series], bool)
    skipped = record.status == (record.words.index("skipped") if "skipped" in record.words else -1)
    found: npt.NDArray[np.bool_] = at_start[:, None] & other & skipped
    return found


def _times(count: int) -> str:
    return "once" if count == 1 else f"{number(count)} times"


def _without_number(record: Record) -> Iterator[Notice]:
    bad = ~np.isfinite(record.value) & ~_before_any(record)
    seen: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for s in np.flatnonzero(bad.any(axis=0)).tolist():
        one = record.series[s]
        for code in np.unique(record.status[bad[:, s], s]).tolist():
            # What is zero or below the noise has its number where it has one: that is no fault of the record.
            if record.words[code] not in ("zero", "below_noise", ABSENT):
                seen[one.layer, one.tensor, record.words[code]].append(s)
    for (layer, tensor, word), columns in seen.items():
        code = record.words.index(word)
        rows = np.flatnonzero((bad[:, columns] & (record.status[:, columns] == code)).any(axis=1))
        steps = record.steps[rows]
        where = (
            f"at step {steps[0]}"
            if len(steps) == 1
            else f"at {number(len(steps))} of {number(len(record.steps))} recorded steps, {steps[0]} to {steps[-1]}"
        )
        metrics = list(dict.fromkeys(record.series[s].metric for s in columns))
        listed = ", ".join(metrics[:6]) + (", …" if len(metrics) > 6 else "")
        reason = _REASONS.get(word, "no reason is known for this word")
        yield Notice(word, layer, f"No number {where} for {listed} of the {tensor}: {reason}.")


def _dead(record: Record) -> Iterator[Notice]:
    told = set()
    last = record.status[-1]
    for s, one in enumerate(record.series):
        key = (one.layer, one.tensor, one.reference)
        if record.words[last[s]] != "zero" or key in told:
            continue
        told.add(key)
        since = record.steps[_since(record.status[:, s], int(last[s]))]
        from_when = "at every recorded step" if since == record.steps[0] else f"since step {since}"
        if one.reference == "none":
            yield Notice("dead", one.layer, f"The {one.tensor} is all zero {from_when}.")
        elif one.tensor == "weight" and len(record.steps) > 1 and since == record.steps[0]:
            what = "its initial weights" if one.reference == "init" else f"its reference ({one.reference})"
            yield Notice("dead", one.layer, f"The layer has not moved from {what} at any recorded step.")


def _since(status: np.ndarray, code: int) -> int:
    other = np.flatnonzero(status != code)
    return int(other[-1]) + 1 if len(other) else 0


def _tied(record: Record, shapes: Mapping[str, tuple[int, int]]) -> Iterator[Notice]:
    for s, one in enumerate(record.series):
        if (one.metric, one.tensor, one.reference) != ("distinct_rows", "weight", "none"):
            continue
        rows = shapes.get(one.layer, (0, 0))[0]
        finite = np.flatnonzero(np.isfinite(record.value[:, s]))
        if len(finite) and record.value[finite[-1], s] < rows:
            distinct, step = int(record.value[finite[-1], s]), record.steps[finite[-1]]
            text = f"Only {number(distinct)} of {number(rows)} rows are distinct at step {step}: "
            text += f"{number(rows - distinct)} neurons repeat others."
            yield Notice("tied", one.layer, text)
