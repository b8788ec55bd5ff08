"""CIFAR-10 and CIFAR-100, on small files in the published formats."""

import gzip
import hashlib
import io
import os
import pickle
import pickletools
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from zanalysis.errors import ZAnalysisError
from zanalysis.experiments.data import archives, cifar, load

FILES = {
    "cifar-10": [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
    "cifar-100": ["train", "test"],
}
FOLDERS = {
    ("cifar-10", "python"): "cifar-10-batches-py",
    ("cifar-10", "binary"): "cifar-10-batches-bin",
    ("cifar-100", "python"): "cifar-100-python",
    ("cifar-100", "binary"): "cifar-100-binary",
}


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its str, as the published files have them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_str2(self, value):
        value = value.encode("ascii") if isinstance(value, str) else value
        short = len(value) < 256
        head = b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))
        self.write(head + value)

    dispatch[bytes] = dispatch[str] = save_str2


def python2(value):
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue()


DUMPS = {
    "python 2": python2,
    "protocol 2": lambda value: pickle.dumps(value, protocol=2),
    "protocol 4": lambda value: pickle.dumps(value, protocol=4),
    "protocol 5": lambda value: pickle.dumps(value, protocol=5),
}


def samples(name, seed=0, count=12):
    rng = np.random.default_rng(seed)
    classes = 10 if name == "cifar-10" else 100
    return {
        file: (rng.integers(0, 256, (count, 3072)).astype(np.uint8), rng.integers(0, classes, count).tolist())
        for file in FILES[name]
    }


