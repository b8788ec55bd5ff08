"""What a verifier answers: never a bare boolean."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

__all__ = ["PREDICTIONS", "RELATIONS", "Judgement", "Verdict", "combined", "plain"]

PREDICTIONS = {
    "(i)": "a random perturbation has full rank N_h",
    "(ii)": "under the partial identity rank(W_l − I) ≤ N_x at every step",
    "(iii)": "Hadamard's activations span more than N_x",
    "Lemma 1": "rank Σ a⊗b ≤ min(dim span a, dim span b)",
    "Lemma 2": "N_h = 4, N_x = 3: the span has dimension 4",
    "linear control": "a linear network spans at most N_x",
    "greedy low-rank learning": "singular values are learned one after another, in every layer that counts",
    "second cap": "Hadamard's rank(W_l − I) ≤ p + N_y, p = 2^⌈log₂ N_x⌉",
}
"""What each claim predicts, in a few words."""

RELATIONS = {"(i)": "=", "greedy low-rank learning": "=", "(iii)": ">", "Lemma 2": "="}
"""How what is measured is to stand to the bound, where not ≤."""

Judgement = Literal["holds", "violated", "inconclusive"]


@dataclass(frozen=True, eq=False)
class Verdict:
    """One claim, judged.

    Attributes:
        claim: its name.
        verdict: ``"holds"``, ``"violated"`` or ``"inconclusive"``.
        bound: the number that was predicted; None if there is none to compare with.
        measured: the number that was measured; None if it could not be.
        why: the reason, in sentences.
        evidence: the numbers it rests on.
        parts: verdicts this one is made of, such as one for each run and layer.
    """

    claim: str
    verdict: Judgement
    bound: float | None
    measured: float | None
    why: str
    evidence: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    parts: tuple["Verdict", ...] = field(default=(), repr=False)


def combined(parts: Iterable[Verdict]) -> Judgement:
    """Judge a claim by its parts.

    Args:
        parts: the verdicts on single runs or layers.

    Returns:
        ``"violated"`` if any part is; else ``"holds"`` if any part does; else ``"inconclusive"``: a
        part to which the claim does not apply says nothing about it.
    """
    verdicts = {part.verdict for part in parts}
    if "violated" in verdicts:
        return "violated"
    return "holds" if "holds" in verdicts else "inconclusive"


def _number(value: float | None) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(value)


def plain(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return verdicts as JSON can hold them, without evidence.

    Args:
        verdicts: the verdicts.

    Returns:
        For each: claim, verdict, bound, measured, why; whole numbers as integers.
    """
    return [
        {
            "claim": verdict.claim,
            "verdict": verdict.verdict,
            "bound": _number(verdict.bound),
            "measured": _number(verdict.measured),
            "why": verdict.why,
        }
        for verdict in verdicts
    ]
