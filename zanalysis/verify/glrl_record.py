"""What a run file holds of low-rank trajectories: its weights' spectra, with their shapes and their clock."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zanalysis.analyzers.matrices import matricize
from zanalysis.analyzers.naming import Selection, selected
from zanalysis.errors import InputError, did_you_mean
from zanalysis.runfile.reader import Run
from zanalysis.runfile.schema import SpectrumKey

__all__ = ["Spectrum", "spectra_of"]

Array = npt.NDArray[np.float64]

_HOW = "attach with RankTracker(…, metrics=('stable_rank', 'singular_values'), reference='init')"

_RATES = ("lr", "learning_rate")
"""As what a learning rate is logged; the second by the Trainer of transformers."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The spectrum of one matrix of a layer, against one reference.

    Attributes:
        key: layer, tensor, reference.
        steps: `[T]`.
        values: `[T, k]`, NaN-padded.
        shape: of the matrix; None if the run file does not say.
        start: how the layer started; empty if the run file does not say.
        stable_rank: recorded beside, `[T]`; None if it was not.
        clock: the sum of the learning rates that were logged, `[T]`; None if there are none.
    """

    key: SpectrumKey
    steps: npt.NDArray[np.int64]
    values: Array
    shape: tuple[int, int] | None
    start: str
    stable_rank: Array | None
    clock: Array | None


def spectra_of(run: Run, layers: Selection, reference: str | None) -> Iterator[Spectrum]:
    """Read the spectra of the weights of a run.

    Args:
        run: the run.
        layers: names, globs, …; None for all.
        reference: which one, ``"none"`` for nothing subtracted; None for all.

    Returns:
        Each spectrum, in the order of the file.

    Raises:
        InputError: if none is recorded, or none of this layer or reference.
    """
    keys = [key for key in run.spectrum_keys if key.tensor == "weight"]
    if not keys:
        raise InputError(
            f"{run.path} has no spectrum of a weight, which a low-rank trajectory is read from; {_HOW}."
        )
    names = dict.fromkeys(key.layer for key in keys)
    chosen = set(selected(layers, dict.fromkeys(names, _no_parameter)))
    references = list(dict.fromkeys(key.reference for key in keys))
    if reference is not None and reference not in references:
        raise InputError(
            f"{run.path} has no spectrum against reference {reference!r}; {did_you_mean(str(reference), references)}"
        )
    wanted = [key for key in keys if key.layer in chosen and reference in (None, key.reference)]
    if not wanted:
        shown = ", ".join(sorted(chosen))
        raise InputError(f"{run.path} has no spectrum of {shown} against reference {reference!r}; {_HOW}.")
    return _read(run, wanted)


def _no_parameter() -> torch.Tensor:
    raise InputError("a predicate on the parameter needs the model; choose layers by name here.")


def _read(run: Run, keys: list[SpectrumKey]) -> Iterator[Spectrum]:
    described = dict(_described(run.attributes))
    steps, value, _, _ = run.arrays()
    ranks = {
        SpectrumKey(series.layer, series.tensor, series.reference): value[:, column]
        for column, series in enumerate(run.series)
        if series.metric == "stable_rank"
    }
    rates = _learning_rates(run)
    for key in keys:
        found = run.spectra(key.layer, key.tensor, key.reference)
        shape, start = described.get(key.layer, (None, ""))
        beside = None
        if key in ranks:
            # A file that is being written may have grown since.
            beside = np.full(len(found.steps), np.nan)
            known = min(len(steps), len(found.steps))
            beside[:known] = ranks[key][:known]
        clock = None if rates is None else np.interp(found.steps, *rates)
        yield Spectrum(key, found.steps, found.values, shape, start, beside, clock)


def _described(attributes: Mapping[str, Any]) -> Iterator[tuple[str, tuple[tuple[int, int] | None, str]]]:
    """Yield for each matrix its name, its shape and how its layer started, as far as a run file says so."""
    view = attributes.get("view", "out")
    listed = attributes.get("layers", [])
    for layer in listed if isinstance(listed, list) else []:
        if not isinstance(layer, Mapping):
            continue
        names = layer.get("matrices", [layer.get("name")])
        for name in names if isinstance(names, list) else []:
            yield str(name), (_matrix(layer.get("shape"), view), str(layer.get("start", "")))


def _matrix(shape: Any, view: Any) -> tuple[int, int] | None:
    """Return the shape of a layer's matrices in a view; None if that cannot be said."""
    try:
        sizes = [int(size) for size in shape]
        matrix = matricize(torch.empty(sizes, device="meta"), view).shape[-2:]
    except (TypeError, ValueError, RuntimeError):
        return None
    return int(matrix[0]), int(matrix[1])


def _learning_rates(run: Run) -> tuple[Array, Array] | None:
    """Return the steps at which the learning rate was logged, and the sum of the rates up to each."""
    logged = run.logged()
    name = next((name for name in _RATES if name in logged), None)
    if name is None:
        return None
    known = logged[["step", name]].dropna()
    steps, rates = known["step"].to_numpy(float), known[name].to_numpy(float)
    if len(steps) < 2 or not (np.isfinite(rates).all() and (rates >= 0).all() and rates.any()):
        return None
    # Before the first and after the last that was logged, the rate is taken to be that one.
    ends = float(run.steps[-1]) if len(run.steps) else steps[-1]
    steps = np.r_[min(0.0, steps[0]), steps, max(ends, steps[-1] + 1)]
    rates = np.r_[rates[0], rates, rates[-1]]
    between = np.diff(steps) * (rates[:-1] + rates[1:]) / 2
    return steps, np.r_[0.0, np.cumsum(between)]