def contents(name, form, dump=python2, **options):
    made = {}
    for file, (rows, labels) in samples(name, **options).items():
        if form == "python":
            key = b"labels" if name == "cifar-10" else b"fine_labels"
            batch = {
                b"batch_label": b"a batch",
                key: labels,
                b"data": rows,
                b"filenames": [b"x.png"] * len(rows),
            }
            if name == "cifar-100":
                batch[b"coarse_labels"] = [label // 5 for label in labels]
            made[file] = dump(batch)
        else:
            first = [[label] if name == "cifar-10" else [label // 5, label] for label in labels]
            made[f"{file}.bin"] = np.concatenate([np.array(first, np.uint8), rows], axis=1).tobytes()
    return made


def write_tar(path, files, change=lambda member: member):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(change(member), io.BytesIO(content))


def write(folder, name, form, packed, dump=python2, **options):
    made = contents(name, form, dump, **options)
    inner = FOLDERS[name, form]
    if packed:
        write_tar(folder / f"{name}-{form}.tar.gz", {f"{inner}/{k}": v for k, v in made.items()})
    else:
        (folder / inner).mkdir(parents=True)
        for file, content in made.items():
            (folder / inner / file).write_bytes(content)
    return made


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("packed", [True, False])
def test_both_versions_packed_or_not_give_the_published_samples(tmp_path, name, form, packed):
    write(tmp_path / name, name, form, packed)
    loaded = load(name, tmp_path)
    expected = samples(name)
    rows = np.concatenate([expected[file][0] for file in FILES[name][:-1]])
    images, labels = loaded.train.batch(range(len(loaded.train)))
    literal = rows.reshape(-1, 3, 32, 32).astype(np.float32) / 255
    assert torch.equal(images, torch.from_numpy(literal))
    assert labels.tolist() == [label for file in FILES[name][:-1] for label in expected[file][1]]
    assert loaded.test.labels.tolist() == expected[FILES[name][-1]][1]
    assert (loaded.image, loaded.features) == ((3, 32, 32), 3072)
    assert loaded.classes == (10 if name == "cifar-10" else 100)
    assert loaded.train.images.dtype == torch.uint8
    assert loaded.train_images.shape == (len(rows), 3, 32, 32)


@pytest.mark.parametrize("dump", sorted(DUMPS))
def test_pickles_of_every_protocol_are_read_alike(tmp_path, dump):
    write(tmp_path / "a", "cifar-100", "python", packed=False, dump=DUMPS[dump])
    write(tmp_path / "b", "cifar-100", "binary", packed=False)
    assert load("cifar-100", tmp_path / "a").fingerprint == load("cifar-100", tmp_path / "b").fingerprint


def test_arrays_stored_by_columns_are_read_right(tmp_path):
    made = write(tmp_path, "cifar-100", "python", packed=False)
    rows, labels = samples("cifar-100")["train"]
    content = python2({b"fine_labels": labels, b"data": np.asfortranarray(rows)})
    assert content != made["train"]
    before = load("cifar-100", tmp_path).fingerprint
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    assert load("cifar-100", tmp_path).fingerprint == before


def test_the_written_pickles_are_of_the_published_kind():
    opcodes = {op.name for op, *_ in pickletools.genops(contents("cifar-10", "python")["data_batch_1"])}
    assert {"PROTO", "SHORT_BINSTRING", "BINSTRING", "BININT1", "REDUCE"} <= opcodes
    assert not opcodes & {"BINUNICODE", "SHORT_BINBYTES", "FRAME"}


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch /tmp/zanalysis-was-run",))


GOOD = np.zeros((12, 3072), np.uint8)
PICKLES = {
    "a program": ({b"labels": [0] * 12, b"data": GOOD, b"more": Hostile()}, "Nothing in it was run"),
    "no dict": ([1, 2], "holds no dict.*Nothing in it was run"),
    "another set": (
        {b"fine_labels": [0] * 12, b"data": GOOD},
        "should hold data and labels, but has .*fine_labels",
    ),
    "labels out of range": ({b"labels": [10] * 12, b"data": GOOD}, "holds the label 10, expected 0 to 9"),
    "labels below zero": ({b"labels": [-1] * 12, b"data": GOOD}, "holds the label -1, expected 0 to 9"),
    "too few labels": ({b"labels": [0] * 11, b"data": GOOD}, "holds 11 labels for 12 images"),
    "no sample": ({b"labels": [], b"data": GOOD[:0]}, "holds 0 labels for 0 images"),
    "short rows": ({b"labels": [0] * 12, b"data": GOOD[:, :3000].copy()}, "should hold rows of 3072 bytes"),
    "labels that are none": (
        {b"labels": ["a"] * 12, b"data": GOOD},
        "should hold data and labels, but has data",
    ),
}


@pytest.mark.parametrize("case", sorted(PICKLES))
def test_pickles_that_are_no_batch_are_named(tmp_path, case):
    write(tmp_path, "cifar-10", "python", packed=False)
    value, says = PICKLES[case]
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(python2(value))
    with pytest.raises(ZAnalysisError, match=f"data_batch_3 in .*{says}"):
        load("cifar-10", tmp_path)
    assert not Path("/tmp/zanalysis-was-run").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x01(U\x04da", b"GIF89a", b"\x80\x02}."], ids=range(4))
def test_damaged_pickles_are_named(tmp_path, content):
    write(tmp_path, "cifar-10", "python", packed=False)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(ZAnalysisError, match=r"test_batch in .*(is no batch of CIFAR|should hold data)"):
        load("cifar-10", tmp_path)


def test_damage_of_any_kind_is_an_error_of_ours_or_none(tmp_path):
    write(tmp_path, "cifar-100", "python", packed=False)
    path = tmp_path / "cifar-100-python" / "test"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    backslash = whole.replace(b".multiarray\n", b"\\cmultiarray\n", 1)
    assert backslash != whole
    refused = []
    for trial in range(100):
        damaged = bytearray(whole)
        for at in rng.integers(0, 400, 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(backslash if trial == 0 else damaged)
        try:
            load("cifar-100", tmp_path)
        except ZAnalysisError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not [says for says in refused if "\n" in says]


def test_an_array_that_lies_about_its_length_is_refused(tmp_path):
    write(tmp_path, "cifar-10", "python", packed=False)
    content = contents("cifar-10", "python")["test_batch"]
    at = content.index(b"K\x0cM\x00\x0c")  # the shape (12, 3072)
    lying = content[:at] + b"K\x0d" + content[at + 2 :]
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(lying)
    with pytest.raises(ZAnalysisError, match="not as long as it says"):
        load("cifar-10", tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes are no whole number of records of 3073"),
        (bytes(3072), "3072 bytes are no whole"),
        (b"\x0a" + bytes(3072), "holds the label 10"),
    ],
)
def test_damaged_binary_files_are_named(tmp_path, content, says):
    write(tmp_path, "cifar-10", "binary", packed=False)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(ZAnalysisError, match=f"data_batch_2.bin in .*{says}"):
        load("cifar-10", tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_named(tmp_path, share):
    write(tmp_path, "cifar-100", "binary", packed=True)
    path = tmp_path / "cifar-100-binary.tar.gz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ZAnalysisError, match=r"(cannot read .*|)cifar-100-binary\.tar\.gz.* fetch it again"):
        load("cifar-100", tmp_path)


def test_names_that_lead_out_of_an_archive_are_never_used(tmp_path):
    made = contents("cifar-100", "binary")
    files = {f"cifar-100-binary/{name}": content for name, content in made.items()}
    outside = {f"../{tmp_path.name}-outside": b"x", "/tmp/zanalysis-outside": b"x"}
    write_tar(tmp_path / "in" / "cifar-100-binary.tar.gz", {**outside, **files})
    assert len(load("cifar-100", tmp_path / "in").test) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not Path("/tmp/zanalysis-outside").exists()
    # The right file under a wrong name is not taken for it.
    write_tar(
        tmp_path / "in" / "cifar-100-binary.tar.gz",
        {f"cifar-100-binary/../{name}": content for name, content in made.items()},
    )
    with pytest.raises(
        ZAnalysisError, match=r"lacks cifar-100-binary/train\.bin, cifar-100-binary/test\.bin"
    ):
        load("cifar-100", tmp_path / "in")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_links_in_an_archive_are_refused(tmp_path, kind):
    def link(member):
        if member.name.endswith("test.bin"):
            member.type, member.linkname, member.size = kind, "/etc/hostname", 0
        return member

    made = contents("cifar-100", "binary")
    files = {f"cifar-100-binary/{name}": content for name, content in made.items()}
    write_tar(tmp_path / "cifar-100-binary.tar.gz", files, link)
    with pytest.raises(ZAnalysisError, match=r"test\.bin as a link or a folder, not as a file"):
        load("cifar-100", tmp_path)


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    made = contents("cifar-100", "binary")
    path = tmp_path / "cifar-100-binary.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name in ("train.bin", "test.bin", "train.bin"):
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(made[name])
            tar.addfile(member, io.BytesIO(made[name]))
    with pytest.raises(ZAnalysisError, match=r"holds cifar-100-binary/train\.bin twice"):
        load("cifar-100", tmp_path)


@pytest.mark.parametrize("name", ["cifar-100-binary/train.bin", "anything", "././@LongLink"])
def test_an_archive_that_unpacks_to_too_much_is_left(tmp_path, monkeypatch, name):
    what = cifar._SETS["cifar-100"]
    monkeypatch.setattr(archives, "_OVERHEAD", 1 << 16)
    monkeypatch.setitem(cifar._SETS, "cifar-100", replace(what, binary=replace(what.binary, most=1 << 16)))
    unpacked = []
    whole = gzip.GzipFile.read

    def counted(self, size=-1):
        unpacked.append(size)
        return whole(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    header = tarfile.TarInfo(name)
    header.size = 16 << 20
    if name.startswith("./."):
        header.type = tarfile.GNUTYPE_LONGNAME
    bomb = gzip.compress(header.tobuf() + bytes(header.size))
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(bomb)
    with pytest.raises(ZAnalysisError, match="unpacks to more than 131072 bytes"):
        load("cifar-100", tmp_path)
    assert 0 < sum(unpacked) <= (2 << 16) + (1 << 16)


def test_files_of_the_published_size_must_be_the_published_ones(tmp_path, monkeypatch):
    what = cifar._SETS["cifar-100"]
    monkeypatch.setitem(cifar._SETS, "cifar-100", replace(what, published=(12, 12)))
    made = write(tmp_path, "cifar-100", "binary", packed=False)
    with pytest.raises(
        ZAnalysisError, match=r"train\.bin in .* is not the published train\.bin of cifar-100"
    ):
        load("cifar-100", tmp_path)
    version = cifar._SETS["cifar-100"].binary
    for name, content in made.items():
        monkeypatch.setitem(version.files, name, hashlib.md5(content).hexdigest())
    assert len(load("cifar-100", tmp_path).train) == 12
    folder = tmp_path / "cifar-100-binary"
    (folder / "train.bin").write_bytes(made["test.bin"])
    with pytest.raises(ZAnalysisError, match=r"holds test\.bin of cifar-100, not train\.bin of cifar-100"):
        load("cifar-100", tmp_path)


def test_what_is_missing_is_named_with_its_place_and_source(tmp_path, monkeypatch):
    monkeypatch.delenv("ZANALYSIS_DATA", raising=False)
    says = r"put cifar-10-python\.tar\.gz or .* into .*cifar-10 \(from https://www\.cs\.toronto\.edu"
    with pytest.raises(ZAnalysisError, match=says):
        load("cifar-10", tmp_path)
    with gzip.open(tmp_path / "cifar-10-python.tar.gz", "wb") as file:
        file.write(b"")
    with pytest.raises(ZAnalysisError, match=r"cifar-10-python\.tar\.gz.* fetch it again"):
        load("cifar-10", tmp_path)
