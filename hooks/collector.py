"""The observer that keeps tensors: it copies what it is told, and passes each step on when it is complete."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hooks.account import Account
from hooks.journal import Journal
from hooks.layers import Layer, tapped_layers
from hooks.observer import NOTHING, Observer
from hooks.schedules import Schedule
from hooks.staging import StagedWriter
from hooks.taps import Taps
from hooks.transfer import HostCopy, Transfer
from zanalysis.errors import InputError
from zanalysis.runfile import Kept, MemoryWriter, TensorKey
from zanalysis.runfile.bits import bits_of, word_of

__all__ = ["Collector", "keys_of"]

_Place = tuple[str, str]


def keys_of(
    layers: Sequence[Layer], tensors: Sequence[str], dtype: torch.dtype | None
) -> tuple[TensorKey, ...]:
    """Return what raw tensors are recorded.

    Args:
        layers: the layers.
        tensors: which of their tensors.
        dtype: to store them in; their own if None.

    Returns:
        Weights and gradients in the shape and dtype of the parameter; activations, whose shape and dtype show only
        in the forward, once for each module.
    """
    tapped = {layer.name for layer in tapped_layers(layers)}
    keys = []
    for layer in layers:
        for tensor in tensors:
            if tensor in ("weight", "gradient"):
                keys.append(TensorKey(layer.name, tensor, word_of(dtype or layer.dtype), layer.shape))
            elif layer.name in tapped:
                keys.append(TensorKey(layer.name, tensor, word_of(dtype) if dtype else ""))
    return tuple(keys)


class Collector(Observer):
    """Copies the tensors of the layers at the steps that are due."""

    def __init__(
        self,
        layers: Sequence[Layer],
        keys: Sequence[TensorKey],
        schedule: Schedule,
        transfer: Transfer,
        journal: Journal,
        account: Account,
        dtype: torch.dtype | None = None,
        rows: int | None = None,
    ) -> None:
        """Prepare to copy.

        Args:
            layers: the layers.
            keys: what is recorded of them.
            schedule: `step -> bool`.
            transfer: makes the copies.
            journal: where they go.
            account: of the time.
            dtype: to store them in; their own if None.
            rows: how many rows of an activation are kept; all if None.
        """
        self.taps: Taps | None = None
        self._layers = {layer.name: layer for layer in layers}
        self._keys = {(key.layer, key.tensor): key for key in keys}
        self._schedule = schedule
        self._transfer = transfer
        self._journal = journal
        self._account = account
        self._dtype = dtype
        self._rows = rows
        self._wanted = frozenset(key.tensor for key in keys)
        if "activation_gradient" in self._wanted:
            self._wanted |= {"activation"}  # they say which call of a module a gradient belongs to
        self._copies: dict[_Place, HostCopy] = {}
        self._missing: dict[_Place, str] = {}
        self._dropped = False
        self._step = 0

    @property
    def wanted(self) -> frozenset[str]:
        """Everything that is ever asked for."""
        return self._wanted

    def wants(self, step: int) -> frozenset[str]:
        """Ask the schedule.

        Args:
            step: the step that is about to begin.

        Returns:
            All tensors that are followed, or nothing.
        """
        self._forget()
        self._step = step
        writer = self._journal.writer
        reaches = not isinstance(writer, StagedWriter) or writer.working
        return self._wanted if reaches and self.due(step) else NOTHING

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
        """Copy the output of a module; of several calls the last one counts."""
        self._discard((layer.name, "activation_gradient"))
        self._take((layer.name, "activation"), lambda: self._some_rows(z))

    def activation_gradient(self, layer: Layer, g: Tensor) -> None:
        """Copy the gradient of the last output: the first that comes after it, for a backward goes backwards."""
        if (layer.name, "activation_gradient") not in self._copies:
            self._take((layer.name, "activation_gradient"), lambda: self._some_rows(g))

    def gradient(self, layer: Layer, g: Tensor | None, status: str) -> None:
        """Copy the gradient that the optimizer is about to use."""
        place = layer.name, "gradient"
        self._discard(place)
        if g is None:
            self._missing[place] = status
        else:
            self._take(place, lambda: _in_shape(g, layer))

    def completed(self, step: int) -> None:
        """Copy the weights, and pass the step on."""
        self.record(step)

    def record(self, step: int) -> None:
        """Pass a step on: the weights as they are now, and what was told before.

        Args:
            step: the step.
        """
        self._step = step
        try:
            with self._account.timed("writing"), torch.no_grad():
                for place in [place for place in self._keys if place[1] == "weight"]:
                    layer = self._layers[place[0]]
                    self._take(place, lambda layer=layer: _in_shape(layer.read(), layer))  # type: ignore[misc]
                self._pass_on(step)
            self._journal.overhead(self._account)
        except Exception as error:
            self._journal.note(step, "record", "record", f"step {step} could not be recorded: {error!r}")
        finally:
            self._forget()

    def note(self, step: int, kind: str, what: str, text: str, layer: str = "") -> None:
        """Say it once, in the log and in the record."""
        self._journal.note(step, kind, what, text, layer)

    def _some_rows(self, z: Tensor) -> Tensor:
        return z[: self._rows] if self._rows is not None and z.ndim else z

    def _take(self, place: _Place, read: Callable[[], Tensor]) -> None:
        self._discard(place)
        if self._dropped or place not in self._keys:
            return
        with self._account.timed("writing"):
            try:
                tensor = read()
                known = self._keys[place].dtype
                copy = self._transfer.copy(tensor, getattr(torch, known) if known else tensor.dtype)
            except Exception as error:
                text = f"the {place[1]} of {place[0]} was not recorded at step {self._step}: {error}"
                self._journal.note(self._step, "error", "/".join(place), text, place[0])
                self._missing[place] = "error"
                return
        if copy is None:
            self._dropped = True
            self._transfer.forget(self._copies.values())
            self._copies.clear()
        else:
            self._copies[place] = copy

    def _discard(self, place: _Place) -> None:
        self._missing.pop(place, None)
        if place in self._copies:
            self._transfer.forget([self._copies.pop(place)])

    def _pass_on(self, step: int) -> None:
        writer: Any = self._journal.writer
        if self._dropped:
            writer.drop_tensors()
            return
        kept = [
            Kept("ok", word_of(self._copies[place].host.dtype), bits_of(self._copies[place].host))
            if place in self._copies
            else Kept(self._why_not(place))
            for place in self._keys
        ]
        arrived, done = self._transfer.send(self._copies.values())
        self._copies.clear()
        if isinstance(writer, StagedWriter):
            writer.append_tensors(step, kept, arrived, done)
            return
        assert isinstance(writer, MemoryWriter)
        try:
            arrived()
            writer.append_tensors(step, kept)
        finally:
            done()

    def _why_not(self, place: _Place) -> str:
        if place in self._missing:
            return self._missing[place]
        if self.taps is None or place[1] in ("weight", "gradient"):
            return "skipped"
        called = self.taps.called(self._layers[place[0]])
        return "no_gradient" if called and place[1] == "activation_gradient" else "unused"

    def _forget(self) -> None:
        self._transfer.forget(self._copies.values())
        self._copies.clear()
        self._missing.clear()
        self._dropped = False


def _in_shape(tensor: Tensor, layer: Layer) -> Tensor:
    # What is in its place now may have as many entries in another shape: no reshaping would tell.
    if tuple(tensor.shape) not in (layer.shape, (*layer.shape, 1)):
        raise InputError(
            f"its shape is {list(tensor.shape)}, that of what is recorded {list(layer.shape)}; attach a new Recorder."
        )
    return tensor.reshape(layer.shape)
