"""The run file: its specification, its twin in memory, and everything that can be wrong with a file."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zanalysis.analyzers.statuses import STATUSES
from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile import Initial, MemoryWriter, RunWriter, Series, SpectrumKey
from zanalysis.runfile.reader import open_run
from zanalysis.runfile.repair import mend, repair
from zanalysis.runfile.schema import clip_utf8
from zanalysis.runfile.superblock import lookup3
from zanalysis.runfile.tables import scalar_table

COLUMNS = ["step", "layer", "tensor", "reference", "tolerance_rule", "metric", "value", "tolerance", "status"]
SERIES = (
    Series("b", "weight", "none", "default", "rank"),
    Series("b", "weight", "none", "0.5", "rank"),
    Series("a", "weight", "none", "none", "stable_rank"),
    Series("a", "weight", "identity", "none", "größe"),
)
SPECTRA = (SpectrumKey("b", "weight", "none"), SpectrumKey("a", "weight", "init"))
K = 3


def numbers(rng, series=SERIES, spectra=SPECTRA, k=K):
    s, r = len(series), len(spectra)
    status = rng.integers(0, len(STATUSES), s).astype(np.uint8)
    return rng.standard_normal(s), rng.standard_normal(s), status, rng.standard_normal((r, k))


def written(path, steps=4, mode="x", start=0, close=True, **attributes):
    """Write a small run with some of everything."""
    rng = np.random.default_rng(start)
    writer = RunWriter(path, SERIES, SPECTRA, attributes, k=K, mode=mode, start=start)
    for step in range(start, start + steps):
        writer.append(step, *numbers(rng))
        writer.log(step, "loss", step / 2)
    writer.event(start, "note", "something happened", "b")
    writer.overhead({"metrics": 1.0, "writing": 0.5}, 3.0)
    writer.flush()
    if close:
        writer.close()
    return writer


def in_a_child(target, *args):
    """Run a function in a forked child that ends as a kill does, without any clean-up."""
    pid = os.fork()
    if pid == 0:
        try:
            _kept = target(*args)  # or the file would be closed before the end
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def killed(path, **kwargs):
    in_a_child(lambda: written(path, close=False, **kwargs))
    return path


def said_in_time(path, seconds=2):
    """Open and read a file in a child that is killed if it hangs; return what it raised, or the row count."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        try:
            run = open_run(path)
            run.logged(), run.events, run.overhead
            sender.send(len(run.table()))
        except BaseException as error:
            sender.send(f"{type(error).__name__}: {error}")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, f"{path} hangs"
    return receiver.recv()


def flags(path):
    return path.read_bytes()[11]


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


# --- the twin ---------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
reals = st.floats(width=64)
actions = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 5), st.integers(0, 2**31)),
    st.tuples(st.just("log"), words, reals),
    st.tuples(st.just("event"), words, words),
    st.tuples(st.just("flush")),
)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.lists(actions, max_size=20), st.lists(words, min_size=1, max_size=3, unique=True), st.booleans())
def test_what_is_written_is_what_is_read(tmp_path_factory, done, layers, with_spectra):
    path = tmp_path_factory.mktemp("twin") / "run.h5"
    series = [Series(layer, "weight", "none", "none", "norm") for layer in layers]
    spectra = [SpectrumKey(layer, "weight", "none") for layer in layers] if with_spectra else []
    attributes = {"layers": layers, "nested": {"x": [1, 2.5, None, True]}}
    file, memory = (
        RunWriter(path, series, spectra, attributes, k=K),
        MemoryWriter(series, spectra, attributes),
    )
    step = 0
    for action in done:
        match action:
            case ("append", ahead, seed):
                step += ahead
                value = numbers(np.random.default_rng(seed), series, spectra)
                for writer in (file, memory):
                    writer.append(step, *value)
            case ("log", name, value):
                for writer in (file, memory):
                    writer.log(step, name, value)
            case ("event", kind, text):
                for writer in (file, memory):
                    writer.event(step, kind, text, layers[0])
            case _:
                file.flush()
    file.close()

    run = open_run(path)
    assert run.attributes == memory.attributes
    assert run.series == memory.series
    assert run.layers == layers
    assert run.steps.tolist() == [row[0] for row in memory.rows]
    shape = (len(memory.rows), len(series))
    value, tolerance, status = (np.array([r[i] for r in memory.rows]).reshape(shape) for i in (1, 2, 3))
    expected = scalar_table(series, run.steps, value, tolerance, status.astype(np.uint8))
    pd.testing.assert_frame_equal(run.table(), expected)
    if with_spectra:
        for i, layer in enumerate(layers):
            want = np.array([row[4][i] for row in memory.rows]).reshape(-1, K)
            np.testing.assert_array_equal(run.spectra(layer).values, want)
    logged = run.logged()
    for at, name, number in {(s, n): (s, n, v) for s, n, v in memory.logged}.values():
        if name != "step":
            np.testing.assert_equal(logged.loc[logged["step"] == at, name].item(), number)
    assert run.events["text"].tolist() == [event[4] for event in memory.events]
    assert run.events["kind"].tolist() == [clip_utf8(event[2], 32).decode() for event in memory.events]


