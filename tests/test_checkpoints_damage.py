"""Files that are cut, flipped, foreign or hostile: an answer or a sentence, and nothing taken beyond reason."""

import json
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import warnings
import zipfile

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

from hooks import RankTracker, every
from zanalysis.checkpoints import open_checkpoint, open_checkpoints
from zanalysis.errors import CheckpointError


def load_all(path):
    for checkpoint in open_checkpoints(path):
        for stored in checkpoint.tensors:
            if stored.place is not None:
                assert stored.load().shape == stored.shape


def refused(path, match):
    """The error names the file; return its text."""
    with pytest.raises(CheckpointError, match=match) as caught:
        load_all(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


FOREIGN = {
    "nothing": (b"", "is empty"),
    "a text": (b"hello, this is no checkpoint at all\n" * 10, "something else than a pickle|damaged"),
    "one byte": (b"\x80", "is truncated|damaged"),
    "zeros": (bytes(5000), "something else than a pickle|truncated or no safetensors"),
    "numpy": (b"\x93NUMPY" + bytes(100), "is a numpy array"),
    "gguf": (b"GGUF" + bytes(100), "is a GGUF file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "is compressed by gzip"),
    "git-lfs": (b"version https://example.org/spec/v1\noid sha256:0\nsize 1\n", "git-lfs has not fetched"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is HDF5, but no weights can be read from it"),
    "tar": (bytes(257) + b"ustar" + bytes(300), "is a tar archive"),
    "pickle": (pickle.dumps({"a": [1.0]}), "is a pickle, but not one of torch.save"),
    "old pickle": (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1, 2), "unknown version"),
    "zip": (b"PK\x03\x04" + bytes(100), "File is not a zip file"),
}


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "bin"])
@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_told(case, suffix, tmp_path):
    data, match = FOREIGN[case]
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(data)
    refused(path, match if suffix != "safetensors" else f"{match}|safetensors file")


