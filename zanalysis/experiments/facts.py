"""What a run file shows of a training: symmetry, gradient flow, and what its weights started and ended as."""

import math
from typing import Any

import pandas as pd

from zanalysis.runfile.reader import Run

__all__ = ["facts_of"]


def facts_of(run: Run) -> dict[str, Any]:
    """Measure a training by its record.

    Args:
        run: with the metrics `frobenius_norm`, `distinct_rows`, `zero_gradient`, `rank`, `stable_rank`; what
            was not recorded is left out.

    Returns:
        By layer: `zero_at_start`, the layers whose weights were exactly zero; `first_moved`, the first
        recorded step at which a weight was other than at step 0, None where it never was; `first_gradient`,
        the first recorded step whose gradient was not exactly zero; `distinct_rows`, how many different
        neurons the layer had at the first and last record, the most at any, and its number of rows;
        `stable_rank` at the first and last record, for each reference.
    """
    table = run.table()
    weights = table[table["tensor"] == "weight"]
    raw, update = weights[weights["reference"] == "none"], weights[weights["reference"] == "init"]
    facts: dict[str, Any] = {}
    norms = _over_steps(raw, "frobenius_norm")
    if not norms.empty:
        facts["zero_at_start"] = [layer for layer, values in norms.items() if values.iloc[0] == 0]
    moved = _over_steps(update, "frobenius_norm")
    if not moved.empty:
        facts["first_moved"] = {str(layer): _first(values > 0) for layer, values in moved.items()}
    still = _over_steps(table[table["tensor"] == "gradient"], "zero_gradient")
    if not still.empty:
        facts["first_gradient"] = {str(layer): _first(values == 0) for layer, values in still.items()}
    distinct = _over_steps(raw, "distinct_rows")
    rows = {layer["name"]: layer["shape"][0] for layer in run.attributes.get("layers", [])}
    if not distinct.empty:
        facts["distinct_rows"] = {
            str(layer): {
                "rows": rows.get(str(layer)),
                "first": _number(values.iloc[0]),
                "last": _number(values.iloc[-1]),
                "most": _number(values.max()),
            }
            for layer, values in distinct.items()
        }
    for metric in ("rank", "stable_rank"):
        for reference, part in (("none", raw), ("init", update)):
            seen = _over_steps(part, metric)
            if not seen.empty:
                facts.setdefault(metric, {})[reference] = {
                    str(layer): [_number(values.iloc[0]), _number(values.iloc[-1])]
                    for layer, values in seen.items()
                }
    return facts


def _over_steps(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric with a row for each step, and a column for each layer in their order."""
    chosen = rows[rows["metric"] == metric]
    layers = list(dict.fromkeys(chosen["layer"]))
    wide = chosen.pivot_table(index="step", columns="layer", values="value", dropna=False, aggfunc="first")
    return wide.reindex(columns=layers)


def _first(those: "pd.Series[bool]") -> int | None:
    return int(those.index[those][0]) if those.any() else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
