"""The metrics by name: how a tracker and a sweep ask for the same numbers.

`Plan` fixes, before anything is measured, which numbers will come and in which order; `evaluate`
gives them for one parameter. The order is the layout of a run file's columns.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zanalysis.analyzers import spectrum
from zanalysis.analyzers.lanczos import WarmStart
from zanalysis.analyzers.matrices import Reference, View, checked_parameter, computable, identity_scale_of
from zanalysis.analyzers.residual import Residual
from zanalysis.analyzers.statuses import CODES
from zanalysis.analyzers.symmetry import distinct_rows
from zanalysis.errors import InputError, did_you_mean

__all__ = [
    "JACOBIAN",
    "NONE",
    "SPAN",
    "Key",
    "Measurement",
    "Plan",
    "UserMetric",
    "checked_metrics",
    "checked_tolerances",
    "failed_measurement",
    "scale_measurement",
]

NONE = "none"
"""How a table names the absence of a reference or of a tolerance."""

UserMetric = Callable[[Tensor], Any]


def _distinct_rows(residual: Residual) -> Tensor:
    if residual.empty:
        return residual.full(math.nan)
    # In the stored dtype, whose rounding says which rows are equal; of the weight alone, without a bias.
    matrices = residual.kept if residual.differ is None else residual.matrices.to(residual.stored)
    counts = [distinct_rows(matrix) for matrix in matrices.reshape(-1, *residual.shape)]
    return torch.where(residual.defined, torch.stack(counts).reshape(residual.batch_shape), torch.nan)


def _zero_gradient(residual: Residual) -> Tensor:
    # Exactly zero, with no tolerance at all: 1.0 or 0.0.
    return torch.where(residual.finite, residual.zero.double(), torch.nan)


_PLAIN: Mapping[str, Callable[[Residual], Tensor]] = {
    "stable_rank": spectrum.stable_rank_of,
    "effective_rank": spectrum.effective_rank_of,
    "spectral_norm": spectrum.spectral_norm_of,
    "frobenius_norm": spectrum.frobenius_norm_of,
    "nuclear_norm": spectrum.nuclear_norm_of,
    "support_rows": lambda residual: spectrum.support_of(residual).rows,
    "support_columns": lambda residual: spectrum.support_of(residual).columns,
    "distinct_rows": _distinct_rows,
    "zero_gradient": _zero_gradient,
}
_WITH_TOLERANCE = {"rank": spectrum.rank_of, "rank_margin": spectrum.rank_margin_of}
_GROUPS = {"support": ("support_rows", "support_columns")}
SCALARS = (*_WITH_TOLERANCE, *_PLAIN, "condition_number", "identity_scale")
SPECTRUM = "singular_values"
SPAN = "span_dimension"
"""Of the activations of a window; see `hooks.spans`."""

JACOBIAN = "jacobian_singular_values"
"""Of a network at the samples of a probe; see `hooks.probing`."""

_NOT_OF_A_MATRIX = {
    SPAN: "of the activations of many steps; record it with tensors='activation', or see activation_span",
    JACOBIAN: "of a whole network at a probe; record it with probe=…, or see jacobian_singular_values",
}
OF_GRADIENTS = "zero_gradient"
KNOWN = (*SCALARS, *_GROUPS, SPECTRUM, *_NOT_OF_A_MATRIX)


class Key(NamedTuple):
    """What one number of a parameter is: the columns that identify it in a table."""

    reference: str
    tolerance_rule: str
    metric: str


class Measurement(NamedTuple):
    """One number, or one for each matrix of a batch, and how to read it.

    Attributes:
        value: float64, batch shape; NaN where undefined.
        tolerance: the τ that was used, float64, batch shape; NaN where there is none.
        code: uint8 into `STATUSES`, batch shape.
    """

    value: Tensor
    tolerance: Tensor
    code: Tensor


def checked_metrics(metrics: str | UserMetric | Iterable[str | UserMetric]) -> tuple[str | UserMetric, ...]:
    """Return the metrics, with groups spelled out and duplicates removed.

    Args:
        metrics: names, functions `matrix -> number`, or several of both.

    Returns:
        Names and functions in the order given.

    Raises:
        InputError: if a name is unknown, or nothing is asked for.
    """
    asked = [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics)
    result: dict[str, str | UserMetric] = {}
    for metric in asked:
        if callable(metric):
            name = getattr(metric, "__name__", type(metric).__name__)
            if name in KNOWN or name in result:
                raise InputError(f"a function named {name!r} would hide the metric of that name; rename it.")
            result[name] = metric
        elif metric in _GROUPS:
            result |= {name: name for name in _GROUPS[metric]}
        elif metric in KNOWN:
            result[metric] = metric
        else:
            raise InputError(
                f"unknown metric {metric!r}; {did_you_mean(str(metric), KNOWN)} "
                "Or pass a function of a matrix that returns a number."
            )
    if not result:
        raise InputError(f"no metric was asked for; pass some of: {', '.join(KNOWN)}.")
    return tuple(result.values())


@dataclass(frozen=True)
class Plan:
    """Which numbers are measured of each parameter, in which order.

    Attributes:
        metrics: as `checked_metrics` returns them.
        references: the names of the references, `NONE` for the weight itself.
        tolerances: rules for the metrics that need one.
        book: gives a context for the name of a metric, within which it is measured: what several share is
            done within that of the first.
    """

    metrics: tuple[str | UserMetric, ...]
    references: tuple[str, ...] = (NONE,)
    tolerances: tuple[spectrum.Tolerance, ...] = ("default",)
    book: Callable[[str], AbstractContextManager[Any]] = field(default=nullcontext, compare=False)

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """What `evaluate` returns, in its order."""
        keys = [
            Key(reference, rule, name)
            for reference in self.references
            for name in self._names
            for rule in ([str(t) for t in self.tolerances] if name in _WITH_TOLERANCE else [NONE])
            if name != "identity_scale"
        ]
        if self._wants_scale:
            keys.append(Key("identity", NONE, "identity_scale"))
        return tuple(keys)

    @property
    def wants_spectrum(self) -> bool:
        """Whether whole spectra are asked for."""
        return SPECTRUM in self.metrics

    @property
    def wants(self) -> list[str]:
        """The metrics that are asked for by name."""
        return [metric for metric in self.metrics if isinstance(metric, str)]

    @property
    def has_user_metrics(self) -> bool:
        """Whether code that is not ours will run."""
        return any(callable(metric) for metric in self.metrics)

    @cached_property
    def _names(self) -> list[str]:
        return [
            metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
            for metric in self.metrics
            if metric != SPECTRUM
        ]

    @property
    def _wants_scale(self) -> bool:
        # α is part of what an identity residual *is*: it is stored whether asked for or not.
        return "identity" in self.references or "identity_scale" in self.metrics

    def evaluate(
        self,
        W: Tensor,
        references: Mapping[str, Reference],
        view: View = "out",
        on_error: Callable[[Key, Exception], None] | None = None,
        warm: WarmStart | None = None,
    ) -> tuple[list[Measurement], dict[str, Tensor]]:
        """Measure one parameter.

        Args:
            W: the parameter, in the dtype it is stored in.
            references: a tensor, ``"identity"`` or None for each name in `references`.
            view: how a kernel becomes a matrix.
            on_error: told of a metric that failed, whose status is then ``error``; without it the
                exception is raised.
            warm: this parameter's state from its last record, which saves time and changes no
                number by more than its error.

        Returns:
            The measurements, one for each of `keys`, and the singular values by reference where
            they were asked for.
        """
        W = checked_parameter(W)

        def residual(name: str) -> Residual:
            part = None if warm is None else warm.under(name)
            return Residual.of(W, references[name], view, part, self.wants)

        failed = failed_measurement(W.shape[:-2] if W.ndim == 3 else torch.Size(), W.device)
        return self.evaluate_residuals(residual, lambda: _scale(computable(W)), failed, on_error)

    def evaluate_residuals(
        self,
        residual_of: Callable[[str], Residual],
        scale: Callable[[], Measurement],
        failed: Measurement,
        on_error: Callable[[Key, Exception], None] | None = None,
    ) -> tuple[list[Measurement], dict[str, Tensor]]:
        """Measure one parameter, whichever way its residuals are come by.

        Args:
            residual_of: gives the residual of a reference; asked at most once for each.
            scale: measures `identity_scale`.
            failed: what stands for a metric that failed.
            on_error: as for `evaluate`.

        Returns:
            As `evaluate`.
        """
        measured: dict[Key, Measurement] = {}
        spectra: dict[str, Tensor] = {}
        residual = lru_cache(maxsize=None)(residual_of)
        rules = {str(tolerance): tolerance for tolerance in self.tolerances}
        by_name = dict(zip(self._names, (m for m in self.metrics if m != SPECTRUM), strict=True))
        for key in self.keys:
            try:
                with self.book(key.metric):
                    if key.metric == "identity_scale":
                        measured[key] = scale()
                    else:
                        rule = rules.get(key.tolerance_rule, "default")
                        measured[key] = _measure(residual(key.reference), by_name[key.metric], rule)
            except Exception as error:
                if on_error is None:
                    raise
                on_error(key, error)
                measured[key] = failed
        if self.wants_spectrum:
            for name in self.references:
                try:
                    with self.book(SPECTRUM):
                        spectra[name] = residual(name).singular_values
                except Exception as error:
                    if on_error is None:
                        raise
                    on_error(Key(name, NONE, SPECTRUM), error)
        return [measured[key] for key in self.keys], spectra


def _measure(residual: Residual, metric: str | UserMetric, tolerance: spectrum.Tolerance) -> Measurement:
    nothing = residual.full(math.nan)
    if not isinstance(metric, str):
        value = _by_user(residual, metric)
        return Measurement(value, nothing, _code_of_user(value))
    if metric in _WITH_TOLERANCE:
        return Measurement(*_WITH_TOLERANCE[metric](residual, tolerance))
    if metric == "condition_number":
        value, codes = spectrum.condition_number_of(residual)
        return Measurement(value, nothing, codes)
    return Measurement(_PLAIN[metric](residual), nothing, spectrum.status_codes(residual))


def _scale(W: Tensor) -> Measurement:
    finite = W.isfinite().flatten(-2).all(-1) if W.ndim <= 3 else W.isfinite().all()
    return scale_measurement(identity_scale_of(W), finite)


def scale_measurement(value: Tensor, finite: Tensor) -> Measurement:
    """Return `identity_scale` as it is recorded.

    Args:
        value: α, NaN where there is none.
        finite: whether the weight is.

    Returns:
        The measurement.
    """
    word = torch.where(value.isnan(), CODES["no_common_diagonal"], CODES["ok"])
    word = torch.where(finite, word, CODES["nonfinite"])
    return Measurement(
        torch.where(finite, value, torch.nan), torch.full_like(value, torch.nan), word.to(torch.uint8)
    )


def _by_user(residual: Residual, metric: UserMetric) -> Tensor:
    # In the stored dtype: a function with a tolerance of its own takes its eps from there. And a copy: a
    # float64 weight is its own residual, and a function that writes to its argument would train the model.
    matrices = residual.matrices.to(residual.stored, copy=True)
    shape = residual.batch_shape
    values = [float(metric(matrix)) for matrix in matrices.reshape(-1, *residual.shape)]
    return torch.tensor(values, dtype=torch.float64, device=matrices.device).reshape(shape)


def _code_of_user(value: Tensor) -> Tensor:
    return torch.where(value.isfinite(), CODES["ok"], CODES["nonfinite"]).to(torch.uint8)


def failed_measurement(shape: torch.Size, device: torch.device) -> Measurement:
    """Return what stands for a metric that failed.

    Args:
        shape: the batch shape.
        device: where the others are.

    Returns:
        NaN, with the status ``error``.
    """
    nothing = torch.full(shape, torch.nan, dtype=torch.float64, device=device)
    return Measurement(nothing, nothing, torch.full_like(nothing, CODES["error"]).to(torch.uint8))


def checked_tolerances(tolerances: Any) -> tuple[spectrum.Tolerance, ...]:
    """Return the rules for τ, each once.

    Args:
        tolerances: one rule or several.

    Returns:
        The rules, in the order given.
    """
    several = tolerances if isinstance(tolerances, list | tuple) else (tolerances,)
    return tuple(dict.fromkeys(spectrum.checked_tolerance(t) for t in several))


def plan(
    metrics: str | UserMetric | Iterable[str | UserMetric],
    references: Sequence[str] = (NONE,),
    tolerances: Any = "default",
    book: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Plan:
    """Check what was asked for and fix its order.

    Args:
        metrics: names, functions of a matrix, or several of both.
        references: the names of the references.
        tolerances: one rule or several.
        book: gives a context for each metric by name, within which it is measured.

    Returns:
        The plan.

    Raises:
        InputError: if something is asked for that is not there, or is no metric of a matrix.
    """
    checked = checked_metrics(metrics)
    for name in checked:
        if isinstance(name, str) and name in _NOT_OF_A_MATRIX:
            raise InputError(f"{name} is no metric of a matrix but {_NOT_OF_A_MATRIX[name]}.")
    return Plan(checked, tuple(references), checked_tolerances(tolerances), book)
