"""What a verdict on a low-rank trajectory says: what was seen, what refutes it or is open, and what would settle it."""

from collections.abc import Iterator, Sequence

import numpy as np

from zanalysis.verify.glrl_criteria import NECESSARY, Criteria, Finding, gaussian_stable_rank
from zanalysis.verify.glrl_staircase import F, S
from zanalysis.verify.verdict import Judgement

__all__ = ["RECORD", "against", "reasons", "story", "warnings"]

RECORD = "record with RankTracker(…, metrics=(…, 'singular_values'), schedule=logspaced(40))"


_BY_STEPS = (
    "Time is counted in steps, for no learning rate was logged: under a long warm-up even what all grows from the "
    "start can look so; to rule that out, log it: tracker.log(lr=…)."
)


def against(reference: str) -> str:
    """Return how a layer was read.

    Args:
        reference: the name of what was subtracted.

    Returns:
        A phrase.
    """
    return "read raw" if reference == "none" else f"against {reference}"


def story(where: str, criteria: Criteria) -> str:
    """Say what the spectrum does.

    Args:
        where: the layer and its reference.
        criteria: the criteria.

    Returns:
        A sentence.
    """
    stairs, full = criteria.staircase, criteria.trajectory.full
    tau, p_value, _ = criteria.trend
    count = len(stairs.modes)
    emerged = f"{count} singular value{'s emerge' if count != 1 else ' emerges'}"
    if count > 1:
        emerged += f", in {stairs.stages} stage{'s' * (stairs.stages > 1)} (order: p = {stairs.p_value:.2g})"
    return (
        f"{where}: the stable rank goes from {criteria.start_rank:.2f} to {criteria.end_rank:.2f} of {full} "
        f"(Kendall's τ = {tau:.2f}, p = {p_value:.2g}); {emerged}."
    )


def reasons(verdict: Judgement, criteria: Criteria, findings: Sequence[Finding]) -> list[str]:
    """Say which criteria are refuted, or are open and what would settle them.

    Args:
        verdict: on the whole.
        criteria: the criteria.
        findings: what they found.

    Returns:
        Sentences.
    """
    found = {finding.criterion: finding for finding in findings if finding.criterion in NECESSARY}
    if verdict == "violated":
        refuted = [_refuted(f, criteria) for f in found.values() if f.verdict == "violated"]
        return [f"Refuted: {'; '.join(refuted)}."]
    if verdict == "holds":
        waited = f"{100 * found['staircase'].value:.0f} % of what rises behind the first waits its turn"
        said = [f"It starts low, rises gradually, stays below its maximum, and {waited}."]
        return said if criteria.trajectory.clock is not None else [*said, _BY_STEPS]
    open_ones = dict.fromkeys(
        sentence for f in found.values() if f.verdict == "inconclusive" for sentence in _open(f, criteria)
    )
    return [f"Open: {'; '.join(open_ones)}."]


def _refuted(finding: Finding, criteria: Criteria) -> str:
    """Return what refutes a criterion."""
    shape = criteria.trajectory.shape
    match finding.criterion:
        case "starts low":
            return (
                f"the rank does not start low: at {criteria.start_rank:.2f}, where noise of this shape has "
                f"{gaussian_stable_rank(shape):.2f}"
            )
        case "starts below its end":
            return (
                f"of the rank at the end, {criteria.end_rank:.2f}, nearly everything is there from the start"
            )
        case "rises":
            return "the rank does not rise"
        case "gradual":
            return f"{100 * finding.value:.0f} % of what emerges does so within one step"
        case "stays below":
            return f"the rank reaches {100 * finding.value:.0f} % of its maximum"
        case _:
            return _together(criteria)


