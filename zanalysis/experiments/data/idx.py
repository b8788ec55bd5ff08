"""MNIST and Fashion-MNIST: IDX files."""

import hashlib
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from zanalysis.errors import ZAnalysisError
from zanalysis.experiments.data.archives import gunzipped, read_bounded
from zanalysis.experiments.data.sets import Dataset, MemorySplit
from zanalysis.experiments.data.sources import located

__all__ = ["load_idx"]

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
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
_MOST_BYTES = 256 << 20  # the published images have 47 MB


def load_idx(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Load MNIST, or a set published in its format.

    Args:
        name: ``"mnist"`` or ``"fashion-mnist"``.
        data_dir: where the files lie, gzipped or not, as in `load`.

    Returns:
        The data set.

    Raises:
        ZAnalysisError: if the files are missing and cannot be fetched, or are not what they should be.
    """
    # The files of the other set have the same names: its own folder, or one above several, is no place.
    paths = located(name, data_dir, _in_folder, shared=True)
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
    train, test = (
        MemorySplit(torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64)))
        for images, labels in (arrays[:2], arrays[2:])
    )
    return Dataset(name, train, test, classes=_CLASSES)


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


def _in_folder(folder: Path) -> list[Path] | None:
    found = [
        next((p for p in (folder / f"{file}.gz", folder / file) if p.is_file()), None) for file in _FILES
    ]
    paths = [path for path in found if path is not None]
    return paths if len(paths) == len(_FILES) else None


def _idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes (magic: two zero bytes, type 8, dimensions; then the sizes).

    Args:
        path: the file, gzipped if its name says so.

    Returns:
        uint8, of the file's shape.

    Raises:
        ZAnalysisError: if the file is not what it should be.
    """
    read = gunzipped if path.suffix == ".gz" else read_bounded
    content = read(path, _MOST_BYTES)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ZAnalysisError(f"{path} is not an IDX file of unsigned bytes; fetch it again.")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack_from(f">{dimensions}I", content, 4) if len(content) >= start else ()
    if len(content) - start != math.prod(shape):
        raise ZAnalysisError(f"{path} is truncated or damaged; fetch it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
