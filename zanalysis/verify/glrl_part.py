"""The verdict on one spectrum over time: from the criteria to a word and its reasons."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from zanalysis.verify.glrl_criteria import NECESSARY, Criteria, Finding
from zanalysis.verify.glrl_trajectory import Trajectory, trajectory_of
from zanalysis.verify.glrl_words import RECORD, against, reasons, story, warnings
from zanalysis.verify.verdict import Judgement, Verdict

__all__ = ["EVIDENCE", "LEAST_RECORDS", "LEAST_SIDE", "dead", "judge_spectrum"]

EVIDENCE = [
    "layer",
    "reference",
    "criterion",
    "index",
    "value",
    "low",
    "high",
    "null",
    "confidence",
    "verdict",
]
"""Columns of the evidence: a row for each criterion, and one for each singular value that emerges.

`index` is the singular value that a row is about, from 0, and -1 where it is about all. Of ``emergence`` value, low and
high are the steps at which it has come half, a quarter and three quarters of its way. `null` is what the value
would be if there were nothing to find.
"""

LEAST_RECORDS = 20
LEAST_SIDE = 8

_STILL = 1e-4


def judge_spectrum(
    steps: npt.ArrayLike,
    values: npt.ArrayLike,
    shape: tuple[int, int],
    *,
    layer: str = "layer",
    reference: str = "init",
    start: str = "other",
    recorded_rank: npt.ArrayLike | None = None,
    clock: npt.ArrayLike | None = None,
    caveats: Sequence[str] = (),
) -> Verdict:
    """Judge whether one spectrum over time shows greedy low-rank learning.

    It ``holds`` if the stable rank starts low, rises gradually and stays below its maximum, and singular values
    emerge one after another (`zanalysis.verify.glrl_criteria`); it is ``violated`` if one of these is refuted.

    Args:
        steps: `[T]`, completed optimizer steps.
        values: singular values, `[T, k]`, descending, NaN-padded.
        shape: of the matrix, `(m, n)`.
        layer: its name.
        reference: the name of what was subtracted, ``"none"`` for nothing.
        start: how the layer started, as a run file says it.
        recorded_rank: the stable rank, `[T]`, where it was recorded beside the spectrum.
        clock: the sum of the learning rates up to each record, `[T]`; the steps themselves if None.
        caveats: sentences to add to the reasons.

    Returns:
        The verdict: bound is the number of singular values that emerge, measured the number of stages in which
        they do; the evidence has the columns `EVIDENCE`.

    Example:
        >>> import numpy as np
        >>> steps = np.arange(0, 400, 4)
        >>> modes = [1 / (1 + np.exp(-(steps - middle) / 6.0)) for middle in (90, 190, 290)]
        >>> values = np.stack([3 * modes[0], 2 * modes[1], modes[2], *np.zeros((5, len(steps)))], axis=1)
        >>> judge_spectrum(steps, values, (8, 8)).verdict
        'holds'
        >>> judge_spectrum(steps, values[:, :1] * [3, 2, 1, 0, 0, 0, 0, 0], (8, 8)).verdict
        'violated'
    """
    trajectory = trajectory_of(steps, values, shape, recorded_rank, clock)
    where = f"{layer} {against(reference)}"
    if len(trajectory.steps) < LEAST_RECORDS:
        why = (
            f"{where}: a spectrum is recorded at {len(trajectory.steps)} steps, too few to tell; "
            f"at least {LEAST_RECORDS} are needed: {RECORD}."
        )
        return Verdict(where, "inconclusive", None, None, why, _table((), layer, reference))
    if dead(trajectory):
        why = (
            f"{where}: a dead layer, or one that was done before the second record: its spectrum does not "
            f"change from step {trajectory.steps[1]:.0f} on, so there is no trajectory to judge."
        )
        return Verdict(where, "inconclusive", None, None, why, _table((), layer, reference))
    criteria = Criteria(trajectory)
    findings = list(criteria.findings())
    verdict = _overall(findings)
    sentences = [story(where, criteria), *reasons(verdict, criteria, findings)]
    sentences += [*warnings(criteria, reference, start), *caveats]
    stairs = criteria.staircase
    return Verdict(
        where,
        verdict,
        float(len(stairs.modes)),
        float(stairs.stages),
        " ".join(sentences),
        _table(findings, layer, reference),
    )


def dead(trajectory: Trajectory) -> bool:
    """Say whether a spectrum does not move from its second record on.

    Args:
        trajectory: of two records or more.

    Returns:
        Whether no value ever changes by more than a ten-thousandth of the largest.
    """
    later = trajectory.values[1:]
    return bool(np.abs(later - later[0]).max(initial=0.0) <= _STILL * trajectory.top)


def _table(findings: Sequence[Finding], layer: str, reference: str) -> pd.DataFrame:
    rows = [{"layer": layer, "reference": reference, **vars(finding)} for finding in findings]
    return pd.DataFrame(rows, columns=EVIDENCE)


def _overall(findings: Sequence[Finding]) -> Judgement:
    words = {finding.verdict for finding in findings if finding.criterion in NECESSARY}
    if "violated" in words:
        return "violated"
    return "holds" if words == {"holds"} else "inconclusive"
