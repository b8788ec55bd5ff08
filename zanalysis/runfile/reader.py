"""Reading a run: closed, still being written, or left behind by a killed writer."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zanalysis.errors import InputError, NotBuiltYetError, did_you_mean
from zanalysis.runfile.opening import ask
from zanalysis.runfile.schema import Committed, Series, SpectrumKey
from zanalysis.runfile.tables import Spectra, event_table, logged_table, overhead_table, scalar_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "open_run"]


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
        """
        self.path = Path(path)
        self.attributes: dict[str, Any]
        self.attributes, self.series, self._spectra = ask(self.path, _described)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.steps)} steps of {len(self.layers)} layers)"

    def table(self) -> "pd.DataFrame":
        """Return every number recorded so far.

        Returns:
            Columns step, layer, tensor, reference, tolerance_rule, metric, value, tolerance, status;
            value and tolerance float64, in the unit of the metric and of the weights; sorted by step,
            layer, tensor, reference, metric. Empty if nothing is recorded yet.
        """

        def arrays(file: Any, done: Committed) -> list[Any]:
            return [
                _first(file[f"scalars/{name}"], done.steps)
                for name in ("step", "value", "tolerance", "status")
            ]

        return scalar_table(self.series, *ask(self.path, arrays))

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
        """The recorded steps, `[T]`, increasing."""
        steps: npt.NDArray[np.int64] = ask(
            self.path, lambda file, done: _first(file["scalars/step"], done.steps)
        )
        return steps

    @property
    def layers(self) -> list[str]:
        """The recorded layers, in the order of the model."""
        return list(dict.fromkeys([s.layer for s in self.series] + [s.layer for s in self._spectra]))

    def tensor(self, layer: str, tensor: str = "weight", step: int = 0) -> Any:
        """Return one recorded tensor.

        Args:
            layer: its name.
            tensor: ``"weight"``, …
            step: a recorded step.

        Raises:
            InputError: if the layer is unknown.
            NotBuiltYetError: otherwise: raw tensors come with `hooks.Recorder`.
        """
        if layer not in self.layers:
            raise InputError(f"{self.path} has no layer {layer!r}; {did_you_mean(layer, self.layers)}")
        raise NotBuiltYetError("Run.tensor (raw tensors are recorded by hooks.Recorder)")


def _described(file: Any, _: Committed) -> tuple[dict[str, Any], tuple[Series, ...], tuple[SpectrumKey, ...]]:
    return (
        json.loads(file["attributes"][:].tobytes()),
        tuple(Series(*row) for row in _rows(file, "scalars", Series._fields)),
        tuple(SpectrumKey(*row) for row in _rows(file, "spectra", SpectrumKey._fields)),
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