# --- the tables -------------------------------------------------------------------------------------


def test_the_table_has_the_columns_types_and_order_of_the_contract(tmp_path):
    written(tmp_path / "run.h5")
    table = open_run(tmp_path / "run.h5").table()
    assert list(table.columns) == COLUMNS
    assert table["step"].dtype == np.int64
    assert table["value"].dtype == table["tolerance"].dtype == np.float64
    assert len(table) == 4 * len(SERIES)
    keys = list(table[["step", "layer", "tensor", "reference", "metric"]].itertuples(index=False, name=None))
    assert keys == sorted(keys)
    assert set(table["status"]) <= set(STATUSES)
    assert table.index.tolist() == list(range(len(table)))


def test_a_file_with_no_record_gives_empty_tables(tmp_path):
    writer = RunWriter(tmp_path / "run.h5", SERIES, SPECTRA, k=K)
    assert flags(tmp_path / "run.h5") == 5  # for readers in other processes too
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        elsewhere = pool.submit(open_run, tmp_path / "run.h5").result()
    for run in (open_run(tmp_path / "run.h5"), elsewhere):
        table = run.table()
        assert list(table.columns) == COLUMNS
        assert len(table) == 0
        assert table["value"].dtype == np.float64
        assert table["step"].dtype == np.int64
        assert run.steps.tolist() == []
        assert run.spectra("b").values.shape == (0, K)
        assert list(run.logged().columns) == ["step"]
        assert list(run.events.columns) == ["step", "time", "kind", "layer", "text"]
        assert run.layers == ["b", "a"]
    writer.close()


def test_logged_scalars_have_a_column_each_and_the_last_of_a_step_counts(tmp_path):
    with_file = RunWriter(tmp_path / "run.h5", SERIES)
    for step, name, value in [(0, "b", 1.0), (0, "a", 2.0), (1, "b", 3.0), (1, "b", 4.0)]:
        with_file.log(step, name, value)
    with_file.close()
    table = open_run(tmp_path / "run.h5").logged()
    assert list(table.columns) == ["step", "b", "a"]
    assert table["step"].tolist() == [0, 1]
    assert table["b"].tolist() == [1.0, 4.0]
    assert table["a"].tolist()[0] == 2.0
    assert math.isnan(table["a"].tolist()[1])


def test_overhead_has_seconds_and_shares(tmp_path):
    written(tmp_path / "run.h5")
    table = open_run(tmp_path / "run.h5").overhead
    assert table["part"].tolist() == ["metrics", "writing", "total"]
    assert table["seconds"].tolist() == [1.0, 0.5, 1.5]
    assert table["share"].tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 2])


