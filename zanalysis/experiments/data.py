"""Data sets: bundled, from a folder of the user's, or fetched and checksum-verified."""

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zanalysis.errors import InputError, ZAnalysisError, did_you_mean

__all__ = ["DATASETS", "Dataset", "load"]

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Where the authors serve the files, and the md5 of each as it lies there, gzipped.
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
# md5 of each file unpacked: mirrors compress anew, and one set must not pass for the other.
_CONTENTS = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
_PUBLISHED = {(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)}
_CLASSES = 10
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

    @cached_property
    def fingerprint(self) -> str:
        """What tells the training samples from others: the first 16 hex digits of their SHA-256."""
        digest = hashlib.sha256(str(tuple(self.train_images.shape)).encode())
        for tensor in (self.train_images, self.train_labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set.

    Args:
        name: ``"digits"`` (bundled with scikit-learn, 1,797 images of 8×8; the last 360 are the test
            set), ``"mnist"`` or ``"fashion-mnist"`` (IDX files, gzipped or not). Files of the published
            size must be the published ones; smaller sets of your own are taken as they are.
        data_dir: the folder that holds the files, or the folder above one that is named after the data
            set and does; the environment variable ``ZANALYSIS_DATA`` if None; else the files are
            fetched into the user's cache and verified.

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
    paths = _in_folder(name, Path(folder), bool(data_dir)) if folder else _fetched(name)
    arrays = [_idx(path) for path in paths]
    for part, (path, array) in enumerate(zip(paths, arrays, strict=True)):
        _check_published(name, part, path, array)
    for one in (0, 2):
        _check_pair(paths[one : one + 2], arrays[one : one + 2])
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise ZAnalysisError(
            f"{paths[2]} holds images of {_times(arrays[2].shape[1:])} pixels, {paths[0]} of "
            f"{_times(arrays[0].shape[1:])}; put files of one data set there."
        )
    images = [torch.from_numpy(array.astype(np.float32) / 255) for array in (arrays[0], arrays[2])]
    labels = [torch.from_numpy(array.astype(np.int64)) for array in (arrays[1], arrays[3])]
    return Dataset(name, images[0], labels[0], images[1], labels[1], classes=_CLASSES)


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _check_published(name: str, part: int, path: Path, array: np.ndarray) -> None:
    """Refuse a file of the published size that is not the published one.

    Args:
        name: the data set that was asked for.
        part: which of its files.
        path: where it lies.
        array: what it holds.

    Raises:
        ZAnalysisError: if it is another data set's, or nobody's.
    """
    if array.shape not in _PUBLISHED:
        return
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(array.data)
    found = digest.hexdigest()
    if found == _CONTENTS[name][part]:
        return
    for owner, known in _CONTENTS.items():
        if found in known:
            file = _FILES[known.index(found)]
            raise ZAnalysisError(
                f"{path} holds {file} of {owner}, not {_FILES[part]} of {name}; put the right file there."
            )
    raise ZAnalysisError(
        f"{path} is not the published {_FILES[part]} of {name} (md5 {found}, expected {_CONTENTS[name][part]}); "
        "fetch it again."
    )


def _check_pair(paths: Sequence[Path], arrays: Sequence[np.ndarray]) -> None:
    """Refuse images and labels that do not belong together.

    Args:
        paths: of the images and of the labels.
        arrays: what they hold.

    Raises:
        ZAnalysisError: if they are not `[samples, height, width]` and `[samples]`, or a label is no class.
    """
    (images, labels), (image, label) = arrays, paths
    for array, path, what, dimensions in ((images, image, "images", 3), (labels, label, "labels", 1)):
        if array.ndim != dimensions:
            raise ZAnalysisError(
                f"{path} should hold {what}, an array of {dimensions} dimension{'s' * (dimensions > 1)}, but has "
                f"{array.ndim}; are images and labels swapped?"
            )
    if images.size == 0:
        raise ZAnalysisError(f"{image} holds no image ({_times(images.shape)}); fetch it again.")
    if len(images) != len(labels):
        raise ZAnalysisError(
            f"{label} holds {len(labels)} labels for the {len(images)} images of {image}; fetch both again."
        )
    if labels.max() >= _CLASSES:
        raise ZAnalysisError(
            f"{label} holds the label {labels.max()}, expected 0 to {_CLASSES - 1}; fetch it again."
        )


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


def _in_folder(name: str, folder: Path, asked: bool) -> list[Path]:
    candidates = [folder / name]
    # The files of another data set have the same names: its own folder, or one above several, is no place.
    others = [other for other in _SOURCES if other != name]
    if folder.absolute().name not in others and not any((folder / other).is_dir() for other in others):
        candidates.append(folder)
    for place in candidates:
        found = [
            next((p for p in (place / f"{file}.gz", place / file) if p.is_file()), None) for file in _FILES
        ]
        if all(found):
            return [path for path in found if path is not None]
    otherwise = "leave out --data-dir (data_dir)" if asked else "unset ZANALYSIS_DATA"
    raise ZAnalysisError(
        f"{name} is not in {folder}: put {', '.join(f'{file}.gz' for file in _FILES)} into {folder / name} "
        f"(from {_SOURCES[name][0]} or a mirror), or {otherwise} to have them fetched."
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
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ZAnalysisError(f"cannot read {path}: {reason}; fetch it again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ZAnalysisError(f"{path} is not an IDX file of unsigned bytes; fetch it again.")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack_from(f">{dimensions}I", content, 4) if len(content) >= start else ()
    if len(content) - start != math.prod(shape):
        raise ZAnalysisError(f"{path} is truncated or damaged; fetch it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