def header(tmp_path, text, data=b""):
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(shape=(2, 2), offsets=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "out of the file": ({"w": entry((4, 4), (0, 64))}, "does not fit the bytes"),
    "shape and bytes differ": ({"w": entry((2, 3))}, "does not fit the bytes"),
    "negative size": ({"w": entry((-2, -2))}, "sizes that no memory holds"),
    "a product that overflows": ({"w": entry((1 << 40, 1 << 40))}, "sizes that no memory holds"),
    "a product that wraps to 4": ({"w": entry((1 << 62, 1 << 2))}, "sizes that no memory holds"),
    "a huge number": ({"w": entry((10**4000, 1))}, "sizes that no memory holds"),
    "a size that is true": ({"w": entry((True, 4))}, "sizes that no memory holds"),
    "a size with a comma": ({"w": entry((2.0, 2))}, "sizes that no memory holds"),
    "many axes": ({"w": entry((1,) * 65, (0, 4))}, "no valid shape"),
    "no shape": ({"w": {"dtype": "F32", "shape": 3, "data_offsets": [0, 16]}}, "no valid shape"),
    "offsets that go back": ({"w": entry(offsets=(16, 0))}, "does not fit the bytes"),
    "negative offsets": ({"w": entry(offsets=(-16, 0))}, "does not fit the bytes"),
    "three offsets": ({"w": entry(offsets=(0, 8, 16))}, "has no place"),
    "overlap": ({"a": entry(), "b": entry()}, "overlap or leave gaps"),
    "a gap": ({"a": entry((2, 1), (8, 16))}, "overlap or leave gaps"),
    "bytes of nobody": ({"a": entry((2, 1), (0, 8))}, "8 bytes belong to no tensor"),
    "an unknown dtype": ({"w": entry(dtype="F33")}, "of an unknown dtype"),
    "a dtype that is a list": ({"w": entry() | {"dtype": []}}, "of an unknown dtype"),
    "a strange key": ({"w": entry() | {"strides": []}}, "describes no tensor 'w'"),
    "an entry that is none": ({"w": 3}, "describes no tensor 'w'"),
    "metadata that is none": ({"__metadata__": 3, "w": entry()}, "metadata is no mapping"),
    "a list": ([], "header is no mapping"),
    "no JSON": (b"{" + b"x" * 30, "damaged or no checkpoint"),
    "no UTF-8": (b'{"\xff\xfe": 1}', "damaged or no checkpoint"),
    "a key twice": (b'{"w": {}, "w": {}}', "a name is there twice"),
    "deep": (b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    "empty": (b"{}", "16 bytes belong to no tensor"),
}


@pytest.mark.parametrize("case", LIES)
def test_headers_that_lie_are_refused(case, tmp_path):
    text, match = LIES[case]
    refused(header(tmp_path, text, bytes(16)), match)


@pytest.mark.parametrize("size", [0, 1, 60, 1 << 40, (1 << 64) - 1])
def test_header_lengths_that_lie_are_refused(size, tmp_path):
    path = header(tmp_path, {"w": entry()}, bytes(16))
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(path, "its header should have|damaged")


def test_a_header_of_absurd_length_is_not_read(tmp_path):
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((1 << 33).to_bytes(8, "little") + b"{")
        file.truncate(1 << 34)
    refused(path, "has a header of 8589934592 bytes; at most 33554432 are read")


def test_names_from_a_file_do_nothing_to_a_terminal(tmp_path):
    text = refused(header(tmp_path, {"w\x1b[2J\n\u202e": 3}, b""), "describes no tensor")
    assert text.isprintable()
    assert r"'w\x1b[2J\n\u202e'" in text


def rebuilt(path, change=lambda name, data: data, compress=zipfile.ZIP_STORED):
    """Write the members of an archive anew."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compress) as new, warnings.catch_warnings(action="ignore"):
        for name, data in members.items():
            made = change(name.rpartition("/")[2], data)
            for part in made if isinstance(made, list) else [made]:
                if part is not None:
                    new.writestr(name, part)
    return path


@pytest.fixture
def archive(tmp_path):
    torch.save({"fc.weight": torch.randn(4, 3), "fc.bias": torch.randn(4)}, tmp_path / "m.pt")
    return tmp_path / "m.pt"


ARCHIVES = {
    "compressed": ({"compress": zipfile.ZIP_DEFLATED}, "has a compressed or encrypted member"),
    "a short storage": ({"change": lambda n, d: d[:40] if n == "0" else d}, "storage '0' is too short"),
    "no storage": ({"change": lambda n, d: None if n == "0" else d}, "has no member 'm/data/0'"),
    "a member twice": ({"change": lambda n, d: [d, d] if n == "0" else d}, "two members of one name"),
    "no pickle": (
        {"change": lambda n, d: None if n == "data.pkl" else d},
        "without the data.pkl of torch.save",
    ),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_torch_would_not_write_are_refused(case, archive):
    changes, match = ARCHIVES[case]
    refused(rebuilt(archive, **changes), match)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb/data.pkl", bytes(1 << 26))
    refused(path, "compressed or encrypted")


def test_a_member_that_claims_more_than_the_file_is_refused(archive):
    data = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("m/data/0")
    size = info.file_size.to_bytes(4, "little")
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"m/data/0"))
    assert data[at + 20 : at + 28] == size * 2
    claimed = (1 << 31).to_bytes(4, "little")
    archive.write_bytes(data[: at + 20] + claimed * 2 + data[at + 28 :])
    refused(archive, "truncated or damaged at its member 'm/data/0'")


def strided(tmp_path, offset, shape, strides, numel=12, layout="zip"):
    """Write a tensor with these numbers over a storage of 12 elements, as no torch would."""

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, strides, False, None)

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", numel)
            return None

    path = tmp_path / "s.pt"
    with (tmp_path / "raw").open("wb") as file:
        Pickler(file, 2).dump({"w": Tensor()})
    data = (tmp_path / "raw").read_bytes()
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", data, len(data))
    writer.write_record("data/0", np.arange(12, dtype=np.float32).tobytes(), 48)
    writer.write_end_of_file()
    return path


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "match"),
    [
        (0, (4, 4), (4, 1), "reaches beyond its storage"),
        (1, (3, 4), (4, 1), "reaches beyond its storage"),
        (1 << 61, (1, 1), (1, 1), "reaches beyond its storage"),
        (-1, (2, 2), (2, 1), "strides do not fit"),
        (True, (2, 2), (2, 1), "strides do not fit"),
        (0.5, (2, 2), (2, 1), "strides do not fit"),
        (0, (2, 2), (-2, 1), "sizes that no memory holds"),
        (0, (2, 2), (1 << 61, 1), "sizes that no memory holds|reaches beyond"),
        (0, (2, 2), (2,), "strides do not fit"),
        (0, (2, 2), None, "no valid shape"),
        (0, (2, -2), (2, 1), "sizes that no memory holds"),
        (0, (1 << 40, 1 << 40), (0, 0), "sizes that no memory holds"),
        (0, [2] * 100, [0] * 100, "no valid shape"),
        (0, "ab", (2, 1), "no valid shape"),
    ],
)
def test_views_that_leave_their_storage_are_refused(offset, shape, strides, match, tmp_path):
    refused(strided(tmp_path, offset, shape, strides), match)


def test_a_storage_that_claims_more_than_its_member_is_refused(tmp_path):
    refused(strided(tmp_path, 0, (3, 4), (4, 1), numel=1 << 40), "storage '0' is too short")


def test_what_repeats_few_numbers_endlessly_is_skipped(tmp_path):
    (stored,) = open_checkpoint(strided(tmp_path, 0, (1 << 30, 1 << 20), (0, 0))).tensors
    assert (stored.status, stored.place) == ("skipped", None)
    assert "shows 48 stored bytes as 4503599627370496" in stored.why
    (small,) = open_checkpoint(strided(tmp_path, 1, (50, 3), (0, 2))).tensors
    assert torch.equal(small.load(), torch.tensor([[1.0, 3.0, 5.0]]).expand(50, 3))
    (windows,) = open_checkpoint(strided(tmp_path, 0, (10, 3), (1, 1))).tensors
    assert torch.equal(windows.load(), torch.arange(12.0).unfold(0, 3, 1))


def index(folder, weights):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors.index.json").write_text(
        weights if isinstance(weights, str) else json.dumps({"weight_map": weights})
    )
    return folder


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "a/../../secret.safetensors", "ABSOLUTE", "", "a\0b"]
)
def test_an_index_does_not_lead_out_of_its_folder(name, tmp_path):
    save_file({"w": torch.eye(2)}, tmp_path / "secret.safetensors")
    name = name.replace("ABSOLUTE", str(tmp_path / "secret.safetensors"))
    folder = index(tmp_path / "model", {"w": name})
    refused(folder, "which is no file in its folder; nothing outside is read")


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_does_not_lead_out_of_the_folder(linked, tmp_path):
    (tmp_path / "outside").mkdir()
    save_file({"w": torch.eye(2)}, tmp_path / "outside" / "secret.safetensors")
    folder = index(
        tmp_path / "model", {"w": "part/secret.safetensors" if linked == "folder" else "one.safetensors"}
    )
    if linked == "folder":
        (folder / "part").symlink_to(tmp_path / "outside")
    else:
        (folder / "one.safetensors").symlink_to(tmp_path / "outside" / "secret.safetensors")
    refused(folder, "a link that leads out of its folder")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").symlink_to(tmp_path / "outside" / "secret.safetensors")
    refused(folder, "a link that leads out of its folder")


def test_links_in_a_circle_and_indexes_that_lie_are_told(tmp_path):
    folder = index(tmp_path / "a", {"w": "one.safetensors"})
    refused(folder, "does not exist")
    (folder / "one.safetensors").symlink_to("two.safetensors")
    (folder / "two.safetensors").symlink_to("one.safetensors")
    refused(folder, "cannot be found|cannot be read|a link that leads")
    (folder / "one.safetensors").unlink()
    save_file({"w": torch.eye(2)}, folder / "one.safetensors")
    assert [t.name for t in open_checkpoint(folder).tensors] == ["w"]
    refused(
        index(folder, {"w": "one.safetensors", "v": "one.safetensors"}), "lists 'v', but 'one.safetensors'"
    )
    refused(index(folder, {"w": 3}), "is no index of shards")
    refused(index(folder, '{"weight_map": {"w": "a", "w": "b"}}'), "a name is there twice")
    refused(index(folder, "[" * 100_000), "nested too deeply|damaged")
    refused(index(folder, "[]"), "its JSON is no mapping")
    (folder / "sub").mkdir()
    refused(index(folder, {"w": "sub"}), "is a folder where a file")


def write_all(folder):
    """Write one small checkpoint of each kind; return the path to open, and the file to damage, by kind."""
    state = {"fc1.weight": torch.randn(6, 5), "fc1.bias": torch.randn(6), "view": torch.randn(6, 4)[1:4].t()}
    dense = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    training = {"model": state, "step": 3, "args": slice(1, 2), "history": [0.5] * 20}
    torch.save(training, folder / "zip.pt")
    torch.save(training, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(dense, folder / "model.safetensors", {"step": "3"})
    (folder / "sharded").mkdir()
    save_file(dense, folder / "sharded" / "one.safetensors")
    listed = {"metadata": {"note": "x" * 300}, "weight_map": dict.fromkeys(dense, "one.safetensors")}
    index(folder / "sharded", json.dumps(listed))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.Conv1d(2, 2, 3))).save(str(folder / "script.pt"))
        dcp.save({"model": dense, "step": 3}, checkpoint_id=folder / "dcp", no_dist=True)
    model = nn.Linear(3, 2)
    with RankTracker(model, path=folder / "run.h5", schedule=every(1)) as tracker:
        tracker.step()
    (chunks,) = (folder / "dcp").glob("*.distcp")
    return {
        "zip": (folder / "zip.pt", folder / "zip.pt"),
        "legacy": (folder / "legacy.pt", folder / "legacy.pt"),
        "safetensors": (folder / "model.safetensors", folder / "model.safetensors"),
        "sharded": (folder / "sharded", folder / "sharded" / "model.safetensors.index.json"),
        "torchscript": (folder / "script.pt", folder / "script.pt"),
        "dcp metadata": (folder / "dcp", folder / "dcp" / ".metadata"),
        "dcp chunks": (folder / "dcp", chunks),
        "run file": (folder / "run.h5", folder / "run.h5"),
    }


KINDS = ("zip", "legacy", "safetensors", "sharded", "torchscript", "dcp metadata", "dcp chunks", "run file")


def mutated(data, rng):
    """Flip, cut, repeat or overwrite something, more often near the beginning and the end."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = int(len(data) * rng.choice((rng.random(), rng.random() ** 4, 1 - rng.random() ** 4)))
        at = min(at, len(data) - 1)
        kind = rng.randrange(7)
        if kind <= 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at] = rng.randrange(256)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        elif kind == 5:
            huge = rng.choice((b"\xff" * 4, b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"9" * 12))
            data[at : at + len(huge)] = huge
        else:
            del data[at : at + rng.randrange(1, 40)]
        if not data:
            break
    return bytes(data)


