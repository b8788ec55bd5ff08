"""Text as word tokens, and the contiguous batching of word-level language models."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zanalysis.errors import InputError, did_you_mean

__all__ = ["END", "UNKNOWN", "TextDataset", "encoded"]

END, UNKNOWN = "<eos>", "<unk>"
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class TextDataset:
    """Word tokens, in three splits.

    Attributes:
        name: what it is called.
        train: `[tokens]`, int64: to learn from.
        valid: `[tokens]`, int64: to choose by.
        test: `[tokens]`, int64: to judge by.
        tokens: the word of each number.
        origin: what the text was taken from.

    Example:
        >>> from zanalysis.experiments.data import load
        >>> text = load("pydoc")
        >>> inputs, targets = next(text.batches("train", batch=4, length=8))
        >>> tuple(inputs.shape), bool((inputs[:, 1:] == targets[:, :-1]).all())
        ((4, 8), True)
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    tokens: list[str]
    origin: str

    @property
    def vocabulary(self) -> int:
        """How many words there are."""
        return len(self.tokens)

    @cached_property
    def fingerprint(self) -> str:
        """What tells the text from others: 16 hex digits of the SHA-256 of its origin, words and tokens."""
        digest = hashlib.sha256("\n".join([self.origin, *self.tokens]).encode())
        for part in _PARTS:
            tokens: Tensor = getattr(self, part)
            digest.update(f"{len(tokens)}/".encode() + tokens.contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def batches(
        self,
        split: Literal["train", "valid", "test"],
        batch: int,
        length: int,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut a split into the classic contiguous batches.

        The text is laid in `batch` columns of equal length, what does not fill them is left out, and each
        batch goes on where the last one ended (Merity et al. 2017; Zaremba et al. 2014).

        Args:
            split: which.
            batch: how many texts are read side by side.
            length: how many tokens of each make a batch; the last batch may be shorter.
            device: where they are wanted.

        Returns:
            Pairs of inputs and targets, both `[batch, length]`, int64; a target is the token after its input.

        Raises:
            InputError: if the split is unknown, a number is not positive, or the text too short for so many.
        """
        if split not in _PARTS:
            raise InputError(f"unknown split {split!r}; {did_you_mean(split, _PARTS)}")
        if batch < 1 or length < 1:
            raise InputError(f"batch and length are at least 1, got {batch} and {length}.")
        tokens: Tensor = getattr(self, split)
        each = len(tokens) // batch
        if each < 2:
            raise InputError(
                f"the {split} split of {self.name} has {len(tokens)} tokens, too few for {batch} texts side by "
                f"side; ask for a batch of at most {len(tokens) // 2}."
            )
        columns = tokens[: each * batch].view(batch, each).to(device)
        return _cut(columns, length)

    def count(self, split: Literal["train", "valid", "test"], batch: int, length: int) -> int:
        """Return how many batches `batches` would give.

        Args:
            split: which split.
            batch: how many texts are read side by side.
            length: how many tokens of each make a batch.
        """
        tokens: Tensor = getattr(self, split)
        return max(0, -(-(len(tokens) // batch - 1) // length))

    def subset(
        self, train: int | None = None, valid: int | None = None, test: int | None = None
    ) -> "TextDataset":
        """Keep the first tokens of each split; the vocabulary stays.

        Args:
            train: how many; all if None.
            valid: how many; all if None.
            test: how many; all if None.

        Returns:
            The shorter text.

        Raises:
            InputError: if there are not so many.
        """
        kept = []
        for part, count in zip(_PARTS, (train, valid, test), strict=True):
            tokens: Tensor = getattr(self, part)
            if count is not None and not 1 <= count <= len(tokens):
                raise InputError(f"{self.name} has {len(tokens)} {part} tokens, so not {count} of them.")
            kept.append(tokens[:count])
        train_, valid_, test_ = kept
        return replace(self, train=train_, valid=valid_, test=test_)


def _cut(columns: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    last = columns.shape[1] - 1
    for start in range(0, last, length):
        end = min(start + length, last)
        yield columns[:, start:end], columns[:, start + 1 : end + 1]


def encoded(parts: Sequence[Sequence[str]], rarest: int = 1) -> tuple[list[Tensor], list[str]]:
    """Number the words in the order of their first appearance.

    Args:
        parts: the words of the training, validation and test text, line ends among them.
        rarest: words that the training text has less often become `<unk>` everywhere; at 1 every word of every
            part stays itself.

    Returns:
        The numbers of each part, int64, and the words.

    Example:
        >>> parts, words = encoded([["a", "b", "a", "<eos>"], ["c"], ["a"]], rarest=2)
        >>> [part.tolist() for part in parts], words
        ([[0, 1, 0, 1], [1], [0]], ['a', '<unk>'])
    """
    kept = None
    if rarest > 1:
        kept = {word for word, count in Counter(parts[0]).items() if count >= rarest}
    numbers: dict[str, int] = {}
    found = []
    for words in parts:
        shown = words if kept is None else [word if word in kept else UNKNOWN for word in words]
        values = np.fromiter((numbers.setdefault(word, len(numbers)) for word in shown), np.int64, len(shown))
        found.append(torch.from_numpy(values))
    return found, list(numbers)
