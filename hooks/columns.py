"""Which numbers a record has, in which order: from layers, their tensors and the metrics to columns.

The order is that of the tensors (weight, gradient, activation, activation_gradient), within them that of
the layers, their matrices and the keys of the plan: a file of weights alone has theirs and nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hooks.arguments import TENSORS
from hooks.layers import Layer, tapped_layers
from hooks.measuring import Measured
from zanalysis.analyzers.metrics import NONE, Plan, UserMetric, checked_metrics, plan
from zanalysis.analyzers.statuses import CODES
from zanalysis.errors import InputError
from zanalysis.runfile import Series, SpectrumKey

__all__ = ["Columns", "Numbers", "Place", "plans_of"]

MEANINGLESS: Mapping[str, frozenset[str]] = {
    "weight": frozenset({"zero_gradient"}),
    "gradient": frozenset({"identity_scale"}),
    "activation": frozenset({"identity_scale", "zero_gradient"}),
    "activation_gradient": frozenset({"identity_scale"}),
}
"""The metrics that say nothing of a tensor, and are no series of it."""


class Place(NamedTuple):
    """What is measured: a tensor of a layer."""

    layer: str
    tensor: str


class Numbers(NamedTuple):
    """The numbers of one step, as a writer takes them: `[S]`, `[S]`, `[S]` and `[R, k]`."""

    value: npt.NDArray[np.float64]
    tolerance: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]
    spectra: npt.NDArray[np.float64]


def plans_of(
    tensors: Sequence[str], metrics: Any, references: Sequence[str], tolerance: Any
) -> dict[str, Plan]:
    """Fix what is measured of each tensor. References are those of the weights.

    Args:
        tensors: which tensors.
        metrics: names, functions of a matrix, or several of both.
        references: the names of the references.
        tolerance: one rule or several.

    Returns:
        A plan for each tensor that one of the metrics is for.

    Raises:
        InputError: if none of the metrics is for any of the tensors.
    """
    asked = checked_metrics(metrics)
    plans = {}
    for tensor in TENSORS:
        kept: list[str | UserMetric] = [
            metric for metric in asked if callable(metric) or metric not in MEANINGLESS[tensor]
        ]
        if tensor in tensors and kept:
            plans[tensor] = plan(kept, tuple(references) if tensor == "weight" else (NONE,), tolerance)
    if tuple(references) != (NONE,) and "weight" not in plans:
        raise InputError(
            f"reference = {', '.join(references)} is subtracted from weights, of which there is no metric here; "
            "leave reference out, or add 'weight' to tensors."
        )
    if not plans:
        names = ", ".join(map(str, asked))
        raise InputError(
            f"no number of {' or '.join(tensors)} comes of metrics = {names}: zero_gradient is one of gradients, "
            "identity_scale of weights; ask for another metric or another tensor."
        )
    return plans


class Columns:
    """Where each number of a record stands.

    Attributes:
        series: what the columns are.
        spectra: what the rows of the recorded spectra are.
        places: every tensor of every layer that is measured.
    """

    def __init__(self, layers: Sequence[Layer], plans: Mapping[str, Plan], spectrum_size: int) -> None:
        """Lay the columns out.

        Args:
            layers: the layers.
            plans: as `plans_of` returns them.
            spectrum_size: how many singular values a recorded spectrum keeps.
        """
        self._plans = plans
        self._spectrum_size = spectrum_size
        self._matrices = {
            Place(layer.name, tensor): layer.matrices if tensor in ("weight", "gradient") else (layer.name,)
            for tensor in plans
            for layer in (layers if tensor in ("weight", "gradient") else tapped_layers(layers))
        }
        self.places = tuple(self._matrices)
        self.series = tuple(
            Series(matrix, place.tensor, *key)
            for place, matrices in self._matrices.items()
            for matrix in matrices
            for key in plans[place.tensor].keys
        )
        self.spectra = tuple(
            SpectrumKey(matrix, place.tensor, name)
            for place, matrices in self._matrices.items()
            if plans[place.tensor].wants_spectrum
            for name in plans[place.tensor].references
            for matrix in matrices
        )
        self._rows = {key: row for row, key in enumerate(self.spectra)}

    def numbers(self, measured: Mapping[Place, Measured], missing: Mapping[Place, str]) -> Numbers:
        """Put what was measured in one step where it belongs.

        Args:
            measured: by place.
            missing: why nothing was measured, for every other place.

        Returns:
            The numbers of the step.
        """
        # On the layers' devices until all of them are done.
        parts = [
            measured[place].numbers.reshape(-1, 3).cpu()
            if place in measured
            else self._nothing(place, missing[place])
            for place in self.places
        ]
        table = torch.cat(parts).numpy()
        spectra = np.full((len(self.spectra), self._spectrum_size), np.nan)
        for place, found in measured.items():
            for name, values in found.spectra.items():
                for matrix, row in zip(self._matrices[place], values.cpu().numpy(), strict=True):
                    kept = row[: self._spectrum_size]
                    spectra[self._rows[SpectrumKey(matrix, place.tensor, name)], : len(kept)] = kept
        return Numbers(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].astype(np.uint8), spectra)

    def _nothing(self, place: Place, status: str) -> Tensor:
        count = len(self._matrices[place]) * len(self._plans[place.tensor].keys)
        return torch.tensor([[torch.nan, torch.nan, CODES[status]]], dtype=torch.float64).expand(count, 3)
