"""`Recorder`: keeps the tensors themselves."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hooks.schedules import Schedule
from zanalysis.errors import NotBuiltYetError

__all__ = ["Recorder"]


class Recorder:
    """Record weights, gradients or activations whole, into a run file."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        path: str | os.PathLike[str] | None = None,
        *,
        schedule: Schedule,
        layers: Any = None,
        tensors: Sequence[str] = ("weight",),
        dtype: torch.dtype | None = None,
        rows: int | None = None,
        compression: str | None = None,
        mode: str = "x",
        start: int = 0,
        flush_seconds: float = 0.5,
        on_full: str = "block",
    ) -> None:
        """Attach to a model.

        Args:
            model: the model.
            optimizer: one, several, or None.
            path: the run file.
            schedule: `step -> bool`.
            layers: which layers; None for all.
            tensors: which of their tensors.
            dtype: to store them in; their own if None.
            rows: how many rows of an activation to keep; all if None.
            compression: of the file.
            mode: ``"x"``, ``"w"`` or ``"a"``.
            start: steps completed before.
            flush_seconds: how often the file is flushed.
            on_full: ``"block"`` or ``"drop"``.

        Raises:
            NotBuiltYetError: always, in this version.
        """
        raise NotBuiltYetError("hooks.Recorder")
