"""Raw tensors in the run file: what is written is what is read, in every dtype, whatever happens in between."""

import os
import re
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import zanalysis.runfile.change_journal as change_journal
import zanalysis.runfile.preparing as preparing
import zanalysis.runfile.tensor_layout as tensor_layout
from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile import Kept, MemoryWriter, RunWriter, Series, TensorKey, predicted_size
from zanalysis.runfile.bits import DTYPES, bits_of, tensor_of, word_of
from zanalysis.runfile.overlay import Overlay
from zanalysis.runfile.reader import open_run
from zanalysis.runfile.repair import repair

KEYS = (
    TensorKey("a", "weight", "bfloat16", (3, 4)),
    TensorKey("a", "activation"),
    TensorKey("b.c", "weight", "float32", (5, 2, 2)),
    TensorKey("b.c", "gradient", "float64", (5, 2, 2)),
)


def tensors(step):
    """The tensors of a step, None where there is none: no gradient at step 0, activations of any batch and dtype."""
    g = torch.Generator().manual_seed(step)
    activation = torch.randn(step % 3, 4, generator=g).to((torch.float32, torch.bfloat16)[step % 2])
    return (
        torch.randn(3, 4, generator=g).bfloat16(),
        activation,
        torch.randn(5, 2, 2, generator=g),
        torch.randn(5, 2, 2, generator=g).double() if step else None,
    )


def kept(step):
    return [
        Kept("no_gradient") if t is None else Kept("ok", word_of(t.dtype), bits_of(t)) for t in tensors(step)
    ]


def write(path, steps, mode="x", compression=None, close=True, flush_every=3, keys=KEYS):
    start = steps[0]
    writer = RunWriter(
        path, (), (), {"start": 0}, mode=mode, start=start, tensors=keys, compression=compression
    )
    for step in steps:
        writer.append_tensors(step, kept(step))
        writer.log(step, "loss", step / 2)
        if step % flush_every == 0:
            writer.flush()
    if close:
        writer.close()
    return writer


def check(run, steps):
    """Every tensor of these steps is there, bit for bit, and no other."""
    for listed, key in zip(run.tensors, KEYS, strict=True):
        there = [step for step in steps if tensors(step)[KEYS.index(key)] is not None]
        assert (listed.layer, listed.tensor, listed.steps.tolist()) == (key.layer, key.tensor, there)
    for step in steps:
        for key, expected in zip(KEYS, tensors(step), strict=True):
            if expected is None:
                with pytest.raises(InputError, match=r"at step 0 \(status no_gradient\)"):
                    run.tensor(key.layer, key.tensor, step)
                continue
            value = run.tensor(key.layer, key.tensor, step)
            assert value.dtype == expected.dtype
            assert torch.equal(value, expected), (key, step)


def in_a_child(target):
    pid = os.fork()
    if pid == 0:
        try:
            _kept = target()  # or the file would be closed before the end
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


# --- what is written is what is read ------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "lzf", "gzip"])
def test_every_tensor_of_every_step_comes_back_bit_for_bit(tmp_path, compression):
    write(tmp_path / "run.h5", range(12), compression=compression)
    run = open_run(tmp_path / "run.h5")
    check(run, range(12))
    assert run.steps.tolist() == list(range(12))
    assert run.layers == ["a", "b.c"]
    assert run.dropped == 0
    shapes = [(one.shape, one.dtype) for one in run.tensors]
    assert shapes == [
        ((3, 4), "bfloat16"),
        ((None, 4), "mixed"),
        ((5, 2, 2), "float32"),
        ((5, 2, 2), "float64"),
    ]


