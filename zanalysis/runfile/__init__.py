"""The run file: what a training leaves behind, in HDF5. This page is its specification.

Schema version 1
================

A run file is an HDF5 file in the latest format (superblock version 3), written in single-writer,
multiple-reader mode (SWMR). It can be read by this package while it is being written, and after its
writer was killed; once closed, by anything that reads HDF5. It is written in the format of HDF5 1.10, so that tools
built with that release or a later one read every dataset; and its dimension scales are those of netCDF-4, so that
`xarray.open_dataset(path, group="scalars")` finds named dimensions and coordinates.

A version number stands for what a reader may rely on. Datasets and attributes may be added within a version, and a
reader ignores what it does not know; to remove one, or to change what it means, takes a new version. Every
zanalysis reads all earlier versions, and refuses a later one by name; the tests keep a file of each.

Every dataset has an attribute ``description``, but those under ``/tensors/data``, and one ``units`` where its
numbers have a unit.

Every dataset exists from the moment the file appears under its name, is chunked, and can grow along
its first dimension: under SWMR nothing can be created, and small contiguous datasets are lost with a
killed writer. Datasets hold only numbers and fixed-width strings (UTF-8, padded with zero bytes; zero
bytes and lone surrogates within a name as escapes), because a variable-length string appended under
SWMR is silently unreadable afterwards.

Root attributes
    ``format`` = ``"zanalysis-run"``, ``schema_version`` = 1.

``/committed``  int64 `[5]`
    How many of each kind are complete: recorded steps, logged scalars, names of logged scalars,
    events; then how many bytes the file had by then. Written last at every flush: whatever lies
    beyond these counts is not there yet. A file that a killed writer left, and that has fewer bytes,
    was truncated since: HDF5 would silently read zeros beyond its end.

``/attributes``  uint8 `[bytes]`
    A UTF-8 JSON object, written when the run begins and when it is resumed: the model's structure with
    its activation functions and biases, layer shapes and dtypes, how each layer started, the optimizer
    with its hyper-parameters, the schedule, tolerances, references, view, package versions, the seed,
    and what the user added.
    ``resumed`` is a list with one object for each time the run was resumed: ``start``, the step from
    which it applies, and what may be otherwise from there on: ``model``, ``layers`` (how they started
    then), ``optimizers``, ``schedule``, ``probe``, ``jacobian``, ``budget``, ``torch_seed``, ``versions``,
    ``user``. A run resumed at or
    before its own start keeps no rows: it begins anew, with the new settings.

``/scalars``  one row for each recorded step, one column for each series
    ``step``            int64 `[T]`      completed optimizer steps; strictly increasing; dimension scale
    ``series``          int32 `[S]`      0, 1, 2, …; dimension scale
    ``layer``           string `[S]`     the parameter's qualified name less a final ``.weight``
    ``tensor``          string `[S]`     ``weight``, ``gradient``, …
    ``reference``       string `[S]`     what was subtracted: ``none``, ``init``, ``identity``, ``tensor``
    ``tolerance_rule``  string `[S]`     ``default``, ``numpy``, ``rounding``, an absolute number, ``none``
    ``metric``          string `[S]`
    ``value``           float64 `[T, S]` NaN where undefined
    ``tolerance``       float64 `[T, S]` the τ in force, in the weight's own unit; NaN where there is none
    ``status``          uint8 `[T, S]`   why a value is as it is; its attribute ``words`` names the codes, as do
                        ``flag_values`` and ``flag_meanings`` in the way of the CF conventions

``/spectra``  present where singular values are recorded; steps as in ``/scalars``
    ``step``            the dataset of ``/scalars`` under a second name
    ``spectrum``        int32 `[R]`      0, 1, 2, …; dimension scale
    ``index``           int32 `[k]`      0 for the largest singular value; dimension scale
    ``layer``, ``tensor``, ``reference``  string `[R]`
    ``value``           float64 `[T, R, k]` descending; NaN where a matrix has fewer, or is undefined

``/tensors``  present where raw tensors are recorded; steps of their own
    ``step``            int64 `[T]`      completed optimizer steps; strictly increasing; dimension scale
    ``layer``           string `[N]`     the parameter's qualified name less a final ``.weight``
    ``tensor``          string `[N]`     ``weight``, ``gradient``, ``activation``, ``activation_gradient``
    ``dtype``           string `[N]`     in which it is stored, in torch's words; empty where that may vary
    ``status``          uint8 `[T, N]`   ``ok`` where the tensor is there, else why it is not; its attribute
                        ``words`` names the codes
    ``data/0``, ``data/1``, …  one for each of the N, with attributes ``layer``, ``tensor``, ``dtype``. Of fixed
                        shape (weights, gradients): `[T, *shape]`, one step to a chunk up to 64 MiB; a dtype
                        that numpy lacks (bfloat16, float8) as the unsigned integers of its bits; fill values
                        where the status is not ``ok``. Of no fixed shape (activations, whose batch may
                        vary): uint8 `[bytes]`, the bytes of one step after those of another, little-endian,
                        in C order; with compression each step begins at a new chunk.
    ``varying``         int32 `[A]`      present where some have no fixed shape: which of the N
    ``extent``          int64 `[T, A, 11]`  present with them: where each begins in ``data``, in bytes; its dtype,
                        an index into the attribute ``dtypes``; how many dimensions it has, -1 where it is
                        not there; and up to eight dimensions
    ``committed``       int64 `[2]`      how many steps are complete, all their tensors there; and how many were
                        dropped, because the queue was full. Written after the tensors, before ``/committed``:
                        a reader never sees part of a step.

``/initial``  present where the reference ``init`` is recorded: what it stands for, also after a resume
    ``0``, ``1``, …     the weights of one layer when the tracker was first attached, in its own shape and
                        dtype; a dtype that numpy lacks (bfloat16) as the unsigned integers of its bits.
                        Attributes: ``layer``, its name; ``dtype``, in torch's words. One copy of the
                        recorded weights in all.

``/logged``  the user's own scalars, in the order of arrival
    ``step``            int64 `[N]`      dimension scale; a step may stand here several times
    ``name``            int32 `[N]`      row of ``names``
    ``value``           float64 `[N]`
    ``names``           string `[M]`     never ``step``; a name too long for its field, or with zero
                        bytes, ends in ``…`` and a digest: no two names share a row

``/events``  compound `[E]`: ``step`` int64, ``time`` float64 (Unix seconds), ``kind``, ``layer``, ``text``
    What went wrong or deserves to be known; a text too long for its field ends in ``…``.

``/overhead``
    ``part``            string `[P]`     the metrics by name, ``writing``, and what else costs time; dimension scale
    ``seconds``         float64 `[P]`    spent inside the training loop, so far
    ``elapsed``         float64 `[1]`    seconds since the tracker was attached, or the run was resumed

A flush writes and flushes dataset by dataset, ``/committed`` last. A file that was killed keeps its
consistency flags; `repair` clears them, so that plain HDF5 tools open it again. A file is prepared
under the name ``.NAME.part`` and renamed when it is complete; while it is written, ``NAME.lock`` lies
beside it. A run is resumed in a copy, in the same way; where it has more than 64 MiB it is cut in place
instead, and as long as that is not complete, ``.NAME.journal`` holds all of the change (see `overlay`).

How large a file will be says `predicted_size`.
"""

from zanalysis.runfile.memory import MemoryWriter, Writer
from zanalysis.runfile.schema import Initial, Kept, Series, SpectrumKey, TensorKey
from zanalysis.runfile.size import predicted_size
from zanalysis.runfile.writer import RunWriter

__all__ = [
    "Initial",
    "Kept",
    "MemoryWriter",
    "RunWriter",
    "Series",
    "SpectrumKey",
    "TensorKey",
    "Writer",
    "predicted_size",
]
