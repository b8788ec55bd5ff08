"""Theorem 1 as an experiment among the others: the verification, and its results in the common form."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zanalysis.errors import InputError
from zanalysis.experiments.recipes.schema import Recipe, Scale
from zanalysis.experiments.results import Outcome
from zanalysis.experiments.resuming import write_json
from zanalysis.experiments.theorem1 import Case, Training
from zanalysis.experiments.training import Progress
from zanalysis.experiments.verification import verify_and_draw
from zanalysis.verify.verdict import plain

__all__ = ["run_theorem1"]


def run_theorem1(
    recipe: Recipe,
    scale: Scale,
    seeds: Sequence[int] | None,
    data: str | None,
    data_dir: Any,
    device: str,
    folder: Path,
    only: Sequence[str],
    overwrite: bool,
    watch: Any,
) -> Outcome:
    """Verify Theorem 1, and write its results as every experiment's are.

    Args:
        recipe: the experiment.
        scale: of it.
        seeds: one seed at most.
        data: the data set; that of the scale if None.
        data_dir: where the data lie.
        device: where the networks are trained.
        folder: for what it leaves.
        only: must be empty: every network is needed for the verdicts.
        overwrite: whether finished trainings start anew.
        watch: given each network's name, number and count.

    Returns:
        The outcome; its verdicts are in the results.

    Raises:
        InputError: if several seeds or single systems are asked for.
    """
    if only:
        raise InputError(f"{recipe.name} judges its networks together; leave out --only.")
    if seeds is not None and len(seeds) > 1:
        raise InputError(
            f"{recipe.name} takes one seed, got {len(seeds)}; run it once for each, with its own --out."
        )
    chosen = data or ("mnist" if scale == "paper" else "digits")
    begun = []

    def watched(case: Case, training: Training) -> Progress:
        begun.append(case)
        progress: Progress = watch(f"{case.initialization} {case.width}", len(begun), 0)
        return progress

    done = verify_and_draw(
        chosen,
        None,
        folder,
        scale=scale,
        seed=seeds[0] if seeds else 0,
        device=device,
        data_dir=data_dir,
        overwrite=overwrite,
        watch=watched,
    )
    verdicts = plain(done.verdicts)
    results = folder / "results.json"
    write_json(
        results,
        {
            "experiment": recipe.name,
            "title": recipe.title,
            "source": recipe.source,
            "scale": scale,
            "data": chosen,
            "seed": seeds[0] if seeds else 0,
            "device": device,
            "runs": [path.name for path in done.runs.values()],
            "verdicts": verdicts,
        },
    )
    notes = tuple(f"{verdict.claim}: {verdict.verdict}. {verdict.why}" for verdict in done.verdicts)
    return Outcome(
        recipe, scale, (), (), {}, notes, folder, results, done.figure, folder, tuple(done.verdicts)
    )