def test_a_record_in_memory_is_the_files_twin(tmp_path):
    memory = MemoryWriter((), (), {}, KEYS)
    for step in range(8):
        memory.append_tensors(step, kept(step))
    write(tmp_path / "run.h5", range(8))
    run = open_run(tmp_path / "run.h5")
    check(memory, range(8))
    for ours, theirs in zip(memory.tensors, run.tensors, strict=True):
        assert ours[:4] == theirs[:4]
    for key in KEYS:
        for steps in (None, [1, 2, 5]):
            one, other = (r.tensor_over_time(key.layer, key.tensor, steps) for r in (memory, run))
            assert one.steps.tolist() == other.steps.tolist()
            pairs = zip(one.values, other.values, strict=True)
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("word", DTYPES)
def test_every_dtype_is_kept_in_its_bits(tmp_path, word):
    dtype = getattr(torch, word)
    bits = torch.arange(2 * 3 * dtype.itemsize, dtype=torch.uint8).view(2, -1)
    value = bits.bool() if dtype == torch.bool else bits.view(dtype)
    keys = [TensorKey("x", "weight", word, tuple(value.shape)), TensorKey("x", "activation")]
    writer = RunWriter(tmp_path / "run.h5", (), tensors=keys)
    writer.append_tensors(0, [Kept("ok", word, bits_of(value.t().contiguous().t()))] * 2)
    writer.close()
    for tensor in ("weight", "activation"):
        back = open_run(tmp_path / "run.h5").tensor("x", tensor)
        assert back.dtype == dtype
        assert torch.equal(back.view(torch.uint8), value.view(torch.uint8))
    assert torch.equal(tensor_of(word, bits_of(value)).view(torch.uint8), value.view(torch.uint8))


def test_one_layer_over_time_is_read_in_one_go(tmp_path):
    write(tmp_path / "run.h5", range(12))
    run = open_run(tmp_path / "run.h5")
    series = run.tensor_over_time("a")
    assert series.steps.tolist() == list(range(12))
    assert torch.equal(series.values, torch.stack([tensors(step)[0] for step in range(12)]))
    chosen = run.tensor_over_time("b.c", "gradient", [7, 1, 2, 3])
    assert chosen.steps.tolist() == [7, 1, 2, 3]
    assert torch.equal(chosen.values, torch.stack([tensors(step)[3] for step in (7, 1, 2, 3)]))
    varying = run.tensor_over_time("a", "activation")
    assert isinstance(varying.values, list)
    assert [tuple(v.shape) for v in varying.values] == [(step % 3, 4) for step in range(12)]
    stacked = run.tensor_over_time("a", "activation", [1, 7])
    assert stacked.values.shape == (2, 1, 4)


def test_plain_h5py_reads_what_the_specification_says(tmp_path):
    write(tmp_path / "run.h5", range(6))
    with h5py.File(tmp_path / "run.h5", "r") as file:
        group = file["tensors"]
        assert group["committed"][:].tolist() == [6, 0]
        assert group["step"][:].tolist() == list(range(6))
        words = list(group["status"].attrs["words"])
        assert [words[code] for code in group["status"][0]] == ["ok", "ok", "ok", "no_gradient"]
        assert [group[f"data/{i}"].attrs["dtype"] for i in range(4)] == ["bfloat16", "", "float32", "float64"]
        assert dict(group["data/3"].attrs)["layer"] == "b.c"
        np.testing.assert_array_equal(group["data/2"][4], tensors(4)[2].numpy())
        assert group["data/3"].shape == (6, 5, 2, 2)
        bits = group["data/0"][5].astype(np.uint32) << 16  # bfloat16 is the upper half of float32
        np.testing.assert_array_equal(bits.view(np.float32), tensors(5)[0].float().numpy())
        offset, dtype, dimensions, *shape = group["extent"][4, 0].tolist()
        assert group["extent"].attrs["dtypes"][dtype] == "float32"
        content = group["data/1"][offset : offset + 16].view("<f4").reshape(shape[:dimensions])
        np.testing.assert_array_equal(content, tensors(4)[1].numpy())
        found = []
        file.visititems(lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        assert all(dataset.chunks is not None and dataset.maxshape[0] is None for dataset in found)
        assert file.attrs["schema_version"] == 1  # who knows nothing of raw tensors reads the rest


def test_a_tensor_larger_than_a_chunk_is_cut_by_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_layout, "_MOST_BYTES", 100)
    value = torch.arange(70.0).reshape(7, 10)
    writer = RunWriter(tmp_path / "run.h5", (), tensors=[TensorKey("x", "weight", "float32", (7, 10))])
    for step in range(3):
        writer.append_tensors(step, [Kept("ok", "float32", bits_of(value + step))])
        writer.flush()
    writer.close()
    with h5py.File(tmp_path / "run.h5", "r") as file:
        assert file["tensors/data/0"].chunks == (1, 3, 10)  # the last one is longer than what is left
    for step in range(3):
        assert torch.equal(open_run(tmp_path / "run.h5").tensor("x", step=step), value + step)