def _together(criteria: Criteria) -> str:
    pairs = [pair for pair in criteria.staircase.pairs if pair.is_refuted]
    overlap = float(np.median([pair.overlap for pair in pairs]))
    haste = float(np.median([pair.haste for pair in pairs]))
    if overlap > S:
        return (
            f"singular values rise together: when one has come {F:.0%} of its way, the next has come {overlap:.0%} "
            f"of its own (at most {S:.0%} were it waiting)"
        )
    return (
        "singular values converge one after another, but all grow from the start: when one has emerged, the "
        f"next has come {haste:.1f} times as far as at a steady pace"
    )


def _open(finding: Finding, criteria: Criteria) -> Iterator[str]:
    """Yield why a criterion is open, and what would settle it."""
    t, stairs = criteria.trajectory, criteria.staircase
    low, high = (bound.max() for bound in t.rank_bounds)
    if criteria.begins_late:
        yield (
            f"most of it happened before step {t.steps[t.first]:.0f}, the first record that shows anything: "
            "record more early steps, as schedule=logspaced(40) does"
        )
    elif t.is_cut and high > 1.5 * low and finding.criterion in ("starts low", "stays below"):
        yield (
            f"only {t.values.shape[1]} of {t.full} singular values are recorded, which leaves the rank between "
            f"{low:.1f} and {high:.1f}: record 'stable_rank' beside them, or spectrum_size={t.full}"
        )
    elif len(stairs.modes) < 2:
        few = "no singular value emerges" if not len(stairs.modes) else "only one singular value emerges"
        yield f"{few}, and nothing can come after another: record a longer training, or a task that needs more"
    elif t.unfinished.any():
        mode = int(t.emerging[int(t.unfinished.argmax())]) + 1
        yield f"singular value {mode} rises about as fast as ever when the record ends: record longer"
    elif finding.criterion == "staircase":
        yield from _open_stairs(criteria)
    elif finding.criterion == "gradual":
        yield f"{100 * finding.value:.0f} % of what emerges does so between two records: record more often"
    else:
        yield (
            f"'{finding.criterion}' is neither met nor refuted at {finding.value:.2f}: a longer record, or another "
            "reference, may tell"
        )


def _open_stairs(criteria: Criteria) -> Iterator[str]:
    stairs = criteria.staircase
    hidden = [pair for pair in stairs.pairs if not pair.is_seen]
    if hidden:
        where = stairs.times[list(stairs.modes).index(hidden[0].first), 1]
        yield f"several singular values emerge between two records about step {where:.0f}: record more often"
    else:
        yield (
            f"{100 * stairs.share:.0f} % of what rises behind the first waits its turn (order: p = "
            f"{stairs.p_value:.2g}), which is neither one after another nor together: a smaller "
            "initialization, more records, or another reference may tell"
        )


def warnings(criteria: Criteria, reference: str, start: str) -> list[str]:
    """Warn where the reference decides the sign of the answer.

    Args:
        criteria: the criteria.
        reference: the name of what was subtracted.
        start: how the layer started: ``"identity"``, ``"hadamard"``, ``"zero"``, ``"constant"``, ``"other"``.

    Returns:
        Sentences.
    """
    if reference == "identity" and start in ("other", "hadamard", "zero"):
        return [
            "Warning: the layer does not start as the identity that was subtracted; read it against 'init'."
        ]
    if reference != "none":
        return []
    if start in ("identity", "hadamard"):
        kind = {"identity": "the identity", "hadamard": "a Hadamard matrix"}[start]
        return [
            f"Warning: the layer starts as {kind} and is read raw, where the rank starts high and falls, "
            "whatever is learned; read its update, against 'init'."
        ]
    t = criteria.trajectory
    squares = t.values[0] ** 2
    at_first = float(squares.sum() / squares[0]) if squares[0] > 0 else 0.0
    noise = gaussian_stable_rank(t.shape)
    if start == "other" and at_first - 1 > (noise - 1) / 2:
        return [
            f"Warning: the layer starts at random and is read raw, so that the first record has the stable rank of "
            f"its noise ({at_first:.1f}; of a Gaussian matrix {noise:.1f}), which falls as the first direction "
            "emerges; read its update, against 'init'."
        ]
    return []
