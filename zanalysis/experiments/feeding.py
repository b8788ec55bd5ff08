"""What a training is fed with: batches that depend on the seed and the step alone, and the evaluation.

Because no state is carried from batch to batch, a training that is gone on with sees what it would have
seen.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal
from typing import Protocol as Interface

import torch
from torch import Generator, Tensor, nn

from zanalysis.errors import InputError
from zanalysis.experiments.augmentations import (
    IMAGENET,
    Statistics,
    augment,
    channel_statistics,
    standardized,
)
from zanalysis.experiments.data import Dataset, MemorySplit, Split, TextDataset
from zanalysis.experiments.jobs import Job, mixed

__all__ = ["EVALUATED_AT_ONCE", "Feed", "ImageFeed", "TextFeed", "feed_of"]

EVALUATED_AT_ONCE = 500
_OF_TEXT = ("transformer-lm",)
_STREAMS = 10  # of the evaluation of text, as in PyTorch's word-language-model example


class Feed(Interface):
    """What a training is fed with.

    Attributes:
        steps_per_epoch: batches of an epoch.
    """

    steps_per_epoch: int

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Return a batch of inputs, and what is to be made of them."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the test metrics of a model, which stays as it is."""


def feed_of(job: Job) -> Feed:
    """Return what a training is fed with.

    Args:
        job: the training.

    Returns:
        Images or text.
    """
    return TextFeed(job) if job.protocol.model in _OF_TEXT else ImageFeed(job)


def _autocast(device: str) -> AbstractContextManager[object]:
    return torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda"))


@contextmanager
def _evaluating(model: nn.Module, device: str) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), _autocast(device):
            yield
    finally:
        for module, training in modes:
            module.training = training


class ImageFeed:
    """Images with labels, shuffled anew in each epoch."""

    def __init__(self, job: Job) -> None:
        """Make it.

        Args:
            job: the training.

        Raises:
            InputError: if it is one of text.
        """
        if not isinstance(job.data, Dataset):
            raise InputError(f"{job.data.name} holds text, but {job.protocol.model} is a model of images.")
        self._job, self._data = job, job.data
        self._train, self._test = (_near(split, job.device) for split in (self._data.train, self._data.test))
        self._count = len(self._train)
        self.steps_per_epoch = -(-self._count // job.protocol.batch)
        self._order: tuple[int, tuple[Tensor, ...]] = (-1, ())
        wanted = job.protocol.augmentation.standardize
        self._statistics = _statistics(self._data) if wanted else None

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Return a batch.

        Args:
            epoch: from 0.
            index: of the batch in it.

        Returns:
            Images `[batch, C, H, W]`, and labels `[batch]` or, with MixUp, `[batch, classes]`.
        """
        job, wanted = self._job, self._job.protocol.augmentation
        generator = Generator().manual_seed(mixed(job.seed, "augment", epoch, index))
        images, labels = self._train.batch(
            self._indices(epoch, index), job.device, resized_crop=generator if wanted.resized else None
        )
        return augment(
            images,
            labels,
            crop=wanted.crop,
            flip=wanted.flip,
            mixup=wanted.mixup,
            classes=self._data.classes,
            statistics=self._statistics,
            generator=generator,
        )

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the test metrics of a model.

        Args:
            model: it is in eval mode meanwhile.

        Returns:
            `test_accuracy` and `test_error` in percent, `test_loss`.
        """
        test, right, loss = self.test, 0, 0.0
        with _evaluating(model, self._job.device):
            for chunk in torch.split(torch.arange(len(test)), EVALUATED_AT_ONCE):
                images, labels = self.test_batch(chunk)
                scores = model(images).float()
                right += int((scores.argmax(1) == labels).sum())
                loss += float(nn.functional.cross_entropy(scores, labels, reduction="sum"))
        accuracy = 100 * right / len(test)
        return {
            "test_accuracy": accuracy,
            "test_error": 100 * (len(test) - right) / len(test),
            "test_loss": loss / len(test),
        }

    @property
    def test(self) -> Split:
        """The test images."""
        return self._test

    def test_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return test images as the model is to see them.

        Args:
            indices: which.

        Returns:
            Images `[n, C, H, W]`, and labels `[n]`.
        """
        images, labels = self._test.batch(indices, self._job.device)
        if self._statistics is not None:
            images = standardized(images, self._statistics)
        return images, labels

    def _indices(self, epoch: int, index: int) -> Tensor:
        if self._order[0] != epoch:
            generator = Generator().manual_seed(mixed(self._job.seed, "order", epoch))
            order = torch.randperm(self._count, generator=generator)
            self._order = (epoch, torch.split(order, self._job.protocol.batch))
        return self._order[1][index]


def _statistics(data: Dataset) -> Statistics:
    # Of files on disk, ImageNet's, the published numbers: to measure them, all would be decoded at each start.
    return channel_statistics(data.train) if isinstance(data.train, MemorySplit) else IMAGENET


def _near(split: Split, device: str) -> Split:
    # On a GPU the bytes of a set that fits into memory spare a transfer for each batch.
    return split.to(device) if device.startswith("cuda") and isinstance(split, MemorySplit) else split


class TextFeed:
    """Text in contiguous streams, the same in each epoch."""

    def __init__(self, job: Job) -> None:
        """Make it.

        Args:
            job: the training.

        Raises:
            InputError: if it is one of images, or there is too little text.
        """
        if not isinstance(job.data, TextDataset):
            raise InputError(f"{job.data.name} holds images, but {job.protocol.model} is a model of text.")
        self._job, self._data = job, job.data
        self._batches = list(self._data.batches("train", job.protocol.batch, job.protocol.length))
        self.steps_per_epoch = len(self._batches)
        if not self._batches:
            raise InputError(f"{job.data.name} is shorter than one batch of {job.protocol.batch} streams.")

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Return a batch.

        Args:
            epoch: from 0; the text is the same in each.
            index: of the batch in it.

        Returns:
            Tokens `[batch, length]`, and those that follow each of them.
        """
        inputs, targets = self._batches[index]
        return inputs.to(self._job.device), targets.to(self._job.device)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a model on text that it was not trained on.

        Args:
            model: it is in eval mode meanwhile.

        Returns:
            `test_perplexity` and `valid_perplexity`: the exponential of the mean loss of a token.
        """
        test, valid = self._loss(model, "test"), self._loss(model, "valid")
        return {"test_perplexity": _exponential(test), "valid_perplexity": _exponential(valid)}

    def _loss(self, model: nn.Module, split: Literal["test", "valid"]) -> float:
        loss, tokens = 0.0, 0
        with _evaluating(model, self._job.device):
            for inputs, targets in self._data.batches(split, _STREAMS, self._job.protocol.length):
                scores = model(inputs.to(self._job.device)).float().flatten(0, 1)
                wanted = targets.to(self._job.device).flatten()
                loss += float(nn.functional.cross_entropy(scores, wanted, reduction="sum"))
                tokens += wanted.numel()
        return loss / tokens


def _exponential(loss: float) -> float:
    # Of a huge loss it is infinite, where Python's own would raise.
    return float(torch.tensor(loss, dtype=torch.float64).exp())
