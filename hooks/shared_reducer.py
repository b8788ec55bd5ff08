"""The observer of a model that several processes hold: one writes, all answer."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hooks.distributed import local_samples
from hooks.layers import Layer, is_distributed
from hooks.measuring import Measured
from hooks.reducer import Reducer
from hooks.shards import Moment, ShardedLayers
from hooks.taps import NOTHING
from hooks.team import Team
from zanalysis.analyzers.matrices import Reference, View
from zanalysis.analyzers.metrics import NONE, Key
from zanalysis.analyzers.statuses import CODES

__all__ = ["SharedReducer"]

_ORDER = ("gradient", "weight")


class SharedReducer(Reducer):
    """A reducer in each of several processes. What is sharded is measured by all, the rest by the leader.

    Where nothing is sharded (`DistributedDataParallel`), only the leader does anything.
    """

    def __init__(self, team: Team, *arguments: Any, **options: Any) -> None:
        """Prepare to measure; nothing is sent.

        Args:
            team: the processes.
            *arguments: as `Reducer` takes them.
            **options: as `Reducer` takes them.
        """
        super().__init__(*arguments, **options)
        self.team = team
        self._in_parts = {layer.name for layer in self._layers if is_distributed(layer.parameter)}
        self._by_name = {layer.name: layer for layer in self._layers}
        parametrized = [layer.name for layer in self._layers if layer.parametrized]
        references: dict[str, Mapping[str, Mapping[str, Reference]]] = {
            "weight": self._references,
            "gradient": self._no_reference,
        }
        self._shared = {
            tensor: ShardedLayers(
                team,
                list(self._by_name),
                self._plans[tensor],
                references[tensor],
                self._view,
                self._warm[tensor],
                parametrized if tensor == "weight" else (),
            )
            for tensor in _ORDER
            if tensor in self._plans and self._in_parts
        }
        self._moment: Moment | None = None

    def wants(self, step: int) -> frozenset[str]:
        """Ask the schedule; a process that measures nothing wants nothing.

        Args:
            step: the step that is about to begin.

        Returns:
            All tensors that are followed, or nothing.
        """
        wanted = super().wants(step)
        return wanted if self.team.leader or self._in_parts else NOTHING

    def activation(self, layer: Layer, z: Tensor) -> None:
        """Keep the output for the end of the step, or measure it: that of the leader's own samples."""
        samples = local_samples(z, layer, self.team)
        if samples is not None and self.team.leader:
            super().activation(layer, samples)

    def activation_gradient(self, layer: Layer, g: Tensor) -> None:
        """Keep the gradient of the output for the end of the step, or measure it: the leader's own."""
        samples = local_samples(g, layer, self.team)
        if samples is not None and self.team.leader:
            super().activation_gradient(layer, samples)

    def gradients_told(self) -> None:
        """Measure the gradients."""
        held = {place.layer: one.tensor for place, one in self._held.items() if place.tensor == "gradient"}
        self._share("gradient", held.get, super().gradients_told)

    def completed(self, step: int) -> None:
        """Measure the weights, and write the row."""
        self._step = step
        self._share("weight", self._weight, partial(super().completed, step))

    def record(self, step: int) -> None:
        """Write the row of a step.

        Args:
            step: the step.
        """
        self._step = step
        if self._moment is None:
            self._share("weight", self._weight, partial(super().record, step))
        else:
            super().record(step)

    def _share(self, tensor: str, read: Callable[[str], Tensor | None], work: Callable[[], None]) -> None:
        layers = self._shared.get(tensor)
        try:
            if layers is not None:
                self._moment = Moment(layers, read)
                self._moment.share(2 * self._step + _ORDER.index(tensor), work)
            elif self.team.leader:
                work()
        finally:
            self._moment = None
            if not self.team.leader:
                self._forget()

    def _weight(self, name: str) -> Tensor:
        return self._by_name[name].read()

    def _measure(
        self,
        group: Sequence[Layer],
        tensor: str,
        references: Mapping[str, Mapping[str, Reference]],
        view: View,
    ) -> dict[str, Measured]:
        sharded = [layer for layer in group if tensor in self._shared and layer.name in self._in_parts]
        found: dict[str, Measured] = {}
        rest = [layer for layer in group if layer not in sharded]
        if rest:
            found |= super()._measure(rest, tensor, references, view)
        for layer in sharded:
            found[layer.name] = self._measured_together(layer, tensor)
        return found

    def _measured_together(self, layer: Layer, tensor: str) -> Measured:
        assert self._moment is not None
        failed = partial(self._failed, tensor)
        count = len(self._by_name[layer.name].matrices)
        try:
            measurements, spectra = self._moment.measured(layer.name, partial(failed, layer))
            parts = [torch.stack([p.double().reshape(-1).expand(count) for p in m], -1) for m in measurements]
            numbers = torch.stack(parts, 1) if parts else torch.empty(count, 0, 3, dtype=torch.float64)
            return Measured(numbers, {name: values.reshape(count, -1) for name, values in spectra.items()})
        except Exception as error:
            failed(layer, Key(NONE, NONE, "every metric"), error)
            nothing = torch.tensor([torch.nan, torch.nan, CODES["error"]], dtype=torch.float64)
            return Measured(nothing.expand(count, len(self._plans[tensor].keys), 3), {})
