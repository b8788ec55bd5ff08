"""Data sets, on small files in the published format."""

import gzip
import os
import struct

import numpy as np
import pytest
import torch

from zanalysis.errors import InputError, ZAnalysisError
from zanalysis.experiments.data import load

SHAPES = {
    "train-images-idx3-ubyte": (7, 28, 28),
    "train-labels-idx1-ubyte": (7,),
    "t10k-images-idx3-ubyte": (3, 28, 28),
    "t10k-labels-idx1-ubyte": (3,),
}


def write_idx(folder, name, shape, compressed, seed=0):
    array = np.random.default_rng(seed).integers(0, 10, shape).astype(np.uint8)
    content = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()
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
    data = load("mnist")
    images = arrays["train-images-idx3-ubyte"]
    assert torch.equal(data.train_images, torch.from_numpy(images.astype(np.float32) / 255))
    assert data.test_labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert (data.features, data.classes) == (784, 10)


def test_missing_files_say_which_and_where(tmp_path):
    with pytest.raises(ZAnalysisError, match=r"put train-images-idx3-ubyte\.gz, .* into .*fashion-mnist"):
        load("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\0\0\x08\x01\0\0\0\x09abc", "truncated"), (b"GIF89a", "not an IDX file"), (b"", "IDX")],
)
def test_damaged_files_are_named(tmp_path, content, says):
    for name, shape in SHAPES.items():
        write_idx(tmp_path, name, shape, compressed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ZAnalysisError, match=says):
        load("mnist", tmp_path)


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
    data = load("digits")
    assert data.train_images.shape == (1437, 8, 8)
    assert data.test_images.shape == (360, 8, 8)
    assert float(data.train_images.max()) == 1.0
    # Three of the 64 pixels are never inked: the bound that the data set themselves.
    assert int(data.train_images.flatten(1).any(0).sum()) == 61


@pytest.mark.slow
def test_real_mnist_has_717_pixels_that_are_ever_inked():
    if "ZANALYSIS_DATA" not in os.environ:
        pytest.skip("needs MNIST: set ZANALYSIS_DATA to its folder")
    data = load("mnist")
    assert data.train_images.shape == (60000, 28, 28)
    assert int(data.train_images.flatten(1).any(0).sum()) == 717
