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
from torch.nn.functional import grid_sample, one_hot

from zanalysis.errors import InputError

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

_TRIES = 10
_CHUNK = 1000


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Boxes(NamedTuple):
    """Rectangles within images, one for each: corner and size in pixels, `[samples]`, int64."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


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
    count, _, height, width = _shape(images)
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
    count, *_ = _shape(images)
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
    count, *_ = _shape(images)
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


def random_resized_crop(
    images: Tensor,
    size: tuple[int, int],
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cut a random rectangle out of each image and resize it.

    Args:
        images: `[samples, channels, height, width]`.
        size: height and width of the result.
        generator: draws.
        scale: the least and the largest share of the area.
        ratio: the least and the largest width over height.

    Returns:
        `[samples, channels, *size]`, bilinear, without smoothing first (Szegedy et al. 2015, as torchvision's
        RandomResizedCrop draws it).
    """
    count, _, height, width = _shape(images)
    heights, widths = (torch.full((count,), side) for side in (height, width))
    boxes = crop_boxes(heights, widths, generator, scale, ratio)
    top, left, tall, wide = (side.to(images.device, images.dtype)[:, None] for side in boxes)
    # The centre of pixel i of the result lies at (i + ½) · side / size of the box; grid_sample wants [-1, 1].
    steps = [(torch.arange(n, device=images.device, dtype=images.dtype) + 0.5) / n for n in size]
    rows = (top + (steps[0] * tall).clamp(torch.full_like(tall, 0.5), tall - 0.5)) * 2 / height - 1
    columns = (left + (steps[1] * wide).clamp(torch.full_like(wide, 0.5), wide - 0.5)) * 2 / width - 1
    grid = torch.stack(
        [columns[:, None, :].expand(-1, size[0], -1), rows[:, :, None].expand(-1, -1, size[1])], dim=3
    )
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def crop_boxes(
    heights: Tensor,
    widths: Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Boxes:
    """Draw the rectangle of a random resized crop for each image.

    The area is uniform, the logarithm of the ratio too. Of ten tries the first that fits into the image is
    taken; if none does, the largest central rectangle whose ratio is in range.

    Args:
        heights: `[samples]`, int64, in pixels.
        widths: `[samples]`, int64.
        generator: draws.
        scale: the least and the largest share of the area.
        ratio: the least and the largest width over height.

    Returns:
        The boxes, on the CPU or where the generator is.
    """
    count, device = len(heights), generator.device
    heights, widths = heights.to(device), widths.to(device)
    draws = torch.rand((4, count, _TRIES), generator=generator, device=device, dtype=torch.float64)
    area = (heights * widths)[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[1])
    wide = torch.round(torch.sqrt(area * aspect)).long()
    tall = torch.round(torch.sqrt(area / aspect)).long()
    fits = (wide > 0) & (wide <= widths[:, None]) & (tall > 0) & (tall <= heights[:, None])
    first = fits.long().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    top = (draws[2].gather(1, first)[:, 0] * (heights - tall + 1)).long()
    left = (draws[3].gather(1, first)[:, 0] * (widths - wide + 1)).long()
    # None fits: the whole image, cut to the range of ratios.
    central_wide = torch.minimum(widths, torch.round(heights * ratio[1]).long())
    central_tall = torch.minimum(heights, torch.round(widths / ratio[0]).long())
    found = fits.any(1)
    return Boxes(
        torch.where(found, top, (heights - central_tall) // 2),
        torch.where(found, left, (widths - central_wide) // 2),
        torch.where(found, tall, central_tall),
        torch.where(found, wide, central_wide),
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
    _, channels, *_ = _shape(images)
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


def _shape(images: Tensor) -> tuple[int, int, int, int]:
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(
            f"images are [samples, channels, height, width] of floating point, got {tuple(images.shape)} of "
            f"{str(images.dtype)[6:]}."
        )
    count, channels, height, width = images.shape
    return count, channels, height, width
