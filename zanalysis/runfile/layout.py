"""The datasets of schema version 1, as they are created, and as they are found again."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from zanalysis.errors import RunFileError
from zanalysis.runfile.schema import (
    EVENT,
    FORMAT,
    NAME_BYTES,
    SCHEMA_VERSION,
    STATUSES,
    Initial,
    Series,
    SpectrumKey,
    chunk_rows,
    plain,
    strings,
)

WEIGHTS = "unit of the tensor"

__all__ = ["check_same", "lay_out", "lay_out_initial", "lay_out_overhead", "same_initial"]


def lay_out(
    file: Any,
    series: Sequence[Series],
    spectra: Sequence[SpectrumKey],
    k: int,
    attributes: dict[str, Any],
    parts: Sequence[str],
) -> None:
    """Create every dataset of the schema, empty.

    Args:
        file: an open, new `h5py.File`.
        series: what the columns are.
        spectra: what the rows of the spectra are.
        k: how many singular values a spectrum keeps.
        attributes: facts stored with the run.
        parts: what the account of the time spent is divided into.
    """
    file.attrs["format"] = FORMAT
    file.attrs["schema_version"] = SCHEMA_VERSION

    def dataset(
        name: str, data: npt.NDArray[Any], what: str, chunk: int | None = None, units: str = ""
    ) -> Any:
        return _dataset(file, name, data, what, chunk, units)

    text = np.frombuffer(json.dumps(attributes).encode(), dtype=np.uint8)
    dataset("attributes", text, "UTF-8 JSON: the model, the optimizer, the settings", max(1, len(text)))
    count = len(series)
    step = dataset("scalars/step", np.empty(0, np.int64), "completed optimizer steps", units="steps")
    step.make_scale("step")
    column = dataset("scalars/series", np.arange(count, dtype=np.int32), "one number followed over the steps")
    column.make_scale("series")
    for field in Series._fields:
        made = dataset(
            f"scalars/{field}", strings([getattr(s, field) for s in series]), f"{field} of a series"
        )
        made.dims[0].attach_scale(column)
    for name, dtype, what, units in (
        ("value", np.float64, "the number; NaN where undefined, see status", "those of the metric"),
        (
            "tolerance",
            np.float64,
            "the threshold in force, in the unit of the weights; NaN where there is none",
            WEIGHTS,
        ),
        ("status", np.uint8, "how the value is to be read: index into the attribute words", ""),
    ):
        made = dataset(f"scalars/{name}", np.empty((0, count), dtype), what, units=units)
        made.dims[0].attach_scale(step)
        made.dims[1].attach_scale(column)
        made.attrs["coordinates"] = " ".join(Series._fields)  # as the CF conventions name them, for xarray
    status = file["scalars/status"].attrs
    status["words"] = list(STATUSES)
    status["flag_values"] = np.arange(len(STATUSES), dtype=np.uint8)
    status["flag_meanings"] = " ".join(STATUSES)
    if spectra:
        _lay_out_spectra(file, dataset, spectra, k, step)
    _lay_out_logged(dataset)
    dataset("events", np.empty(0, EVENT), "what went wrong or deserves to be known", 16)
    lay_out_overhead(file, parts)
    what = "complete steps, logged scalars, their names, events; bytes of the file by then"
    dataset("committed", np.zeros(5, np.int64), what, 5)


def _lay_out_logged(dataset: Any) -> None:
    arrival = dataset("logged/step", np.empty(0, np.int64), "completed optimizer steps", units="steps")
    arrival.make_scale("step")
    dataset("logged/name", np.empty(0, np.int32), "row of names").dims[0].attach_scale(arrival)
    value = dataset("logged/value", np.empty(0), "the user's own scalar", units="as logged")
    value.dims[0].attach_scale(arrival)
    words = np.empty(0, h5py.string_dtype("utf-8", NAME_BYTES))
    dataset("logged/names", words, "names of the user's scalars", 16).make_scale("names")


def _dataset(
    file: Any, name: str, data: npt.NDArray[Any], what: str, chunk: int | None = None, units: str = ""
) -> Any:
    row = int(np.prod(data.shape[1:])) * data.dtype.itemsize
    made = file.create_dataset(
        name,
        data=data,
        maxshape=(None, *(n or None for n in data.shape[1:])),
        chunks=(chunk or len(data) or chunk_rows(row), *(max(1, n) for n in data.shape[1:])),
    )
    made.attrs["description"] = what
    if units:
        made.attrs["units"] = units
    return made


def lay_out_overhead(file: Any, parts: Sequence[str]) -> None:
    """Begin an account of the time spent, in the place of another that may be there.

    Args:
        file: an open run file, not yet in SWMR mode.
        parts: what it is divided into.
    """
    if "overhead" in file:
        del file["overhead"]
    part = _dataset(file, "overhead/part", strings(list(parts)), "where the time went")
    part.make_scale("part")
    what = "seconds spent inside the training loop"
    _dataset(file, "overhead/seconds", np.zeros(len(parts)), what, units="s").dims[0].attach_scale(part)
    _dataset(file, "overhead/elapsed", np.zeros(1), "seconds since the tracker was attached", units="s")


def lay_out_initial(file: Any, initial: Iterable[Initial]) -> None:
    """Store the initial weights, in the place of others that may be there.

    Args:
        file: an open run file, not yet in SWMR mode.
        initial: the weights.
    """
    if "initial" in file:
        del file["initial"]
    for index, (layer, dtype, values) in enumerate(initial):
        what = "the weights that the reference init stands for"
        rows = chunk_rows(values[0].nbytes if len(values) else 1)
        made = _dataset(file, f"initial/{index}", values, what, rows)
        made.attrs["layer"] = layer
        made.attrs["dtype"] = dtype


def same_initial(file: Any, initial: Iterable[Initial]) -> bool:
    """Return whether a file keeps the initial weights of these layers, in these shapes.

    Args:
        file: an open run file.
        initial: the weights of the tracker that will go on.

    Returns:
        True also where there are none on both sides.
    """
    group = file.get("initial", {})
    kept = [group[str(index)] for index in range(len(group))]
    wanted = [(layer, values.shape) for layer, _, values in initial]
    return [(one.attrs["layer"], one.shape) for one in kept] == wanted


def _lay_out_spectra(file: Any, dataset: Any, spectra: Sequence[SpectrumKey], k: int, step: Any) -> None:
    # To netCDF a dimension is that of its own group or one above: the same dataset under a second name.
    file["spectra/step"] = step
    row = dataset(
        "spectra/spectrum", np.arange(len(spectra), dtype=np.int32), "one spectrum followed over the steps"
    )
    row.make_scale("spectrum")
    index = dataset("spectra/index", np.arange(k, dtype=np.int32), "0 for the largest singular value")
    index.make_scale("index")
    for field in SpectrumKey._fields:
        words = strings([getattr(s, field) for s in spectra])
        dataset(f"spectra/{field}", words, f"{field} of a spectrum").dims[0].attach_scale(row)
    value = dataset(
        "spectra/value",
        np.empty((0, len(spectra), k)),
        "singular values, descending, in the unit of the weights",
        units=WEIGHTS,
    )
    value.attrs["coordinates"] = " ".join(SpectrumKey._fields)
    for axis, scale in enumerate((step, row, index)):
        value.dims[axis].attach_scale(scale)


def check_same(
    file: Any,
    series: Sequence[Series],
    spectra: Sequence[SpectrumKey],
    k: int,
    attributes: Mapping[str, Any],
    path: Path,
) -> None:
    """Check that a file records what a tracker would.

    Args:
        file: an open run file.
        series: what the columns are to be.
        spectra: what the rows of the spectra are to be.
        k: how many singular values a spectrum is to keep.
        attributes: facts of the tracker.
        path: the file's name, for the error.

    Raises:
        RunFileError: if it records something else.
    """

    def rows(group: str, fields: Sequence[str]) -> list[tuple[str, ...]]:
        return list(zip(*(file[f"{group}/{field}"].asstr()[:] for field in fields), strict=True))

    same = rows("scalars", Series._fields) == _plain_rows(series)
    if "spectra" in file:
        same = same and rows("spectra", SpectrumKey._fields) == _plain_rows(spectra)
        same = same and file["spectra/value"].shape[2] == k
    else:
        same = same and not spectra
    # A number means something else in another view, an activation with other rows, though their names are the same.
    stored = json.loads(file["attributes"][:].tobytes())
    same = same and all(stored.get(key) == attributes.get(key) for key in ("view", "rows", "span_window"))
    same = same and (stored.get("probe") is None) == (attributes.get("probe") is None)
    if not same:
        raise RunFileError(
            f"{path} records other layers, metrics, references, tolerances or rows, or another view, window or probe "
            "than this tracker would; attach with the settings it was made with, or choose another name."
        )


def _plain_rows(keys: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [tuple(map(plain, key)) for key in keys]
