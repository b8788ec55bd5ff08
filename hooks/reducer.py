"""The observer that keeps numbers: it reduces what it is told where it lies, and writes a row for each step."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from hooks.account import HOOKS, SHARED, WRITING, Account
from hooks.agenda import Agenda
from hooks.audience import Audience
from hooks.beside import Beside
from hooks.budget import Budget
from hooks.columns import OF_MODULES, Columns, Numbers, Place
from hooks.deferred import Arrival, Deferred, deferred_of
from hooks.guards import preserved_rng, undisturbed
from hooks.journal import Journal
from hooks.layers import Layer
from hooks.measuring import Measured, groups_of, measure
from hooks.observer import NOTHING, Observer
from hooks.taps import Taps
from zanalysis.analyzers.activations import as_samples, layout_of
from zanalysis.analyzers.lanczos import WarmStart
from zanalysis.analyzers.matrices import Reference, View
from zanalysis.analyzers.metrics import NONE, Key, Plan

__all__ = ["Reducer", "samples_of"]

Spanned = Callable[[str, str, Tensor | Exception], None]

HELD_BYTES = 64 << 20
"""How much of the activations of a step may wait, copied, for the step to end. Those of several
micro-batches replace each other, and only the last ones are measured; what would exceed this is
measured each time it comes."""


@dataclass(frozen=True)
class _Held(Layer):
    """A tensor of a layer in its place: what is measured instead of the weight."""

    tensor: Tensor

    def read(self) -> Tensor:
        """Return the tensor."""
        return self.tensor


def samples_of(layer: Layer, z: Tensor) -> Tensor:
    """Lay an output of a layer's module out as a matrix.

    Args:
        layer: the layer.
        z: the output, or its gradient.

    Returns:
        `[samples, features]`, a view where that is possible.
    """
    owner = layer.owner
    if isinstance(owner, _ConvNd) and z.ndim == len(owner.kernel_size) + 1:
        z = z.unsqueeze(0)
    return as_samples(z, layout_of(owner, "auto"))


class Reducer(Observer):
    """Measures the tensors of the layers at the steps that are due.

    Attributes:
        recorded: the last step that was recorded; None before the first.
    """

    recorded: int | None = None

    def __init__(
        self,
        layers: Sequence[Layer],
        plans: Mapping[str, Plan],
        references: dict[str, dict[str, Reference]],
        columns: Columns,
        view: View,
        agenda: Agenda,
        beside: Beside,
        journal: Journal,
        account: Account,
        budget: Budget | None = None,
        audience: Audience | None = None,
    ) -> None:
        """Prepare to measure.

        Args:
            layers: the layers.
            plans: what is measured of each tensor.
            references: by layer and by name, for the weights.
            columns: where each number belongs.
            view: how a kernel becomes a matrix.
            agenda: the steps to come.
            beside: spans, and what a probe shows.
            journal: where the numbers go.
            account: of the time.
            budget: is told of each record.
            audience: told of each record.
        """
        self._taps: weakref.ref[Taps] | None = None
        self._by_name = {layer.name: layer for layer in layers}
        self._plans = plans
        self._references = references
        self._no_reference: dict[str, dict[str, Reference]] = {layer.name: {NONE: None} for layer in layers}
        self._columns = columns
        self._view = view
        self._agenda = agenda
        self._beside = beside
        self._budget = budget
        self._journal = journal
        self._account = account
        self._audience = audience if audience is not None and audience.listens else None
        self._deferred = self._deferrable(layers)
        self._groups = self._grouped(layers)
        self._warm = {tensor: {layer.name: WarmStart() for layer in layers} for tensor in plans}
        self._runs_user_code = callable(view) or any(plan.has_user_metrics for plan in plans.values())
        self._step = 0
        self._recording = False
        # Told of weights, or of nothing, a step is complete all the same.
        probed = {"activation"} if beside.has_probe else set()
        self._wanted = frozenset({"weight", *plans}) - probed | beside.tensors
        self._forget()

    def _deferrable(self, layers: Sequence[Layer]) -> Deferred | None:
        return deferred_of(layers, self._plans.get("weight"), self._references, self._view)

    def _grouped(self, layers: Iterable[Layer]) -> list[list[Layer]]:
        deferred = self._deferred.layers if self._deferred else ()
        at_once = [layer for layer in layers if layer not in deferred]
        return groups_of(at_once, self._view, self._plans.get("weight"))

    @property
    def tensors(self) -> frozenset[str]:
        """Everything that will ever be wanted."""
        return self._wanted

    def _forget(self) -> None:
        self._held: dict[Place, _Held] = {}
        self._waiting = 0
        self._measured: dict[Place, Measured] = {}
        self._missing: dict[Place, str] = {}

    def listen_to(self, taps: Taps) -> None:
        """Learn from taps which modules were called.

        Args:
            taps: who tells; not kept alive.
        """
        self._taps = weakref.ref(taps)

    def wants(self, step: int) -> frozenset[str]:
        """Look at the agenda.

        Args:
            step: the step that is about to begin.

        Returns:
            All tensors that are followed, only those of spans where the step merely lies in a window, or
            nothing.
        """
        self._step = step
        with self._account.timed(HOOKS):
            in_window = self._beside.begin(step)
            self._recording = self._agenda.recorded(step)
        if self._recording:
            return self._wanted
        return self._beside.tensors if in_window else NOTHING

    def activation(self, layer: Layer, z: Tensor) -> None:
        """Keep the output for the end of the step, or measure it."""
        self._arrived(Place(layer.name, "activation"), layer, z)

    def activation_gradient(self, layer: Layer, g: Tensor) -> None:
        """Keep the gradient of the output for the end of the step, or measure it."""
        self._arrived(Place(layer.name, "activation_gradient"), layer, g)

    def _arrived(self, place: Place, layer: Layer, z: Tensor) -> None:
        recorded = self._recording and place.tensor in self._plans and place.tensor in self._wanted
        with self._account.timed(HOOKS), undisturbed(False):
            self._spread(place, layer, z, self._beside.take, recorded)

    def _probed(self, layer: Layer, z: Tensor) -> None:
        place = Place(layer.name, "activation")
        self._spread(place, layer, z, self._beside.take_probed, "activation" in self._plans)

    def _spread(self, place: Place, layer: Layer, z: Tensor, span: Spanned, recorded: bool) -> None:
        if recorded:
            self._drop(place)
        samples: Tensor | None = None
        try:
            samples = samples_of(layer, z)
            span(*place, samples)
            if recorded:
                # Channels that were moved last are a copy already.
                self._take(place, layer, samples, samples.data_ptr() == z.data_ptr())
        except Exception as error:
            if samples is None:
                span(*place, error)
            if recorded:
                self._missing[place] = "error"
            text = f"the {place.tensor.replace('_', ' ')} of {layer.name} was not recorded: {error}"
            self._journal.note(self._step, "error", f"{layer.name}/{place.tensor}", text, layer.name)

    def _take(self, place: Place, layer: Layer, samples: Tensor, shared: bool) -> None:
        if self._waiting + samples.nbytes <= HELD_BYTES:
            self._hold(place, layer, samples.clone() if shared else samples)
            self._waiting += samples.nbytes
        else:
            self._hold(place, layer, samples)
            self._measure_held(place.tensor, [place])

    def _hold(self, place: Place, layer: Layer, tensor: Tensor) -> None:
        self._held[place] = _Held(
            layer.name,
            layer.root,
            layer.path,
            layer.attribute,
            layer.matrices if place.tensor == "gradient" else (layer.name,),
            tuple(tensor.shape),
            tensor.dtype,
            tensor,
        )

    def _drop(self, place: Place) -> None:
        # What comes last counts.
        held = self._held.pop(place, None)
        if held is not None and place.tensor != "gradient":
            self._waiting -= held.tensor.nbytes
        self._measured.pop(place, None)
        self._missing.pop(place, None)

    def gradient(self, layer: Layer, g: Tensor | None, status: str) -> None:
        """Keep the gradient until all that are used together were told."""
        place = Place(layer.name, "gradient")
        self._drop(place)
        if g is None:
            self._missing[place] = status
        else:
            self._hold(place, layer, g)

    def gradients_told(self) -> None:
        """Measure the gradients."""
        with self._account.timed(HOOKS):
            self._measure_held("gradient", [place for place in self._held if place.tensor == "gradient"])

    def _measure_held(self, tensor: str, places: Sequence[Place]) -> None:
        held = [self._held.pop(place) for place in places]
        view = self._view if tensor == "gradient" else "out"
        with undisturbed(self._runs_user_code):
            for group in groups_of(held, view, self._plans.get(tensor)):
                found = self._measure(group, tensor, self._no_reference, view)
                self._measured |= {Place(name, tensor): numbers for name, numbers in found.items()}

    def discarded(self) -> None:
        """Forget the step that was not taken."""
        self._forget()

    def completed(self, step: int) -> None:
        """Measure the weights, and write the row, if the step is recorded."""
        if self._recording:
            self._recording = False
            self.record(step)

    def record(self, step: int) -> None:
        """Write the row of a step: the weights as they are now, and what was told before.

        Args:
            step: the step.
        """
        self._step = step
        try:
            with self._account.timed(SHARED), undisturbed(self._runs_user_code):
                looked = self._beside.has_probe and self._beside.look(step, self._probed)
                for tensor in OF_MODULES:
                    self._measure_held(tensor, [place for place in self._held if place.tensor == tensor])
                if self._beside.has_probe and not looked:
                    self._spoil("activation", "error")
                beside = self._beside.numbers(step, lambda layer, tensor: self._word(Place(layer, tensor)))
                arrived = self._launched()
                measured, absent = self._measured | self._weights(), self._absent()
                # What was launched is waited for by the thread that writes, where there is one.
                later = arrived is not None and self._audience is None and self._journal.takes_later
                if arrived is not None and not later:
                    measured |= _weights_of(arrived())
                known = None if later else self._columns.numbers(measured, absent, *beside)
            with self._account.timed(WRITING), preserved_rng(self._audience is not None):
                if arrived is not None and known is None:
                    self._journal.append_later(step, partial(self._late, measured, absent, beside, arrived))
                elif known is not None:
                    self._journal.writer.append(step, *known)
                    if self._audience is not None:
                        self._audience.tell(step, known, self._journal)
            self._journal.overhead(self._account)
            self.recorded = step
        except Exception as error:
            self._journal.note(step, "record", "record", f"step {step} could not be recorded: {error!r}")
        finally:
            self._forget()
            if self._budget is not None:
                self._budget.recorded()

    def _spoil(self, tensor: str, status: str) -> None:
        # A part of what a tensor should have shown would read as all of it.
        for place in self._columns.places:
            if place.tensor == tensor:
                self._measured.pop(place, None)
                self._missing[place] = status

    def _launched(self) -> Arrival | None:
        if self._deferred is None:
            return None
        try:
            before = self._deferred.waits
            with self._account.timed("stable_rank"):
                arrival = self._deferred.launch()
            if self._deferred.waits > before:
                text = "stable ranks stayed outside their error: the device is waited for, now and where that recurs"
                self._journal.note(self._step, "waits", "settled", text)
            return arrival
        except Exception as error:
            # A weight that was moved, replaced or given another shape: measured as any other from now on.
            self._journal.note(
                self._step, "waits", "deferred", f"weights are waited for from now on: {error}"
            )
            self._deferred = None
            self._groups = self._grouped(self._by_name.values())
            return None

    def _late(
        self,
        measured: dict[Place, Measured],
        absent: Mapping[Place, str],
        beside: tuple[Any, ...],
        arrived: Arrival,
    ) -> Numbers:
        return self._columns.numbers(measured | _weights_of(arrived()), absent, *beside)

    def _weights(self) -> dict[Place, Measured]:
        found: dict[Place, Measured] = {}
        for group in self._groups if "weight" in self._plans else ():
            numbers = self._measure(group, "weight", self._references, self._view)
            found |= {Place(name, "weight"): measured for name, measured in numbers.items()}
        return found

    def _absent(self) -> dict[Place, str]:
        # Why there is nothing, where nothing was measured.
        return {place: self._word(place) for place in self._columns.places} | self._missing

    def _word(self, place: Place) -> str:
        taps = None if self._taps is None else self._taps()
        if place.tensor == "activation" and (taps is not None or self._beside.has_probe):
            return "unused"
        if place.tensor == "activation_gradient" and taps is not None:
            return "no_gradient" if taps.called(self._by_name[place.layer]) else "unused"
        return "skipped"

    def _measure(
        self,
        group: Sequence[Layer],
        tensor: str,
        references: Mapping[str, Mapping[str, Reference]],
        view: View,
    ) -> dict[str, Measured]:
        failed = partial(self._failed, tensor)
        return measure(group, self._plans[tensor], references, view, self._warm[tensor], failed)

    def _failed(self, tensor: str, layer: Layer, key: Key, error: Exception) -> None:
        of = "" if tensor == "weight" else f"the {tensor.replace('_', ' ')} of "
        text = f"{key.metric} (reference {key.reference}) of {of}{layer.name}: {error}"
        self._journal.note(self._step, "error", f"{layer.name}/{tensor}/{key}", text, layer.name)

    def release(self) -> None:
        """Free what waits for a record that will not come."""
        self._forget()
        self._beside.forget()

    def note(self, step: int, kind: str, what: str, text: str, layer: str = "") -> None:
        """Say it once, in the log and in the record."""
        self._journal.note(step, kind, what, text, layer)


def _weights_of(found: Mapping[str, Measured]) -> dict[Place, Measured]:
    return {Place(name, "weight"): measured for name, measured in found.items()}
