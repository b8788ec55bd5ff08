"""Reading a run: closed, still being written, or left behind by a killed writer."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zanalysis.errors import InputError
from zanalysis.runfile.opening import ask, is_marked
from zanalysis.runfile.schema import Committed, Series, SpectrumKey
from zanalysis.runfile.tables import Spectra, event_table, logged_table, overhead_table, scalar_table
from zanalysis.runfile.tensor_layout import tensor_keys
from zanalysis.runfile.tensor_reader import (
    RecordedTensor,
    TensorSeries,
    described,
    stacked,
    tensor_at,
    tensors_at,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray
    from torch import Tensor

__all__ = ["Run", "open_run", "settings_of"]


def open_run(path: str | os.PathLike[str]) -> "Run":
    """Open a run file for reading, also while it is being written or after its writer was killed.

    Args:
        path: the file.

    Returns:
        The run. It holds no file open: every question is answered with what is complete by then.

    Raises:
        RunFileError: if the file is missing, not HDF5, not a run file, damaged, or of a newer schema.
    """
    return Run(path)


class Run:
    """A recorded run.

    Attributes:
        path: where the file lies.
        attributes: the model's structure, the optimizer, the settings, and what the user added.
        series: what is recorded, in the order of the file's columns.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read what does not change over a run.

        Args:
            path: the file.

        Raises:
            RunFileError: if the file is missing, foreign or damaged, or of a newer schema.
        """
        self.path = Path(path)
        self.attributes: dict[str, Any]
        self.attributes, self.series, self._spectra, self._raw = ask(self.path, settings_of)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.steps)} steps of {len(self.layers)} layers)"

    def table(self) -> "pd.DataFrame":
        """Return every number recorded so far.

        Returns:
            Columns step, layer, tensor, reference, tolerance_rule, metric, value, tolerance, status;
            value and tolerance float64, in the unit of the metric and of the weights; sorted by step,
            layer, tensor, reference, metric. Empty if nothing is recorded yet.
        """
        return scalar_table(self.series, *self.arrays())

    def arrays(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Return what `table` lays out as it is stored, in a tenth of the memory.

        Returns:
            The steps, int64 `[T]`; values and tolerances, float64 `[T, S]`; statuses, uint8 `[T, S]`,
            codes into `STATUSES`. Column s is `series[s]`.

        Raises:
            RunFileError: if the file can no longer be read.
        """

        def stored(file: Any, done: Committed) -> list[Any]:
            return [
                _first(file[f"scalars/{name}"], done.steps)
                for name in ("step", "value", "tolerance", "status")
            ]

        steps, value, tolerance, status = ask(self.path, stored)
        return steps, value, tolerance, status

    def spectra(self, layer: str, tensor: str = "weight", reference: str | None = None) -> Spectra:
        """Return the recorded singular values of one layer.

        Args:
            layer: its name.
            tensor: ``"weight"``, …
            reference: the name of what was subtracted, None for nothing.

        Returns:
            `.steps` `[T]` and `.values` `[T, k]`, descending, NaN-padded.

        Raises:
            InputError: if no such spectrum was recorded.
        """
        key = SpectrumKey(layer, tensor, reference or "none")
        if key not in self._spectra:
            known = [f"{s.layer} ({s.tensor}, reference {s.reference})" for s in self._spectra]
            raise InputError(
                f"{self.path} has no spectrum of layer {layer!r}, tensor {tensor!r}, reference {key.reference!r}; "
                + (
                    f"it has: {'; '.join(known)}."
                    if known
                    else "record it with metrics=(…, 'singular_values')."
                )
            )
        row = self._spectra.index(key)
        return ask(
            self.path,
            lambda file, done: Spectra(
                _first(file["scalars/step"], done.steps), _first(file["spectra/value"], done.steps, row)
            ),
        )

    def logged(self) -> "pd.DataFrame":
        """Return the scalars given to `tracker.log`.

        Returns:
            `step`, then one float64 column for each name; NaN where a name was not logged at a step.

        Raises:
            RunFileError: if the file can no longer be read.
        """

        def rows(file: Any, done: Committed) -> list[tuple[int, str, float]]:
            group, n = file["logged"], done.logged
            names = _first(group["names"].asstr(), done.names)
            numbers = (_first(group[field], n).tolist() for field in ("step", "value"))
            steps, values = numbers
            return list(zip(steps, names[_first(group["name"], n)], values, strict=True))

        return logged_table(ask(self.path, rows))

    @property
    def events(self) -> "pd.DataFrame":
        """What went wrong or deserved to be known: step, time (UTC), kind, layer, text."""

        def rows(file: Any, done: Committed) -> list[tuple[int, float, str, str, str]]:
            return [
                (int(step), float(when), kind.decode(), layer.decode(), text.decode())
                for step, when, kind, layer, text in _first(file["events"], done.events).tolist()
            ]

        return event_table(ask(self.path, rows))

    @property
    def overhead(self) -> "pd.DataFrame":
        """What recording cost: part, seconds inside the training loop, share of the elapsed time."""

        def account(file: Any, _: Committed) -> tuple[dict[str, float], float]:
            group = file["overhead"]
            parts = zip(group["part"].asstr()[:], group["seconds"][:].tolist(), strict=True)
            return dict(parts), float(group["elapsed"][0])

        return overhead_table(*ask(self.path, account))

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """The recorded steps, of numbers or raw tensors, `[T]`, increasing."""

        def recorded(file: Any, done: Committed) -> npt.NDArray[np.int64]:
            steps: npt.NDArray[np.int64] = _first(file["scalars/step"], done.steps)
            if "tensors" in file:
                raw = _first(file["tensors/step"], int(file["tensors/committed"][0]))
                steps = np.union1d(steps, raw)
            return steps

        steps: npt.NDArray[np.int64] = ask(self.path, recorded)
        return steps

    def to_xarray(self) -> "xarray.Dataset":
        """Return the run as an xarray dataset with named dimensions: see `zanalysis.to_xarray`.

        Returns:
            A variable for each metric, `[step, layer, tensor, reference]` or one dimension more.
        """
        from zanalysis.labelled import to_xarray

        return to_xarray(self)

    @property
    def spectrum_keys(self) -> tuple[SpectrumKey, ...]:
        """Which spectra are recorded: layer, tensor, reference."""
        return self._spectra

    @property
    def finished(self) -> bool:
        """Whether the writer closed the file, rather than being at it still or having been killed."""
        return not is_marked(self.path)

    @property
    def layers(self) -> list[str]:
        """The recorded layers, in the order of the model; what stands for the model itself is none."""
        keys: list[Series | SpectrumKey] = [*self.series, *self._spectra]
        numbers = [key.layer for key in keys if key.tensor != "jacobian"]
        return list(dict.fromkeys([*numbers, *self._raw]))

    @property
    def tensors(self) -> list[RecordedTensor]:
        """The raw tensors: layer, tensor, shape, dtype, and the steps at which each is there."""
        return ask(self.path, lambda file, _: described(file))

    @property
    def dropped(self) -> int:
        """How many steps of raw tensors were lost, because the queue was full and `on_full` was ``"drop"``."""
        return ask(self.path, lambda file, _: int(file["tensors/committed"][1]) if "tensors" in file else 0)

    def tensor(self, layer: str, tensor: str = "weight", step: int = 0) -> "Tensor":
        """Return one raw tensor, as `hooks.Recorder` kept it.

        Args:
            layer: the name of the parameter.
            tensor: ``"weight"``, ``"gradient"``, ``"activation"`` or ``"activation_gradient"``.
            step: a recorded step.

        Returns:
            The tensor in its own shape, in the dtype it was stored in, on the CPU.

        Raises:
            InputError: if it was not recorded, or not at this step; with what there is.
        """
        return ask(self.path, lambda file, _: tensor_at(file, str(self.path), layer, tensor, step))

    def tensor_over_time(
        self, layer: str, tensor: str = "weight", steps: Sequence[int] | None = None
    ) -> TensorSeries:
        """Return one raw tensor over the steps.

        Args:
            layer: the name of the parameter.
            tensor: as in `tensor`.
            steps: recorded steps; None for all.

        Returns:
            `.steps` `[T]` and `.values` `[T, *shape]`, in the dtype they were stored in, on the CPU; a list of T
            tensors where their shapes differ.

        Raises:
            InputError: if it was not recorded, or not at one of the steps.
        """
        name = str(self.path)
        return stacked(*ask(self.path, lambda file, _: tensors_at(file, name, layer, tensor, steps)))