def test_an_unknown_spectrum_or_layer_is_said_with_what_there_is(tmp_path):
    written(tmp_path / "run.h5")
    run = open_run(tmp_path / "run.h5")
    with pytest.raises(InputError, match=r"no spectrum of layer 'c'.*it has: b \(weight, reference none\)"):
        run.spectra("c")
    with pytest.raises(InputError, match=r"holds no raw tensors; record them with hooks\.Recorder"):
        run.tensor("c")
    RunWriter(tmp_path / "plain.h5", SERIES).close()
    with pytest.raises(InputError, match="record it with metrics="):
        open_run(tmp_path / "plain.h5").spectra("a")


def test_long_runs_are_read_quickly(tmp_path):
    series = [Series(f"layer{i}", "weight", "none", "none", m) for i in range(50) for m in ("x", "y")]
    writer = RunWriter(tmp_path / "run.h5", series)
    row = np.arange(100.0), np.full(100, np.nan), np.zeros(100, np.uint8), np.empty((0, 16))
    for step in range(10_000):
        writer.append(step, *row)
        if step % 1000 == 0:
            writer.flush()
    writer.close()
    began = time.process_time()
    assert len(open_run(tmp_path / "run.h5").table()) == 1_000_000
    assert time.process_time() - began < 10  # a guard against accidents; the time itself is a benchmark


# --- the specification ------------------------------------------------------------------------------


def datasets(file):
    found = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("spectra", [(), SPECTRA])
@pytest.mark.parametrize("series", [(), SERIES])
def test_every_dataset_exists_at_once_chunked_resizable_and_of_fixed_width(tmp_path, series, spectra):
    path = tmp_path / "run.h5"
    RunWriter(path, series, spectra, k=K).close()
    with h5py.File(path, "r") as file:
        before = datasets(file)
        expected = {"committed", "attributes", "events", "overhead/part", "overhead/seconds"}
        expected |= {"overhead/elapsed"} | {f"logged/{n}" for n in ("step", "name", "value", "names")}
        expected |= {f"scalars/{n}" for n in ("step", "series", "value", "tolerance", "status")}
        expected |= {f"scalars/{n}" for n in Series._fields}
        if spectra:
            expected |= {f"spectra/{n}" for n in ("spectrum", "index", "value", *SpectrumKey._fields)}
        assert set(before) == expected
        for name, dataset in before.items():
            assert dataset.chunks is not None, name
            assert dataset.maxshape[0] is None, name
            for kind in [dataset.dtype] + [field[0] for field in (dataset.dtype.fields or {}).values()]:
                text = h5py.check_string_dtype(kind)
                assert text is None or (text.length is not None and text.encoding == "utf-8"), name
        assert file.attrs["format"] == "zanalysis-run"
        assert file.attrs["schema_version"] == 1
        assert file["committed"].shape == (5,)
        assert list(file["scalars/status"].attrs["words"]) == list(STATUSES)


