"""Whether a run shows greedy low-rank learning: a recorded spectrum in, a verdict with its evidence out.

The claim: rank starts low, rises gradually, never reaches its maximum (Zhao, Schäfer & Anandkumar 2022, arXiv
2110.12661), because singular values are learned one after another, each while those after it wait
(Li, Luo & Lyu 2021, arXiv 2012.09839; Razin, Maman & Cohen 2021; Jacot et al. 2021, arXiv 2106.15933). In layers that
start orthogonal it is one about the cumulative update, reference ``"init"`` (InRank: Zhao et al. 2023, arXiv
2306.11250). The staircase is that of Gissin, Shalev-Shwartz & Daniely 2020 (arXiv 1909.12051); `glrl_staircase`
has the definition, `glrl_criteria` everything else that is measured.
"""

import os
from collections.abc import Iterator, Sequence

import pandas as pd

from zanalysis.analyzers.naming import Selection
from zanalysis.runfile.reader import Run, open_run
from zanalysis.verify.glrl_part import EVIDENCE, LEAST_RECORDS, LEAST_SIDE, judge_spectrum
from zanalysis.verify.glrl_record import Spectrum, spectra_of
from zanalysis.verify.glrl_trajectory import trajectory_of
from zanalysis.verify.glrl_words import RECORD, against
from zanalysis.verify.verdict import Judgement, Verdict

__all__ = ["CLAIM", "verify_glrl"]

CLAIM = "greedy low-rank learning"


def verify_glrl(
    run: Run | str | os.PathLike[str], layers: Selection = None, reference: str | None = None
) -> Verdict:
    """Judge whether the weights of a run were learned greedily, one direction after another.

    There is a part for each layer and reference with a spectrum on at least 20 steps and min(m, n) ≥ 8. It
    ``holds`` if every criterion does, is ``violated`` if one is refuted, else ``inconclusive``, and its `why` says
    what would settle it. The run ``holds`` if every part that counts does, is ``violated`` if more than half of
    them are, else ``inconclusive``. A dead layer does not count.

    Which reference is read decides the answer: the raw weight of a layer that starts as the identity begins at full
    rank and falls, its update begins at rank one and may rise. The verdict names it, and warns.

    Two things can make a model that learns all directions at once look greedy, where its curvatures are far apart.
    A warm-up whose rates were not logged; the verdict then says that time is counted in steps. And momentum of
    0.95 or more: while it builds up, in the first 1/(1 − β) steps, every mode grows as t², which reads as waiting.

    Args:
        run: an open run, or the path of one, also while it is written.
        layers: names, globs, compiled regular expressions or predicates; None for all.
        reference: ``"init"``, ``"identity"``, …, or ``"none"`` for the weights as they are; None for all recorded.

    Returns:
        The verdict: bound is the number of parts that count, measured how many of them hold; evidence is a table
        with the columns `zanalysis.verify.glrl_part.EVIDENCE`; parts are as `judge_spectrum` returns them.

    Raises:
        InputError: if no spectrum of a weight is recorded, or none of these layers or this reference.
        RunFileError: if the file cannot be read.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    parts, short, small = list[tuple[str, Verdict]](), list[str](), list[str]()
    for spectrum in spectra_of(opened, layers, reference):
        name = f"{spectrum.key.layer} ({spectrum.key.reference})"
        records, side = _extent(spectrum)
        if records < LEAST_RECORDS:
            short.append(name)
        elif side < LEAST_SIDE:
            small.append(name)
        else:
            parts.append((spectrum.key.reference, _part(spectrum)))
    counted = [(read, part) for read, part in parts if part.bound is not None]
    evidence = [part.evidence for _, part in parts if len(part.evidence)]
    left_out = {
        "dead, or done before the second record, and not counted": [
            part.claim for _, part in parts if part.bound is None
        ],
        f"recorded at fewer than {LEAST_RECORDS} steps: {RECORD}": short,
        f"too small, with fewer than {LEAST_SIDE} rows or columns": small,
    }
    return Verdict(
        CLAIM,
        _whole([part for _, part in counted]),
        float(len(counted)),
        float(sum(part.verdict == "holds" for _, part in counted)),
        " ".join([_counted(counted), *_left_out(left_out)]),
        pd.concat(evidence, ignore_index=True) if evidence else pd.DataFrame(columns=EVIDENCE),
        tuple(part for _, part in parts),
    )


def _extent(spectrum: Spectrum) -> tuple[int, int]:
    """Return at how many steps there is a spectrum, and the smaller side of the matrix."""
    clean = trajectory_of(spectrum.steps, spectrum.values, (0, 0))
    records, width = clean.values.shape
    return records, width if spectrum.shape is None else min(spectrum.shape)


def _part(spectrum: Spectrum) -> Verdict:
    shape, caveats = spectrum.shape, list[str]()
    width = int(pd.notna(spectrum.values).any(axis=0).sum())
    if shape is None:
        shape = (width, width)
        caveats.append(f"The shape is not recorded; the matrix is taken to be {width}×{width}.")
    return judge_spectrum(
        spectrum.steps,
        spectrum.values,
        shape,
        layer=spectrum.key.layer,
        reference=spectrum.key.reference,
        start=spectrum.start,
        recorded_rank=spectrum.stable_rank,
        clock=spectrum.clock,
        caveats=caveats,
    )


def _whole(counted: Sequence[Verdict]) -> Judgement:
    words = [part.verdict for part in counted]
    if words and all(word == "holds" for word in words):
        return "holds"
    return "violated" if 2 * words.count("violated") > len(words) else "inconclusive"


def _counted(counted: Sequence[tuple[str, Verdict]]) -> str:
    if len(counted) < 2:
        return counted[0][1].why if counted else "No spectrum can be judged."
    words = [part.verdict for _, part in counted]
    said = ", ".join(f"{word} for {words.count(word)}" for word in ("holds", "violated", "inconclusive"))
    references = dict.fromkeys(read for read, _ in counted)
    by = [
        f"{sum(one == read and part.verdict == 'holds' for one, part in counted)} of "
        f"{sum(one == read for one, _ in counted)} hold {against(read)}"
        for read in references
    ]
    return f"Of {len(counted)} spectra that count, the claim {said}; {', '.join(by)}."


def _left_out(why: dict[str, list[str]]) -> Iterator[str]:
    for reason, names in why.items():
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            yield f"Left out: {shown}: {reason}."
