"""The verdicts that a report shows, those on the run apart from those that need none."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zanalysis.errors import ZAnalysisError
from zanalysis.reporting.gathering import Record
from zanalysis.runfile.reader import Run
from zanalysis.verify.glrl import verify_glrl
from zanalysis.verify.theorem1 import verify_theorem1
from zanalysis.verify.verdict import Verdict

__all__ = ["Judged", "judge"]


class Judged(NamedTuple):
    """What the verifiers say.

    Attributes:
        on_run: verdicts that the numbers of this run decide, or could have.
        anywhere: verdicts that are computed anew, and say nothing of this run.
        failures: sentences on verifiers that could not answer.
        bounds: the bound of a theorem and its name, by layer, where its hypotheses are met.
    """

    on_run: tuple[Verdict, ...] = ()
    anywhere: tuple[Verdict, ...] = ()
    failures: tuple[str, ...] = ()
    bounds: tuple[tuple[str, int, str], ...] = ()


def judge(record: Record) -> Judged:
    """Ask every verifier about a run.

    Args:
        record: the record; a table has no hypotheses to read, and is not judged.

    Returns:
        The verdicts.
    """
    if record.run is None or not len(record.steps):
        return Judged()
    on_run, anywhere, failures = list[Verdict](), list[Verdict](), list[str]()
    try:
        for verdict in verify_theorem1(record.run):
            own, other = _split(verdict, record.run)
            on_run += own
            anywhere += other
    except Exception as error:  # a report of a strange record is still a report
        failures.append(_failure("Theorem 1", error))
    if any(key.tensor == "weight" for key in record.spectrum_keys):
        try:
            on_run.append(verify_glrl(record.run))
        except Exception as error:
            failures.append(_failure("greedy low-rank learning", error))
    return Judged(tuple(on_run), tuple(anywhere), tuple(failures), tuple(_bounds(on_run, record.run)))


def _failure(what: str, error: Exception) -> str:
    reason = str(error) if isinstance(error, ZAnalysisError) else f"{type(error).__name__}: {error}"
    return f"{what} could not be judged: {reason}"


def _of_run(claim: str, parts: Sequence[Verdict], run: Run) -> list[Verdict]:
    prefix = f"{claim} {run.path.stem}"
    return [part for part in parts if part.claim == prefix or part.claim.startswith(f"{prefix} ")]


def _split(verdict: Verdict, run: Run) -> tuple[list[Verdict], list[Verdict]]:
    """Part what a verdict says of the run from what it says of mathematics.

    Args:
        verdict: of Theorem 1.
        run: the run.

    Returns:
        At most one verdict on the run, and at most one on cases that no run decides. A claim that is
        decided by runs alone is one on the run, also where the run does not decide it.
    """
    mine = _of_run(verdict.claim, verdict.parts, run)
    if verdict.claim in ("(ii)", "second cap"):
        return [verdict], []
    if not mine:
        return [], [verdict]
    words = {part.verdict for part in mine}
    word = next(word for word in ("violated", "holds", "inconclusive") if word in words)
    shown = next(part for part in mine if part.verdict == word)
    why = "; ".join(dict.fromkeys(part.why for part in mine))
    on_run = Verdict(
        verdict.claim, shown.verdict, shown.bound, shown.measured, why, shown.evidence, tuple(mine)
    )
    return [on_run], [part for part in verdict.parts if part not in mine]


def _bounds(verdicts: Sequence[Verdict], run: Run) -> Iterator[tuple[str, int, str]]:
    names = {"(ii)": "N_x by Theorem 1 (ii)", "second cap": "p + N_y, the second cap"}
    layers = set(run.layers)
    for verdict in verdicts:
        for part in _of_run(verdict.claim, verdict.parts, run):
            layer = re.sub(f"^{re.escape(f'{verdict.claim} {run.path.stem}')} ?", "", part.claim)
            # A part without a layer is about a network whose hypotheses are not met: nothing bounds it.
            if verdict.claim in names and layer in layers and part.bound is not None:
                yield layer, int(part.bound), names[verdict.claim]
