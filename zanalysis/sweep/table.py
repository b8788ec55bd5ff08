"""From outcomes to one tidy table, in an order that does not depend on where or when they came."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from zanalysis.analyzers.metrics import Key
from zanalysis.analyzers.statuses import STATUSES
from zanalysis.runfile.tables import COLUMNS
from zanalysis.sweep.work import ABSENT, Outcome

__all__ = ["SWEEP_COLUMNS", "Measured", "tidy"]

SWEEP_COLUMNS = ["checkpoint", *COLUMNS]


class Measured(NamedTuple):
    """An outcome and where it belongs."""

    place: tuple[int, int]
    checkpoint: str
    step: int
    outcome: Outcome


def tidy(measured: Iterable[Measured], columns: Sequence[Key]) -> pd.DataFrame:
    """Lay outcomes out as one row for each number.

    Args:
        measured: the outcomes, in any order.
        columns: what the numbers of a matrix are.

    Returns:
        The columns `SWEEP_COLUMNS`: checkpoints in natural order, each sorted by step, layer, tensor,
        reference, metric, tolerance rule.
    """
    matrices = sorted(
        (
            (m.place, m.step, name, m.checkpoint, row)
            for m in measured
            for name, row in zip(m.outcome.names, m.outcome.numbers, strict=True)
        ),
        key=lambda matrix: matrix[:3],
    )
    # The tenth singular value comes after the second.
    order = sorted(
        range(len(columns)),
        key=lambda i: (
            columns[i].reference,
            columns[i].metric.partition("[")[0],
            columns[i].tolerance_rule,
            i,
        ),
    )
    numbers = np.array([row for *_, row in matrices], np.float64).reshape(len(matrices), len(columns), 3)
    flat = numbers[:, order].reshape(-1, 3)
    present = flat[:, 2] != ABSENT
    words = np.array([*STATUSES, *[""] * (ABSENT + 1 - len(STATUSES))], dtype=object)

    def each(values: list[Any], dtype: Any) -> Any:
        held = np.empty(len(values), dtype)
        held[:] = values
        return np.repeat(held, len(columns))[present]

    def same(field: str) -> Any:
        names = np.array([getattr(columns[i], field) for i in order], dtype=object)
        return np.tile(names, len(matrices))[present]

    return pd.DataFrame(
        {
            "checkpoint": each([matrix[3] for matrix in matrices], object),
            "step": each([matrix[1] for matrix in matrices], np.int64),
            "layer": each([matrix[2] for matrix in matrices], object),
            "tensor": each(["weight"] * len(matrices), object),
            "reference": same("reference"),
            "tolerance_rule": same("tolerance_rule"),
            "metric": same("metric"),
            "value": flat[present, 0],
            "tolerance": flat[present, 1],
            "status": words[flat[present, 2].astype(np.uint8)],
        },
        columns=SWEEP_COLUMNS,
    )