def settings_of(
    file: Any, _: Committed
) -> tuple[dict[str, Any], tuple[Series, ...], tuple[SpectrumKey, ...], tuple[str, ...]]:
    """Read what does not change over a run.

    Args:
        file: an open run file.

    Returns:
        The attributes, the series, the spectra, and the layers of raw tensors.
    """
    return (
        json.loads(file["attributes"][:].tobytes()),
        tuple(Series(*row) for row in _rows(file, "scalars", Series._fields)),
        tuple(SpectrumKey(*row) for row in _rows(file, "spectra", SpectrumKey._fields)),
        tuple(key.layer for key in tensor_keys(file)),
    )


def _first(dataset: Any, count: int, *more: int) -> Any:
    """Return the committed rows: all of them, where h5py would return what there is.

    Args:
        dataset: of an open file.
        count: how many rows are committed.
        *more: what to take of the other dimensions.

    Returns:
        An array of `count` rows.

    Raises:
        ValueError: if there are fewer.
    """
    rows = dataset[(slice(count), *more)]
    if len(rows) != count:
        raise ValueError(f"{count} rows are committed, {len(rows)} are there")
    return rows


def _rows(file: Any, group: str, fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    if group not in file:
        return []
    return list(zip(*(file[f"{group}/{field}"].asstr()[:] for field in fields), strict=True))
