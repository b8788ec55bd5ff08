"""Data sets, on small files in the published format."""

import gzip
import hashlib
import os
import struct

import numpy as np
import pytest
import torch

from zanalysis.errors import InputError, ZAnalysisError
from zanalysis.experiments.data import idx as data
from zanalysis.experiments.data import load

SHAPES = {
    "train-images-idx3-ubyte": (7, 28, 28),
    "train-labels-idx1-ubyte": (7,),
    "t10k-images-idx3-ubyte": (3, 28, 28),
    "t10k-labels-idx1-ubyte": (3,),
}


def idx(array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_idx(folder, name, shape, compressed, seed=0):
    array = np.random.default_rng(seed).integers(0, 10, shape).astype(np.uint8)
    content = idx(array)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name + ".gz" * compressed)
    path.write_bytes(gzip.compress(content) if compressed else content)
    return array


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_idx_files_are_read_from_a_folder(tmp_path, monkeypatch, compressed, nested):
    folder = tmp_path / "mnist" if nested else tmp_path
    arrays = {name: write_idx(folder, name, shape, compressed) for name, shape in SHAPES.items()}
    monkeypatch.setenv("ZANALYSIS_DATA", str(tmp_path))
    loaded = load("mnist")
    images = arrays["train-images-idx3-ubyte"]
    assert torch.equal(loaded.train_images, torch.from_numpy(images.astype(np.float32) / 255))
    assert loaded.test_labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert (loaded.features, loaded.classes) == (784, 10)


