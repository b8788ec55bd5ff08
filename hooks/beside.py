"""What is recorded beside the metrics of single matrices: spans over windows, and what a probe shows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from hooks.account import PROBE, Account
from hooks.agenda import Agenda
from hooks.journal import Journal
from hooks.layers import Layer, tapped_layers
from hooks.probing import JACOBIAN as JACOBIAN_TENSOR
from hooks.probing import Jacobians, Probe
from hooks.spans import MAX_FEATURES, SUPPORT, Combine, Number, SpanWindows, checked_window
from zanalysis.analyzers.metrics import JACOBIAN, SPAN, UserMetric
from zanalysis.analyzers.statuses import CODES
from zanalysis.analyzers.tolerances import Tolerance
from zanalysis.errors import InputError

__all__ = ["Beside", "Settings", "settings_of"]

_OF_MODULES = ("activation", "activation_gradient")


class Settings(NamedTuple):
    """What was asked for, checked.

    Attributes:
        probe: the probe, if there is one.
        jacobians: what is taken of it, if anything.
        probed: the tensors whose spans are of the probe.
        trained: the tensors whose spans are of the training's own steps.
        window: how many of these.
        max_features: layers wider than this are sketched.
        tolerances: the rules that dimensions are counted by.
        support: whether the support stands beside a dimension.
    """

    probe: Probe | None
    jacobians: Jacobians | None
    probed: tuple[str, ...]
    trained: tuple[str, ...]
    window: int
    max_features: int
    tolerances: tuple[Tolerance, ...]
    support: bool

    @property
    def described(self) -> dict[str, Any]:
        """The facts that are stored with a run; None where something is not asked for."""
        spans = bool(self.probed or self.trained)
        return {
            "span_window": self.window if self.trained else None,
            "span_max_features": self.max_features if spans else None,
            "probe": self.probe.described if self.probe else None,
            "jacobian": self.jacobians.options if self.jacobians else None,
        }


def settings_of(
    model: nn.Module,
    layers: Sequence[Layer],
    metrics: Sequence[str | UserMetric],
    tensors: Sequence[str],
    tolerances: Sequence[Tolerance],
    probe: Any,
    jacobian: Mapping[str, Any] | None,
    window: int,
    max_features: int | None,
    spectrum_size: int,
) -> Settings:
    """Check what was asked for, and that each part of it is for something.

    Args:
        model: the model.
        layers: the layers.
        metrics: as `checked_metrics` returns them.
        tensors: which tensors are followed.
        tolerances: the rules that dimensions are counted by.
        probe: inputs of the model, or None.
        jacobian: options, see `hooks.probing.JacobianOptions`.
        window: the steps of a window.
        max_features: layers wider than this are sketched; None for `MAX_FEATURES`.
        spectrum_size: how many singular values a recorded spectrum keeps.

    Returns:
        The settings.

    Raises:
        InputError: if something is not what was expected, or is asked for without what it needs.
    """
    window = checked_window(window)
    max_features = MAX_FEATURES if max_features is None else checked_window(max_features, "span_max_features")
    modules = tuple(tensor for tensor in _OF_MODULES if tensor in tensors)
    if SPAN in metrics and not modules:
        raise InputError(f"{SPAN} is a metric of activations; add 'activation' to tensors=….")
    if JACOBIAN in metrics and probe is None:
        raise InputError(f"{JACOBIAN} is taken at fixed samples; pass them as probe=….")
    if jacobian is not None and JACOBIAN not in metrics:
        raise InputError(
            f"jacobian=… is for the metric {JACOBIAN}, which is not asked for; add it to metrics=…."
        )
    if probe is not None and "activation" not in modules and JACOBIAN not in metrics:
        raise InputError(
            f"nothing is asked for of the probe; add 'activation' to tensors=… or {JACOBIAN} to metrics=…."
        )
    spans = modules if SPAN in metrics else ()
    probed = tuple(tensor for tensor in spans if tensor == "activation" and probe is not None)
    trained = tuple(tensor for tensor in spans if tensor not in probed)
    if window != 1 and not trained:
        raise InputError(
            f"got span_window = {window}, but no span is taken over steps of the training: it needs the metric "
            f"{SPAN}, and with probe=… the spans of activations are those of the probe."
        )
    held = None if probe is None else Probe(model, probe, tapped_layers(layers) if modules else ())
    jacobians = Jacobians(held, jacobian, spectrum_size) if held and JACOBIAN in metrics else None
    return Settings(
        held, jacobians, probed, trained, window, max_features, tuple(tolerances), SUPPORT in metrics
    )


class Beside:
    """Accumulates spans, runs the probe, and gives the numbers of both.

    Attributes:
        series: what the numbers are, in their order.
        spectra: what the rows of the spectra are.
        tensors: what is to be told at every step of a window.
        journal: told of failures; to be set before anything is recorded.
    """

    journal: Journal

    def __init__(
        self,
        layers: Sequence[Layer],
        settings: Settings,
        agenda: Agenda,
        account: Account,
        spectrum_size: int,
        combine: Combine | None = None,
    ) -> None:
        """Keep nothing yet.

        Args:
            layers: the layers.
            settings: what is asked for.
            agenda: the steps to come, with the window of the settings.
            account: of the time.
            spectrum_size: how many singular values a recorded spectrum keeps.
            combine: see `SpanWindows`.
        """
        self._settings, self._agenda = settings, agenda
        self._account, self._k = account, spectrum_size
        self._start = agenda.start
        self._step = 0
        self._broken = False
        self._told: set[str] = set()

        def windows(tensors: Sequence[str], merge: Combine | None) -> SpanWindows:
            return SpanWindows(
                tapped_layers(layers),
                tensors,
                settings.tolerances,
                support=settings.support,
                max_features=settings.max_features,
                combine=merge,
                on_error=self._failed,
            )

        self._trained = windows(settings.trained, combine)
        # Every process has the same weights and the same probe.
        self._probed = windows(settings.probed, None)
        jacobians = settings.jacobians
        self.series = self._trained.series + self._probed.series + (jacobians.series if jacobians else ())
        self.spectra = jacobians.spectra if jacobians else ()
        self.tensors = frozenset(settings.trained)

    @property
    def has_probe(self) -> bool:
        """Whether activations are those of a probe."""
        return self._settings.probe is not None

    def follow(self, model: nn.Module) -> None:
        """Run the probe through another model from now on.

        Args:
            model: the model.
        """
        if self._settings.probe is not None:
            self._settings.probe.follow(model)

    @property
    def seen(self) -> set[str]:
        """The layers that the last run of the probe came by."""
        return self._settings.probe.seen if self._settings.probe else set()

    def begin(self, step: int) -> bool:
        """Open the window that begins with a step, if one does, and free what no window needs any more.

        Args:
            step: the step that is about to begin.

        Returns:
            Whether it lies in a window.
        """
        self._step = step
        begins = [self._first(recorded) for recorded in self._agenda.windows(step)]
        if self.tensors:
            self._trained.forget(min(begins, default=None))
            if step in begins:
                self._trained.open(step)
        return bool(begins)

    def take(self, layer: str, tensor: str, samples: Tensor | Exception) -> None:
        """Accumulate an output of a layer, or its gradient, of the training's own.

        Args:
            layer: its name.
            tensor: ``"activation"`` or ``"activation_gradient"``.
            samples: `[samples, features]`; or why there are none.
        """
        if tensor in self.tensors:
            with self._account.timed(SPAN):
                self._trained.take(layer, tensor, samples)

    def look(self, step: int, take: Callable[[Layer, Tensor], None]) -> bool:
        """Run the probe.

        Args:
            step: how many steps are complete.
            take: is given each output of each layer as it comes.

        Returns:
            Whether it went through.
        """
        assert self._settings.probe is not None
        self._step = step
        self._probed.forget()
        self._probed.open(step)
        try:
            with self._account.timed(PROBE):
                self._settings.probe.run(take)
            self._broken = False
        except Exception as error:
            self._broken = True
            self.journal.note(step, "error", "probe", f"the probe failed at step {step}: {error!r}")
        return not self._broken

    def take_probed(self, layer: str, tensor: str, samples: Tensor | Exception) -> None:
        """Accumulate an output of a layer in the forward pass of the probe.

        Args:
            layer: its name.
            tensor: ``"activation"``.
            samples: `[samples, features]`; or why there are none.
        """
        if tensor in self._settings.probed:
            with self._account.timed(SPAN):
                self._probed.take(layer, tensor, samples)

    def numbers(
        self, step: int, absent: Callable[[str, str], str]
    ) -> tuple[list[Number], npt.NDArray[np.float64]]:
        """Read what there is.

        Args:
            step: the step that is recorded.
            absent: gives the status of a layer and a tensor of which nothing came in.

        Returns:
            A number for each of `series`, and `[rows, k]` for `spectra`, NaN where there is none.
        """
        self._step = step
        with self._account.timed(SPAN):
            trained = self._trained.readings(absent)
            if self._broken:
                probed = self._probed.nothing("error")
            else:
                probed = self._probed.readings(lambda layer, tensor: "unused")
            self._probed.forget()
            self._tell_sketched()
        with self._account.timed(JACOBIAN):
            of_jacobians, spectra = self._jacobians()
        return [*trained, *probed, *of_jacobians], spectra

    def combine(self) -> None:
        """Do of `numbers` only what every process takes part in: combine the spans."""
        self._trained.readings()

    def forget(self) -> None:
        """Free everything."""
        self._trained.forget()
        self._probed.forget()

    def _first(self, recorded: int) -> int:
        return max(self._start + 1, recorded - self._settings.window + 1)

    def _jacobians(self) -> tuple[list[Number], npt.NDArray[np.float64]]:
        spectra = np.full((len(self.spectra), self._k), np.nan)
        jacobians = self._settings.jacobians
        if jacobians is None:
            return [], spectra
        try:
            numbers, values = jacobians.measure()
        except Exception as error:
            self._failed("model", JACOBIAN_TENSOR, error)
            return [Number(np.nan, np.nan, CODES["error"])] * len(jacobians.series), spectra
        spectra[:, : values.shape[1]] = values
        return [Number(*number) for number in numbers], spectra

    def _failed(self, layer: str, tensor: str, error: Exception) -> None:
        what = f"{SPAN} of the {tensor.replace('_', ' ')}" if tensor in _OF_MODULES else "the Jacobian"
        self.journal.note(
            self._step, "error", f"{layer}/{tensor}/{SPAN}", f"{what} of {layer}: {error}", layer
        )

    def _tell_sketched(self) -> None:
        for layer in sorted((self._trained.sketched | self._probed.sketched) - self._told):
            self._told.add(layer)
            text = (
                f"{layer} has more than {self._settings.max_features} features: its span is taken of a sketch of that "
                "many, an estimate where the spectrum has no gap at the tolerance; see span_max_features"
            )
            self.journal.event(self._step, "sketched", text, layer)