def test_what_was_not_recorded_is_said_with_what_there_is(tmp_path):
    write(tmp_path / "run.h5", range(0, 40, 10))
    run = open_run(tmp_path / "run.h5")
    for ask, sentence in (
        (lambda: run.tensor("b"), "has no raw tensors of layer 'b'; known: a, b.c."),
        (lambda: run.tensor("a", "gradient"), "has no gradient of layer 'a'; known: weight, activation."),
        (
            lambda: run.tensor("a", "weight", 14),
            "has no weight of 'a' at step 14; the nearest of its 4 steps, 0 to 30, are 10 and 20.",
        ),
        (lambda: run.tensor("a", "weight", 99), "the nearest of its 4 steps, 0 to 30, are 30."),
        (
            lambda: run.tensor_over_time("b.c", "gradient", [10, 0]),
            "has no gradient of 'b.c' at step 0 (status no_gradient); the nearest of its 3 steps, 10 to 30, are 10.",
        ),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)):
            ask()
    RunWriter(tmp_path / "empty.h5", (), tensors=KEYS).close()
    with pytest.raises(InputError, match="no step of it was recorded"):
        open_run(tmp_path / "empty.h5").tensor("a")
    assert open_run(tmp_path / "empty.h5").tensor_over_time("a").values.shape == (0, 3, 4)


@pytest.mark.parametrize(
    "make", [lambda path: RunWriter(path, (), tensors=KEYS), lambda _: MemoryWriter((), (), {}, KEYS)]
)
def test_tensors_that_were_not_announced_are_refused_and_nothing_is_written(tmp_path, make):
    writer = make(tmp_path / "run.h5")
    good = kept(1)
    float32 = np.zeros((3, 4), np.float32)
    for wrong, sentence in (
        (good[:3], "got 3 tensors for a step, expected 4"),
        ([Kept("ok", "float32", float32), *good[1:]], "is float32, stored as float32; expected bfloat16"),
        ([Kept("ok", "bfloat16", float32), *good[1:]], "expected bfloat16"),
        (
            [Kept("ok", "bfloat16", bits_of(torch.zeros(4, 3).bfloat16())), *good[1:]],
            r"shape \[4, 3\], expected \[3, 4\]",
        ),
        ([good[0], Kept("ok", "float32", np.zeros((1,) * 9, np.float32)), *good[2:]], "there is room for 8"),
        ([Kept("ok"), *good[1:]], "has status 'ok' and no values"),
        ([Kept("fine", *good[0][1:]), *good[1:]], "has status 'fine'"),
    ):
        with pytest.raises(InputError, match=sentence):
            writer.append_tensors(1, wrong)
    writer.append_tensors(1, good)
    with pytest.raises(InputError, match="step 1 does not come after step 1"):
        writer.append_tensors(1, good)
    writer.close()
    record = open_run(tmp_path / "run.h5") if isinstance(writer, RunWriter) else writer
    check(record, [1])


def test_a_file_without_raw_tensors_says_so(tmp_path):
    writer = RunWriter(tmp_path / "run.h5", [Series("a", "weight", "none", "none", "x")])
    with pytest.raises(InputError, match="was not made for raw tensors"):
        writer.append_tensors(0, [])
    writer.close()
    run = open_run(tmp_path / "run.h5")
    assert run.tensors == []
    assert run.dropped == 0
    with pytest.raises(InputError, match=r"holds no raw tensors; record them with hooks\.Recorder"):
        run.tensor("a")
    with pytest.raises(InputError, match="unknown compression 'zip'"):
        RunWriter(tmp_path / "other.h5", (), tensors=KEYS, compression="zip")
    with pytest.raises(InputError, match="a tensor of dtype complex32 cannot be recorded"):
        RunWriter(tmp_path / "other.h5", (), tensors=[TensorKey("a", "weight", "complex32", (2, 2))])
    assert names(tmp_path) == ["run.h5"]


