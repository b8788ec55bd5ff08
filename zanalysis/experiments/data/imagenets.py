"""Tiny ImageNet, decoded into memory, and folders of ImageNet, decoded when a batch asks for them."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zanalysis.errors import ZAnalysisError
from zanalysis.experiments.augmentations import crop_boxes
from zanalysis.experiments.data.archives import FolderStore, Store, ZipStore, read_bounded
from zanalysis.experiments.data.decoding import (
    MOST_BYTES,
    bytes_of,
    in_threads,
    opened,
    resized_centre,
    size_of,
)
from zanalysis.experiments.data.sets import Dataset, MemorySplit, Split, checked_indices
from zanalysis.experiments.data.sources import located

__all__ = ["FolderSplit", "load_imagenet", "load_tiny"]

_TINY = "tiny-imagenet-200"
_TINY_SIDE = 64
_SIDE, _SHORTER = 224, 256
_ENDINGS = (".jpeg", ".jpg", ".png")
_MOST_TEXT = 16 << 20


def load_tiny(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Load Tiny ImageNet (Le and Yang 2015), 3×64×64, as bytes in memory: 1.4 GB.

    Args:
        data_dir: where the archive lies, or the folder that it unpacks to, as in `load`.

    Returns:
        Its training images and, as the test set, its validation images. Labels are the places of the classes in
        alphabetical order.

    Raises:
        ZAnalysisError: if the files are missing and cannot be fetched, or are not what they should be.
    """
    store = located("tiny-imagenet", data_dir, _tiny_store)
    classes = sorted(_text(store, "wnids.txt").split())
    if not classes or len(set(classes)) != len(classes):
        raise ZAnalysisError(f"{store.where('wnids.txt')} should name each class once; fetch it again.")
    train = [
        (f"train/{wnid}/images/{file}", label)
        for label, wnid in enumerate(classes)
        for file in _images(store, f"train/{wnid}/images")
    ]
    return Dataset(
        "tiny-imagenet", _decoded(store, train), _decoded(store, _annotated(store, classes)), len(classes)
    )


def _tiny_store(folder: Path) -> Store | None:
    if (folder / f"{_TINY}.zip").is_file():
        return ZipStore(folder / f"{_TINY}.zip", _TINY)
    for place in (folder / _TINY, folder):
        if (place / "wnids.txt").is_file():
            return FolderStore(place)
    return None


def _text(store: Store, name: str) -> str:
    try:
        return store.read(name, _MOST_TEXT).decode()
    except UnicodeDecodeError as error:
        raise ZAnalysisError(f"{store.where(name)} is no text; fetch it again.") from error


def _images(store: Store, folder: str) -> list[str]:
    files = [file for file in store.inside(folder)[1] if file.lower().endswith(_ENDINGS)]
    if not files:
        raise ZAnalysisError(f"{store.where(folder)} holds no image; every class needs some: fetch it again.")
    return files


def _annotated(store: Store, classes: list[str]) -> list[tuple[str, int]]:
    name = "val/val_annotations.txt"
    labels = {wnid: label for label, wnid in enumerate(classes)}
    found = []
    for number, line in enumerate(_text(store, name).splitlines(), 1):
        file, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in labels or file not in (Path(file).name, "") or not file:
            raise ZAnalysisError(
                f"{store.where(name)}, line {number}, should be a file's name and one of the classes of wnids.txt; "
                "fetch it again."
            )
        found.append((f"val/images/{file}", labels[wnid]))
    if not found:
        raise ZAnalysisError(f"{store.where(name)} is empty; fetch it again.")
    lacking = set(classes) - {classes[label] for _, label in found}
    if lacking:
        raise ZAnalysisError(f"{store.where(name)} names no image of {sorted(lacking)[0]}; fetch it again.")
    return sorted(found)


def _decoded(store: Store, samples: list[tuple[str, int]]) -> MemorySplit:
    images = torch.empty((len(samples), 3, _TINY_SIDE, _TINY_SIDE), dtype=torch.uint8)

    def decode(index: int) -> None:
        name = samples[index][0]
        image = opened(store.read(name, MOST_BYTES), store.where(name))
        if image.size != (_TINY_SIDE, _TINY_SIDE):
            raise ZAnalysisError(
                f"{store.where(name)} has {image.width}×{image.height} pixels, expected 64×64; fetch it again."
            )
        images[index] = torch.from_numpy(bytes_of(image).copy())

    in_threads(decode, range(len(samples)))
    return MemorySplit(images, torch.tensor([label for _, label in samples]))