def fuzz(path, file, count, seed):
    """Open and load damaged copies; return how many were answered and how many refused."""
    original = file.read_bytes()
    rng = random.Random(seed)
    errors = []
    for _ in range(count):
        file.write_bytes(mutated(original, rng))
        try:
            load_all(path)
        except CheckpointError as error:
            errors.append(str(error))
    file.write_bytes(original)
    assert all(str(path) in text and "\n" not in text for text in errors)
    return count - len(errors), len(errors)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    return write_all(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_an_answer_or_a_sentence(kind, written, monkeypatch):
    monkeypatch.setattr("zanalysis.runfile.opening._PAUSE", 0)
    path, file = written[kind]
    folder = written["zip"][0].parent
    before = sorted(folder.rglob("*"))
    answered, refused = fuzz(path, file, 60 if kind == "run file" else 300, seed=5)
    assert refused > 30
    assert answered > 5 or kind == "run file"
    assert sorted(folder.rglob("*")) == before


BATCH = """
    import importlib.util, pathlib, resource, sys
    spec = importlib.util.spec_from_file_location("damage", sys.argv[1])
    damage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(damage)
    written = damage.write_all(pathlib.Path(sys.argv[2]))
    held = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30),) * 2)
    for kind in ("zip", "legacy", "safetensors", "torchscript", "dcp metadata", "dcp chunks"):
        print(kind, *damage.fuzz(*written[kind], count=int(sys.argv[3]), seed=6))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
@pytest.mark.parametrize("count", [pytest.param(300, marks=pytest.mark.slow)])
def test_damaged_files_take_less_than_a_gibibyte(count, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(BATCH), __file__, str(tmp_path), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 6


PEAK = """
    import pathlib, resource, sys, torch
    from zanalysis.checkpoints import open_checkpoint
    checkpoint = open_checkpoint(sys.argv[1])
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, stored in enumerate(checkpoint.tensors):
        tensor = stored.load()
        assert tensor.shape == (4096, 4096) and tensor[7, 3] == int(stored.name[6:]), stored.name
    print(start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def large_safetensors(path):
    size = 64 << 20
    names = {
        f"layer.{i}": {"dtype": "F32", "shape": [4096, 4096], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(64)
    }
    raw = json.dumps(names).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for i in range(64):
            file.seek(8 + len(raw) + i * size + (7 * 4096 + 3) * 4)
            file.write(np.float32(i).tobytes())
        file.truncate(8 + len(raw) + 64 * size)


def large_archive(path):
    torch.save({f"layer.{i}": torch.empty(4096, 4096).fill_(i) for i in range(16)}, path)


@pytest.mark.slow
@pytest.mark.parametrize("write", [large_safetensors, large_archive])
def test_a_large_checkpoint_is_streamed(write, tmp_path):
    path = tmp_path / ("large.safetensors" if write is large_safetensors else "large.pt")
    if shutil.disk_usage(tmp_path).free < 6 << 30:
        pytest.skip("needs 6 GiB of disk")
    write(path)
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    start, peak = (int(number) for number in done.stdout.split())
    # KiB: two tensors at a time, the one just loaded and the one it replaces.
    assert peak - start < 2 * 65536 + 20_000, f"{start} -> {peak}"
    path.unlink()
