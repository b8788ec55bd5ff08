"""The observer that keeps numbers: it reduces what it is told where it lies, and writes a row for each step."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from hooks.account import Account
from hooks.columns import Columns, Numbers, Place
from hooks.guards import preserved_rng, undisturbed
from hooks.journal import Journal
from hooks.layers import Layer
from hooks.measuring import Measured, groups_of, measure
from hooks.observer import NOTHING, Observer
from hooks.schedules import Schedule
from hooks.taps import Taps
from zanalysis.analyzers.activations import as_samples, layout_of
from zanalysis.analyzers.lanczos import WarmStart
from zanalysis.analyzers.matrices import Reference, View
from zanalysis.analyzers.metrics import NONE, Key, Plan
from zanalysis.analyzers.statuses import STATUSES

__all__ = ["OnRecord", "Reducer", "samples_of"]

OnRecord = Callable[[int, list[dict[str, Any]]], None]

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
    """Measures the tensors of the layers at the steps that are due."""

    def __init__(
        self,
        layers: Sequence[Layer],
        plans: Mapping[str, Plan],
        references: dict[str, dict[str, Reference]],
        columns: Columns,
        view: View,
        schedule: Schedule,
        journal: Journal,
        account: Account,
        on_record: OnRecord | None = None,
    ) -> None:
        """Prepare to measure.

        Args:
            layers: the layers.
            plans: what is measured of each tensor.
            references: by layer and by name, for the weights.
            columns: where each number belongs.
            view: how a kernel becomes a matrix.
            schedule: `step -> bool`.
            journal: where the numbers go.
            account: of the time.
            on_record: called with the step and the rows of each record.
        """
        self._taps: weakref.ref[Taps] | None = None
        self._layers = layers
        self._plans = plans
        self._references = references
        self._no_reference: dict[str, dict[str, Reference]] = {layer.name: {NONE: None} for layer in layers}
        self._columns = columns
        self._view = view
        self._schedule = schedule
        self._journal = journal
        self._account = account
        self._on_record = on_record
        self._groups = groups_of(layers, view)
        self._warm = {tensor: {layer.name: WarmStart() for layer in layers} for tensor in plans}
        self._runs_user_code = callable(view) or any(plan.has_user_metrics for plan in plans.values())
        self._step = 0
        self._forget()

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
        """Ask the schedule.

        Args:
            step: the step that is about to begin.

        Returns:
            All tensors that are followed, or nothing.
        """
        self._step = step
        return frozenset(self._plans) if self.due(step) else NOTHING

    def due(self, step: int) -> bool:
        """Return whether a step is to be recorded.

        Args:
            step: the step.

        Returns:
            What the schedule says; False where it fails.
        """
        try:
            return bool(self._schedule(step))
        except Exception as error:
            text = f"the schedule failed at step {step}: {error!r}; not recorded"
            self._journal.note(step, "schedule", "schedule", text)
            return False

    def activation(self, layer: Layer, z: Tensor) -> None:
        """Keep the output for the end of the step, or measure it."""
        self._take(Place(layer.name, "activation"), layer, z)

    def activation_gradient(self, layer: Layer, g: Tensor) -> None:
        """Keep the gradient of the output for the end of the step, or measure it."""
        self._take(Place(layer.name, "activation_gradient"), layer, g)

    def _take(self, place: Place, layer: Layer, z: Tensor) -> None:
        self._drop(place)
        with self._account.timed("metrics"):
            try:
                samples = samples_of(layer, z)
                if self._waiting + samples.nbytes <= HELD_BYTES:
                    # Channels that were moved last are a copy already.
                    shared = samples.data_ptr() == z.data_ptr()
                    self._hold(place, layer, samples.clone() if shared else samples)
                    self._waiting += samples.nbytes
                else:
                    self._hold(place, layer, samples)
                    self._measure_held(place.tensor, [place])
            except Exception as error:
                self._missing[place] = "error"
                text = f"the {place.tensor.replace('_', ' ')} of {layer.name} was not recorded: {error}"
                self._journal.note(self._step, "error", f"{layer.name}/{place.tensor}", text, layer.name)

    def _hold(self, place: Place, layer: Layer, tensor: Tensor) -> None:
        self._held[place] = _Held(
            layer.name,
            layer.model,
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
        with self._account.timed("metrics"):
            self._measure_held("gradient", [place for place in self._held if place.tensor == "gradient"])

    def _measure_held(self, tensor: str, places: Sequence[Place]) -> None:
        held = [self._held.pop(place) for place in places]
        view = self._view if tensor == "gradient" else "out"
        with undisturbed(self._runs_user_code):
            for group in groups_of(held, view):
                found = self._measure(group, tensor, self._no_reference, view)
                self._measured |= {Place(name, tensor): numbers for name, numbers in found.items()}

    def discarded(self) -> None:
        """Forget the step that was not taken."""
        self._forget()

    def completed(self, step: int) -> None:
        """Measure the weights, and write the row."""
        with self._account.timed("metrics"):
            for tensor in ("activation", "activation_gradient"):
                self._measure_held(tensor, [place for place in self._held if place.tensor == tensor])
        self.record(step)

    def record(self, step: int) -> None:
        """Write the row of a step: the weights as they are now, and what was told before.

        Args:
            step: the step.
        """
        self._step = step
        try:
            with self._account.timed("metrics"), undisturbed(self._runs_user_code):
                numbers = self._columns.numbers(self._measured | self._weights(), self._absent())
            with self._account.timed("writing"), preserved_rng(self._on_record is not None):
                self._journal.writer.append(step, *numbers)
                self._tell(step, numbers)
            self._journal.overhead(self._account)
        except Exception as error:
            self._journal.note(step, "record", "record", f"step {step} could not be recorded: {error!r}")
        finally:
            self._forget()

    def _weights(self) -> dict[Place, Measured]:
        found: dict[Place, Measured] = {}
        for group in self._groups if "weight" in self._plans else ():
            numbers = self._measure(group, "weight", self._references, self._view)
            found |= {Place(name, "weight"): measured for name, measured in numbers.items()}
        return found

    def _absent(self) -> dict[Place, str]:
        # Why there is nothing, where nothing was measured.
        taps = None if self._taps is None else self._taps()
        if taps is None:
            return dict.fromkeys(self._columns.places, "skipped")
        called = {layer.name for layer in self._layers if taps.called(layer)}
        words = {}
        for place in self._columns.places:
            if place.tensor == "activation":
                words[place] = "unused"
            elif place.tensor == "activation_gradient":
                words[place] = "no_gradient" if place.layer in called else "unused"
            else:
                words[place] = "skipped"
        return words | self._missing

    def _measure(
        self,
        group: Sequence[Layer],
        tensor: str,
        references: Mapping[str, Mapping[str, Reference]],
        view: View,
    ) -> dict[str, Measured]:
        def failed(layer: Layer, key: Key, error: Exception) -> None:
            of = "" if tensor == "weight" else f"the {tensor.replace('_', ' ')} of "
            text = f"{key.metric} (reference {key.reference}) of {of}{layer.name}: {error}"
            self._journal.note(self._step, "error", f"{layer.name}/{tensor}/{key}", text, layer.name)

        return measure(group, self._plans[tensor], references, view, self._warm[tensor], failed)

    def _tell(self, step: int, numbers: Numbers) -> None:
        if self._on_record is None:
            return
        rows = [
            {
                "step": step,
                **series._asdict(),
                "value": float(value),
                "tolerance": float(tolerance),
                "status": STATUSES[code],
            }
            for series, value, tolerance, code in zip(
                self._columns.series, numbers.value, numbers.tolerance, numbers.status, strict=True
            )
        ]
        try:
            self._on_record(step, rows)
        except Exception as error:
            self._journal.note(step, "on_record", "on_record", f"on_record failed: {error!r}")

    def note(self, step: int, kind: str, what: str, text: str, layer: str = "") -> None:
        """Say it once, in the log and in the record."""
        self._journal.note(step, kind, what, text, layer)
