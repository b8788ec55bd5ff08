"""The numbers that the page draws, as JSON can hold them.

`axis`            what the steps count
`steps`           every recorded step, where all points are drawn; else None
`layers`          names
`words`           statuses
`kinds`           one for each (metric, tensor): what a panel shows
`combos`          one for each (reference, tolerance rule): what a line in a panel is
`series`          `l`, `k`, `c`: indices into the three lists; `x` (None: `steps`) and `y`: the points, gaps as
                  None; `n`: how many were recorded; `exact`: whether leaving points out lost nothing, if not
                  `buckets` were kept; `first`, `last`, `max`: [step, value]; `gaps`: [first step, last step,
                  count, word]; `bound`: [value, name] or None; `o`: values at the steps of `overview`
`overview`        steps at which all layers are compared
`spectra`         `l`, `tensor`, `reference`; `x`: steps; `z`: a list for each singular value; `n`; `nan`
`logged`          `name`, and `x`, `y`, `n`, `exact`, `first`, `last`, `max`, `gaps` as for a series
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from zanalysis.reporting.gathering import Record
from zanalysis.reporting.meanings import bound_of, meaning_of
from zanalysis.reporting.text import visible
from zanalysis.reporting.thinning import Thinned, gaps, sampled, significant, thinned

__all__ = ["Watch", "bounds", "combo_name", "payload"]

Watch = Callable[[int, int], None]

_POINTS = 500_000  # drawn in all
_FEWEST, _MOST = 120, 2000  # of one line
_CELLS = 240_000  # of all heat maps
_OVERVIEW = 120  # columns of the overview
_DECADES = 3.0  # from which an axis is logarithmic

_REFERENCES = {"none": "no reference", "init": "minus init", "identity": "minus identity"}


def combo_name(reference: str, rule: str) -> str:
    """Name one line of a panel.

    Args:
        reference: what was subtracted.
        rule: for the tolerance.

    Returns:
        The name.

    Example:
        >>> combo_name("init", "default"), combo_name("none", "none")
        ('minus init, τ default', 'no reference')
    """
    said = _REFERENCES.get(reference, f"minus {reference}")
    return said if rule == "none" else f"{said}, τ {rule}"


def bounds(
    record: Record, shapes: Mapping[str, tuple[int, int]], proved: tuple[tuple[str, int, str], ...]
) -> list[tuple[int, str] | None]:
    """Find what bounds each series: the shape of the matrix, or a theorem where that says more.

    Args:
        record: the record.
        shapes: rows and columns of the weights, by layer.
        proved: a theorem's bounds on the rank of `W − α·I*`: layer, bound, name.

    Returns:
        For each series the bound and its name, or None.
    """
    by_theorem: dict[str, tuple[int, str]] = {}
    for layer, least, name in proved:
        by_theorem.setdefault(layer, (least, name))
    found: list[tuple[int, str] | None] = []
    for one in record.series:
        bound = bound_of(one.metric, one.tensor, shapes.get(one.layer))
        theorem = by_theorem.get(one.layer)
        about = one.reference == "identity" and one.tensor == "weight"
        if theorem and about and one.metric in ("rank", "support_rows", "support_columns"):
            bound = theorem if bound is None or theorem[0] <= bound[0] else bound
        found.append(bound)
    return found


def payload(
    record: Record, bounds: list[tuple[int, str] | None], watch: Watch = lambda done, of: None
) -> dict[str, Any]:
    """Gather what the page draws.

    Args:
        record: the record.
        bounds: of each series.
        watch: told how many of how many parts are done.

    Returns:
        The layout of this module's docstring.
    """
    total = 2 + len(record.spectrum_keys)
    kinds = list(dict.fromkeys((s.metric, s.tensor) for s in record.series))
    combos = list(dict.fromkeys((s.reference, s.tolerance_rule) for s in record.series))
    limit = min(_MOST, max(_FEWEST, _POINTS // max(1, len(record.series))))
    layers = record.layers
    index = {name: i for i, name in enumerate(layers)}
    overview = sampled(len(record.steps), _OVERVIEW)
    choice = thinned(record.steps, record.value, limit)
    watch(1, total)
    series = []
    for s, one in enumerate(record.series if len(record.steps) else ()):
        drawn = _line(record.steps, record.value[:, s], record.status[:, s], choice[s], record.words)
        if len(record.steps) <= limit:
            drawn["x"] = None
        bound = bounds[s]
        series.append(
            {
                "l": index[one.layer],
                "k": kinds.index((one.metric, one.tensor)),
                "c": combos.index((one.reference, one.tolerance_rule)),
                "bound": None if bound is None else [bound[0], bound[1]],
                "o": significant(record.value[overview, s], 4),
                **drawn,
            }
        )
    watch(2, total)
    return {
        "axis": record.axis,
        "steps": record.steps.tolist() if len(record.steps) <= limit else None,
        "layers": list(map(visible, layers)),
        "kinds": [_kind(record, metric, tensor) for metric, tensor in kinds],
        "combos": [visible(combo_name(*combo)) for combo in combos],
        "series": series,
        "overview": record.steps[overview].tolist(),
        "spectra": list(_spectra(record, index, lambda done: watch(2 + done, total))),
        "logged": list(_logged(record)),
    }


def _kind(record: Record, metric: str, tensor: str) -> dict[str, Any]:
    meaning = meaning_of(metric)
    columns = [s for s, one in enumerate(record.series) if (one.metric, one.tensor) == (metric, tensor)]
    return {
        "metric": visible(metric),
        "tensor": visible(tensor),
        "unit": meaning.unit,
        "says": meaning.says,
        "whole": meaning.whole,
        "log": not meaning.whole and not meaning.bounded_by and _spans_decades(record.value[:, columns]),
    }


def _spans_decades(values: npt.NDArray[np.float64]) -> bool:
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and np.log10(finite.max() / finite.min()) > _DECADES)


def _line(
    steps: npt.NDArray[np.int64],
    value: npt.NDArray[np.float64],
    status: npt.NDArray[np.uint8],
    choice: Thinned,
    words: tuple[str, ...],
) -> dict[str, Any]:
    finite = np.flatnonzero(np.isfinite(value))

    def point(row: int) -> list[Any]:
        return [int(steps[row]), significant(value[[row]])[0]]

    found = gaps(steps, value, status)
    return {
        "x": steps[choice.rows].tolist(),
        "y": significant(value[choice.rows]),
        "n": len(steps),
        "exact": choice.exact,
        "buckets": choice.buckets,
        "first": point(0),
        "last": point(-1),
        "max": point(int(finite[value[finite].argmax()])) if len(finite) else None,
        "gaps": [
            [gap.first, gap.last, gap.records, "several reasons" if gap.code < 0 else _word(words[gap.code])]
            for gap in found
        ],
    }


def _word(word: str) -> str:
    return "not finite" if word == "ok" else visible(word)


def _spectra(
    record: Record, index: Mapping[str, int], told: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    if record.run is None or not len(record.steps):
        return
    keys = record.spectrum_keys
    for done, key in enumerate(keys, start=1):
        spectra = record.run.spectra(*key)
        height = spectra.values.shape[1]
        rows = sampled(len(spectra.steps), min(240, max(60, _CELLS // max(1, len(keys) * height))))
        kept = spectra.values[rows]
        # A matrix with fewer singular values than the file keeps has no others at any step.
        there = np.isfinite(spectra.values).any(axis=0)
        height = int(np.flatnonzero(there)[-1]) + 1 if there.any() else 0
        yield {
            "l": index[key.layer],
            "tensor": visible(key.tensor),
            "reference": visible(combo_name(key.reference, "none")),
            "x": spectra.steps[rows].tolist(),
            "z": [significant(kept[:, i], 4) for i in range(height)],
            "n": len(spectra.steps),
            "nan": int((~np.isfinite(spectra.values).any(axis=1)).sum()),
        }
        told(done)


def _logged(record: Record) -> Iterator[dict[str, Any]]:
    steps = record.logged["step"].to_numpy(np.int64)
    for name in record.logged.columns[1:]:
        value = record.logged[name].to_numpy(np.float64)
        # Not logged at a step is not a gap: other names were.
        given = ~np.isnan(value)
        own, value = steps[given], value[given]
        if not len(own):
            continue
        choice = thinned(own, value[:, None], _MOST)[0]
        line = _line(own, value, np.zeros(len(own), np.uint8), choice, record.words)
        yield {"name": visible(name), "log": _spans_decades(value), **line}
