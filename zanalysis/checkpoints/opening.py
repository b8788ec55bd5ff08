"""Opening a checkpoint of any kind, and finding the checkpoints that a user means."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zanalysis.checkpoints.contents import Checkpoint
from zanalysis.checkpoints.distributed import describe_distributed
from zanalysis.checkpoints.faults import check_readable, naming
from zanalysis.checkpoints.files import describe_file, is_hdf5
from zanalysis.checkpoints.folders import INDEX_SUFFIX, describe_folder, describe_index, is_one_checkpoint
from zanalysis.checkpoints.names import natural
from zanalysis.checkpoints.recorded import describe_run
from zanalysis.errors import CheckpointError, InputError

__all__ = ["find_checkpoints", "open_checkpoint", "open_checkpoints"]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".h5", ".hdf5")
# What trainers lay beside the weights.
_BESIDE = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Describe a checkpoint: the names, shapes and stored dtypes of its weights. No weight is read yet.

    Nothing that a file brings is run, imported or looked up, and no option changes that.

    Args:
        path: a safetensors file; what `torch.save` or `torch.jit.save` wrote; an index of shards; a folder of
            shards, of Hugging Face or of `torch.distributed.checkpoint`; a run file, of which the last step
            is taken.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: if it is missing, foreign or damaged, or brings what is refused.

    Example:
        >>> import tempfile, torch
        >>> file = Path(tempfile.mkdtemp()) / "step-20.pt"
        >>> torch.save({"model": {"fc.weight": torch.eye(3)}, "epoch": 1}, file)
        >>> checkpoint = open_checkpoint(file)
        >>> checkpoint.step, [(t.name, t.shape) for t in checkpoint.tensors]
        (20, [('fc.weight', (3, 3))])
        >>> checkpoint.tensors[0].load().trace().item()
        3.0
    """
    found = open_checkpoints(path)
    last = found[-1]
    if len(found) == 1:
        return last
    return replace(
        last, notes=(*last.notes, f"Of its {len(found)} recorded steps the last, {last.step}, is taken.")
    )


def open_checkpoints(path: str | os.PathLike[str]) -> list[Checkpoint]:
    """Describe every checkpoint that one path holds.

    Args:
        path: as for `open_checkpoint`.

    Returns:
        One for each recorded step of a run file; otherwise a single one.

    Raises:
        CheckpointError: if it is missing, foreign or damaged, or brings what is refused.
    """
    path = Path(path)
    folder = check_readable(path)
    with naming(path):
        if folder and (path / ".metadata").is_file():
            return [describe_distributed(path)]
        if folder and is_one_checkpoint(path):
            return [describe_folder(path)]
        if folder:
            raise CheckpointError(f"{path} is a folder, but not one checkpoint; pass the files in it.")
        if path.name.endswith(INDEX_SUFFIX):
            return [describe_index(path)]
        return describe_run(path) if is_hdf5(path) else [describe_file(path)]


def find_checkpoints(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Find the checkpoints that a user means.

    Args:
        paths: files, and folders: one that is a checkpoint by itself stands for itself, any other for the
            checkpoints directly in it.

    Returns:
        Their paths, in the order given; in natural order within a folder.

    Raises:
        InputError: if none is given.
        CheckpointError: if a path does not exist, or a folder holds no checkpoint.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (100, 20):
        ...     torch.save({"weight": torch.eye(2)}, folder / f"step-{step}.pt")
        >>> [path.name for path in find_checkpoints(folder)]
        ['step-20.pt', 'step-100.pt']
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise InputError("no checkpoint is given; pass a file or a folder of them.")
    found: list[Path] = []
    for path in map(Path, given):
        if check_readable(path):
            with naming(path):
                found += [path] if is_one_checkpoint(path) else _in_folder(path)
        else:
            found.append(path)
    return found


def _in_folder(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if _is_checkpoint(path)]
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint in it; known are {', '.join(_SUFFIXES)}.")
    return sorted(found, key=lambda path: natural(path.name))


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return is_one_checkpoint(path)
    return path.is_file() and path.suffix in _SUFFIXES and not path.name.startswith((*_BESIDE, "."))