class FolderSplit(Split):
    """Images in files of their own, of any size, decoded when a batch asks for them.

    A batch holds their centres: resized to 256 pixels on the shorter side, cropped to 224×224. With
    `resized_crop` it holds random rectangles resized to 224×224, with smoothing.
    """

    image = (3, _SIDE, _SIDE)

    def __init__(self, root: Path, names: list[str], labels: Tensor) -> None:
        """Keep the names of files.

        Args:
            root: the folder that the names are relative to.
            names: of the files.
            labels: `[samples]`, int64.
        """
        self.labels = labels
        self._root, self._names = root, names

    def batch(  # noqa: D102
        self,
        indices: Tensor | Sequence[int],
        device: torch.device | str = "cpu",
        *,
        resized_crop: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        chosen = checked_indices(indices, len(self))
        paths = [self._root / self._names[index] for index in chosen.tolist()]
        images = in_threads(_centre, paths) if resized_crop is None else _crops(paths, resized_crop)
        stacked = torch.from_numpy(np.stack(images) if images else np.empty((0, *self.image), np.uint8))
        whole = torch.full((), 255.0, device=device)
        return stacked.to(device).to(torch.float32) / whole, self.labels[chosen].to(device)

    def take(self, indices: Tensor) -> "FolderSplit":  # noqa: D102
        return FolderSplit(self._root, [self._names[i] for i in indices.tolist()], self.labels[indices.cpu()])

    def digest(self) -> bytes:  # noqa: D102
        digest = hashlib.sha256()
        for name, label in zip(self._names, self.labels.tolist(), strict=True):
            digest.update(f"{name}\0{(self._root / name).stat().st_size}\0{label}\n".encode())
        return digest.digest()


def _centre(path: Path) -> np.ndarray:
    image = opened(read_bounded(path, MOST_BYTES), str(path))
    return bytes_of(resized_centre(image, _SHORTER, _SIDE))


def _crops(paths: list[Path], generator: torch.Generator) -> list[np.ndarray]:
    from PIL import Image

    contents = in_threads(lambda path: read_bounded(path, MOST_BYTES), paths)
    sizes = torch.tensor(
        [size_of(content, str(path)) for content, path in zip(contents, paths, strict=True)],
        dtype=torch.int64,
    ).reshape(-1, 2)
    boxes = torch.stack(tuple(crop_boxes(sizes[:, 0], sizes[:, 1], generator)), dim=1).tolist()

    def cut(index: int) -> np.ndarray:
        top, left, height, width = boxes[index]
        image = opened(contents[index], str(paths[index])).crop((left, top, left + width, top + height))
        return bytes_of(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))

    return in_threads(cut, range(len(paths)))


def load_imagenet(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Find the images of ImageNet (Russakovsky et al. 2015) in folders named after their classes.

    Args:
        data_dir: the folder with `train` and `val` in it, or the one above a folder `imagenet` that has them.

    Returns:
        The data set; its validation images are the test set, and labels are the places of the folders in
        alphabetical order. Any number of classes will do.

    Raises:
        ZAnalysisError: if the folders are missing, or a class is missing in one of them or has no image.
    """
    root = located("imagenet", data_dir, _imagenet_root)
    store = FolderStore(root)
    classes = {part: store.inside(part)[0] for part in ("train", "val")}
    if not classes["train"]:
        raise ZAnalysisError(
            f"{root / 'train'} holds no folder of a class; unpack the images of each class there."
        )
    if not classes["val"]:
        raise ZAnalysisError(
            f"{root / 'val'} holds no folder of a class; move its images into folders named after their classes."
        )
    for part, other in (("train", "val"), ("val", "train")):
        lacking = sorted(set(classes[other]) - set(classes[part]))
        if lacking:
            raise ZAnalysisError(
                f"{root / part} lacks the class {lacking[0]}, which {root / other} has; both need the same ones."
            )
    splits = {}
    for part, wnids in classes.items():
        files = [
            (f"{part}/{wnid}/{file}", label)
            for label, wnid in enumerate(wnids)
            for file in _images(store, f"{part}/{wnid}")
        ]
        names = [name for name, _ in files]
        splits[part] = FolderSplit(root, names, torch.tensor([label for _, label in files]))
    return Dataset("imagenet", splits["train"], splits["val"], len(classes["train"]))


def _imagenet_root(folder: Path) -> Path | None:
    return folder if (folder / "train").is_dir() and (folder / "val").is_dir() else None