# --- never part of a step -----------------------------------------------------------------------------


def test_a_writer_killed_at_any_of_its_writes_leaves_whole_steps_only(tmp_path):
    path = tmp_path / "run.h5"

    def killed_at(turn):
        path.unlink(missing_ok=True)

        def run():
            left = [turn]

            def counted(call):
                def wrapped(*args, **kwargs):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **kwargs)

                return wrapped

            writer = RunWriter(path, (), tensors=KEYS)
            for name in ("flush", "__setitem__", "resize"):
                setattr(h5py.Dataset, name, counted(getattr(h5py.Dataset, name)))
            for step in range(3):
                writer.append_tensors(step, kept(step))
                if step:
                    writer.flush()
            writer.close()

        in_a_child(run)

    seen = set()
    for turn in range(1, 50):
        killed_at(turn)
        run = open_run(path)
        done = len(run.steps)
        check(run, range(done))
        seen.add(done)
    assert seen == {0, 2, 3}


def test_a_reader_sees_only_what_is_committed(tmp_path):
    path = tmp_path / "run.h5"
    writer = write(path, range(4), close=False, flush_every=5)
    assert open_run(path).steps.tolist() == [0]
    writer.close()
    path.unlink()
    writer = RunWriter(path, (), tensors=KEYS)
    for step in range(4):
        writer.append_tensors(step, kept(step))
    assert open_run(path).steps.tolist() == []
    writer.flush()
    check(open_run(path), range(4))
    writer.append_tensors(4, kept(4))
    writer.drop_tensors(3)
    check(open_run(path), range(4))
    assert open_run(path).dropped == 0
    writer.flush()
    check(open_run(path), range(5))
    assert open_run(path).dropped == 3
    writer.drop_tensors()
    writer.close()
    assert open_run(path).dropped == 4


def test_a_compressed_chunk_is_written_once(tmp_path):
    sizes = []
    for every in (1, 50):
        path = tmp_path / f"{every}.h5"
        writer = RunWriter(path, (), tensors=[TensorKey("x", "activation")], compression="gzip")
        for step in range(100):
            values = np.random.default_rng(step).random((20, 50)).astype(np.float32)
            writer.append_tensors(step, [Kept("ok", "float32", values)])
            if step % every == 0:
                writer.flush()
        writer.close()
        sizes.append(path.stat().st_size)
    assert sizes[0] < 1.1 * sizes[1] < 1.5 * 100 * 4000  # or each flush would leave a chunk behind


# --- going on -----------------------------------------------------------------------------------------


@pytest.fixture(params=["copied", "in place"])
def size_limit(request, monkeypatch):
    if request.param == "in place":
        monkeypatch.setattr(preparing, "COPIED_BYTES", 0)
    return request.param


@pytest.mark.parametrize("compression", [None, "lzf"])
@pytest.mark.parametrize("start", [0, 1, 5, 9, 20])
def test_going_on_gives_the_tensors_of_one_unbroken_run(tmp_path, size_limit, compression, start):
    path = tmp_path / "run.h5"
    in_a_child(lambda: write(path, range(9), compression=compression, close=False))
    inode = path.stat().st_ino
    write(path, range(start, start + 6), "a", compression)
    assert (path.stat().st_ino == inode) == (size_limit == "in place")
    run = open_run(path)
    whole = [step for step in range(7) if step < start]  # of nine steps seven were flushed
    check(run, [*whole, *range(start, start + 6)])
    assert run.logged()["step"].tolist() == [*whole, *range(start, start + 6)]
    assert names(tmp_path) == ["run.h5"]
    with h5py.File(path, "r") as file:
        assert file["tensors/data/0"].shape[0] == len(run.steps)
        if compression is None:  # what was cut is gone, and the rest lies without gaps
            there = [*whole, *range(start, start + 6)]
            assert len(file["tensors/data/1"]) == sum(bits_of(tensors(step)[1]).nbytes for step in there)


