"""The observer of a model that several processes hold: one writes, all answer."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hooks.columns import OF_MODULES, Place
from hooks.distributed import local_samples
from hooks.guards import undisturbed
from hooks.layers import Layer, is_distributed
from hooks.measuring import Measured
from hooks.observer import NOTHING
from hooks.reducer import Reducer
from hooks.shards import Moment, ShardedLayers
from hooks.team import Team
from zanalysis.analyzers.matrices import Reference, View
from zanalysis.analyzers.metrics import NONE, Key, plan
from zanalysis.analyzers.span import ActivationSpan
from zanalysis.analyzers.statuses import CODES

__all__ = ["SharedReducer"]

_ORDER = ("gradient", "weight")


class SpanExchange:
    """Makes one of the spans of several processes, in the leader; each has them in the same order.

    Attributes:
        own: this process's spans of the step that is recorded.
        moment: the moment that the leader leads.
    """

    def __init__(self, team: Team) -> None:
        """Begin with none.

        Args:
            team: the processes.
        """
        self.own: list[ActivationSpan | None] = []
        self.moment: Moment | None = None
        self._team = team

    def __call__(self, span: ActivationSpan | None) -> ActivationSpan | None:
        """Take this process's next span.

        Args:
            span: the span; None where it has none.

        Returns:
            In the leader that of all processes, None where none has any; the process's own in the others.
        """
        self.own.append(span)
        if not self._team.leader:
            return span
        assert self.moment is not None
        return self.moment.span(len(self.own) - 1)


class SharedReducer(Reducer):
    """A reducer in each of several processes. What is sharded is measured by all, the rest by the leader.

    Where nothing is sharded (`DistributedDataParallel`), only the leader does anything.
    """

    def __init__(self, team: Team, exchange: SpanExchange, *arguments: Any, **options: Any) -> None:
        """Prepare to measure; nothing is sent.

        Args:
            team: the processes.
            exchange: of the spans that are recorded.
            *arguments: as `Reducer` takes them.
            **options: as `Reducer` takes them.
        """
        super().__init__(*arguments, **options)
        self.team = team
        self._exchange = exchange
        self._in_parts = {layer.name for layer in self._by_name.values() if is_distributed(layer.parameter)}
        parametrized = [layer.name for layer in self._by_name.values() if layer.parametrized]
        references: dict[str, Mapping[str, Mapping[str, Reference]]] = {
            "weight": self._references,
            "gradient": self._no_reference,
        }
        # Rows of spans are made by all processes, whatever their weights are.
        self._together = bool(self._in_parts or self._beside.tensors)
        nothing = plan("support")
        self._shared = {
            tensor: ShardedLayers(
                team,
                list(self._by_name),
                self._plans.get(tensor, nothing),
                references[tensor],
                self._view,
                self._warm.get(tensor, {}),
                parametrized if tensor == "weight" else (),
            )
            for tensor in _ORDER
            if (tensor in self._plans and self._in_parts) or (tensor == "weight" and self._together)
        }
        self._moment: Moment | None = None

    def wants(self, step: int) -> frozenset[str]:
        """Look at the agenda; a process that has nothing to answer with wants nothing.

        Args:
            step: the step that is about to begin.

        Returns:
            As `Reducer.wants`.
        """
        wanted = super().wants(step)
        if self.team.leader:
            return wanted
        shared = frozenset(self._shared) | ({"weight"} if self._in_parts else NOTHING)
        # Feature shards are brought together by all processes, for the leader's own metrics too.
        samples = frozenset(OF_MODULES) if self._in_parts else self._beside.tensors
        return wanted & (shared | samples)

    def activation(self, layer: Layer, z: Tensor) -> None:
        """Keep the output for the end of the step, or measure it: that of the leader's own samples."""
        self._take_own("activation", layer, z)

    def activation_gradient(self, layer: Layer, g: Tensor) -> None:
        """Keep the gradient of the output for the end of the step, or measure it: the leader's own."""
        self._take_own("activation_gradient", layer, g)

    def _take_own(self, tensor: str, layer: Layer, z: Tensor) -> None:
        place = Place(layer.name, tensor)
        samples = local_samples(z, layer, self.team)
        if samples is None:
            return
        if self.team.leader:
            self._arrived(place, layer, samples)
        else:
            with undisturbed(False):
                self._spread(place, layer, samples, self._beside.take, False)

    def gradients_told(self) -> None:
        """Measure the gradients."""
        held = {place.layer: one.tensor for place, one in self._held.items() if place.tensor == "gradient"}
        self._share("gradient", held.get, super().gradients_told)

    def record(self, step: int) -> None:
        """Write the row of a step.

        Args:
            step: the step.
        """
        self._step = step
        self._exchange.own.clear()
        if self._beside.tensors and not self.team.leader:
            try:
                self._beside.combine()
            except Exception as error:
                # The others wait for this process: what is not there is answered with a failure.
                self.note(step, "error", "spans", f"the spans of step {step} were not read: {error!r}")
        self._share("weight", self._weight, partial(super().record, step))

    def _share(self, tensor: str, read: Callable[[str], Tensor | None], work: Callable[[], None]) -> None:
        layers = self._shared.get(tensor)
        try:
            if layers is not None:
                self._moment = self._exchange.moment = Moment(layers, read, None, self._exchange.own)
                with undisturbed(self._runs_user_code):
                    self._moment.share(2 * self._step + _ORDER.index(tensor), work)
            elif self.team.leader:
                work()
        finally:
            self._moment = self._exchange.moment = None
            if not self.team.leader:
                self._forget()

    def _deferrable(self, layers: Sequence[Layer]) -> None:
        """Defer nothing: all processes answer at the same moment."""

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
