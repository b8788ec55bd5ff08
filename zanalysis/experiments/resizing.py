"""Random rectangles of images, resized: on batches, and the rectangles alone for images of several sizes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from zanalysis.errors import InputError

__all__ = ["Boxes", "crop_boxes", "random_resized_crop", "shape_of"]

_TRIES = 10


class Boxes(NamedTuple):
    """Rectangles within images, one for each: corner and size in pixels, `[samples]`, int64."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


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
    count, _, height, width = shape_of(images)
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


def shape_of(images: Tensor) -> tuple[int, int, int, int]:
    """Check that something is a batch of images.

    Args:
        images: `[samples, channels, height, width]`, floating point.

    Returns:
        Samples, channels, height and width.

    Raises:
        InputError: if it is none.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(
            f"images are [samples, channels, height, width] of floating point, got {tuple(images.shape)} of "
            f"{str(images.dtype)[6:]}."
        )
    count, channels, height, width = images.shape
    return count, channels, height, width
