"""Stable ranks of weights on a GPU: launched after the step, and taken up when they have arrived.

Nothing here waits for the device. The products of a record are launched on the training's own stream, what
they sum up to is copied into pinned memory behind them, and the thread that writes the file waits for that
copy and finishes the numbers (see `zanalysis.analyzers.following`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hooks.layers import Layer
from hooks.measuring import Measured
from zanalysis.analyzers.following import Answer, Follower, Launched, finished
from zanalysis.analyzers.matrices import Reference, View, matricize
from zanalysis.analyzers.metrics import Plan
from zanalysis.analyzers.statuses import CODES

__all__ = ["Arrival", "Deferred", "deferred_of"]

Arrival = Callable[[], dict[str, Measured]]

DEVICES = frozenset({"cuda"})
"""Devices that are not waited for."""

STACKED_BYTES = 256 << 20
"""How much of one shape is stacked in one launch, as float32."""

SETTLING = 12
"""How often the first record is refined, before there is a training to hold up."""

PATIENCE = 3
"""After so many records of a matrix outside its error the device is waited for, once."""


class Want(NamedTuple):
    """One number of one matrix: layer, index of the matrix, index of the key."""

    layer: str
    matrix: int
    key: int


@dataclass
class _Group:
    """Matrices of one shape that are launched together."""

    wants: list[Want]
    follower: Follower = field(default_factory=Follower)
    failures: int = 0

    def take_up(self, answer: Answer, launched: Launched) -> None:
        self.follower.learn(answer, launched)
        missed = bool((answer.codes == CODES["not_converged"]).any())
        self.failures = self.failures + 1 if missed else 0


class Deferred:
    """The stable ranks of some layers' weights, record after record.

    Attributes:
        layers: whose.
        waits: how often the device was waited for after all.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        plan: Plan,
        references: Mapping[str, Mapping[str, Reference]],
        view: View,
    ) -> None:
        """Put matrices of one shape together.

        Args:
            layers: the layers.
            plan: of nothing but stable ranks.
            references: by layer and by name: tensors, or nothing.
            view: how a kernel becomes a matrix.
        """
        self.layers = tuple(layers)
        self.waits = 0
        self._plan = plan
        self._references = references
        self._view = view
        self._groups: list[_Group] | None = None

    def launch(self) -> Arrival:
        """Send a record on its way.

        Returns:
            Gives what was measured, by layer; waits for the device, in whatever thread it is called.
        """
        matrices = self._matrices()
        first = self._groups is None
        if self._groups is None:
            self._groups = self._grouped(matrices)
        on_their_way = []
        for group in self._groups:
            given = [matrices[want] for want in group.wants]
            if first or group.failures >= PATIENCE:
                self.waits += not first
                self._settle(group, given)
            launched = group.follower.launch(given)
            on_their_way.append((group, launched, *_sent(launched.sums)))

        def arrived() -> dict[str, Measured]:
            numbers = {layer.name: self._nothing(layer) for layer in self.layers}
            for group, launched, sums, wait in on_their_way:
                wait()
                answer = finished(sums, launched.basis.shape[-1])
                group.take_up(answer, launched)
                for want, value, code in zip(group.wants, answer.values, answer.codes, strict=True):
                    numbers[want.layer][want.matrix, want.key, 0] = value
                    numbers[want.layer][want.matrix, want.key, 2] = code
            return {name: Measured(of, {}) for name, of in numbers.items()}

        return arrived

    def _settle(self, group: _Group, given: Sequence[Tensor]) -> None:
        for _ in range(SETTLING):
            launched = group.follower.launch(given)
            answer = finished(launched.sums.cpu(), launched.basis.shape[-1])
            group.take_up(answer, launched)
            if group.failures == 0:
                break
        group.failures = 0

    def _matrices(self) -> dict[Want, Tensor]:
        found = {}
        for layer in self.layers:
            weight = layer.read()
            for key, name in enumerate(self._plan.references):
                reference = self._references[layer.name][name]
                change = weight if reference is None else weight.float() - _as_tensor(reference).float()
                kept = matricize(change, self._view)
                for index, matrix in enumerate(kept.reshape(-1, *kept.shape[-2:])):
                    found[Want(layer.name, index, key)] = matrix
        return found

    def _grouped(self, matrices: Mapping[Want, Tensor]) -> list[_Group]:
        groups: list[_Group] = []
        latest: dict[tuple[torch.Size, torch.device], _Group] = {}
        for want, matrix in matrices.items():
            kind = (matrix.shape, matrix.device)
            group = latest.get(kind)
            if group is None or (len(group.wants) + 1) * matrix.numel() * 4 > STACKED_BYTES:
                group = latest[kind] = _Group([])
                groups.append(group)
            group.wants.append(want)
        return groups

    def _nothing(self, layer: Layer) -> Tensor:
        return torch.full(
            (len(layer.matrices), len(self._plan.references), 3), torch.nan, dtype=torch.float64
        )


def deferred_of(
    layers: Sequence[Layer],
    plan: Plan | None,
    references: Mapping[str, Mapping[str, Reference]],
    view: View,
) -> Deferred | None:
    """Choose the layers whose weights need not be waited for.

    Args:
        layers: the layers.
        plan: what is measured of their weights; None for nothing.
        references: by layer and by name.
        view: how a kernel becomes a matrix.

    Returns:
        Them; None where there are none, or more than stable ranks is asked for.
    """
    if plan is None or plan.metrics != ("stable_rank",) or callable(view):
        return None
    chosen = [
        layer
        for layer in layers
        if layer.parameter.device.type in DEVICES
        and layer.dtype.itemsize <= 4
        and all(not isinstance(references[layer.name][name], str) for name in plan.references)
    ]
    return Deferred(chosen, plan, references, view) if chosen else None


def _as_tensor(reference: Reference) -> Tensor:
    assert isinstance(reference, Tensor)
    return reference


def _sent(sums: Tensor) -> tuple[Tensor, Callable[[], None]]:
    # Copied to the host behind what was launched: where it will be, and what waits for it.
    if sums.device.type != "cuda":
        return sums.cpu(), lambda: None
    pinned = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
    pinned.copy_(sums, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return pinned, event.synchronize
