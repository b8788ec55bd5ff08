"""The dimension of the span of a layer's activations, of any number of samples, in memory O(features²).

Notation: Z is the matrix of all samples, one a row; σ₁ ≥ σ₂ ≥ … are its singular values, τ is the tolerance.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from zanalysis.analyzers.activations import Layout, as_samples, inputs, layout_of
from zanalysis.analyzers.factors import FLOOR, Factor, Gram, Sketch, Triangle
from zanalysis.analyzers.modes import evaluating, find_modules, first_tensor, watching
from zanalysis.analyzers.stopping import StopRule
from zanalysis.errors import InputError, did_you_mean

__all__ = ["ActivationSpan", "Layout", "Reading", "Stop", "activation_span", "as_samples"]

Stop = Literal["full", "settled", "never"]
_STOPS = ("full", "settled", "never")
_RULES = ("default", "numpy", "rounding")
_ROWS = 512


class Reading(NamedTuple):
    """A dimension, the tolerance τ it was counted at (both 0-d float64), and its status."""

    dimension: Tensor
    tolerance: Tensor
    status: str


class _Kept:
    """All that a span keeps of its samples; there from the first of them on."""

    def __init__(
        self, features: int, width: int, triangular: bool, settled: bool, device: torch.device
    ) -> None:
        self.factor: Factor = (Triangle if triangular else Gram)(width, device)
        self.sketch = Sketch(features, width, device) if width < features else None
        self.rule = StopRule(width, device, settled)
        self.longest = torch.zeros((), dtype=torch.float64, device=device)
        self.values: Tensor | None = None

    def absorb(self, other: "_Kept") -> None:
        self.factor.absorb(other.factor)
        self.longest = torch.maximum(self.longest, other.longest.to(self.longest.device))
        if self.sketch is not None and other.sketch is not None:
            self.sketch.peaks = torch.maximum(self.sketch.peaks, other.sketch.peaks.to(self.longest.device))
        self.values = None


class ActivationSpan:
    """The dimension of span{z} over all samples z seen, without keeping them.

    The dimension is the number of singular values of Z above τ = features · eps · σ₁, with the eps of the
    dtype the activations were *stored* in. This is numpy's rule (`numpy.linalg.matrix_rank`) with features
    in the place of max(samples, features): rounding noise grows like √samples, as σ₁ does, so their ratio
    does not depend on the number of samples, and a tolerance that does would lose directions merely because
    more data was read.

    32-bit and 16-bit activations are accumulated in a float64 Gram matrix, which decides nothing below 1e-6
    · σ₁. Where τ lies below that (float64 activations, or at most 8 features in float32) a triangular
    factor is kept instead, which does not square the condition; `exact=True` asks for it always.

    It stops accumulating once full: samples are skipped where it is proved that they change nothing at the
    default tolerance (the proof is in `zanalysis.analyzers.stopping`). Later samples that outweigh all before
    are accumulated again; what had been skipped is then bounded, and where the bounds leave a dimension open,
    as they may at another tolerance, it is NaN.

    Statuses: `ok`; `empty` (no sample); `nonfinite`; `zero` (the dimension is 0); `below_noise` (a relative
    tolerance reaches σ₁, as in bfloat16 from 128 features on: NaN, where `tolerance="rounding"` still
    resolves); `too_few_samples` (fewer samples than features, and all of them independent: the dimension is
    right for these samples, and more would raise it); `not_converged` (skipped samples leave it open, or a
    sketch is full: NaN).

    Args:
        features: the number of features.
        dtype: the dtype whose eps counts; default the coarsest that was seen.
        max_features: where features exceed this, keep a sketch of that many columns (`sketched` says so). Its
            rank is almost surely that of Z where that is smaller, and its singular values are off by a
            factor of about 1 ± √(dimension / max_features): an estimate where the spectrum has no gap at τ.
        exact: keep the triangular factor (True) or the Gram matrix (False); default: as τ needs.
        stop: when to skip samples. `"full"`: once the dimension is features. `"settled"`: also once nothing
            new comes, which is faster where the dimension stays below features (its proof needs a gap in the
            spectrum at τ); after a merge, or where new directions come late, more often NaN. `"never"`: keep
            all, as `singular_values` needs. While skipping, an update synchronizes with a GPU.

    Raises:
        InputError: if features is negative, max_features not positive, the dtype not floating or stop
            unknown.

    Example:
        >>> span = ActivationSpan(3)
        >>> span.update(torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> span.dimension().item(), span.support.item()
        (2.0, 2.0)
    """

    def __init__(
        self,
        features: int,
        *,
        dtype: torch.dtype | None = None,
        max_features: int | None = None,
        exact: bool | None = None,
        stop: Stop = "full",
    ) -> None:
        if features < 0:
            raise InputError(f"features={features} must not be negative.")
        if max_features is not None and max_features < 1:
            raise InputError(f"max_features={max_features} must be at least 1.")
        if stop not in _STOPS:
            raise InputError(f"stop={stop!r} is unknown: {did_you_mean(str(stop), _STOPS)}")
        if dtype is not None and not dtype.is_floating_point:
            raise InputError(f"dtype={dtype} has no eps: a floating dtype is needed.")
        self.features = features
        self.samples = 0
        self.stop = stop
        self._width = features if max_features is None else min(features, max_features)
        self._dtype = dtype
        self._eps = torch.finfo(dtype).eps if dtype is not None else 0.0
        self._exact = exact
        self._kept: _Kept | None = None

    @property
    def sketched(self) -> bool:
        """Whether a sketch stands for the features."""
        return self._width < self.features

    @property
    def skipped(self) -> int:
        """How many samples were skipped as they change nothing."""
        return self._kept.rule.skipped if self._kept else 0

    @property
    def support(self) -> Tensor:
        """The number of features that were ever non-zero, 0-d float64.

        It bounds the dimension, and needs no tolerance.
        """
        if self._kept is None:
            return torch.tensor(0.0, dtype=torch.float64)
        sketch = self._kept.sketch
        sizes = self._kept.factor.sizes() if sketch is None else sketch.peaks
        return (sizes != 0).sum().to(torch.float64)

    @property
    def status(self) -> str:
        """The status at the default tolerance."""
        return self.reading().status

    def update(self, z: Tensor) -> None:
        """Take in activations.

        Args:
            z: `[..., features]`, floating; all leading dimensions count samples. Neither kept nor changed.

        Raises:
            InputError: if the last dimension is not `features`, or z is not floating.
        """
        if z.ndim < 1 or z.shape[-1] != self.features or not z.is_floating_point():
            raise InputError(
                f"expected floating activations [..., {self.features}], got {z.dtype} of shape "
                f"{tuple(z.shape)}; as_samples brings other layouts into this one."
            )
        rows = as_samples(z.detach(), "channels_last")
        if not rows.numel():
            return
        if self._dtype is None:
            self._eps = max(self._eps, torch.finfo(z.dtype).eps)
        if self._kept is None:
            triangular = self._relative < FLOOR if self._exact is None else self._exact
            self._kept = _Kept(self.features, self._width, triangular, self.stop == "settled", z.device)
        kept = self._kept
        for part in torch.split(rows, _ROWS):
            longest = torch.linalg.vector_norm(part, dim=1, dtype=torch.float64).amax()
            kept.longest = torch.maximum(kept.longest, longest)
            self._take(part if kept.sketch is None else kept.sketch(part), kept)

    def reading(self, tolerance: float | str | None = None) -> Reading:
        """Count the dimension, and say at which tolerance and how well.

        Args:
            tolerance: None or `"default"`: features · eps · σ₁. `"numpy"`: max(samples, features) · eps ·
                σ₁, which grows with the samples. `"rounding"`: 2 · (u/√3) · (largest row norm + largest
                column norm) with u = eps/2, the norm of independent rounding errors (Bandeira & van Handel
                2016), which resolves 16-bit activations. A float: absolute.

        Returns:
            The reading. Where samples were skipped, its tolerance is the upper bound that was used.

        Raises:
            InputError: if the tolerance is none of these, is `"rounding"` on a sketch, or lies below what the
                factor decides: 1e-6 · σ₁ of a Gram matrix, features · 2.2e-16 · σ₁ of a triangular one.
        """
        rule = _checked(tolerance)
        if rule == "rounding" and self.sketched:
            raise InputError(
                "tolerance='rounding' needs column norms, which a sketch lacks: raise max_features."
            )
        if self._kept is None:
            nan = torch.tensor(torch.nan, dtype=torch.float64)
            return Reading(nan, nan, "empty")
        factor = self._kept.factor
        zero = torch.zeros((), dtype=torch.float64, device=factor.device)
        nan = zero + torch.nan
        if not factor.sizes().isfinite().all():
            return Reading(nan, nan, "nonfinite")
        if not self.support:
            return Reading(zero, zero if isinstance(rule, str) else zero + rule, "zero")
        values, rest = self._values(self._kept), self._kept.rule
        # σ₁ of all samples lies between that of those accumulated and this (Weyl).
        largest = (values[0].square() + rest.energy.sum()).sqrt() if rest.skipped else values[0]
        low, high = self._tau(rule, values[0]), self._tau(rule, largest)
        if low < factor.floor * values[0]:
            cure = "construct it with exact=True" if isinstance(factor, Gram) else "enlarge it"
            raise InputError(
                f"the tolerance {low.item():.3g} lies below {factor.floor:.2g} of the largest singular "
                f"value, {values[0].item():.3g}, where float64 arithmetic decides nothing: {cure}."
            )
        if isinstance(rule, str) and low >= values[0]:
            return Reading(nan, high, "below_noise")
        least, most = rest.bounds(factor, values, low, high)
        full_sketch = self.sketched and self._width == least < min(int(self.support), self.samples)
        if least != most or full_sketch:
            return Reading(nan, high, "not_converged")
        few = least == self.samples < self.features
        return Reading(zero + least, high, "too_few_samples" if few else "ok")

    def dimension(self, tolerance: float | str | None = None) -> Tensor:
        """Count the singular values above the tolerance.

        Args:
            tolerance: as for `reading`.

        Returns:
            0-d float64; NaN where it is undefined, for which `reading` has the reason.
        """
        return self.reading(tolerance).dimension

    def singular_values(self) -> Tensor:
        """Return the singular values of Z, or of its sketch.

        Returns:
            `[features]` or `[max_features]` float64, descending, exactly zero beyond support and samples; NaN
            where an activation was not finite; empty before the first sample.

        Raises:
            InputError: if samples were skipped, so that they are not known.
        """
        if self._kept is None:
            return torch.zeros(0, dtype=torch.float64)
        if self.skipped:
            raise InputError(
                f"{self.skipped} of {self.samples} samples were skipped, as they change no dimension: "
                "construct the span with stop='never' to have its singular values."
            )
        sizes = self._kept.factor.sizes()
        return self._values(self._kept) if sizes.isfinite().all() else torch.full_like(sizes, torch.nan)

    def merge(self, other: "ActivationSpan") -> "ActivationSpan":
        """Combine two spans into that of all samples of both, as data-parallel workers need.

        Args:
            other: a span of the same features and kind; left as it is, like this one.

        Returns:
            A new span, on this one's device.

        Raises:
            InputError: if the features, the sketches or what is kept of them differ.
        """
        if (self.features, self._width) != (other.features, other._width):
            raise InputError(
                f"cannot merge spans of {self.features} and {other.features} features, of which "
                f"{self._width} and {other._width} are kept."
            )
        if self._kept is None or other._kept is None:
            return deepcopy(other if self._kept is None else self)
        if type(self._kept.factor) is not type(other._kept.factor):
            raise InputError(
                "cannot merge a Gram matrix with a triangular factor: give both spans the same exact=."
            )
        merged = deepcopy(self)
        assert merged._kept is not None
        merged._kept.absorb(other._kept)
        merged.samples += other.samples
        merged._eps = max(self._eps, other._eps)
        if self.skipped or other.skipped:
            values = merged._values(merged._kept)
            merged._kept.rule.absorb(other._kept.rule, merged._kept.factor, values, merged._relative)
        return merged

    @property
    def _relative(self) -> float:
        return self.features * self._eps

    def _take(self, rows: Tensor, kept: _Kept) -> None:
        self.samples += len(rows)
        if kept.rule.skips(rows, self._relative):
            return
        kept.values = None
        kept.factor.add(rows)
        accumulated = self.samples - kept.rule.skipped
        if self.stop != "never" and kept.rule.due(kept.factor, accumulated, self._relative):
            kept.rule.look(kept.factor, self._values(kept), self._relative)

    def _values(self, kept: _Kept) -> Tensor:
        if kept.values is None:
            kept.values = kept.factor.singular_values()
            kept.values[min(int(self.support), self.samples) :] = 0.0
        return kept.values.clone()

    def _tau(self, rule: str | float, largest: Tensor) -> Tensor:
        if not isinstance(rule, str):
            return torch.full_like(largest, rule)
        if rule == "rounding":
            assert self._kept is not None
            columns = self._kept.factor.energy() + self._kept.rule.energy
            return self._eps / 3**0.5 * (self._kept.longest + columns.amax().sqrt())
        return (max(self.samples, self.features) if rule == "numpy" else self.features) * self._eps * largest


def _checked(tolerance: float | str | None) -> str | float:
    if tolerance is None:
        return "default"
    if isinstance(tolerance, str):
        if tolerance not in _RULES:
            raise InputError(f"tolerance={tolerance!r} is unknown: {did_you_mean(tolerance, _RULES)}")
        return tolerance
    if not 0 <= tolerance < float("inf"):
        raise InputError(f"tolerance={tolerance} must be finite and not negative.")
    return float(tolerance)


def activation_span(
    model: nn.Module,
    data: Tensor | Iterable[object],
    layers: str | Iterable[str],
    *,
    max_samples: int | None = None,
    layout: Layout | Mapping[str, Layout] = "auto",
    batch_size: int = 256,
    max_features: int | None = None,
    stop: Stop = "full",
) -> dict[str, ActivationSpan]:
    """Run data through a model and accumulate the spans of the outputs of some of its layers.

    The model runs in eval mode without gradients; mode, buffers, RNG, `.grad` and hooks are as before, also
    after an exception. Activations are reduced inside the hook, so that an in-place operation behind the
    layer cannot spoil them. All outputs of a module that is used several times are samples.

    Args:
        model: the model; it and the data are on the same device.
        data: a tensor of inputs `[samples, ...]`, or batches `[batch, ...]`: each a tensor or a
            sequence that starts with one.
        layers: one or several names of modules, as in `model.named_modules()`.
        max_samples: use the first so many inputs only.
        layout: which dimensions are features, as in `as_samples`, for all layers or by name. `"auto"` takes
            the outputs of convolutions, normalization and pooling as channels first, whatever their
            dimensions.
        batch_size: inputs per forward pass where data is a tensor.
        max_features: sketch wider layers, as in `ActivationSpan`.
        stop: as in `ActivationSpan`.

    Returns:
        A span for each layer, in the order given; one that was never called has 0 features and status
        `empty`.

    Raises:
        InputError: if a layer or a layout is unknown, a batch is no tensor, or the width of a layer changes.
    """
    modules = find_modules(model, [layers] if isinstance(layers, str) else layers)
    spans: dict[str, ActivationSpan] = {}

    def take(name: str, output: object) -> None:
        wanted = layout.get(name, "auto") if isinstance(layout, Mapping) else layout
        z = as_samples(first_tensor(output, name), layout_of(modules[name], wanted))
        if name not in spans:
            spans[name] = ActivationSpan(z.shape[-1], max_features=max_features, stop=stop)
        spans[name].update(z)

    with evaluating(model), torch.no_grad(), watching(modules, take):
        for x in inputs(data, batch_size, max_samples):
            model(x)
    return {name: spans.get(name, ActivationSpan(0)) for name in modules}
