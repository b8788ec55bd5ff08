"""One unit of work, one layer of one checkpoint, and what comes of it; all of it plain, picklable data."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zanalysis.analyzers.matrices import Reference, View
from zanalysis.analyzers.metrics import NONE, SPECTRUM, Key, Plan
from zanalysis.analyzers.statuses import CODES
from zanalysis.checkpoints import StoredTensor
from zanalysis.errors import InputError
from zanalysis.sweep.layers import StoredLayer

__all__ = ["ABSENT", "SPECTRUM_SIZE", "Absent", "Outcome", "Source", "Work", "columns_of", "measure"]

SPECTRUM_SIZE = 16
"""How many singular values a table has, as many as a run file keeps."""

ABSENT = 255
"""Instead of a status: this matrix has no such number, such as the ninth singular value of an 8×8 matrix."""


@dataclass(frozen=True)
class Absent:
    """A reference that has nothing for a layer.

    Attributes:
        why: a sentence.
        expected: whether that is as it should be, and not worth a line in the log.
    """

    why: str
    expected: bool = False


Source = StoredTensor | Tensor | Absent | str | None
"""Where a reference comes from: a file, memory, nowhere, the word ``identity``, or none at all."""


@dataclass(frozen=True)
class Work:
    """One layer of one checkpoint.

    Attributes:
        place: which checkpoint it is of, and which state in it, by position.
        key: what names it in a journal.
        checkpoint: the checkpoint as a table names it.
        step: its step.
        layer: what is measured.
        references: by name.
        plan: which numbers.
        view: how a kernel becomes a matrix.
    """

    place: tuple[int, int]
    key: str
    checkpoint: str
    step: int
    layer: StoredLayer
    references: dict[str, Source]
    plan: Plan
    view: View

    @property
    def weight(self) -> int:
        """How many numbers are in memory at a time while it is measured."""
        entries = 1
        for size in self.layer.tensor.shape:
            entries *= size
        return entries * (1 + sum(isinstance(s, StoredTensor | Tensor) for s in self.references.values()))

    def run(self) -> "Outcome":
        """Carry it out.

        Returns:
            Its numbers.
        """
        return measure(self)

    def __str__(self) -> str:
        return f"{self.checkpoint}: {self.layer.name}"

    def failed(self, error: BaseException) -> "Outcome":
        """Say that it could not be carried out at all.

        Args:
            error: why.

        Returns:
            NaN with the status ``error`` for each of its numbers.
        """
        return _nothing(self, "error", f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Outcome:
    """What came of a unit of work.

    Attributes:
        names: of the matrices.
        numbers: value, tolerance and status code: float64 `[matrices, columns, 3]`.
        errors: what failed, in sentences.
    """

    names: tuple[str, ...]
    numbers: npt.NDArray[np.float64]
    errors: tuple[str, ...] = field(default=())

    @property
    def complete(self) -> bool:
        """Whether nothing has to be tried again."""
        return not self.errors

    def as_json(self) -> dict[str, Any]:
        """Return it as a journal keeps it: every float to the bit."""
        return {"names": self.names, "numbers": self.numbers.tolist()}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "Outcome":
        """Return what a journal kept.

        Args:
            kept: as `as_json` gave it.

        Returns:
            The outcome.
        """
        numbers = np.array(kept["numbers"], np.float64).reshape(len(kept["names"]), -1, 3)
        return cls(tuple(kept["names"]), numbers)


def columns_of(plan: Plan) -> tuple[Key, ...]:
    """Return what the numbers of a matrix are.

    Args:
        plan: which numbers were asked for.

    Returns:
        The plan's keys, and `singular_values[i]` where whole spectra were asked for.
    """
    spectra = plan.references if plan.wants_spectrum else ()
    return plan.keys + tuple(
        Key(reference, NONE, f"{SPECTRUM}[{i}]") for reference in spectra for i in range(SPECTRUM_SIZE)
    )


@torch.no_grad()
def measure(work: Work) -> Outcome:
    """Measure one layer of one checkpoint.

    Args:
        work: which, and what.

    Returns:
        Its numbers. What failed has the status ``error``; nothing but an interruption is raised.
    """
    layer = work.layer
    if layer.tensor.status != "ok":
        return _nothing(work, "skipped")
    errors: dict[str, None] = {}

    def failed(key: Key, error: Exception) -> None:
        source = work.references.get(key.reference)
        if isinstance(source, Absent) and source.expected:
            return
        errors[f"{key.metric} (reference {key.reference}): {type(error).__name__}: {error}"] = None

    try:
        W = _as_measured(layer.tensor.load(), layer)
        sources = {name: _resolved(source, layer) for name, source in work.references.items()}
        numbers = []
        for block in layer.blocks:
            references = _References(
                {name: block.of(s) if isinstance(s, Tensor) else s for name, s in sources.items()}
            )
            measured, spectra = work.plan.evaluate(block.of(W), references, work.view, failed)
            count = len(layer.names) // len(layer.blocks)
            # What is one number for the whole parameter, such as the scale of its identity, counts for each matrix.
            parts = [torch.stack([p.double().reshape(-1).expand(count) for p in m], -1) for m in measured]
            columns = [torch.stack(parts, 1).numpy()] if parts else []
            columns += [_spectrum(spectra.get(name), count) for name in _spectra_of(work.plan)]
            numbers.append(np.concatenate(columns, 1))
    except Exception as error:
        return work.failed(error)
    return Outcome(layer.names, np.concatenate(numbers), tuple(errors))


class _References(dict[str, Any]):
    """References by name; one that has nothing for the layer says so when it is asked for."""

    def __getitem__(self, name: str) -> Reference:
        source = super().__getitem__(name)
        if isinstance(source, Absent):
            raise InputError(source.why)
        reference: Reference = source
        return reference


def _resolved(source: Source, layer: StoredLayer) -> Reference | Absent:
    if isinstance(source, Absent) or source is None:
        return source
    if isinstance(source, str):
        return "identity"
    try:
        tensor = source.load() if isinstance(source, StoredTensor) else source
    except Exception as error:
        return Absent(f"the reference could not be read: {error}")
    if tensor.shape != torch.Size(layer.tensor.shape):
        return Absent(
            f"the reference has shape {list(tensor.shape)}, the weight {list(layer.tensor.shape)}; "
            "name a checkpoint of the same network."
        )
    return _as_measured(tensor, layer)


def _as_measured(tensor: Tensor, layer: StoredLayer) -> Tensor:
    # Three dimensions are a batch of matrices, unless they are a kernel.
    return tensor.unsqueeze(-1) if layer.kernel and tensor.ndim == 3 else tensor


def _spectra_of(plan: Plan) -> tuple[str, ...]:
    return plan.references if plan.wants_spectrum else ()


def _spectrum(values: Tensor | None, count: int) -> npt.NDArray[np.float64]:
    numbers = np.full((count, SPECTRUM_SIZE, 3), np.nan)
    if values is None:
        numbers[..., 2] = CODES["error"]
        return numbers
    kept = values.double().reshape(count, -1)[:, :SPECTRUM_SIZE].numpy()
    numbers[..., 2] = ABSENT
    numbers[:, : kept.shape[1], 0] = kept
    words = np.where(np.isnan(kept), CODES["nonfinite"], CODES["ok"])
    words[(kept == 0).all(1)] = CODES["zero"]
    numbers[:, : kept.shape[1], 2] = words
    return numbers


def _nothing(work: Work, status: str, *errors: str) -> Outcome:
    names = work.layer.names
    numbers = np.full((len(names), len(columns_of(work.plan)), 3), np.nan)
    numbers[..., 2] = CODES[status]
    return Outcome(names, numbers, errors)
