"""Where the published files are, what they must be, and how they are found or fetched."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from zanalysis.errors import ZAnalysisError

__all__ = ["SOURCES", "Source", "located"]

T = TypeVar("T")

_KRIZHEVSKY = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class Source:
    """The published files of one data set.

    Attributes:
        base: the address that they lie under, with its final slash; of what is not public, the page to ask.
        files: those that are fetched, with their md5 as published; empty where nothing can be.
        put: what a folder must hold, in words.
        page: where the address and the checksums are written down.
    """

    base: str
    files: dict[str, str]
    put: str
    page: str


def _idx(base: str, page: str, *digests: str) -> Source:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = {f"{name}-ubyte.gz": digest for name, digest in zip(names, digests, strict=True)}
    return Source(base, files, ", ".join(files), page)


SOURCES = {
    "mnist": _idx(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "torchvision.datasets.MNIST",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion-mnist": _idx(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "cifar-10": Source(
        _KRIZHEVSKY,
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        "cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or the folder that one of them unpacks to,",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar-100": Source(
        _KRIZHEVSKY,
        {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
        "cifar-100-python.tar.gz or cifar-100-binary.tar.gz, or the folder that one of them unpacks to,",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "tiny-imagenet": Source(
        "http://cs231n.stanford.edu/",
        # The course publishes no checksum; this one is what mirrors and loaders agree on.
        {"tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"},
        "tiny-imagenet-200.zip or the folder tiny-imagenet-200 that it unpacks to",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
    "imagenet": Source(
        "https://image-net.org/download.php",
        {},
        "the folders train/<wnid>/ and val/<wnid>/ with the JPEG files of each class",
        "https://image-net.org/challenges/LSVRC/2012/",
    ),
    "wikitext-2": Source(
        "https://wikitext.smerity.com/",
        {"wikitext-2-v1.zip": "542ccefacc6c27f945fb54453812b3cd"},
        "wikitext-2-v1.zip, or the files wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens (or .raw, "
        "or parquet),",
        "torchtext.datasets.WikiText2",
    ),
}


def located(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    find: Callable[[Path], T | None],
    *,
    shared: bool = False,
) -> T:
    """Find the files of a data set: in a folder of the user's, else fetched and verified.

    Args:
        name: of the data set.
        data_dir: the folder that holds the files, or the one above a folder of the data set's name that does;
            ZANALYSIS_DATA if None; else the files are fetched into the user's cache.
        find: says what a folder has of it, None if it does not have it all.
        shared: whether other data sets have files of the same names.

    Returns:
        What `find` returned.

    Raises:
        ZAnalysisError: if the files are missing, and cannot be fetched.
    """
    given = data_dir or os.environ.get("ZANALYSIS_DATA")
    source = SOURCES[name]
    if not given:
        place = _fetched(name, source)
        found = find(place)
        if found is None:
            raise ZAnalysisError(f"{place} lacks files of {name}; delete it to have them fetched again.")
        return found
    folder = Path(given)
    candidates = [folder / name]
    others = [other for other in SOURCES if other != name]
    if not shared or (
        folder.absolute().name not in others and not any((folder / other).is_dir() for other in others)
    ):
        candidates.append(folder)
    for place in candidates:
        found = find(place)
        if found is not None:
            return found
    asked = "leave out --data-dir (data_dir)" if data_dir else "unset ZANALYSIS_DATA"
    fetch = f", or {asked} to have them fetched" if source.files else ""
    raise ZAnalysisError(
        f"{name} is not in {folder}: put {source.put} into {folder / name} (from {source.base} or a mirror){fetch}."
    )


def _fetched(name: str, source: Source) -> Path:
    put = f"Put {source.put.rstrip(',')} into a folder named {name} and pass the folder above it as --data-dir or in "
    if not source.files:
        raise ZAnalysisError(
            f"{name} is not given to the public, only on request, at {source.base}. {put}ZANALYSIS_DATA."
        )
    try:
        import pooch
    except ImportError as error:
        raise ZAnalysisError(
            "fetching data needs pooch, which is not installed: pip install 'zanalysis[experiments]'."
        ) from error
    folder = Path(pooch.os_cache("zanalysis")) / name
    registry = {file: f"md5:{digest}" for file, digest in source.files.items()}
    store = pooch.create(path=folder, base_url=source.base, registry=registry)
    pooch.get_logger().setLevel("WARNING")
    try:
        for file in registry:
            store.fetch(file)
    except Exception as error:
        raise ZAnalysisError(
            f"{name} could not be fetched from {source.base} ({type(error).__name__}). {put}ZANALYSIS_DATA."
        ) from error
    return folder