def test_other_tensors_do_not_go_into_the_same_file(tmp_path, size_limit):
    path = tmp_path / "run.h5"
    write(path, range(3))
    before = path.read_bytes()
    for other in (KEYS[:3], KEYS[::-1], (KEYS[0]._replace(dtype="float16"), *KEYS[1:])):
        with pytest.raises(RunFileError, match="records other layers or tensors"):
            RunWriter(path, (), (), mode="a", start=1, tensors=other)
    with pytest.raises(RunFileError, match="or in another shape, dtype or compression"):
        RunWriter(path, (), (), mode="a", start=1, tensors=KEYS, compression="lzf")
    with pytest.raises(RunFileError, match="records other"):
        RunWriter(path, (), (), mode="a", start=1)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["run.h5"]


STAGES = ["journal", "half", "applied", "opened"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("then", ["read", "repair", "go on"])
def test_a_kill_while_a_large_file_is_taken_up_costs_nothing(tmp_path, monkeypatch, stage, then):
    monkeypatch.setattr(preparing, "COPIED_BYTES", 0)
    path = tmp_path / "run.h5"
    in_a_child(lambda: write(path, range(13), close=False))
    whole = path.read_bytes()

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def go_on():
        if stage == "journal":  # the change is written down, but not complete under its name
            monkeypatch.setattr("pathlib.Path.replace", die)
        elif stage == "half":

            def half(target, change):
                with target.open("r+b") as file:
                    for number, page in list(change.pages.items())[: len(change.pages) // 2]:
                        file.seek(number * 4096)
                        file.write(page)
                die()

            monkeypatch.setattr(change_journal, "apply", half)
        elif stage == "applied":
            whole_change = change_journal.apply
            monkeypatch.setattr(change_journal, "apply", lambda *change: die(whole_change(*change)))
        else:
            opened = preparing._opened
            monkeypatch.setattr(preparing, "_opened", lambda target: die(opened(target)))
        RunWriter(path, (), (), {"start": 0}, mode="a", start=8, tensors=KEYS)

    in_a_child(go_on)
    # Before the journal is there everything is as it was; from then on it is as it was to become.
    steps = range(13) if stage == "journal" else range(8)
    if stage == "journal":
        assert path.read_bytes() == whole
    if then == "read":
        check(open_run(path), steps)
    elif then == "repair":
        assert repair(path) is True
        with h5py.File(path, "r") as file:
            assert file["tensors/step"][: len(steps)].tolist() == list(steps)
        assert repair(path) is False
    else:
        write(path, range(8, 10), "a")
        check(open_run(path), range(10))
    assert set(names(tmp_path)) - {"run.h5.lock", ".run.h5.journal", ".run.h5.journal.part"} == {"run.h5"}
    if then == "go on":
        assert set(names(tmp_path)) <= {"run.h5", ".run.h5.journal.part"}


def test_a_journal_that_belongs_to_another_file_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "COPIED_BYTES", 0)
    path = tmp_path / "run.h5"
    in_a_child(lambda: write(path, range(6), close=False))
    monkeypatch.setattr(change_journal, "apply", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    in_a_child(lambda: RunWriter(path, (), (), {"start": 0}, mode="a", start=3, tensors=KEYS))
    monkeypatch.undo()
    journal = tmp_path / ".run.h5.journal"
    content = journal.read_bytes()
    assert len(open_run(path).steps) == 3
    for spoiled in (
        content[:-1],
        content[:100],
        b"",
        content[:50] + b"\1" + content[51:],
        b"other" + content,
    ):
        journal.write_bytes(spoiled)
        check(open_run(path), range(4))
    journal.write_bytes(content)
    path.unlink()
    write(tmp_path / "other.h5", range(5))
    (tmp_path / "other.h5").rename(path)
    check(open_run(path), range(5))
    write(path, range(9, 10), "a")
    assert not journal.exists()


def test_a_large_file_that_is_open_elsewhere_is_not_changed_under_its_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "COPIED_BYTES", 0)
    monkeypatch.setattr(preparing, "_PAUSE", 0.001)
    path = tmp_path / "run.h5"
    write(path, range(6))
    before = path.read_bytes()
    with h5py.File(path, "r"), pytest.raises(RunFileError, match="is open in another program"):
        write(path, range(3, 5), "a")
    assert path.read_bytes() == before
    assert names(tmp_path) == ["run.h5"]
    run = open_run(path)  # which holds nothing open
    write(path, range(3, 5), "a")
    check(run, range(5))


def test_an_overlay_is_a_file_in_memory_over_a_file(tmp_path):
    rng = np.random.default_rng(0)
    content = bytearray(rng.bytes(20_000))
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        overlay = Overlay(file)
        for _ in range(300):
            at, count = int(rng.integers(0, 30_000)), int(rng.integers(0, 9_000))
            match rng.integers(0, 3):
                case 0:
                    given = rng.bytes(count)
                    overlay.seek(at)
                    assert overlay.write(given) == count
                    if count:
                        content.extend(bytes(max(0, at + count - len(content))))
                        content[at : at + count] = given
                case 1:
                    overlay.truncate(at)
                    content = content[:at] + bytes(max(0, at - len(content)))
                case _:
                    overlay.seek(at)
                    assert overlay.read(count) == content[at : at + count]
        change = overlay.change()
    assert path.read_bytes() != content
    change_journal.apply(path, change)
    assert path.read_bytes() == content


# --- its size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["numbers", "spectra", "logged", "small", "large", "varying"])
def test_the_size_of_a_file_is_predicted(tmp_path, case):
    path = tmp_path / "run.h5"
    layers = [f"layer{i}" for i in range(20)]
    facts = {"view": "out", "x": "y" * 3000}
    series = [Series(layer, "weight", "none", "default", "rank") for layer in layers]
    row = np.zeros(20), np.zeros(20), np.zeros(20, np.uint8), np.zeros((0, 16))
    expected, writer = 0, None
    if case == "numbers":
        writer = RunWriter(path, series, (), facts)
        for step in range(3000):
            writer.append(step, *row)
            if step % 50 == 0:
                writer.flush()
        expected = predicted_size(series, 3000, attributes=facts)
    elif case == "spectra":
        spectra = [("a", "weight", "none"), ("b", "weight", "init")]
        spectra = [type(series[0])._make((*one, "", ""))[:3] for one in spectra]
        from zanalysis.runfile import SpectrumKey

        spectra = [SpectrumKey(*one) for one in spectra]
        writer = RunWriter(path, (), spectra, facts, k=7)
        empty = np.zeros(0), np.zeros(0), np.zeros(0, np.uint8), np.ones((2, 7))
        for step in range(3000):
            writer.append(step, *empty)
        expected = predicted_size((), 3000, spectra=spectra, k=7, attributes=facts)
    elif case == "logged":
        writer = RunWriter(path, (), (), facts)
        for step in range(4000):
            writer.log(step, f"name {step % 5}", 1.0)
        for step in range(100):
            writer.event(step, "note", "text")
        expected = predicted_size((), attributes=facts, logged=4000, names=5, events=100)
    else:
        shape = {"small": (8, 8), "large": (256, 300), "varying": None}[case]
        count = 40 if case == "large" else 1000
        keys = [TensorKey(layer, "weight", "float32" if shape else "", shape) for layer in layers[:5]]
        writer = RunWriter(path, (), (), facts, tensors=keys)
        value = Kept("ok", "float32", np.ones(shape or (3, 50), np.float32))
        for step in range(count):
            writer.append_tensors(step, [value] * 5)
            if step % 20 == 0:
                writer.flush()
        expected = predicted_size(
            attributes=facts, tensors=keys, tensor_steps=count, varying_bytes=0 if shape else 5 * 600 * count
        )
    writer.close()
    assert abs(path.stat().st_size - expected) <= 0.01 * expected + 16_384


def test_a_run_that_has_just_begun_is_small(tmp_path):
    writer = RunWriter(tmp_path / "run.h5", [Series("a", "weight", "none", "none", "x")] * 4)
    writer.append(0, np.zeros(4), np.zeros(4), np.zeros(4, np.uint8), np.zeros((0, 16)))
    writer.close()
    assert (tmp_path / "run.h5").stat().st_size < 80_000


def test_reading_numbers_loads_no_torch(tmp_path):
    write(tmp_path / "run.h5", range(2))
    code = (
        "import sys; from zanalysis.runfile.reader import open_run; "
        f"open_run({str(tmp_path / 'run.h5')!r}).tensors; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
