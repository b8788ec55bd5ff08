"""What a training leaves while it runs, so that it can be gone on with, and when it has ended.

`{name}.h5` is its run file, `{name}.pt` what it goes on from, `{name}.safetensors` its last weights and
`{name}.json` its outcome: written last, it says that the training has ended.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialized
from torch import nn

from zanalysis.errors import RunFileError, ZAnalysisError
from zanalysis.runfile.reader import open_run

__all__ = [
    "Files",
    "check_run",
    "difference",
    "finished",
    "save",
    "take_up",
    "write",
    "write_json",
    "write_weights",
]

_FORMAT = 1


@dataclass(frozen=True)
class Files:
    """Where the files of a training lie.

    Attributes:
        folder: in which folder.
        name: what they are called, less their suffix.
    """

    folder: Path
    name: str

    @property
    def run(self) -> Path:
        """The run file."""
        return self.folder / f"{self.name}.h5"

    @property
    def checkpoint(self) -> Path:
        """What the training goes on from."""
        return self.folder / f"{self.name}.pt"

    @property
    def weights(self) -> Path:
        """Its last weights."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def record(self) -> Path:
        """Its outcome."""
        return self.folder / f"{self.name}.json"

    def remove(self) -> None:
        """Remove what is there, the record first: without it nothing counts as finished.

        Raises:
            RunFileError: if something cannot be removed, such as a folder.
        """
        for path in (self.record, self.checkpoint, self.run, self.weights):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise RunFileError(
                    f"cannot remove {path}: {error.strerror}; move it away, or choose another folder with --out."
                ) from error


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a file so that it is there as a whole, or not at all, whatever happens.

    Args:
        path: the file.
        fill: writes it, at the place it is given.

    Raises:
        RunFileError: if it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fill(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunFileError(f"cannot write {path}: {reason}.") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all.

    Args:
        path: the file.
        content: what it is to hold; no NaN.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write(path, lambda beside: _fill(beside, text.encode()))


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_weights(path: Path, model: nn.Module) -> None:
    """Write a model's state, whole or not at all; what several names share is written for each.

    Args:
        path: the file.
        model: the model.
    """
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    # As bytes, so that the file has the permissions that the user's other files have.
    write(path, lambda beside: _fill(beside, serialized(state)))


def save(files: Files, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write what a training goes on from.

    Args:
        files: of the training.
        settings: of the training.
        state: tensors, numbers, strings, lists and mappings.
    """
    content = {"format": _FORMAT, "settings": json.dumps(settings), **state}
    write(files.checkpoint, lambda beside: torch.save(content, beside))


def finished(files: Files, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the outcome of a training that has ended.

    Args:
        files: of the training.
        settings: of the training.

    Returns:
        Its record; None if there is none.

    Raises:
        RunFileError: if it belongs to another training, or its run file is missing.
    """
    if not files.record.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(files.record.read_text(encoding="utf-8"))
        reason = difference(settings, record["settings"])
        complete = {"status", "value", "best", "curves", "facts", "seconds"} <= set(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunFileError(_in_the_way(files.record, "it is not the record of a training")) from None
    if reason or not complete:
        raise RunFileError(_in_the_way(files.record, reason or "it is not complete"))
    for path in (files.run, files.weights):
        if not path.is_file():
            raise RunFileError(_in_the_way(files.record, f"{path.name}, which belongs to it, is missing"))
    return record


def check_run(files: Files, settings: Mapping[str, Any]) -> None:
    """Refuse a run file that belongs to another training.

    Args:
        files: of the training.
        settings: of the training.

    Raises:
        RunFileError: if it does.
    """
    if not files.run.exists():
        return
    try:
        reason = difference(settings, open_run(files.run).attributes.get("user", {}))
    except ZAnalysisError:
        reason = "it is not a run file that can be read"
    if reason:
        raise RunFileError(_in_the_way(files.run, reason))


def take_up(files: Files, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what an interrupted training goes on from.

    Args:
        files: of the training.
        settings: of the training.

    Returns:
        The state that was saved, on the CPU; None if there is none, and the training starts anew.

    Raises:
        RunFileError: if what lies there belongs to another training.
    """
    if not files.checkpoint.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(files.checkpoint, map_location="cpu", weights_only=True)
        reason = difference(settings, json.loads(state["settings"]))
        reason = reason or ("" if state["format"] == _FORMAT else "it is of another version")
    except Exception:  # what damaged bytes make of an unpickler has no type in common
        raise RunFileError(_in_the_way(files.checkpoint, "it is not the checkpoint of a training")) from None
    if reason:
        raise RunFileError(_in_the_way(files.checkpoint, reason))
    return state


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Say how settings differ.

    Args:
        wanted: of the training that is to be made.
        found: of the one that was.

    Returns:
        A clause on the first difference; the empty string if there is none.
    """
    for name, value in wanted.items():
        if name not in found:
            return f"its {_words(name)} is not recorded"
        other = found[name]
        if other != value:
            if isinstance(value, Mapping) and isinstance(other, Mapping):
                inner = difference(value, other) or "it has further settings"
                return inner.replace("its ", f"its {_words(name)} ", 1)
            return f"its {_words(name)} is {other!r}, not {value!r}"
    return ""


def _words(name: str) -> str:
    return name.replace("_", " ")


def _in_the_way(path: Path, reason: str) -> str:
    return (
        f"{path} exists already ({reason}), and nothing is overwritten unasked: move it away, choose another "
        "folder with --out, or pass --overwrite to train anew what this experiment needs."
    )
