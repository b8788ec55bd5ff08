"""What a loader returns: a set of labelled images, in two splits.

Images are `[samples, channels, height, width]`. They are kept as the bytes that were published and become
floating point batch by batch; splits of other kinds (files on disk) derive from `Split`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from zanalysis.errors import InputError
from zanalysis.experiments.augmentations import random_resized_crop
from zanalysis.experiments.data.choosing import stratified

__all__ = ["Dataset", "MemorySplit", "Split", "checked_indices"]

_MOST_SEEDS = 1 << 64


class Split(ABC):
    """One part of a data set, for training or for testing.

    Attributes:
        labels: `[samples]`, int64, on the CPU.
        image: channels, height and width of an image of a batch.
    """

    labels: Tensor
    image: tuple[int, int, int]

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.labels)

    @abstractmethod
    def batch(
        self,
        indices: Tensor | Sequence[int],
        device: torch.device | str = "cpu",
        *,
        resized_crop: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take some samples.

        Args:
            indices: `[n]`, which, from 0 on, in the order wanted; repetitions are fine.
            device: where they are wanted.
            resized_crop: draws a random resized crop of each image (Szegedy et al. 2015), as
                `augmentations.random_resized_crop` does; None takes the image itself (of files of several
                sizes: its centre).

        Returns:
            The images, `[n, channels, height, width]`, float32 in [0, 1], and their labels, `[n]`, int64.

        Raises:
            InputError: if an index is none of a sample.
        """

    @abstractmethod
    def take(self, indices: Tensor) -> Self:
        """Return the split of some of the samples.

        Args:
            indices: `[n]`, which.
        """

    @abstractmethod
    def digest(self) -> bytes:
        """Return what tells the samples from others: a SHA-256."""


class MemorySplit(Split):
    """Images in memory, as bytes.

    Attributes:
        images: `[samples, channels, height, width]`, uint8.
    """

    def __init__(self, images: Tensor, labels: Tensor, levels: int = 255) -> None:
        """Keep images and labels.

        Args:
            images: `[samples, channels, height, width]`, uint8.
            labels: `[samples]`, int64.
            levels: the value of a byte that means 1.
        """
        self.images, self.labels = images, labels
        self.image = (images.shape[1], images.shape[2], images.shape[3])
        self._levels = levels

    def batch(  # noqa: D102
        self,
        indices: Tensor | Sequence[int],
        device: torch.device | str = "cpu",
        *,
        resized_crop: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        chosen = checked_indices(indices, len(self))
        images = self._unit(self.images[chosen.to(self.images.device)].to(device))
        if resized_crop is not None:
            images = random_resized_crop(images, self.image[1:], resized_crop)
        return images, self.labels[chosen].to(device)

    def take(self, indices: Tensor) -> "MemorySplit":  # noqa: D102
        return MemorySplit(
            self.images[indices.to(self.images.device)], self.labels[indices.cpu()], self._levels
        )

    def to(self, device: torch.device | str) -> "MemorySplit":
        """Keep the bytes on a device, so that batches for it need no transfer.

        Args:
            device: where.

        Returns:
            The split there; its labels stay on the CPU.
        """
        return MemorySplit(self.images.to(device), self.labels, self._levels)

    def everything(self) -> Tensor:
        """Return all images, `[samples, channels, height, width]`, float32 in [0, 1]."""
        return self._unit(self.images)

    def digest(self) -> bytes:  # noqa: D102
        digest = hashlib.sha256(f"{tuple(self.images.shape)}/{self._levels}".encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.digest()

    def _unit(self, images: Tensor) -> Tensor:
        # A divisor on the device: CUDA multiplies by the reciprocal of a number, which rounds differently.
        return images.to(torch.float32) / torch.full((), float(self._levels), device=images.device)


@dataclass(frozen=True)
class Dataset:
    """Labelled images, in two splits.

    Attributes:
        name: what it is called.
        train: to learn from.
        test: to judge by.
        classes: how many labels there are: 0 to classes − 1.

    Example:
        >>> from zanalysis.experiments.data import load
        >>> digits = load("digits")
        >>> images, labels = digits.train.batch([0, 1, 2])
        >>> tuple(images.shape), labels.tolist(), digits.classes
        ((3, 1, 8, 8), [0, 1, 2], 10)
    """

    name: str
    train: Split
    test: Split
    classes: int

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.train.image

    @property
    def features(self) -> int:
        """Numbers in an image."""
        return int(np.prod(self.image))

    @cached_property
    def train_images(self) -> Tensor:
        """All training images, float32 in [0, 1]: `[samples, height, width]` if grey, else with channels."""
        return _everything(self.name, self.train)

    @cached_property
    def test_images(self) -> Tensor:
        """As `train_images`."""
        return _everything(self.name, self.test)

    @property
    def train_labels(self) -> Tensor:
        """`[samples]`, int64."""
        return self.train.labels

    @property
    def test_labels(self) -> Tensor:
        """`[samples]`, int64."""
        return self.test.labels

    @cached_property
    def fingerprint(self) -> str:
        """What tells these samples, of both splits, from others: 16 hex digits of their SHA-256.

        Of files on disk their names, sizes and labels count, not their contents.
        """
        return hashlib.sha256(self.train.digest() + self.test.digest()).hexdigest()[:16]

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> "Dataset":
        """Keep fewer samples, each class in proportion, the same ones on every machine.

        A larger subset of a balanced set contains the smaller ones of the same seed.

        Args:
            train: how many training samples; all if None.
            test: how many test samples; all if None.
            seed: which ones, 0 to 2⁶⁴ − 1.

        Returns:
            The smaller set, its samples in their old order.

        Raises:
            InputError: if there are not so many, or the seed is out of range.
        """
        if not 0 <= seed < _MOST_SEEDS:
            raise InputError(f"the seed of a subset is 0 to 2^64 - 1, got {seed}.")
        kept = [
            self._fewer(part, split, count, seed)
            for part, split, count in (("train", self.train, train), ("test", self.test, test))
        ]
        return replace(self, train=kept[0], test=kept[1])

    def _fewer(self, part: str, split: Split, count: int | None, seed: int) -> Split:
        if count is None:
            return split
        if not 1 <= count <= len(split):
            raise InputError(
                f"{self.name} has {len(split)} {part} samples, so a subset has 1 to {len(split)} of them, "
                f"not {count}."
            )
        return split.take(stratified(split.labels, count, seed))


def checked_indices(indices: Tensor | Sequence[int], count: int) -> Tensor:
    """Check which samples are asked for.

    Args:
        indices: `[n]`, integers.
        count: how many samples there are.

    Returns:
        They, `[n]`, int64, on the CPU.

    Raises:
        InputError: if one is none of a sample.
    """
    chosen = torch.as_tensor(indices).cpu()
    if chosen.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if chosen.dim() != 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise InputError(
            f"indices are a list of integers, got {tuple(chosen.shape)} of {str(chosen.dtype)[6:]}."
        )
    chosen = chosen.to(torch.int64)
    if int(chosen.min()) < 0 or int(chosen.max()) >= count:
        wrong = int(chosen.min()) if int(chosen.min()) < 0 else int(chosen.max())
        raise InputError(f"there is no sample {wrong}: the split has {count}, from 0 on.")
    return chosen


def _everything(name: str, split: Split) -> Tensor:
    if not isinstance(split, MemorySplit):
        raise InputError(f"{name} is not kept in memory; take batches of it: .train.batch(indices).")
    images = split.everything()
    return images[:, 0] if images.shape[1] == 1 else images
