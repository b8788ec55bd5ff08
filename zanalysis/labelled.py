"""A run as one xarray dataset with named dimensions.

The layout, the same for every run:

- each metric is a variable of its own name, float64 `[step, layer, tensor, reference]`, and a metric
  that is counted above a tolerance `[step, layer, tensor, reference, tolerance_rule]`;
- beside it stand ``METRIC_status``, uint8 of the same dimensions, with the CF attributes `flag_values`
  and `flag_meanings`, and, where there are tolerances, ``METRIC_tolerance``, the τ in force;
- ``singular_values`` is float64 `[step, layer, tensor, reference, index]`, where spectra are recorded;
- ``logged`` is float64 `[logged_step, name]`.

What was not recorded in some combination of coordinates is NaN with the status ``not_recorded``. A metric
of the user's own whose name is taken, such as ``step``, is called ``step_metric``.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zanalysis._version import __version__
from zanalysis.errors import InputError, RunFileError
from zanalysis.reporting.meanings import meaning_of
from zanalysis.runfile.reader import Run, open_run
from zanalysis.runfile.schema import SCHEMA_VERSION, STATUSES, Series

if TYPE_CHECKING:
    import xarray

__all__ = ["NOT_RECORDED", "to_xarray"]

NOT_RECORDED = 255
_DIMENSIONS = ("layer", "tensor", "reference")
_TAKEN = (
    *("step", "layer", "tensor", "reference", "tolerance_rule", "index", "name"),
    *("logged", "logged_step", "singular_values"),
)
_STEPS = {"units": "steps", "long_name": "completed optimizer steps"}
_LONG_NAMES = {
    "layer": "name of the parameter less a final .weight",
    "tensor": "what of the layer was measured",
    "reference": "what was subtracted",
    "tolerance_rule": "how the tolerance was chosen",
    "index": "0 for the largest singular value",
    "name": "the name given to tracker.log",
}


def to_xarray(run: Run | str | os.PathLike[str]) -> "xarray.Dataset":
    """Return a run as an xarray dataset with named dimensions.

    Each metric is a variable `[step, layer, tensor, reference]`, and one that is counted above a tolerance
    `[step, layer, tensor, reference, tolerance_rule]`; ``METRIC_status`` and ``METRIC_tolerance`` stand
    beside it. ``singular_values`` is `[step, layer, tensor, reference, index]`, ``logged``
    `[logged_step, name]`. Units and meanings are the attributes `units` and `long_name`; the settings
    of the run are the attribute `run`, as JSON. The whole can be saved with `to_netcdf`.

    Args:
        run: an open run, or the path of one, finished or not.

    Returns:
        The dataset, with what was complete when it was asked for; values float64, statuses uint8.

    Raises:
        InputError: if xarray is not installed, or this is neither a run nor a path.
        RunFileError: if the run cannot be read.

    Example:
        >>> import numpy as np, tempfile
        >>> from zanalysis.runfile import RunWriter, Series
        >>> from zanalysis.runfile.reader import open_run
        >>> path = tempfile.mkdtemp() + "/run.h5"
        >>> writer = RunWriter(path, [Series("fc", "weight", "none", "default", "rank")])
        >>> writer.append(0, np.array([3.0]), np.array([1e-6]), np.array([0], np.uint8), np.empty((0, 16)))
        >>> writer.close()
        >>> float(to_xarray(open_run(path))["rank"].sel(step=0, layer="fc").squeeze())
        3.0
    """
    try:
        import xarray
    except ImportError:
        raise InputError(
            "to_xarray needs xarray, which is not installed; pip install 'zanalysis[xarray]'."
        ) from None
    if isinstance(run, str | os.PathLike):
        run = open_run(run)
    if not isinstance(run, Run):
        raise InputError(
            f"got {type(run).__name__}, expected a run or the path of one, as open_run takes it."
        )
    steps, value, tolerance, status = run.arrays()
    axes = _Axes(run)
    variables: dict[str, Any] = {}
    metrics = list(dict.fromkeys(one.metric for one in run.series))
    taken = {*_TAKEN, *(f"{metric}_{kind}" for metric in metrics for kind in ("status", "tolerance"))}
    for metric in metrics:
        columns = [s for s, one in enumerate(run.series) if one.metric == metric]
        name = f"{metric}_metric" if metric in taken else metric
        variables |= axes.of_metric(name, metric, run.series, columns, value, tolerance, status)
    if run.spectrum_keys:
        variables["singular_values"] = axes.of_spectra(run, len(steps))
    coordinates: dict[str, Any] = {"step": ("step", steps, _STEPS)}
    for name, words in axes.words.items():
        coordinates[name] = (name, _objects(words), {"long_name": _LONG_NAMES[name]})
    if run.spectrum_keys:
        index = np.arange(variables["singular_values"][1].shape[-1])
        coordinates["index"] = ("index", index, {"long_name": _LONG_NAMES["index"]})
    logged = run.logged()
    if len(logged):
        names = [str(name) for name in logged.columns[1:]]
        own = {"units": "as logged", "long_name": "scalars of the user's own"}
        variables["logged"] = (("logged_step", "name"), logged[names].to_numpy(np.float64), own)
        coordinates["logged_step"] = ("logged_step", logged["step"].to_numpy(np.int64), _STEPS)
        coordinates["name"] = ("name", _objects(names), {"long_name": _LONG_NAMES["name"]})
    return xarray.Dataset(variables, coordinates, _facts(run))


def _objects(words: Sequence[str]) -> npt.NDArray[Any]:
    found = np.empty(len(words), dtype=object)
    found[:] = words
    return found


def _facts(run: "Run") -> dict[str, Any]:
    attributes: Mapping[str, Any] = run.attributes
    model = attributes.get("model")
    return {
        "title": f"{run.path.name}: the rank of a network over its training",
        "source": f"zanalysis {__version__}, run file of schema {SCHEMA_VERSION}",
        "model": str(model.get("type", "")) if isinstance(model, dict) else "",
        "run": json.dumps(attributes),
    }


class _Axes:
    """The coordinates of a run, and where each number stands among them."""

    def __init__(self, run: Run) -> None:
        keys = [*run.series, *run.spectrum_keys]
        self.words: dict[str, list[str]] = {
            name: list(dict.fromkeys(getattr(key, name) for key in keys)) for name in _DIMENSIONS
        }
        rules = dict.fromkeys(one.tolerance_rule for one in run.series if one.tolerance_rule != "none")
        if rules:
            self.words["tolerance_rule"] = list(rules)
        self._at = {name: {word: i for i, word in enumerate(words)} for name, words in self.words.items()}

    def of_metric(
        self,
        called: str,
        metric: str,
        series: Sequence[Series],
        columns: Sequence[int],
        value: npt.NDArray[Any],
        tolerance: npt.NDArray[Any],
        status: npt.NDArray[Any],
    ) -> dict[str, Any]:
        """Return the variables of one metric.

        Args:
            called: the name of its variable.
            metric: its name.
            series: of the run.
            columns: which of them are of this metric.
            value: `[T, S]`.
            tolerance: `[T, S]`.
            status: `[T, S]`.

        Returns:
            Dimensions, numbers and attributes by the name of the variable.
        """
        above = any(series[s].tolerance_rule != "none" for s in columns)
        names = (*_DIMENSIONS, "tolerance_rule") if above else _DIMENSIONS
        cells: list[Any] = [
            (slice(None), *(self._at[name].get(getattr(series[s], name), 0) for name in names))
            for s in columns
        ]

        def spread(numbers: npt.NDArray[Any], missing: float) -> npt.NDArray[Any]:
            shape = (len(numbers), *(len(self.words[name]) for name in names))
            grid = np.full(shape, missing, numbers.dtype)
            for s, cell in zip(columns, cells, strict=True):
                grid[cell] = numbers[:, s]
            return grid

        meaning = meaning_of(metric)
        dimensions = ("step", *names)
        found: dict[str, Any] = {
            called: (
                dimensions,
                spread(value, np.nan),
                {"units": meaning.unit, "long_name": meaning.says, "ancillary_variables": f"{called}_status"},
            ),
            f"{called}_status": (dimensions, spread(status, NOT_RECORDED), _flags(metric)),
        }
        if above:
            about = {"units": "unit of the tensor", "long_name": f"the tolerance τ in force for {metric}"}
            found[f"{called}_tolerance"] = (dimensions, spread(tolerance, np.nan), about)
        return found

    def of_spectra(self, run: "Run", count: int) -> tuple[tuple[str, ...], npt.NDArray[Any], dict[str, str]]:
        """Return the singular values.

        Args:
            run: the run.
            count: how many steps the dataset has; what was recorded since is left out.

        Returns:
            Dimensions, numbers and attributes.

        Raises:
            RunFileError: if the run has lost steps meanwhile.
        """
        grid: npt.NDArray[Any] | None = None
        for key in run.spectrum_keys:
            values = run.spectra(*key).values[:count]
            if len(values) < count:
                raise RunFileError(f"{run.path} was taken up again while it was read; read it once more.")
            if grid is None:
                lengths = (len(self.words[name]) for name in _DIMENSIONS)
                grid = np.full((count, *lengths, values.shape[1]), np.nan)
            cell: Any = (slice(None), *(self._at[name][getattr(key, name)] for name in _DIMENSIONS))
            grid[cell] = values
        about = {"units": "unit of the tensor", "long_name": "singular values, descending"}
        assert grid is not None
        return ("step", *_DIMENSIONS, "index"), grid, about


def _flags(metric: str) -> dict[str, Any]:
    codes = [*range(len(STATUSES)), NOT_RECORDED]
    return {
        "long_name": f"how {metric} is to be read",
        "flag_values": np.array(codes, np.uint8),
        "flag_meanings": " ".join([*STATUSES, "not_recorded"]),
    }
