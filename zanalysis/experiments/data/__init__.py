"""Data sets: bundled, from a folder of the user's, or fetched and checksum-verified.

Nothing that a file brings is run, and nothing of an archive is unpacked onto the disk.
"""

import os
from typing import Literal, overload

from zanalysis.errors import InputError, did_you_mean
from zanalysis.experiments.data.bundled import digits, pydoc
from zanalysis.experiments.data.cifar import load_cifar
from zanalysis.experiments.data.idx import load_idx
from zanalysis.experiments.data.imagenets import FolderSplit, load_imagenet, load_tiny
from zanalysis.experiments.data.sets import Dataset, MemorySplit, Split
from zanalysis.experiments.data.sources import SOURCES
from zanalysis.experiments.data.text import TextDataset
from zanalysis.experiments.data.wikitext import load_wikitext

__all__ = ["DATASETS", "TEXTS", "Dataset", "FolderSplit", "MemorySplit", "Split", "TextDataset", "load"]

DATASETS = ("digits", *(name for name in SOURCES if name != "wikitext-2"), "pydoc", "wikitext-2")
TEXTS = ("pydoc", "wikitext-2")


@overload
def load(
    name: Literal["pydoc", "wikitext-2"], data_dir: str | os.PathLike[str] | None = None
) -> TextDataset: ...
@overload
def load(
    name: Literal["digits", "mnist", "fashion-mnist", "cifar-10", "cifar-100", "tiny-imagenet", "imagenet"],
    data_dir: str | os.PathLike[str] | None = None,
) -> Dataset: ...
@overload
def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset | TextDataset: ...
def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset | TextDataset:
    """Load a data set.

    Args:
        name: one of

            - ``"digits"``, bundled with scikit-learn: 1,797 images of 8×8; the last 360 are the test set;
            - ``"mnist"``, ``"fashion-mnist"``: IDX files, gzipped or not;
            - ``"cifar-10"``, ``"cifar-100"``: the archive for Python or the binary one, or what they unpack
              to; of CIFAR-100 the 100 fine labels;
            - ``"tiny-imagenet"``: the archive, or what it unpacks to; the published validation set is the
              test set, as the published test set has no labels;
            - ``"imagenet"``: folders of JPEG files, decoded when a batch asks for them;
            - ``"pydoc"``: the documentation that ships with Python, as words;
            - ``"wikitext-2"``: the archive, or its files, tokens or raw, or parquet.

            Files of the published size must be the published ones; smaller sets of your own are taken as
            they are.
        data_dir: the folder that holds the files, or the folder above one that is named after the data
            set and does; the environment variable ``ZANALYSIS_DATA`` if None; else the files are
            fetched into the user's cache and verified.

    Returns:
        The data set; of ``"pydoc"`` and ``"wikitext-2"`` a `TextDataset`.

    Raises:
        InputError: if the name is unknown.
        ZAnalysisError: if the files are missing and cannot be fetched, or are not what they should be.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; {did_you_mean(name, DATASETS)}")
    if name == "digits":
        return digits()
    if name == "pydoc":
        return pydoc()
    if name in ("cifar-10", "cifar-100"):
        return load_cifar(name, data_dir)
    if name == "tiny-imagenet":
        return load_tiny(data_dir)
    if name == "imagenet":
        return load_imagenet(data_dir)
    if name == "wikitext-2":
        return load_wikitext(data_dir)
    return load_idx(name, data_dir)
