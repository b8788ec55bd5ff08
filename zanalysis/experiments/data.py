"""Data sets: bundled, from a folder of the user's, or fetched and checksum-verified."""

import gzip
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zanalysis.errors import InputError, ZAnalysisError, did_you_mean

__all__ = ["DATASETS", "Dataset", "load"]

# From the data sets' own publications: md5 of the files as their authors serve them gzipped, and of
# MNIST's contents, since its mirrors compress anew.
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_SOURCES = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "md5:9fb629c4189551a2d022fa330f9573f3",
            "md5:ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "md5:25c81989df183df01b3e8a0aad5dffbe",
            "md5:bef4ecab320f06d8554ea6380940ec79",
            "md5:bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
}
DATASETS = ("digits", *_SOURCES)


@dataclass(frozen=True)
class Dataset:
    """Images and labels, in memory.

    Attributes:
        name: what it is called.
        train_images: `[samples, height, width]`, float32 in [0, 1].
        train_labels: `[samples]`, int64.
        test_images: as train_images.
        test_labels: as train_labels.
        classes: how many labels there are.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    @property
    def features(self) -> int:
        """Pixels of an image."""
        return self.train_images[0].numel()


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set.

    Args:
        name: ``"digits"`` (bundled with scikit-learn, 1,797 images of 8×8; the last 360 are the test
            set), ``"mnist"`` or ``"fashion-mnist"`` (IDX files, gzipped or not).
        data_dir: the folder that holds the files, or a folder named after the data set that does; the
            environment variable ``ZANALYSIS_DATA`` if None; else the files are fetched into the
            user's cache and verified.

    Returns:
        The data set.

    Raises:
        InputError: if the name is unknown.
        ZAnalysisError: if the files are missing and cannot be fetched, or are not what they should be.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; {did_you_mean(name, DATASETS)}")
    if name == "digits":
        return _digits()
    folder = data_dir or os.environ.get("ZANALYSIS_DATA")
    paths = _in_folder(name, Path(folder)) if folder else _fetched(name)
    arrays = [_idx(path) for path in paths]
    images = [torch.from_numpy(array.astype(np.float32) / 255) for array in (arrays[0], arrays[2])]
    labels = [torch.from_numpy(array.astype(np.int64)) for array in (arrays[1], arrays[3])]
    return Dataset(name, images[0], labels[0], images[1], labels[1], classes=10)


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ZAnalysisError(
            "the digits come with scikit-learn, which is not installed: pip install 'zanalysis[experiments]'."
        ) from error
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = 360
    return Dataset("digits", images[:-test], labels[:-test], images[-test:], labels[-test:], classes=10)


def _in_folder(name: str, folder: Path) -> list[Path]:
    candidates = [folder / name, folder]
    for place in candidates:
        found = [
            next((p for p in (place / f"{file}.gz", place / file) if p.is_file()), None) for file in _FILES
        ]
        if all(found):
            return [path for path in found if path is not None]
    raise ZAnalysisError(
        f"{name} is not in {folder}: put {', '.join(f'{file}.gz' for file in _FILES)} into {folder / name} "
        f"(from {_SOURCES[name][0]} or a mirror), or unset ZANALYSIS_DATA to have them fetched."
    )


def _fetched(name: str) -> list[Path]:
    try:
        import pooch
    except ImportError as error:
        raise ZAnalysisError(
            "fetching data needs pooch, which is not installed: pip install 'zanalysis[experiments]'."
        ) from error
    base, hashes = _SOURCES[name]
    folder = Path(pooch.os_cache("zanalysis")) / name
    registry = {f"{file}.gz": known for file, known in zip(_FILES, hashes, strict=True)}
    store = pooch.create(path=folder, base_url=base, registry=registry)
    pooch.get_logger().setLevel("WARNING")
    try:
        return [Path(store.fetch(file)) for file in registry]
    except Exception as error:
        raise ZAnalysisError(
            f"{name} could not be fetched from {base} ({type(error).__name__}). Put {', '.join(registry)} into a "
            f"folder named {name} and pass the folder above it as --data-dir or in ZANALYSIS_DATA."
        ) from error


def _idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes (magic: two zero bytes, type 8, dimensions; then the sizes).

    Args:
        path: the file, gzipped if its name says so.

    Returns:
        uint8, of the file's shape.

    Raises:
        ZAnalysisError: if the file is not what it should be.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ZAnalysisError(f"cannot read {path}: {error}; fetch it again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ZAnalysisError(f"{path} is not an IDX file of unsigned bytes; fetch it again.")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack_from(f">{dimensions}I", content, 4) if len(content) >= start else ()
    if len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise ZAnalysisError(f"{path} is truncated or damaged; fetch it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
