"""The metrics of a matrix that several processes hold in parts: `parts` is what each of them adds up."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zanalysis.analyzers.lanczos import WarmStart
from zanalysis.analyzers.metrics import (
    Key,
    Measurement,
    Plan,
    failed_measurement,
    scale_measurement,
)
from zanalysis.analyzers.parts import Of, Op, Part, Split
from zanalysis.analyzers.residual import Residual
from zanalysis.analyzers.sharded_residual import Ask, ShardedResidual, Shards

__all__ = ["Ask", "Of", "Op", "Part", "ShardedResidual", "Shards", "Split", "evaluate_shards"]


def evaluate_shards(
    plan: Plan,
    shards: Callable[[int], Shards],
    epsilons: Sequence[float],
    on_error: Callable[[Key, Exception], None] | None = None,
    warm: WarmStart | None = None,
) -> tuple[list[Measurement], dict[str, Tensor]]:
    """Measure one matrix in parts: what `Plan.evaluate` does with one that is whole.

    Args:
        plan: what is measured.
        shards: gives the matrix as it is under the reference of that index in the plan.
        epsilons: for each reference, machine epsilon of the coarser dtype.
        on_error: as for `Plan.evaluate`.
        warm: the state of the last record.

    Returns:
        As `Plan.evaluate`.
    """
    first = shards(0)
    index = {name: i for i, name in enumerate(plan.references)}

    def residual(name: str) -> Residual:
        i = index[name]
        part = None if warm is None else warm.under(name)
        return ShardedResidual(shards(i), name, epsilons[i], part, frozenset(plan.wants))

    def scale() -> Measurement:
        finite = first.ask(Op.LOOK, Of.WEIGHT)[0] == 0
        return scale_measurement(first.identity_scale(), finite)

    failed = failed_measurement(torch.Size(), first.device)
    return plan.evaluate_residuals(residual, scale, failed, on_error)