def test_missing_files_say_which_and_where_and_what_was_asked(tmp_path, monkeypatch):
    put = r"put train-images-idx3-ubyte\.gz, .* into .*fashion-mnist"
    with pytest.raises(ZAnalysisError, match=rf"{put} .*or leave out --data-dir \(data_dir\)"):
        load("fashion-mnist", tmp_path)
    monkeypatch.setenv("ZANALYSIS_DATA", str(tmp_path))
    with pytest.raises(ZAnalysisError, match=rf"{put} .*or unset ZANALYSIS_DATA"):
        load("fashion-mnist")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGE = {
    "truncated": (LABELS, b"\0\0\x08\x01\0\0\0\x09abc", "is truncated or damaged"),
    "a picture": (LABELS, b"GIF89a", "is not an IDX file"),
    "empty": (LABELS, b"", "is not an IDX file"),
    "more dimensions than there is room for": (IMAGES, b"\0\0\x08\xff" + bytes(9), "is truncated or damaged"),
    "labels for images": (IMAGES, idx(np.zeros(7)), "should hold images, .* 3 dimensions.* swapped"),
    "images for labels": (LABELS, idx(np.zeros((7, 2, 2))), "should hold labels, .* 1 dimension, .* swapped"),
    "a label missing": (LABELS, idx(np.zeros(6)), "holds 6 labels for the 7 images of .*train-images"),
    "a label too large": (LABELS, idx(np.full(7, 77)), "holds the label 77, expected 0 to 9"),
    "no image": (IMAGES, idx(np.zeros((0, 28, 28))), "holds no image"),
    "no pixel": (IMAGES, idx(np.zeros((7, 0, 28))), "holds no image"),
    "images of another size": ("t10k-images-idx3-ubyte", idx(np.zeros((3, 8, 8))), "8×8 pixels, .* of 28×28"),
    "nobody's, of the published size": (
        "t10k-labels-idx1-ubyte",
        idx(np.zeros(10_000)),
        "is not the published",
    ),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_damaged_files_are_named(tmp_path, name):
    for file, shape in SHAPES.items():
        write_idx(tmp_path, file, shape, compressed=False)
    damaged, content, says = DAMAGE[name]
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(ZAnalysisError, match=f"{damaged}.*{says}"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("where", [15, -6])
def test_damaged_compression_is_named(tmp_path, where):
    for file, shape in SHAPES.items():
        write_idx(tmp_path, file, shape, compressed=True)
    path = tmp_path / f"{IMAGES}.gz"
    content = bytearray(path.read_bytes())
    content[where] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ZAnalysisError, match=rf"cannot read .*{IMAGES}\.gz: .*; fetch it again"):
        load("mnist", tmp_path)


def test_one_data_set_does_not_pass_for_another(tmp_path, monkeypatch):
    for file, shape in SHAPES.items():
        write_idx(tmp_path / "mnist", file, shape, compressed=False)
        write_idx(tmp_path, file, shape, compressed=False)
    for folder in (tmp_path / "mnist", tmp_path):
        with pytest.raises(ZAnalysisError, match="fashion-mnist is not in"):
            load("fashion-mnist", folder)
    assert len(load("mnist", tmp_path / "mnist").train_images) == 7
    # Under the right folder name too, the contents tell.
    content = idx(np.zeros(10_000))
    for file, shape in SHAPES.items():
        write_idx(tmp_path / "fashion-mnist", file, shape, compressed=False)
    (tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte").write_bytes(content)
    known = {**data._CONTENTS, "mnist": (*data._CONTENTS["mnist"][:3], hashlib.md5(content).hexdigest())}
    monkeypatch.setattr(data, "_CONTENTS", known)
    with pytest.raises(
        ZAnalysisError, match="t10k-labels-idx1-ubyte of mnist, not t10k-labels-idx1-ubyte of fash"
    ):
        load("fashion-mnist", tmp_path)


def test_the_fingerprint_tells_training_sets_apart(tmp_path):
    for file, shape in SHAPES.items():
        write_idx(tmp_path, file, shape, compressed=False)
    before = load("mnist", tmp_path).fingerprint
    assert load("mnist", tmp_path).fingerprint == before
    write_idx(tmp_path, LABELS, (7,), compressed=False, seed=1)
    assert load("mnist", tmp_path).fingerprint != before


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        load("mnits")


def test_fetching_that_fails_says_what_to_do(monkeypatch, tmp_path):
    pooch = pytest.importorskip("pooch")
    monkeypatch.delenv("ZANALYSIS_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)

    def refuse(self, file):
        raise ConnectionError("no network")

    monkeypatch.setattr(pooch.Pooch, "fetch", refuse)
    with pytest.raises(
        ZAnalysisError, match=r"could not be fetched .* pass the folder above it as --data-dir"
    ):
        load("mnist")


def test_digits_are_bundled():
    loaded = load("digits")
    assert loaded.train_images.shape == (1437, 8, 8)
    assert loaded.test_images.shape == (360, 8, 8)
    assert float(loaded.train_images.max()) == 1.0
    # Three of the 64 pixels are never inked: the bound that the data set themselves.
    assert int(loaded.train_images.flatten(1).any(0).sum()) == 61


@pytest.mark.slow
def test_real_mnist_has_717_pixels_that_are_ever_inked():
    if "ZANALYSIS_DATA" not in os.environ:
        pytest.skip("needs MNIST: set ZANALYSIS_DATA to its folder")
    loaded = load("mnist")
    assert loaded.train_images.shape == (60000, 28, 28)
    assert int(loaded.train_images.flatten(1).any(0).sum()) == 717


def test_digits_keep_their_shades_in_both_splits_and_in_subsets():
    from sklearn.datasets import load_digits

    expected = torch.from_numpy(load_digits().images.astype(np.float32) / 16)
    loaded = load("digits")
    assert torch.equal(torch.cat([loaded.train_images, loaded.test_images]), expected)
    assert torch.equal(loaded.test.batch([0, 359])[0][:, 0], expected[[1437, 1796]])
    assert float(loaded.subset(test=10).test_images.max()) == 1.0


def test_compressed_files_that_unpack_to_too_much_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MOST_BYTES", 10_000)
    for file, shape in SHAPES.items():
        write_idx(tmp_path, file, shape, compressed=True)
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(ZAnalysisError, match=rf"{IMAGES}\.gz holds more than 10000 bytes"):
        load("mnist", tmp_path)


def test_theorem_1_names_the_sets_that_it_is_for(tmp_path):
    from zanalysis.experiments.verification import verify_and_draw

    with pytest.raises(InputError, match=r"unknown data set 'cifar-10'.*nown: digits, mnist, fashion-mnist"):
        verify_and_draw("cifar-10", out=tmp_path)
