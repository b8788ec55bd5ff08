"""The metrics by name: how a tracker and a sweep ask for the same numbers.

`Plan` fixes, before anything is measured, which numbers will come and in which order; `evaluate`
gives them for one parameter. The order is the layout of a run file's columns.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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

__all__ = ["NONE", "Key", "Measurement", "Plan", "UserMetric", "checked_metrics"]

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
KNOWN = (*SCALARS, *_GROUPS, SPECTRUM)


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
    """

    metrics: tuple[str | UserMetric, ...]
    references: tuple[str, ...] = (NONE,)
    tolerances: tuple[spectrum.Tolerance, ...] = ("default",)

    @property
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
    def has_user_metrics(self) -> bool:
        """Whether code that is not ours will run."""
        return any(callable(metric) for metric in self.metrics)

    @property
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
        measured: dict[Key, Measurement] = {}
        spectra: dict[str, Tensor] = {}
        residuals: dict[str, Residual] = {}
        W = checked_parameter(W)
        wants = [metric for metric in self.metrics if isinstance(metric, str)]

        def residual(name: str) -> Residual:
            if name not in residuals:
                part = None if warm is None else warm.under(name)
                residuals[name] = Residual.of(W, references[name], view, part, wants)
            return residuals[name]

        rules = {str(tolerance): tolerance for tolerance in self.tolerances}
        by_name = dict(zip(self._names, (m for m in self.metrics if m != SPECTRUM), strict=True))
        for key in self.keys:
            try:
                if key.metric == "identity_scale":
                    measured[key] = _scale(computable(W))
                else:
                    measured[key] = _measure(
                        residual(key.reference), by_name[key.metric], rules.get(key.tolerance_rule, "default")
                    )
            except Exception as error:
                if on_error is None:
                    raise
                on_error(key, error)
                measured[key] = _failed(W)
        if self.wants_spectrum:
            for name in self.references:
                try:
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
    value = identity_scale_of(W)
    word = torch.where(value.isnan(), CODES["no_common_diagonal"], CODES["ok"])
    finite = W.isfinite().flatten(-2).all(-1) if W.ndim <= 3 else W.isfinite().all()
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


def _failed(W: Tensor) -> Measurement:
    nothing = torch.full(W.shape[:-2] if W.ndim == 3 else (), torch.nan, dtype=torch.float64, device=W.device)
    return Measurement(nothing, nothing, torch.full_like(nothing, CODES["error"]).to(torch.uint8))


def plan(
    metrics: str | UserMetric | Iterable[str | UserMetric],
    references: Sequence[str] = (NONE,),
    tolerances: Any = "default",
) -> Plan:
    """Check what was asked for and fix its order.

    Args:
        metrics: names, functions of a matrix, or several of both.
        references: the names of the references.
        tolerances: one rule or several.

    Returns:
        The plan.
    """
    several = tolerances if isinstance(tolerances, list | tuple) else (tolerances,)
    rules = tuple(dict.fromkeys(spectrum.checked_tolerance(t) for t in several))
    return Plan(checked_metrics(metrics), tuple(references), rules)
