"""The dimension of what a layer's activations span, over the steps of a window.

The window of a record at step k is the last `span_window` steps, k included: every output of the layer's
module in a forward pass with gradients since step k - `span_window` was completed, of every micro-batch, and
of those too that a gradient scaler made nothing of. Where fewer steps were taken since the tracker was attached
it is those.

Nothing is kept of an activation but a factor of features² float64 numbers. Where windows overlap, what comes
in between the beginnings of two of them is accumulated once, and merged when it is read: there are never
more factors than open windows. Once no open window needs a factor it is freed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hooks.layers import Layer
from zanalysis.analyzers.metrics import NONE, SPAN
from zanalysis.analyzers.span import ActivationSpan
from zanalysis.analyzers.statuses import CODES
from zanalysis.analyzers.tolerances import Tolerance
from zanalysis.errors import InputError
from zanalysis.runfile import Series

__all__ = ["MAX_FEATURES", "Combine", "Number", "SpanWindows", "checked_window"]

MAX_FEATURES = 4096
"""Wider layers are sketched: a factor of 128 MiB is as much as one is to take."""

SUPPORT = "support_columns"

Combine = Callable[[ActivationSpan | None], ActivationSpan | None]
"""Makes one span of those that several processes have accumulated, None where one has seen nothing."""

OnError = Callable[[str, str, Exception], None]


Absent = Callable[[str, str], str]


class Number(NamedTuple):
    """A number of a record: its value, the tolerance it was taken at, and the code of its status."""

    value: float
    tolerance: float
    code: int


def checked_window(window: object, name: str = "span_window") -> int:
    """Return a number of steps, or of features.

    Args:
        window: as given.
        name: of the argument, for the error.

    Returns:
        The number.

    Raises:
        InputError: if it is no whole number, 1 or more.
    """
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise InputError(f"got {name} = {window!r}, expected a whole number, 1 or more.")
    return window


def _nothing(word: str) -> Number:
    return Number(torch.nan, torch.nan, CODES[word])


def _empty(layer: str, tensor: str) -> str:
    return "empty"


class _Segment:
    """What came in since a window began: a span for each layer and tensor, and what went wrong with one."""

    def __init__(self, begin: int) -> None:
        self.begin = begin
        self.spans: dict[tuple[str, str], ActivationSpan] = {}
        self.failed: dict[tuple[str, str], Exception] = {}


class SpanWindows:
    """Accumulates the spans of the open windows, and reads one when its step is recorded.

    Attributes:
        series: what `readings` returns, in its order.
        sketched: the layers that were wider than `max_features`.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        tensors: Iterable[str],
        tolerances: Sequence[Tolerance] = ("default",),
        *,
        support: bool = False,
        max_features: int = MAX_FEATURES,
        combine: Combine | None = None,
        on_error: OnError | None = None,
    ) -> None:
        """Keep nothing yet.

        Args:
            layers: whose activations.
            tensors: ``"activation"``, ``"activation_gradient"`` or both.
            tolerances: the rules to count by, as `ActivationSpan.reading` takes them.
            support: whether to record also how many features were ever non-zero, as ``support_columns``.
            max_features: layers wider than this are sketched.
            combine: applied to each span before it is read, in the order of layers and tensors, in every
                process alike: here the spans of several processes become one.
            on_error: told of the layer and tensor of what failed, whose status is then ``error``; without it the
                exception is raised.
        """
        self._keys = [(layer.name, tensor) for layer in layers for tensor in tensors]
        self._rules = tuple(tolerances)
        self._support, self._max_features = support, max_features
        self._combine, self._on_error = combine, on_error
        # What a Gram matrix cannot decide needs the triangular factor. A number may be as small as it likes.
        self._exact = any(not isinstance(rule, str) for rule in self._rules)
        self._rounding = "rounding" in self._rules
        self._segments: list[_Segment] = []
        self.sketched: set[str] = set()
        self.series = tuple(
            Series(layer, tensor, NONE, rule, metric)
            for layer, tensor in self._keys
            for metric, rule in self._columns
        )

    def open(self, begin: int) -> None:
        """Begin a window.

        Args:
            begin: its first step, which is about to be taken.
        """
        self._segments.append(_Segment(begin))

    def take(self, layer: str, tensor: str, z: Tensor | Exception) -> None:
        """Take an output of a layer in; nothing is kept of it. Does nothing where no window is open.

        Args:
            layer: its name.
            tensor: ``"activation"`` or ``"activation_gradient"``.
            z: `[samples, features]`, floating; or why it could not be had.
        """
        if not self._segments:
            return
        segment, key = self._segments[-1], (layer, tensor)
        if key in segment.failed:
            return
        try:
            if isinstance(z, Exception):
                raise z
            if key not in segment.spans:
                segment.spans[key] = self._span(layer, z)
            segment.spans[key].update(z)
        except Exception as error:
            # Half of a window would read as if it were all of it.
            segment.failed[key] = error
            segment.spans.pop(key, None)

    def readings(self, absent: Absent = _empty) -> list[Number]:
        """Read the spans of the earliest of the open windows, up to now.

        Args:
            absent: gives the word for a layer and a tensor of which nothing came in.

        Returns:
            A number for each of `series`.
        """
        return [number for key in self._keys for number in self._read(key, absent)]

    def nothing(self, word: str) -> list[Number]:
        """Return what `readings` does where there is nothing at all.

        Args:
            word: the status.

        Returns:
            A number for each of `series`, NaN.
        """
        return [_nothing(word) for _ in self.series]

    def forget(self, before: int | None = None) -> None:
        """Free what no window needs any more.

        Args:
            before: the first step of the earliest window that is open; None where none is.
        """
        self._segments = [s for s in self._segments if before is not None and s.begin >= before]

    @property
    def held(self) -> int:
        """How many factors are held."""
        return sum(len(segment.spans) for segment in self._segments)

    @property
    def _columns(self) -> list[tuple[str, str]]:
        return [(SPAN, str(rule)) for rule in self._rules] + ([(SUPPORT, NONE)] if self._support else [])

    def _span(self, layer: str, z: Tensor) -> ActivationSpan:
        features = z.shape[-1]
        if features > self._max_features:
            self.sketched.add(layer)
        # 16-bit rounding lies far above what a Gram matrix decides, that of 32 bits below.
        exact = self._exact or (self._rounding and z.dtype.itemsize > 2)
        # Skipping what changes nothing would leave τ known only within bounds, and makes a GPU wait.
        return ActivationSpan(
            features, max_features=self._max_features, exact=True if exact else None, stop="never"
        )

    def _read(self, key: tuple[str, str], absent: Absent) -> list[Number]:
        error = next((s.failed[key] for s in self._segments if key in s.failed), None)
        span: ActivationSpan | None = None
        try:
            for part in (s.spans[key] for s in self._segments if key in s.spans):
                span = part if span is None else span.merge(part)
        except InputError as failure:
            error, span = failure, None
        if self._combine is not None:
            # Called whatever happened here: the other processes wait for this one.
            try:
                span = self._combine(None if error is not None else span)
            except Exception as failure:
                error = error or failure
        if error is not None:
            return [self._failed(key, error) for _ in self._columns]
        if span is None:
            return [_nothing(absent(*key)) for _ in self._columns]
        return [self._number(key, span, rule) for rule in self._rules] + (
            [self._supported(key, span)] if self._support else []
        )

    def _number(self, key: tuple[str, str], span: ActivationSpan, rule: Tolerance) -> Number:
        try:
            dimension, tolerance, status = span.reading(rule)
        except Exception as error:
            return self._failed(key, error)
        return Number(float(dimension), float(tolerance), CODES[status])

    def _supported(self, key: tuple[str, str], span: ActivationSpan) -> Number:
        try:
            status = span.status
        except Exception as error:
            return self._failed(key, error)
        count = torch.nan if status in ("empty", "nonfinite") else float(span.support)
        return Number(count, torch.nan, CODES[status if status in ("empty", "nonfinite", "zero") else "ok"])

    def _failed(self, key: tuple[str, str], error: Exception) -> Number:
        if self._on_error is None:
            raise error
        self._on_error(*key, error)
        return _nothing("error")
