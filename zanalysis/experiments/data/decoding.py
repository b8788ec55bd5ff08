"""JPEG files to bytes, in a few threads: Pillow lets go of the interpreter while it decodes."""

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from zanalysis.errors import ZAnalysisError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MOST_BYTES", "bytes_of", "in_threads", "opened", "resized_centre", "size_of"]

S = TypeVar("S")
T = TypeVar("T")

MOST_BYTES = 64 << 20  # of a file; the largest of ImageNet has 15 MB
_MOST_PIXELS = 1 << 26
_MOST_THREADS = 8
_FORMATS = ("JPEG", "PNG")  # one file of ImageNet is a PNG under the name of a JPEG


def in_threads(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Do the same work for each item, in as many threads as there are cores, eight at most.

    Args:
        work: what to do with an item.
        items: they.

    Returns:
        The results, in the order of the items.
    """
    with ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0)) if _AFFINITY else 4)) as pool:
        return list(pool.map(work, items))


_AFFINITY = hasattr(os, "sched_getaffinity")  # not on macOS and Windows


def size_of(content: bytes, where: str) -> tuple[int, int]:
    """Read the size of an image from its header.

    Args:
        content: of the file.
        where: what to call it.

    Returns:
        Height and width.

    Raises:
        ZAnalysisError: if it is no image.
    """
    return _read(content, where, lambda image: (image.height, image.width))


def opened(content: bytes, where: str) -> "Image":
    """Decode an image.

    Args:
        content: of the file.
        where: what to call it.

    Returns:
        It, in red, green and blue, whatever it was.

    Raises:
        ZAnalysisError: if it is no JPEG or PNG file, damaged, or larger than any of the sets has.
    """
    return _read(content, where, lambda image: image.convert("RGB"))


def _read(content: bytes, where: str, use: "Callable[[Image], T]") -> T:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ZAnalysisError(
            "decoding images needs Pillow, which is not installed: pip install 'zanalysis[images]'."
        ) from error
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise OSError(f"it claims {image.width}×{image.height} pixels")
            return use(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is none" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        raise ZAnalysisError(f"{where} cannot be read as a JPEG file: {reason}; fetch it again.") from error


def resized_centre(image: "Image", shorter: int, side: int) -> "Image":
    """Resize an image so that its shorter side has a length, then cut a square out of its centre.

    Args:
        image: it.
        shorter: the length of the shorter side, in pixels.
        side: of the square.

    Returns:
        The square (bilinear with smoothing, as torchvision's Resize and CenterCrop).
    """
    from PIL import Image

    least = min(image.size)
    width, height = (int(shorter * length / least) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return resized.crop((left, top, left + side, top + side))


def bytes_of(image: "Image") -> np.ndarray:
    """Return an image as `[3, height, width]`, uint8.

    Args:
        image: in red, green and blue.
    """
    return np.asarray(image, np.uint8).transpose(2, 0, 1)
