"""Data that need no download: scikit-learn's digits, and the documentation that ships with Python."""

import platform
import re

import numpy as np
import torch

from zanalysis.errors import ZAnalysisError
from zanalysis.experiments.data.sets import Dataset, MemorySplit
from zanalysis.experiments.data.text import END, TextDataset, encoded

__all__ = ["digits", "pydoc"]

_TEST_DIGITS = 360
_WORD = re.compile(r"\w+|[^\w\s]")
_RAREST = 3  # as WikiText does: what stands fewer times in the training text is unknown
_SHORT = 5  # words of a line that may stand twice
_SHARES = (0.8, 0.1, 0.1)


def digits() -> Dataset:
    """Load the digits that come with scikit-learn.

    Returns:
        1,797 images of 8×8 in 17 shades of grey (Alpaydin and Kaynak 1998); the last 360 are the test set.

    Raises:
        ZAnalysisError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ZAnalysisError(
            "the digits come with scikit-learn, which is not installed: pip install 'zanalysis[experiments]'."
        ) from error
    found = load_digits()
    images = torch.from_numpy(found.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(found.target.astype(np.int64))
    train, test = slice(None, -_TEST_DIGITS), slice(-_TEST_DIGITS, None)
    return Dataset(
        "digits",
        MemorySplit(images[train], labels[train], levels=16),
        MemorySplit(images[test], labels[test], levels=16),
        classes=10,
    )


def pydoc() -> TextDataset:
    """Load the topics of `help()`, the language reference that ships with Python, as words.

    Whole topics, the longest first, go to whichever of the training, the validation and the test text is
    furthest from its share: 80, 10 and 10 % of the words. A line of more than five words that an earlier
    topic has is left out, so that no text is both trained and tested on. Words are
    runs of letters and digits, or single signs; a line ends with `<eos>`; words that the training text
    has fewer than three times are `<unk>`. The text differs between versions of Python, and so does the
    fingerprint.

    Returns:
        About 99,000 tokens (Python 3.11).

    Raises:
        ZAnalysisError: if this Python was installed without its documentation.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ZAnalysisError(
            f"this Python ({platform.python_version()}) was installed without pydoc_data.topics; install the "
            "whole standard library, or use wikitext-2."
        ) from error
    texts = sorted((_lines(topics[name]) for name in sorted(topics)), key=_length, reverse=True)
    kept = _without_repetitions(texts)
    whole = sum(map(len, kept))
    parts: list[list[str]] = [[] for _ in _SHARES]
    for words in kept:
        lacking = [share * whole - len(part) for share, part in zip(_SHARES, parts, strict=True)]
        parts[lacking.index(max(lacking))].extend(words)
    found, tokens = encoded(parts, _RAREST)
    origin = f"pydoc_data.topics of Python {platform.python_version()}"
    return TextDataset("pydoc", found[0], found[1], found[2], tokens, origin)


def _lines(text: str) -> list[list[str]]:
    return [words for words in map(_WORD.findall, text.splitlines()) if words]


def _length(lines: list[list[str]]) -> int:
    return sum(map(len, lines))


def _without_repetitions(texts: list[list[list[str]]]) -> list[list[str]]:
    # Some topics quote whole paragraphs of others: without this a third of the validation lines were trained on.
    seen: set[tuple[str, ...]] = set()
    kept = []
    for lines in texts:
        fresh = [line for line in lines if len(line) <= _SHORT or tuple(line) not in seen]
        seen.update(map(tuple, lines))
        kept.append([word for line in fresh for word in (*line, END)])
    return kept
