"""A model built by a function of the user's, initialized by name, and its weights in a file."""

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from zanalysis.errors import InputError, did_you_mean
from zanalysis.initializers.byname import INITIALIZATIONS, initialize
from zanalysis.initializers.report import Report

__all__ = ["SUFFIXES", "initialize_to_file"]

_SEEDS = 2**63
SUFFIXES = (".pt", ".pth", ".safetensors")


def initialize_to_file(
    name: str,
    build: Callable[[], Any],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    overwrite: bool = False,
    **options: Any,
) -> Report:
    """Build a model, initialize it, and write its state dict.

    Args:
        name: one of `INITIALIZATIONS`.
        build: returns the model, or a tuple whose first entry is the model.
        out: the file: .pt or .pth for `torch.save`, .safetensors.
        seed: of the global generator for the builder, and of the initialization's own; from 0 to 2^63 − 1.
        overwrite: whether a file that is there may be replaced.
        options: of the initialization.

    Returns:
        The report. What it warns of stands in `unknown`.

    Raises:
        InputError: if the name, the file, the seed or an option is none, the builder fails or returns no model, or the
            initialization refuses the model. No file is written then.
    """
    if name not in INITIALIZATIONS:
        raise InputError(f"unknown initialization {name!r}; {did_you_mean(name, INITIALIZATIONS)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEEDS:
        raise InputError(f"got seed = {seed!r}, expected a whole number from 0 to {_SEEDS - 1}.")
    path = _target(out, overwrite)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            answer = build()
        except Exception as error:
            raise InputError(
                f"the function that builds the model raised {type(error).__name__}: {error}"
            ) from error
        model = answer[0] if isinstance(answer, tuple) and answer else answer
        if not isinstance(model, nn.Module):
            raise InputError(
                f"the function that builds the model returned {type(answer).__name__}, expected a torch.nn.Module."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            report = initialize(model, name, generator=Generator().manual_seed(seed), **options)
    _write(model, path)
    return report


def _target(out: str | os.PathLike[str], overwrite: bool) -> Path:
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"cannot write {path}: unknown suffix {path.suffix!r}; known: {', '.join(SUFFIXES)}."
        )
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it first.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InputError(
            f"{path} exists already; choose another name, or pass overwrite (--overwrite) to replace it."
        )
    return path


def _write(model: nn.Module, path: Path) -> None:
    # Bytes first: what writing them can fail with is an OSError, and the file has the permissions of any other.
    state = model.state_dict()
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import save

        # One copy for each name: the format refuses tensors that share memory, as tied weights do.
        content = save({k: v.detach().clone().contiguous() for k, v in state.items()}, {"format": "pt"})
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
