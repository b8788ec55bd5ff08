"""Augmentations of whole batches, on the device that the images are on.

Images are `[samples, channels, height, width]`, floating point. Every random choice comes from a generator of
the caller's; the global random state is neither read nor moved. The generator may be on the CPU while the
images are elsewhere: then the choices are the same on every device, and nothing waits for one.
"""

import math
from typing import NamedTuple, Protocol

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn.functional import one_hot

from zanalysis.errors import InputError
from zanalysis.experiments.resizing import Boxes, crop_boxes, random_resized_crop, shape_of

__all__ = [
    "IMAGENET",
    "Boxes",
    "Statistics",
    "augment",
    "channel_statistics",
    "crop_boxes",
    "mixed_up",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "standardized",
]

_CHUNK = 1000


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Split(Protocol):
    def __len__(self) -> int: ...
    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]: ...


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's, of the training images


def augment(
    images: Tensor,
    labels: Tensor,
    *,
    crop: int = 0,
    flip: bool = False,
    mixup: float = 0.0,
    classes: int | None = None,
    statistics: Statistics | None = None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Augment a batch: random crop, then flip, then standardization, then MixUp.

    Args:
        images: `[samples, channels, height, width]`, in [0, 1].
        labels: `[samples]`, int64.
        crop: the zeros put around each image before a crop of the old size is taken; 0 for none.
        flip: whether to mirror every second image, by chance, left to right.
        mixup: the α of MixUp; 0 for none.
        classes: how many labels there are; only MixUp needs it.
        statistics: of the channels, to standardize with; None leaves the values as they are.
        generator: draws.

    Returns:
        The images, and the labels: as given, or after MixUp soft, `[samples, classes]`, in the dtype of the
        images; `cross_entropy` takes both.

    Raises:
        InputError: if an argument is out of range or of another shape.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> images, labels = augment(torch.ones(2, 1, 4, 4), torch.tensor([0, 1]), crop=1, generator=generator)
        >>> tuple(images.shape), labels.tolist()
        ((2, 1, 4, 4), [0, 1])
    """
    if crop:
        images = random_crop(images, crop, generator)
    if flip:
        images = random_flip(images, generator)
    if statistics is not None:
        images = standardized(images, statistics)
    if mixup:
        if classes is None:
            raise InputError("MixUp makes soft labels and needs the number of classes: pass classes=.")
        return mixed_up(images, labels, mixup, classes, generator)
    return images, labels


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Put zeros around each image and take a crop of the old size, at a place of its own.

    Args:
        images: `[samples, channels, height, width]`.
        padding: zeros on each side, in pixels.
        generator: draws.

    Returns:
        The crops, of the shape of the images (Lee et al. 2015; He et al. 2016, section 4.2, with 4 pixels).

    Raises:
        InputError: if the padding is negative or the images are not of that shape.
    """
    count, _, height, width = shape_of(images)
    if padding < 0:
        raise InputError(f"the padding of a crop is not negative, got {padding}.")
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator, device=generator.device).to(
        images.device
    )
    padded = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    columns = offsets[1][:, None] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)
    return (
        padded.permute(0, 2, 3, 1)[which[:, None, None], rows[:, :, None], columns[:, None, :]]
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with a chance of one half.

    Args:
        images: `[samples, channels, height, width]`.
        generator: draws.

    Returns:
        The images, mirrored or not.
    """
    count, *_ = shape_of(images)
    chosen = torch.rand(count, generator=generator, device=generator.device) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)


def mixed_up(
    images: Tensor, labels: Tensor, alpha: float, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image of a batch with another one, and their labels alike (MixUp, Zhang et al. 2018).

    One λ ~ Beta(α, α) for the whole batch and one permutation of it, as in the authors' code.

    Args:
        images: `[samples, channels, height, width]`.
        labels: `[samples]`, int64.
        alpha: positive.
        classes: how many labels there are.
        generator: draws; one of another device than the CPU makes it wait for λ.

    Returns:
        λ · images + (1 − λ) · images[permutation], and soft labels `[samples, classes]` that sum to 1.

    Raises:
        InputError: if α is not positive, or a label is not below the number of classes.
    """
    count, *_ = shape_of(images)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise InputError(f"the alpha of MixUp is positive, got {alpha}.")
    if labels.shape != (count,):
        raise InputError(f"{count} images need {count} labels, got {tuple(labels.shape)}.")
    if labels.device.type == "cpu" and count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"labels lie in 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}.")
    # torch draws no Beta from a generator: the inverse of its distribution function does.
    uniform = float(torch.rand((), generator=generator, device=generator.device, dtype=torch.float64))
    weight = float(betaincinv(alpha, alpha, uniform))
    order = torch.randperm(count, generator=generator, device=generator.device).to(images.device)
    soft = one_hot(labels, classes).to(images.dtype)
    return (
        weight * images + (1 - weight) * images[order],
        weight * soft + (1 - weight) * soft[order],
    )


def standardized(images: Tensor, statistics: Statistics) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation.

    Args:
        images: `[samples, channels, height, width]`, in [0, 1].
        statistics: of as many channels.

    Returns:
        (images − mean) / std.

    Raises:
        InputError: if the channels are not as many, or a deviation is not positive.
    """
    _, channels, *_ = shape_of(images)
    if not len(statistics.mean) == len(statistics.std) == channels:
        raise InputError(
            f"images of {channels} channels need as many means and deviations, got {len(statistics.mean)} and "
            f"{len(statistics.std)}."
        )
    if min(statistics.std) <= 0:
        raise InputError(f"standard deviations are positive, got {statistics.std}.")
    mean, std = (
        torch.tensor(side, dtype=images.dtype, device=images.device)[:, None, None] for side in statistics
    )
    return (images - mean) / std


def channel_statistics(split: _Split) -> Statistics:
    """Measure mean and standard deviation of each channel over all images and pixels.

    Args:
        split: of a data set, as `zanalysis.experiments.data` loads it.

    Returns:
        They, summed in float64; the deviation is that of the population (divided by n).

    Raises:
        InputError: if there is no image.
    """
    total: Tensor | None = None
    squares: Tensor | None = None
    pixels = 0
    for start in range(0, len(split), _CHUNK):
        images = split.batch(torch.arange(start, min(start + _CHUNK, len(split))))[0].double()
        sums, powers = images.sum((0, 2, 3)), images.square().sum((0, 2, 3))
        total = sums if total is None else total + sums
        squares = powers if squares is None else squares + powers
        pixels += images[:, 0].numel()
    if total is None or squares is None:
        raise InputError("there is no image to take statistics of.")
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()))