def test_dimension_scales_are_attached(tmp_path):
    written(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r") as file:
        for name in ("value", "tolerance", "status"):
            scales = [dimension[0] for dimension in file[f"scalars/{name}"].dims]
            assert scales == [file["scalars/step"], file["scalars/series"]]
        scales = [dimension[0] for dimension in file["spectra/value"].dims]
        assert scales == [file["scalars/step"], file["spectra/spectrum"], file["spectra/index"]]
        assert file["scalars/layer"].dims[0][0] == file["scalars/series"]


def test_plain_h5py_and_pandas_read_a_closed_file(tmp_path):
    written(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r") as file:
        scalars = file["scalars"]
        columns = pd.MultiIndex.from_arrays(
            [scalars[name].asstr()[:] for name in Series._fields], names=Series._fields
        )
        table = pd.DataFrame(scalars["value"][:], index=scalars["step"][:], columns=columns)
    ours = open_run(tmp_path / "run.h5").table()
    rank = ours[(ours["layer"] == "b") & (ours["tolerance_rule"] == "default")]
    np.testing.assert_array_equal(table[("b", "weight", "none", "default", "rank")], rank["value"])


@pytest.mark.parametrize("text", ["é" * 300, "日本" * 200, "x" * 511 + "é", "plain", "a\ud800b"])
def test_long_names_and_texts_are_cut_as_valid_utf8(tmp_path, text):
    writer = RunWriter(tmp_path / "run.h5", SERIES)
    writer.event(3, text, text, text)
    writer.log(3, text, 1.0)
    writer.close()
    run = open_run(tmp_path / "run.h5")
    (event,) = run.events.itertuples(index=False)
    whole = text.encode("utf-8", "backslashreplace").decode()
    for field, width in (("kind", 32), ("layer", 128), ("text", 512)):
        value = getattr(event, field)
        assert len(value.encode()) <= width
        if len(whole.encode()) > width:
            assert value.endswith("…")
            assert whole.startswith(value[:-1])
        else:
            assert value == whole
    assert len(run.logged().columns[1].encode()) <= 128


def test_logged_names_never_share_a_column(tmp_path):
    long = "x" * 200
    given = ["a", "a\0", "a\\x00", "a\0\0", "b\udc80", "b\udc81", long + "1", long + "2", "é" * 64, "é" * 65]
    file, memory = RunWriter(tmp_path / "run.h5", SERIES), MemoryWriter(SERIES)
    for writer in (file, memory):
        for value, name in enumerate(given):
            writer.log(0, name, float(value))
            writer.log(1, name, float(-value))
    file.close()
    table = open_run(tmp_path / "run.h5").logged()
    assert table.iloc[0, 1:].tolist() == list(range(len(given)))
    assert list(table.columns)[1:] == [name for step, name, _ in memory.logged if step == 0]
    assert table.columns[1] == "a"
    assert table.columns[9] == "é" * 64
    assert all(len(name.encode()) <= 128 for name in table.columns)
    writer = RunWriter(tmp_path / "run.h5", SERIES, mode="a", start=1)
    writer.log(1, long + "2", 3.0)
    writer.close()
    assert len(open_run(tmp_path / "run.h5").logged().columns) == 1 + len(given)


def test_a_scalar_named_like_the_axis_leaves_an_event(tmp_path):
    file, memory = RunWriter(tmp_path / "run.h5", SERIES), MemoryWriter(SERIES)
    for writer in (file, memory):
        writer.log(3, "step", 1.0)
        writer.log(4, "step", 1.0)
    file.close()
    (event,) = open_run(tmp_path / "run.h5").events.itertuples(index=False)
    assert (event.step, event.kind) == (3, "log")
    assert event.text == memory.events[0][4]
    assert "named 'step' was not recorded" in event.text
    assert len(memory.events) == 1
    assert memory.logged == []


def test_a_layer_whose_name_is_no_utf8_is_written_as_an_escape(tmp_path):
    series = [Series("a\udc80", "weight", "none", "none", "x"), Series("a\0", "weight", "none", "none", "x")]
    spectra = [SpectrumKey("a\udc80", "weight", "none")]
    for mode in ("x", "a"):
        writer = RunWriter(tmp_path / "run.h5", series, spectra, {"name": "a\udc80"}, mode=mode)
        writer.event(0, "error", "a\udc80", "a\udc80")
        writer.close()
    run = open_run(tmp_path / "run.h5")
    assert run.layers == ["a\\udc80", "a\\x00"]
    assert run.events["layer"].tolist() == ["a\\udc80"] * 2
    assert run.attributes == {"name": "a\udc80"}
    assert run.spectra("a\\udc80").values.shape == (0, 16)


def test_steps_must_increase(tmp_path):
    writer = written(tmp_path / "run.h5", close=False)
    with pytest.raises(InputError, match="step 3 does not come after step 3"):
        writer.append(3, *numbers(np.random.default_rng(0)))
    writer.close()


# --- modes, locks, resuming -------------------------------------------------------------------------


def test_an_existing_file_is_refused_replaced_or_continued(tmp_path):
    path = tmp_path / "run.h5"
    written(path, steps=6)
    before = path.read_bytes()
    with pytest.raises(RunFileError, match="exists already, and nothing is overwritten unasked"):
        RunWriter(path, SERIES, SPECTRA, k=K)
    assert path.read_bytes() == before
    written(path, steps=3, mode="a", start=4)
    run = open_run(path)
    assert run.steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert run.logged()["step"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert run.events["step"].tolist() == [0, 4]
    written(path, steps=2, mode="w")
    assert open_run(path).steps.tolist() == [0, 1]
    assert names(tmp_path) == ["run.h5"]
    with pytest.raises(InputError, match="unknown mode 'r'"):
        RunWriter(path, SERIES, mode="r")


def test_going_on_gives_the_file_of_one_unbroken_run(tmp_path):
    rng = np.random.default_rng(0)
    rows = [numbers(rng) for _ in range(9)]

    def write(path, first, last, mode):
        writer = RunWriter(path, SERIES, SPECTRA, k=K, mode=mode, start=first)
        for step in range(first, last):
            writer.append(step, *rows[step])
        writer.close()

    write(tmp_path / "whole.h5", 0, 9, "x")
    write(tmp_path / "parts.h5", 0, 7, "x")
    write(tmp_path / "parts.h5", 5, 9, "a")
    whole, parts = open_run(tmp_path / "whole.h5"), open_run(tmp_path / "parts.h5")
    pd.testing.assert_frame_equal(parts.table(), whole.table())
    np.testing.assert_array_equal(
        parts.spectra("a", reference="init").values, whole.spectra("a", reference="init").values
    )


def test_a_killed_run_is_continued(tmp_path):
    path = killed(tmp_path / "run.h5", steps=6)
    assert flags(path) == 5
    written(path, steps=2, mode="a", start=3)
    assert open_run(path).steps.tolist() == [0, 1, 2, 3, 4]
    assert flags(path) == 0


def initial(scale=1.0):
    return [
        Initial("b", "float32", np.full((3, 2), scale, np.float32)),
        Initial("a", "bfloat16", np.full((2, 2, 5), int(scale), np.uint16)),
    ]


def resume(path, start, weights, kill=False, **attributes):
    def write():
        settings = {"view": "out", "start": start, **attributes}
        writer = RunWriter(path, SERIES, SPECTRA, settings, k=K, mode="a", start=start, initial=weights)
        writer.append(start, *numbers(np.random.default_rng(start)))
        writer.flush()
        kept = {one.layer: one.values.flat[0] for one in writer.initial()}
        if not kill:
            writer.close()
            assert kept["b"] == kept["a"]
        return kept, writer.before, writer

    return in_a_child(write) if kill else write()[:2]


def test_a_resumed_run_keeps_its_initial_weights_and_says_what_changed(tmp_path):
    path = tmp_path / "run.h5"
    kept, before = resume(path, 0, initial(1), user="first", optimizers=["SGD"])
    assert (kept["b"], before) == (1, None)
    resume(path, 5, initial(2), kill=True, user="second", optimizers=["Adam"])
    assert open_run(path).attributes["resumed"] == [{"start": 5, "user": "second", "optimizers": ["Adam"]}]
    kept, before = resume(path, 9, initial(3), user="third", optimizers=["SGD"])
    assert (kept["b"], before["user"], before["start"]) == (1, "second", 5)
    run = open_run(path)
    assert run.steps.tolist() == [0, 5, 9]
    assert [part["start"] for part in run.attributes["resumed"]] == [5, 9]
    assert run.attributes["optimizers"] == ["SGD"]
    with h5py.File(path, "r") as file:
        for index, one in enumerate(initial(1)):
            np.testing.assert_array_equal(file[f"initial/{index}"][:], one.values)
            assert file[f"initial/{index}"].chunks is not None
            assert dict(file[f"initial/{index}"].attrs)["dtype"] == one.dtype
    kept, before = resume(path, 7, initial(4), user="fourth")  # the third part goes
    assert [part["start"] for part in open_run(path).attributes["resumed"]] == [5, 7]
    assert before["user"] == "second"
    kept, before = resume(path, 0, initial(5), user="anew")
    run = open_run(path)
    assert (kept["b"], before, run.attributes["user"]) == (5, None, "anew")
    assert "resumed" not in run.attributes
    assert run.steps.tolist() == [0]


def test_initial_weights_that_are_not_there_are_asked_for(tmp_path):
    path = tmp_path / "run.h5"
    written(path)
    before = path.read_bytes()
    with pytest.raises(RunFileError, match=r"does not keep the initial weights.*pass them as a mapping"):
        RunWriter(path, SERIES, SPECTRA, k=K, mode="a", start=2, initial=initial())
    assert path.read_bytes() == before
    assert names(tmp_path) == ["run.h5"]


def test_mode_a_without_a_file_begins_one(tmp_path):
    written(tmp_path / "run.h5", mode="a", start=7, steps=1)
    assert open_run(tmp_path / "run.h5").steps.tolist() == [7]


@pytest.mark.parametrize(
    ("series", "spectra", "k", "view"),
    [
        (SERIES[:-1], SPECTRA, K, "out"),
        (SERIES[::-1], SPECTRA, K, "out"),
        (SERIES, (), K, "out"),
        (SERIES, SPECTRA, K + 1, "out"),
        (SERIES, SPECTRA, K, "in"),
    ],
)
def test_other_settings_do_not_go_into_the_same_file(tmp_path, series, spectra, k, view):
    path = tmp_path / "run.h5"
    written(path, view="out")
    before = path.read_bytes()
    with pytest.raises(RunFileError, match="attach with the settings it was made with"):
        RunWriter(path, series, spectra, {"view": view}, k=k, mode="a", start=2)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["run.h5"]


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "run.h5"
    (tmp_path / "link.h5").symlink_to(path)
    writer = written(path, close=False)
    code = f"from zanalysis.runfile import RunWriter; RunWriter({str(path)!r}, (), mode='w')"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    for mode in ("w", "a"):
        for name in ("run.h5", "link.h5"):
            with pytest.raises(RunFileError, match="is being written by another tracker"):
                RunWriter(tmp_path / name, SERIES, SPECTRA, k=K, mode=mode)
    with pytest.raises(RunFileError, match="is being written by another tracker"):
        repair(path)
    assert "is being written by another tracker" in child.communicate()[1]
    writer.append(9, *numbers(np.random.default_rng(0)))
    writer.close()
    writer.close()
    assert open_run(path).steps.tolist() == [0, 1, 2, 3, 9]
    assert names(tmp_path) == ["link.h5", "run.h5"]
    written(path, mode="w")


def test_the_lock_of_a_killed_writer_is_free(tmp_path):
    path = killed(tmp_path / "run.h5")
    assert (tmp_path / "run.h5.lock").exists()
    written(path, mode="w")
    assert names(tmp_path) == ["run.h5"]


def test_places_that_cannot_be_written_are_said(tmp_path):
    with pytest.raises(RunFileError, match="does not exist; create it first"):
        RunWriter(tmp_path / "no" / "run.h5", SERIES)
    with pytest.raises(RunFileError, match="is a folder; pass the name of a file"):
        RunWriter(tmp_path, SERIES)
    with pytest.raises(RunFileError, match="cannot write"):
        RunWriter(Path("/proc/run.h5"), SERIES)


def test_a_file_open_elsewhere_is_not_continued_and_stays_whole(tmp_path):
    path = tmp_path / "run.h5"
    written(path)
    with h5py.File(path, "r") as reader:
        written(path, mode="a", start=2, steps=5)
        assert reader["scalars/step"].shape == (4,)  # the file it had opened
    assert len(open_run(path).steps) == 7


def test_a_child_that_ends_by_exit_leaves_the_file_of_its_parent_alone(tmp_path):
    path = tmp_path / "run.h5"
    code = f"""
import os, sys, numpy as np
from zanalysis.runfile import RunWriter, Series
writer = RunWriter({str(path)!r}, [Series("a", "weight", "none", "none", "x")])
row = np.ones(1), np.ones(1), np.zeros(1, np.uint8), np.empty((0, 16))
for step in range(3): writer.append(step, *row)
writer.flush()
writer.append(3, *row)
if os.fork() == 0:
    sys.exit(0)
assert os.wait()[1] == 0, "the child failed"
assert open({str(path)!r}, "rb").read()[11] == 5, "the marks are gone"
for step in range(4, 3000): writer.append(step, *row)
writer.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert open_run(path).steps.tolist() == list(range(3000))


# --- files that are no runs -------------------------------------------------------------------------


def bad_files(folder):
    with h5py.File(folder / "foreign.h5", "w", libver="latest") as file:
        file["x"] = [1.0]
    with h5py.File(folder / "old.h5", "w") as file:
        file["x"] = [1.0]
    written(folder / "newer.h5")
    with h5py.File(folder / "newer.h5", "r+") as file:
        file.attrs["schema_version"] = 2
    (folder / "empty.h5").touch()
    (folder / "text.h5").write_text("step,value\n0,1\n")
    (folder / "folder.h5").mkdir()
    with h5py.File(folder / "hollow.h5", "w", libver="latest") as file:
        file.attrs["format"], file.attrs["schema_version"] = "zanalysis-run", 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.h5", "does not exist; pass the path given to RankTracker"),
        ("foreign.h5", "is an HDF5 file, but no run file"),
        ("old.h5", "is an HDF5 file, but no run file"),
        ("newer.h5", "has schema version 2, this zanalysis reads 1; upgrade"),
        ("empty.h5", "is empty"),
        ("text.h5", "is not an HDF5 file"),
        ("folder.h5", "is a folder"),
        ("hollow.h5", "is damaged"),
    ],
)
def test_what_is_no_run_file_is_said_in_a_sentence(tmp_path, name, sentence):
    bad_files(tmp_path)
    path = tmp_path / name
    with pytest.raises(RunFileError, match=sentence):
        open_run(path)
    if name == "missing.h5":
        return
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(RunFileError, match=r"run file|damaged|folder|schema"):
        RunWriter(path, SERIES, SPECTRA, k=K, mode="a")
    assert before is None or path.read_bytes() == before
    assert not list(tmp_path.glob("*.lock"))
    assert not list(tmp_path.glob(".*"))


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path):
    closed, left = tmp_path / "closed.h5", tmp_path / "left.h5"
    written(closed, steps=300)
    killed(left, steps=300)
    for whole in (closed.read_bytes(), left.read_bytes()):
        for size in [4, 11, 40, 47, 48, 100, *np.linspace(500, len(whole) - 1, 12).astype(int)]:
            path = tmp_path / "cut.h5"
            path.write_bytes(whole[:size])
            with pytest.raises(RunFileError, match=r"truncated|damaged|not an HDF5 file"):
                open_run(path).table()
            with pytest.raises(RunFileError, match=r"truncated|damaged|not a run file"):
                repair(path)
            assert path.read_bytes() == whole[:size]
            with pytest.raises(RunFileError, match=r"truncated|damaged|not a run file"):
                RunWriter(path, SERIES, SPECTRA, k=K, mode="a")


@pytest.mark.parametrize("make", [written, killed])
def test_a_cut_file_is_refused_at_once_at_any_length(tmp_path, make):
    path, cut = tmp_path / "run.h5", tmp_path / "cut.h5"
    make(path, steps=500)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for size in [7, 9, 47, 48, 200, 3000, len(whole) // 2, len(whole) - 1, *rng.integers(1, len(whole), 16)]:
        cut.write_bytes(whole[:size])
        said = said_in_time(cut)
        assert isinstance(said, str), size
        assert said.startswith(f"RunFileError: {cut} is truncated: it has {size} bytes"), said


@pytest.mark.parametrize("damage", ["flipped", "zeros"])
def test_a_killed_file_with_damaged_metadata_is_refused_at_once(tmp_path, damage):
    path = tmp_path / "run.h5"
    killed(path, steps=100)
    whole = path.read_bytes()
    for position in (60, 200, 1000, 2500):
        spoiled = bytearray(whole)
        spoiled[position:] = (
            bytes([whole[position] ^ 0x41]) + whole[position + 1 :]
            if damage == "flipped"
            else bytes(len(whole) - position)
        )
        path.write_bytes(spoiled)
        said = said_in_time(path)
        assert said == 400 or said.startswith(f"RunFileError: {path} is damaged"), said
        if damage == "zeros":
            with pytest.raises(RunFileError, match="is damaged"):
                repair(path)
            assert path.read_bytes() == spoiled


def test_only_regular_files_are_run_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path / "fifo", "/dev/null"):
        assert "RunFileError" in said_in_time(name)
        assert "is a pipe, a socket or a device" in said_in_time(name)
        for mode in ("w", "a"):
            with pytest.raises(RunFileError, match="is a pipe, a socket or a device"):
                RunWriter(name, SERIES, mode=mode)
        with pytest.raises(RunFileError, match="is no file"):
            repair(name)
    if Path("/proc/self/mem").exists():
        assert "RunFileError: cannot read /proc/self/mem" in said_in_time("/proc/self/mem")
    assert "does not exist" in said_in_time(tmp_path / "run.h5" / "below")


def test_flipped_bytes_never_give_another_table_silently_in_the_superblock(tmp_path):
    path = tmp_path / "run.h5"
    written(path)
    whole = path.read_bytes()
    for position in range(48):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        with pytest.raises(RunFileError, match=r"damaged|not an HDF5 file"):
            open_run(path)


# --- repair -----------------------------------------------------------------------------------------


def test_a_killed_file_reads_before_repair_and_plainly_after(tmp_path):
    path = killed(tmp_path / "run.h5", steps=50)
    before, table = path.read_bytes(), open_run(path).table()
    assert len(table) == 50 * len(SERIES)
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(path, "r")
    assert repair(path) is True
    after = path.read_bytes()
    changed = {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}
    assert changed <= {11, *range(28, 36), *range(44, 48)}
    with h5py.File(path, "r") as file:
        assert file["scalars/value"][:].shape == (50, len(SERIES))
    pd.testing.assert_frame_equal(open_run(path).table(), table)
    assert repair(path) is False
    assert path.read_bytes() == after


def test_repair_leaves_a_closed_file_and_strangers_alone(tmp_path):
    bad_files(tmp_path)
    written(tmp_path / "run.h5")
    before = (tmp_path / "run.h5").read_bytes()
    assert repair(tmp_path / "run.h5") is False
    assert (tmp_path / "run.h5").read_bytes() == before
    for name in ("foreign.h5", "old.h5", "empty.h5", "text.h5"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(RunFileError, match=r"no run file|not a run file"):
            repair(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    for name in ("missing.h5", "folder.h5"):
        with pytest.raises(RunFileError, match="does not exist, or is no file"):
            repair(tmp_path / name)
    assert not list(tmp_path.glob("*.lock"))


def test_repair_refuses_a_stranger_left_by_a_killed_program(tmp_path):
    path = tmp_path / "other.h5"

    def write():
        with h5py.File(path, "w", libver="latest") as file:
            file.create_dataset("x", (1,), "f4", maxshape=(None,), chunks=(1,))
        file = h5py.File(path, "r+", libver="latest")
        file.swmr_mode = True
        return file

    in_a_child(write)
    before = path.read_bytes()
    assert flags(path) == 5
    with pytest.raises(RunFileError, match="is an HDF5 file, but no run file"):
        mend(path)
    assert path.read_bytes() == before


def test_lookup3_has_its_published_value():
    assert lookup3(b"Four score and seven years ago") == 0x17770551


def test_lookup3_is_the_checksum_that_hdf5_writes(tmp_path):
    written(tmp_path / "run.h5")
    block = (tmp_path / "run.h5").read_bytes()[:48]
    assert lookup3(block[:44]) == int.from_bytes(block[44:], "little")


def test_a_reader_sees_a_live_file_from_the_moment_it_has_its_name(tmp_path):
    path = tmp_path / "run.h5"

    def write():
        for _ in range(40):
            written(path, steps=1, mode="w")

    child = multiprocessing.get_context("fork").Process(target=write)
    child.start()
    seen = 0
    while child.is_alive():
        if path.exists():
            assert len(open_run(path).steps) <= 1
            seen += 1
    child.join()
    assert child.exitcode == 0
    assert seen > 3
