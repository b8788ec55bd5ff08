"""Sharded layers measured by all the processes that hold them: the leader asks, all add up.

`Moment` is what one process has to answer with while a step is recorded: the weights or the gradients of
all layers, and their spans. Every process opens it at the same steps; in the leader the tracker goes on
as if it were alone, in the others nothing happens but answers.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from hooks.layers import is_distributed
from hooks.packing import packed, unpacked
from hooks.slices import How, counts, how_to, indices, local, part_of, sliced
from hooks.team import Message, Task, Team
from zanalysis.analyzers.lanczos import WarmStart
from zanalysis.analyzers.matrices import Reference, View, computable
from zanalysis.analyzers.metrics import Key, Measurement, Plan
from zanalysis.analyzers.parts import Of, Op, Part, length, takes_maximum
from zanalysis.analyzers.residual import Residual
from zanalysis.analyzers.sharded import Shards, evaluate_shards
from zanalysis.analyzers.span import ActivationSpan
from zanalysis.analyzers.span_sums import span_facts, span_of_sums, sum_length, summands

__all__ = ["Moment", "ShardedLayers"]

_T = TypeVar("_T")
_GATHER, _BATCH, _DESCRIBE, _SPAN, _PACKED, _READ = 20, 21, 22, 23, 24, 25
_FACTS = 8


class ShardedLayers:
    """Which layers are measured together, of what, and the team that does it.

    Attributes:
        team: the processes.
        names: of all layers, in the same order in every process.
    """

    def __init__(
        self,
        team: Team,
        names: Sequence[str],
        plan: Plan,
        references: Mapping[str, Mapping[str, Reference]],
        view: View,
        warm: Mapping[str, WarmStart],
        parametrized: Collection[str] = (),
    ) -> None:
        """Keep what every process knows.

        Args:
            team: the processes.
            names: of all layers.
            plan: what is measured.
            references: by layer and name; a sharded layer's in parts, or whole.
            view: how a kernel becomes a matrix.
            warm: the state of each layer from its last record.
            parametrized: the layers whose weight is computed from what is trained.
        """
        self.team = team
        self.parametrized = frozenset(parametrized)
        self.names = list(names)
        self.plan = plan
        self.references = references
        self.view = view
        self.warm = warm


class Moment:
    """What this process has, while a step is recorded, and how the processes measure it together."""

    def __init__(
        self,
        layers: ShardedLayers,
        read: Callable[[str], Tensor | None],
        plan: Plan | None = None,
        spans: Sequence[ActivationSpan | None] = (),
    ) -> None:
        """Take what there is; nothing is sent.

        Args:
            layers: what every process knows.
            read: gives the weight, or the gradient, of a layer; None where there is none.
            plan: what is measured of it, if other than of the weights; references are then those it names.
            spans: of this process's activations, in an order that is the same in every process.
        """
        self.layers = layers
        self.team = layers.team
        self.plan = layers.plan if plan is None else plan
        self._read = read
        self._spans = spans
        self._parts: dict[tuple[int, int], Part] = {}
        self._tensors: dict[int, Tensor] = {}

    def share(self, number: int, work: Callable[[], _T]) -> _T | None:
        """Record the step: in the leader by doing the work, in the others by answering it.

        Args:
            number: of the moment; it grows from each to the next.
            work: what the leader does, within which `measured`, `whole` and `span` may be called.

        Returns:
            What it returns; None in the others.
        """
        if self.team.leader:
            return self.team.lead(number, work)
        self.team.follow(number, self._answer)
        return None

    # The leader's side.

    def measured(
        self, name: str, on_error: Callable[[Key, Exception], None]
    ) -> tuple[list[Measurement], dict[str, Tensor]]:
        """Measure one layer.

        Args:
            name: the layer.
            on_error: as for `Plan.evaluate`.

        Returns:
            As `Plan.evaluate`.
        """
        layer = self.layers.names.index(name)
        if name in self.layers.parametrized:
            # What acts is computed from the parts, which is itself a collective.
            self.team.together(Message(Task.TOGETHER, 0, (_READ, layer), None), self._answer)
        tensor, plan, view = self._tensor(layer), self.plan, self.layers.view
        references, warm = self._references(layer), self.layers.warm[name]
        how = how_to(tensor, view, _identity(plan))
        if how.way == "batch":
            return self._batch(layer, tensor)
        shards = partial(self._shards, layer, how, tensor)
        if how.way == "parts" and not shards(0).needs_whole(plan.metrics):
            eps = [_eps(tensor, references[reference]) for reference in plan.references]
            return evaluate_shards(plan, shards, eps, on_error, warm)
        if how.way == "local":
            return plan.evaluate(local(tensor), _local(references), view, on_error, warm)
        wholes = {key: self._whole_reference(layer, key) for key in plan.references}
        return plan.evaluate(self._gathered(layer, Of.WEIGHT, 0), wholes, view, on_error, warm)

    def whole(self, name: str, reference: str | None = None) -> Tensor:
        """Bring a layer's tensor, or a reference of it, together.

        Args:
            name: the layer.
            reference: which reference; None for the tensor.

        Returns:
            It, whole.
        """
        layer = self.layers.names.index(name)
        if reference is None:
            return self._gathered(layer, Of.WEIGHT, 0)
        found = self._whole_reference(layer, reference)
        assert isinstance(found, Tensor)
        return found

    def span(self, layer: int) -> ActivationSpan | None:
        """Merge the spans that the processes have of the same activations.

        Args:
            layer: which of the spans.

        Returns:
            That of all samples; None where no process has any.
        """
        members = self.team.members
        facts = self._ask(layer, members * _FACTS, _DESCRIBE).reshape(members, _FACTS)
        there = facts[facts[:, 0] > 0]
        if not len(there):
            return None
        first = there[0].tolist()
        own = self._spans[layer]
        if bool(there[:, 1].all()) and bool((there == there[0]).all()):
            features, width, eps = int(first[2]), int(first[3]), first[4]
            sizes = [sum_length(features, width, sketched) for sketched in (False, True)]
            sums = self._ask(layer, sizes[0], _SPAN, features, width)
            maxima = self._ask(layer, sizes[1], _SPAN, features, width, task=Task.MAXIMUM)
            return span_of_sums(features, width, eps, sums, maxima)
        merged = own
        for member in range(members):
            if facts[member, 0] > 0 and member != self.team.number:
                other = unpacked(self._ask(layer, int(facts[member, 5]), _PACKED, member))
                merged = other if merged is None else merged.merge(other)
        return merged

    def _ask(self, layer: int, size: int, code: int, *more: float, task: Task = Task.SUM) -> Tensor:
        return self.team.ask(Message(task, size, (code, layer, *more), None), self._answer)

    def _shards(self, layer: int, how: How, tensor: Tensor, reference: int) -> Shards:
        def ask(op: Op, of: Of, scale: float = 1.0, vector: Tensor | None = None) -> Tensor:
            task = Task.MAXIMUM if takes_maximum(op) else Task.SUM
            size = length(op, how.shape, how.split)
            return self.team.ask(Message(task, size, (op, layer, reference, of, scale), vector), self._answer)

        def gather() -> Residual:
            key = self.plan.references[reference]
            W = self._gathered(layer, Of.WEIGHT, 0)
            return Residual.of(W, self._whole_reference(layer, key), self.layers.view, None, self.plan.wants)

        return Shards(how.shape, how.split, tensor.dtype, self.team.device, ask, gather)

    def _batch(self, layer: int, tensor: Tensor) -> tuple[list[Measurement], dict[str, Tensor]]:
        count, shape, keys = tensor.shape[0], tensor.shape[1:], len(self.plan.keys)
        named = self.plan.references if self.plan.wants_spectrum else ()
        spectrum = len(named) * min(shape)
        numbers = self._ask(layer, count * (3 * keys + spectrum), _BATCH).reshape(count, -1)
        table = numbers[:, : 3 * keys].reshape(count, keys, 3)
        measurements = [
            Measurement(table[:, k, 0], table[:, k, 1], table[:, k, 2].to(torch.uint8)) for k in range(keys)
        ]
        values = numbers[:, 3 * keys :].reshape(count, len(named), min(shape))
        return measurements, {name: values[:, i] for i, name in enumerate(named)}

    def _gathered(self, layer: int, of: Of, reference: int) -> Tensor:
        message = Message(Task.TOGETHER, 0, (_GATHER, layer, reference, of), None)
        found: Tensor = self.team.together(message, self._answer)
        return found

    def _whole_reference(self, layer: int, name: str) -> Reference:
        given = self._references(layer)[name]
        if is_distributed(given):
            return self._gathered(layer, Of.REFERENCE, self.plan.references.index(name))
        return given

    # Every process's side.

    def _tensor(self, layer: int) -> Tensor:
        if layer not in self._tensors:
            found = self._read(self.layers.names[layer])
            if found is None:
                raise RuntimeError(f"{self.layers.names[layer]} has no tensor in this process")
            # One layer at a time: what was kept for another is let go.
            self._tensors, self._parts = {layer: found}, {}
        return self._tensors[layer]

    def _references(self, layer: int) -> Mapping[str, Reference]:
        known = self.layers.references[self.layers.names[layer]]
        return {name: known.get(name) for name in self.plan.references}

    def _answer(self, message: Message) -> Any:
        code, layer = int(message.what[0]), int(message.what[1])
        if code == _READ:
            return partial(self._tensor, layer)
        if code == _GATHER:
            return self._gathering(layer, Of(int(message.what[3])), int(message.what[2]))
        if code == _BATCH:
            return self._own_matrices(layer, message.size)
        if code in (_DESCRIBE, _SPAN, _PACKED):
            return self._own_span(code, layer, message)
        reference, of, scale = int(message.what[2]), Of(int(message.what[3])), message.what[4]
        return self._part(layer, reference).answer(Op(code), of, scale, message.vector)

    def _part(self, layer: int, reference: int) -> Part:
        tensor = self._tensor(layer)
        if (layer, reference) not in self._parts:
            given = self._references(layer)[self.plan.references[reference]]
            start = given if isinstance(given, Tensor) else None
            how = how_to(tensor, self.layers.view, _identity(self.plan))
            for other in self._parts.values():
                other.forget()
            self._parts[layer, reference] = part_of(tensor, start, self.layers.view, how, self.team)
        return self._parts[layer, reference]

    def _gathering(self, layer: int, of: Of, reference: int) -> Callable[[], Tensor]:
        found: Any = self._tensor(layer)
        if of == Of.REFERENCE:
            found = self._references(layer)[self.plan.references[reference]]
        held = found.to(self.team.device) if local(found).device.type != self.team.device.type else found
        return lambda: held.full_tensor().detach()

    def _own_matrices(self, layer: int, size: int) -> Tensor:
        tensor: Any = self._tensor(layer)
        found = indices(tensor)
        assert found is not None
        here = found[0]
        held = computable(local(tensor))
        out = torch.zeros(tensor.shape[0], size // tensor.shape[0], dtype=torch.float64, device=held.device)
        if not counts(tensor, self.team) or not len(here):
            return out.flatten()
        references: dict[str, Reference] = {}
        for name, given in self._references(layer).items():
            parts = given if not isinstance(given, Tensor) or is_distributed(given) else sliced(given, tensor)
            references[name] = local(parts) if isinstance(parts, Tensor) else parts
        measurements, spectra = self.plan.evaluate(
            local(tensor), references, self.layers.view, _ignore, self.layers.warm[self.layers.names[layer]]
        )
        columns = [torch.stack([part.double() for part in m], -1) for m in measurements]
        rows = torch.stack(columns, 1).flatten(1) if columns else out[here][:, :0]
        if self.plan.wants_spectrum:
            side = min(tensor.shape[1:])
            nothing = torch.full((len(here), side), math.nan, dtype=torch.float64, device=held.device)
            rows = torch.cat([rows, *(spectra.get(name, nothing) for name in self.plan.references)], 1)
        out[here] = rows
        return out.flatten()

    def _own_span(self, code: int, layer: int, message: Message) -> Tensor:
        span = self._spans[layer]
        out = torch.zeros(message.size, dtype=torch.float64)
        if code == _DESCRIBE:
            if span is not None and span.samples:
                row = out.view(-1, _FACTS)[self.team.number]
                addable, features, width, eps = span_facts(span)
                size = 0 if addable else len(packed(span))
                row[:6] = torch.tensor([1, addable, features, width, eps, size], dtype=torch.float64)
        elif code == _SPAN:
            if span is not None and span.samples:
                out[:] = summands(span)[message.task == Task.MAXIMUM].to(out)
        elif span is not None and int(message.what[2]) == self.team.number:
            out[:] = packed(span)
        return out


def _ignore(key: Key, error: Exception) -> None:
    """Leave it at the status: the leader's log has no room for every matrix of every process."""


def _identity(plan: Plan) -> bool:
    # Whether one is subtracted or looked for.
    return any(key.metric == "identity_scale" for key in plan.keys)


def _local(references: Mapping[str, Reference]) -> dict[str, Reference]:
    return {name: local(given) if isinstance(given, Tensor) else given for name, given in references.items()}


def _eps(tensor: Tensor, reference: Reference) -> float:
    coarsest = torch.finfo(tensor.dtype).eps
    return max(coarsest, torch.finfo(reference.dtype).eps) if isinstance(reference, Tensor) else coarsest
