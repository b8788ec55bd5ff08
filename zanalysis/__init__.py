"""zanalysis: see the rank of a network while it trains, and trust the number.

The names below are resolved on first use (PEP 562), so that the training path, which needs only
`zanalysis.runfile` and `zanalysis.analyzers`, loads no plotting library and no pandas.
"""

import importlib
from typing import TYPE_CHECKING, Any

from zanalysis._version import __version__

if TYPE_CHECKING:
    from zanalysis import figures, initializers
    from zanalysis.analyzers.jacobian import jacobian_singular_values
    from zanalysis.analyzers.pruning import pruned, pruning_curve
    from zanalysis.analyzers.span import ActivationSpan, activation_span
    from zanalysis.analyzers.spectrum import (
        condition_number,
        effective_rank,
        frobenius_norm,
        identity_scale,
        nuclear_norm,
        rank,
        rank_margin,
        singular_values,
        spectral_norm,
        stable_rank,
        status,
        support,
    )
    from zanalysis.analyzers.symmetry import dead_units, distinct_rows, first_moved, zero_gradient
    from zanalysis.analyzers.tucker import (
        compress,
        tucker2,
        tucker2_error_surface,
        tucker_curve,
        tucker_ranks,
    )
    from zanalysis.errors import ZAnalysisError
    from zanalysis.labelled import to_xarray
    from zanalysis.reporting import report
    from zanalysis.runfile.reader import Run, open_run
    from zanalysis.sweep import analyze, compare, curves
    from zanalysis.verify.glrl import verify_glrl
    from zanalysis.verify.theorem1 import verify_theorem1
    from zanalysis.verify.verdict import Verdict

_HOME = {
    "ActivationSpan": "analyzers.span",
    "Run": "runfile.reader",
    "Verdict": "verify.verdict",
    "ZAnalysisError": "errors",
    "activation_span": "analyzers.span",
    "analyze": "sweep",
    "compare": "sweep",
    "compress": "analyzers.tucker",
    "condition_number": "analyzers.spectrum",
    "curves": "sweep",
    "dead_units": "analyzers.symmetry",
    "distinct_rows": "analyzers.symmetry",
    "effective_rank": "analyzers.spectrum",
    "first_moved": "analyzers.symmetry",
    "frobenius_norm": "analyzers.spectrum",
    "identity_scale": "analyzers.spectrum",
    "jacobian_singular_values": "analyzers.jacobian",
    "nuclear_norm": "analyzers.spectrum",
    "open_run": "runfile.reader",
    "pruned": "analyzers.pruning",
    "pruning_curve": "analyzers.pruning",
    "rank": "analyzers.spectrum",
    "rank_margin": "analyzers.spectrum",
    "report": "reporting",
    "singular_values": "analyzers.spectrum",
    "spectral_norm": "analyzers.spectrum",
    "stable_rank": "analyzers.spectrum",
    "status": "analyzers.spectrum",
    "support": "analyzers.spectrum",
    "to_xarray": "labelled",
    "tucker2": "analyzers.tucker",
    "tucker2_error_surface": "analyzers.tucker",
    "tucker_curve": "analyzers.tucker",
    "tucker_ranks": "analyzers.tucker",
    "verify_glrl": "verify.glrl",
    "verify_theorem1": "verify.theorem1",
    "zero_gradient": "analyzers.symmetry",
}
_MODULES = ("figures", "initializers")

__all__ = [
    "ActivationSpan",
    "Run",
    "Verdict",
    "ZAnalysisError",
    "__version__",
    "activation_span",
    "analyze",
    "compare",
    "compress",
    "condition_number",
    "curves",
    "dead_units",
    "distinct_rows",
    "effective_rank",
    "figures",
    "first_moved",
    "frobenius_norm",
    "identity_scale",
    "initializers",
    "jacobian_singular_values",
    "nuclear_norm",
    "open_run",
    "pruned",
    "pruning_curve",
    "rank",
    "rank_margin",
    "report",
    "singular_values",
    "spectral_norm",
    "stable_rank",
    "status",
    "support",
    "to_xarray",
    "tucker2",
    "tucker2_error_surface",
    "tucker_curve",
    "tucker_ranks",
    "verify_glrl",
    "verify_theorem1",
    "zero_gradient",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"zanalysis.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'zanalysis' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"zanalysis.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
