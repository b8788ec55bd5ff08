"""Theorem 1 from data to verdict: train every network, judge the claims, draw Figure 3, write both down.

A verification that was interrupted is gone on with: run files that are complete, and were made with
exactly the same settings, are not trained again.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hooks.structure import versions
from zanalysis.errors import InputError, RunFileError, ZAnalysisError, did_you_mean
from zanalysis.experiments import theorem1
from zanalysis.experiments.data import load
from zanalysis.experiments.theorem1 import (
    PAPER_WIDTHS,
    RECORD_EVERY,
    SCALES,
    WIDTHS,
    Case,
    Progress,
    Training,
    cases,
    settings,
)
from zanalysis.runfile.reader import Run, open_run
from zanalysis.runfile.superblock import SWMR, read_superblock
from zanalysis.verify.theorem1 import SPAN, verify_theorem1
from zanalysis.verify.verdict import Verdict, plain

__all__ = ["FIGURE", "VERDICTS", "Verification", "train_all", "verify_and_draw"]

FIGURE, VERDICTS = "figure_3.png", "verdict.json"
_SMALL = 512
_SEEDS = 2**64


@dataclass(frozen=True)
class Verification:
    """What a verification leaves.

    Attributes:
        verdicts: claim by claim.
        runs: the run file of each network.
        figure: the picture.
        record: the verdicts as JSON.
    """

    verdicts: list[Verdict]
    runs: dict[Case, Path]
    figure: Path
    record: Path


def verify_and_draw(
    data: str = "digits",
    widths: Sequence[int] | None = None,
    out: str | os.PathLike[str] = "runs/theorem1",
    *,
    network: str = "paper",
    scale: str = "small",
    seed: int = 0,
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    watch: Callable[[Case, Training], Progress] = lambda case, training: lambda done, of: None,
    reused: Callable[[Sequence[Path]], None] = lambda paths: None,
) -> Verification:
    """Train the networks of Figure 3, judge Theorem 1 claim by claim, and draw the figure.

    Args:
        data: ``"digits"``, ``"mnist"`` or ``"fashion-mnist"``.
        widths: hidden dimensions; those of the data set and scale if None.
        out: the folder for run files, figure and verdicts; made if it is missing.
        network: ``"paper"`` or ``"notebook"``.
        scale: ``"smoke"``, ``"small"`` or ``"paper"``.
        seed: of the order of the samples and of the random weights.
        device: where the networks are trained.
        data_dir: where the data lie.
        overwrite: whether run files in the folder are replaced, finished ones too.
        watch: gives, for each network, what is told of its progress.
        reused: told which run files are finished already.

    Returns:
        The verdicts, and where everything lies.

    Raises:
        InputError: if an argument is not what was expected.
        ZAnalysisError: if the data cannot be had.
        RunFileError: if something cannot be written, or would have to be overwritten.
    """
    if data not in WIDTHS:
        raise InputError(f"unknown data set {data!r}; {did_you_mean(data, WIDTHS)}")
    _check_settings(network, scale, seed)
    chosen = tuple(widths or (PAPER_WIDTHS if scale == "paper" and data != "digits" else WIDTHS[data]))
    cases(chosen)
    _check_device(device, max(chosen))
    _check_targets(Path(out))
    training = Training(load(data, data_dir), network, scale, seed, device)  # type: ignore[arg-type]
    threads = torch.get_num_threads()
    if max(chosen) <= _SMALL:
        # Nothing gained by threads at this size, and much lost where they wait for each other.
        torch.set_num_threads(1)
    try:
        paths = train_all(
            training,
            chosen,
            out,
            overwrite=overwrite,
            watch=lambda case: watch(case, training),
            reused=reused,
        )
        verdicts = verify_theorem1(list(paths.values()))
    finally:
        torch.set_num_threads(threads)
    figure, record = Path(out) / FIGURE, Path(out) / VERDICTS
    try:
        text = json.dumps(plain(verdicts), indent=2, ensure_ascii=False)
        record.write_text(text + "\n", encoding="utf-8")
        _draw(paths, figure)
    except OSError as error:
        raise RunFileError(f"cannot write {error.filename or out}: {error.strerror or error}.") from error
    return Verification(verdicts, paths, figure, record)


def train_all(
    training: Training,
    widths: Sequence[int],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    watch: Callable[[Case], Progress] = lambda case: lambda done, of: None,
    reused: Callable[[Sequence[Path]], None] = lambda paths: None,
) -> dict[Case, Path]:
    """Train every network of a verification, one run file each.

    A figure and verdicts that lie in the folder are removed first: they belong to other run files.

    Args:
        training: how.
        widths: hidden dimensions.
        out: the folder for the run files; made if it is missing.
        overwrite: whether existing run files are replaced; else finished ones of the same settings are
            kept, and any other is refused.
        watch: gives, for each network, what is told of its progress.
        reused: told which run files are kept, if any are.

    Returns:
        The run files.

    Raises:
        InputError: if a setting is unknown, or a network does not fit into the memory.
        RunFileError: if a run file is in the way, or the folder cannot be written.
    """
    _check_settings(training.network, training.scale, training.seed)
    networks = cases(widths)
    _check_device(training.device, networks[-1].width)
    folder = Path(out)
    paths = {case: folder / case.filename for case in networks}
    _check_targets(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFileError(
            f"cannot make the folder {folder}: {error.strerror}; choose another with --out."
        ) from error
    kept = [] if overwrite else _finished(paths, training)
    for path in paths.values():
        if path.is_dir():
            raise RunFileError(f"{path} is a folder, where a run file is to lie; choose another with --out.")
    try:
        for name in (FIGURE, VERDICTS):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunFileError(
            f"cannot replace {error.filename}: {error.strerror}; choose another folder with --out."
        ) from error
    if kept:
        reused(kept)
    for case, path in paths.items():
        if path not in kept:
            _train_within_memory(case, training, path, overwrite, watch(case))
    return paths


def _check_settings(network: str, scale: str, seed: int) -> None:
    if scale not in SCALES:
        raise InputError(f"unknown scale {scale!r}; {did_you_mean(scale, SCALES)}")
    if network not in ("paper", "notebook"):
        raise InputError(f"unknown network {network!r}; expected 'paper' or 'notebook'.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEEDS:
        raise InputError(f"got seed {seed!r}, expected a whole number from 0 to {_SEEDS - 1}.")


def _check_device(device: str, width: int) -> None:
    try:
        torch.ones(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise InputError(f"device {device!r} cannot be used here: {reason}.") from error
    try:
        # An allocation alone: nothing is touched, so it costs nothing where it succeeds.
        torch.empty(width, width, dtype=torch.float64, device=device)
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        raise _too_wide(width, device) from error


def _too_wide(width: int, device: str) -> InputError:
    return InputError(
        f"width {width} does not fit into the memory of {device}: a hidden matrix has {width}×{width} numbers; "
        "choose a smaller --width."
    )


def _check_targets(folder: Path) -> None:
    for name in (FIGURE, VERDICTS):
        if (folder / name).is_dir():
            raise RunFileError(
                f"{folder / name} is a folder, where a file is to be written; choose another folder with --out."
            )


def _train_within_memory(
    case: Case, training: Training, path: Path, overwrite: bool, progress: Progress
) -> None:
    try:
        theorem1.train(case, training, path, overwrite=overwrite, progress=progress)
    except (RuntimeError, MemoryError) as error:
        words = ("out of memory", "allocate memory", "not enough memory", "storage size")
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in words):
            raise _too_wide(case.width, training.device) from error
        raise


def _finished(paths: dict[Case, Path], training: Training) -> list[Path]:
    """Return the run files that need no training.

    Args:
        paths: of every network.
        training: how they are trained.

    Returns:
        Those that exist.

    Raises:
        RunFileError: if one exists that is incomplete, or of other settings.
    """
    existing = {case: path for case, path in paths.items() if path.exists()}
    for case, path in existing.items():
        reason = _unlike(case, training, path)
        if reason:
            raise RunFileError(
                f"{path} exists already ({reason}), and nothing is overwritten unasked: delete it to train that "
                "network anew, choose another folder with --out, or pass --overwrite to train all of them anew."
            )
    return list(existing.values())


def _unlike(case: Case, training: Training, path: Path) -> str:
    """Compare a run file with what this training would leave.

    Args:
        case: the network.
        training: how it is trained.
        path: the run file.

    Returns:
        A clause on what differs; the empty string if nothing does.
    """
    try:
        run = open_run(path)
        wanted, found = settings(case, training), run.attributes.get("user", {})
        for name, value in wanted.items():
            if found.get(name) != value:
                return f"its {name.replace('_', ' ')} is {found.get(name, 'not recorded')}, not {value}"
        if run.attributes.get("versions") != versions():
            return "it was made with other versions of the libraries"
        return "" if _is_complete(run, training.steps) else "it is not complete"
    except ZAnalysisError:
        return "it is not a complete run file"


def _is_complete(run: Run, steps: int) -> bool:
    superblock = read_superblock(run.path)
    if superblock is None or superblock.flags & SWMR or len(run.events):
        return False
    # The spans are logged after the last step, which the schedule may not record.
    logged = run.logged()
    spans = [name for name in map(str, logged.columns) if name.startswith(SPAN)]
    end = logged.loc[logged["step"] == steps, spans]
    ended = end.size > 0 and bool(end.notna().all(axis=None))
    return ended and run.steps.tolist() == list(range(0, steps + 1, RECORD_EVERY))


def _draw(paths: dict[Case, Path], target: Path) -> None:
    # Here, because the training path loads no plotting library.
    from zanalysis.figures import save_figure_3

    largest = max(case.width for case in paths)
    left = [path for case, path in paths.items() if case.initialization == "identity"]
    right = [
        path
        for case, path in paths.items()
        if case.width == largest and case.initialization in ("random", "identity", "hadamard")
    ]
    save_figure_3(left, right, target)
