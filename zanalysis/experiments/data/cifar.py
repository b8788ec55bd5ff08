"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the version for Python and in the binary one.

A row is the 1,024 red values of an image, row by row, then the green and the blue ones. Binary records are a
label (of CIFAR-100 the coarse one, then the fine one) and such a row, a byte each.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from zanalysis.errors import ZAnalysisError
from zanalysis.experiments.data.archives import read_bounded, tar_members
from zanalysis.experiments.data.sets import Dataset, MemorySplit
from zanalysis.experiments.data.sources import located

__all__ = ["load_cifar"]

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class _Version:
    """One of the two forms that a set was published in.

    Attributes:
        archive: the file that is offered.
        folder: what it unpacks to.
        files: of the training samples, then the one of the test samples, with their md5.
        most: the bytes that they may have together.
    """

    archive: str
    folder: str
    files: dict[str, str]
    most: int


@dataclass(frozen=True)
class _Set:
    classes: int
    labels: str  # the name of the labels in the version for Python
    label_bytes: int  # before the pixels of a binary record; the last one counts
    published: tuple[int, ...]  # samples of each file
    python: _Version
    binary: _Version


# The md5 of the files within: those for Python as in torchvision.datasets, the binary ones as in the build
# scripts and loaders that check them. Each was found in several independent projects, but for the two of
# the binary CIFAR-100, found in one.
_SETS = {
    "cifar-10": _Set(
        classes=10,
        labels="labels",
        label_bytes=1,
        published=(10_000,) * 6,
        python=_Version(
            "cifar-10-python.tar.gz",
            "cifar-10-batches-py",
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
            most=256 << 20,
        ),
        binary=_Version(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            {
                "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
                "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
            },
            most=256 << 20,
        ),
    ),
    "cifar-100": _Set(
        classes=100,
        labels="fine_labels",
        label_bytes=2,
        published=(50_000, 10_000),
        python=_Version(
            "cifar-100-python.tar.gz",
            "cifar-100-python",
            {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
            most=256 << 20,
        ),
        binary=_Version(
            "cifar-100-binary.tar.gz",
            "cifar-100-binary",
            {"train.bin": "6172c7755cfe09b2fe270c85cebc1b15", "test.bin": "4499cfba6c016c1be1438163640a0898"},
            most=256 << 20,
        ),
    ),
}


def load_cifar(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Load CIFAR-10 or CIFAR-100.

    Args:
        name: ``"cifar-10"`` or ``"cifar-100"``.
        data_dir: where one of the archives lies, or what it unpacks to, as in `load`.

    Returns:
        The data set, its images of 3×32×32 kept as bytes.

    Raises:
        ZAnalysisError: if the files are missing and cannot be fetched, or are not what they should be.
    """
    version, place = located(name, data_dir, lambda folder: _in_folder(_SETS[name], folder))
    images, labels = [], []
    contents = _contents(version, place)
    for index, file in enumerate(version.files):
        content = contents.pop(file)  # what is read is let go
        where = f"{file} in {place}"
        rows, found = _rows(_SETS[name], version, content, where)
        if len(rows) == _SETS[name].published[index]:
            _check_published(name, file, content, where)
        images.append(torch.from_numpy(rows.reshape(-1, 3, _SIDE, _SIDE).copy()))
        labels.append(torch.tensor(found, dtype=torch.int64))
    train = MemorySplit(torch.cat(images[:-1]), torch.cat(labels[:-1]))
    return Dataset(name, train, MemorySplit(images[-1], labels[-1]), _SETS[name].classes)


def _in_folder(what: _Set, folder: Path) -> tuple[_Version, Path] | None:
    versions = (what.python, what.binary)
    for version in versions:
        if (folder / version.archive).is_file():
            return version, folder / version.archive
    for version in versions:
        for place in (folder / version.folder, folder):
            if all((place / file).is_file() for file in version.files):
                return version, place
    return None


def _contents(version: _Version, place: Path) -> dict[str, bytes]:
    if place.is_dir():
        return {file: read_bounded(place / file, version.most) for file in version.files}
    members = tar_members(place, [f"{version.folder}/{file}" for file in version.files], version.most)
    return dict(zip(version.files, members.values(), strict=True))


def _rows(what: _Set, version: _Version, content: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    """Take the pixels and the labels out of a file.

    Args:
        what: the data set.
        version: the form.
        content: of the file.
        where: what to call it.

    Returns:
        The pixels, `[samples, 3072]`, uint8, and the labels.

    Raises:
        ZAnalysisError: if it is not what it should be.
    """
    if version is what.binary:
        size = what.label_bytes + _PIXELS
        if not content or len(content) % size:
            raise ZAnalysisError(
                f"{where} is truncated or damaged: {len(content)} bytes are no whole number of records of {size}; "
                "fetch it again."
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        rows, labels = records[:, what.label_bytes :], records[:, what.label_bytes - 1].tolist()
    else:
        # Here, as it brings the reading of checkpoints with it, and that the run file and pandas.
        from zanalysis.experiments.data.pickles import read_batch

        batch = read_batch(content, where)
        if what.labels not in batch or "data" not in batch:
            has = ", ".join(sorted(batch)) or "nothing of the kind"
            raise ZAnalysisError(
                f"{where} should hold data and {what.labels}, but has {has}; is it of another data set?"
            )
        rows, labels = batch["data"], batch[what.labels]
        if not isinstance(labels, list) or not isinstance(rows, np.ndarray) or rows.shape[1:] != (_PIXELS,):
            raise ZAnalysisError(
                f"{where} should hold rows of {_PIXELS} bytes and a list of labels; fetch it again."
            )
    if len(rows) == 0 or len(rows) != len(labels):
        raise ZAnalysisError(f"{where} holds {len(labels)} labels for {len(rows)} images; fetch it again.")
    if min(labels) < 0 or max(labels) >= what.classes:
        wrong = min(labels) if min(labels) < 0 else max(labels)
        raise ZAnalysisError(
            f"{where} holds the label {wrong}, expected 0 to {what.classes - 1}; fetch it again."
        )
    return rows, labels


def _check_published(name: str, file: str, content: bytes, where: str) -> None:
    """Refuse a file of the published size that is not the published one.

    Args:
        name: the data set that was asked for.
        file: which of its files.
        content: what it holds.
        where: what to call it.

    Raises:
        ZAnalysisError: if it is another one, or nobody's.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    owners = {
        digest: (other, known)
        for other, what in _SETS.items()
        for version in (what.python, what.binary)
        for known, digest in version.files.items()
    }
    if owners.get(found) == (name, file):
        return
    if found in owners:
        other, known = owners[found]
        raise ZAnalysisError(
            f"{where} holds {known} of {other}, not {file} of {name}; put the right file there."
        )
    raise ZAnalysisError(f"{where} is not the published {file} of {name} (md5 {found}); fetch it again.")
