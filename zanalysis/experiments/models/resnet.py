"""ResNets for ImageNet and for small images, and those of any depth with three narrow stages."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from zanalysis.errors import InputError
from zanalysis.experiments.models.arguments import choice, image_shape, whole
from zanalysis.experiments.models.blocks import Bias
from zanalysis.experiments.models.residual import (
    BLOCKS,
    EXPANSION,
    NORMS,
    SCALARS,
    SHORTCUTS,
    Block,
    Norm,
    Scalars,
    Shortcut,
    Style,
)

__all__ = ["HEAD", "Stem", "deep_resnet", "resnet"]

HEAD = "fc"
"""Name of the classifier."""

Stem = Literal["cifar", "imagenet"]


def resnet(
    *,
    image: tuple[int, int, int],
    classes: int,
    block: Block = "basic",
    layers: Sequence[int] = (2, 2, 2, 2),
    width: int = 64,
    stem: Stem = "cifar",
    norm: Norm = True,
    scalars: Scalars | None = None,
    shortcut: Shortcut = "projection",
) -> nn.Sequential:
    """Build a ResNet (He et al. 2016, arXiv 1512.03385), layers named as they usually are.

    ResNet-18 is the default, ResNet-50 `block="bottleneck", layers=(3, 4, 6, 3)`, ConstNet with the depth of
    ResNet-18 `block="single", layers=(4, 4, 4, 4)`. The names are `conv1`, `bn1`, `layer1.0.conv1`,
    `layer2.0.downsample.0`, …, `fc`; a strided bottleneck strides in its 3×3 convolution. Weights start as
    PyTorch's layers draw them, scalars at their method's start.

    Args:
        image: channels, height, width.
        classes: number of classes.
        block: `"basic"`, `"bottleneck"` or `"single"` (see `residual`).
        layers: blocks per stage; each stage after the first halves the image and doubles the width.
        width: channels of the first stage, 64 in the paper.
        stem: `"cifar"` for a 3×3 convolution, `"imagenet"` for 7×7 with stride 2 and a pooling.
        norm: BatchNorm everywhere, nowhere, or (`"outer"`) only in stem and projections, as in the ReZero
            authors' network without normalization.
        scalars: `"fixup"`, `"rezero"`, `"skipinit"` or None.
        shortcut: where shapes change: `"projection"`, or `"pad"` for zero channels.

    Returns:
        The model, `[samples, *image]` to `[samples, classes]`.

    Raises:
        InputError: if an argument is unknown or out of range, or if Fixup's scalars, which stand in for
            normalization, are asked for beside it.

    Example:
        >>> model = resnet(image=(3, 224, 224), classes=1000, stem="imagenet")
        >>> sum(p.numel() for p in model.parameters())
        11689512
    """
    style = _style(block, norm, scalars, shortcut)
    choice("stem", stem, ("cifar", "imagenet"))
    return _network(style, image, classes, _blocks_per_stage(layers), width, stem)


def deep_resnet(
    *,
    image: tuple[int, int, int],
    classes: int,
    depth: int = 20,
    width: int = 16,
    norm: Norm = False,
    scalars: Scalars | None = None,
    shortcut: Shortcut = "pad",
) -> nn.Sequential:
    """Build a ResNet of depth 6n + 2: a stem, three stages of n basic blocks, a classifier.

    These are the networks of He et al. 2016, section 4.2, for CIFAR-10, there of 20 to 1,202 layers with BatchNorm.

    Args:
        image: channels, height, width.
        classes: number of classes.
        depth: layers with weights, 6n + 2.
        width: channels of the first stage; the others have twice and four times as many.
        norm: as in `resnet`; none by default.
        scalars: `"fixup"`, `"rezero"`, `"skipinit"` or None.
        shortcut: `"pad"`, as in the paper and in Fixup's code, or `"projection"`.

    Returns:
        The model, `[samples, *image]` to `[samples, classes]`.

    Raises:
        InputError: if the depth is not 6n + 2, or another argument is unknown or out of range.

    Example:
        >>> model = deep_resnet(image=(3, 32, 32), classes=10, depth=110, norm=True)
        >>> sum(p.numel() for p in model.parameters())
        1727962
    """
    if whole("depth", depth) < 8 or (depth - 2) % 6:
        below = max(8, depth - (depth - 2) % 6)
        near = f"{below} or {below + 6}" if depth > 8 else "8"
        raise InputError(f"got depth = {depth}, expected one of the form 6n + 2 (8, 14, 20, …): use {near}.")
    style = _style("basic", norm, scalars, shortcut)
    return _network(style, image, classes, ((depth - 2) // 6,) * 3, width, "cifar")


def _network(
    style: Style, image: tuple[int, int, int], classes: int, layers: tuple[int, ...], width: int, stem: Stem
) -> nn.Sequential:
    channels = image_shape(image)[0]
    whole("classes", classes)
    modules = OrderedDict(_stem(style, channels, whole("width", width), stem))
    c_in = width
    for i, blocks in enumerate(layers):
        stage = width * 2**i
        c_out = stage * EXPANSION[style.block]
        strides = [1 if i == 0 else 2, *[1] * (blocks - 1)]
        widths = [c_in, *[c_out] * blocks]
        pairs = zip(pairwise(widths), strides, strict=True)
        modules[f"layer{i + 1}"] = nn.Sequential(
            *(style.residual(before, stage, stride) for (before, _), stride in pairs)
        )
        c_in = c_out
    if style.preactivated:
        modules.update(style.normalization("bn", c_in, outer=True))
        modules["relu_last"] = nn.ReLU()
    modules["avgpool"] = nn.AdaptiveAvgPool2d(1)
    modules["flatten"] = nn.Flatten()
    if style.scalars == "fixup":
        modules["bias2"] = Bias()
    modules["fc"] = nn.Linear(c_in, classes)
    return nn.Sequential(modules)


def _stem(style: Style, channels: int, width: int, stem: Stem) -> dict[str, nn.Module]:
    large = stem == "imagenet"
    outer = not style.preactivated
    modules: dict[str, nn.Module] = {
        "conv1": style.convolution(channels, width, 7 if large else 3, 2 if large else 1, outer=outer)
    }
    # A pre-activated network normalizes and rectifies at the start of its first branch.
    if not style.preactivated:
        modules |= style.normalization("bn1", width, outer=True)
    if style.scalars == "fixup":
        modules["bias1"] = Bias()
    if not style.preactivated:
        modules["relu"] = nn.ReLU()
    if large:
        modules["maxpool"] = nn.MaxPool2d(3, 2, 1)
    return modules


def _style(block: Any, norm: Any, scalars: Any, shortcut: Any) -> Style:
    style = Style(
        choice("block", block, BLOCKS),
        choice("norm", norm, NORMS),
        choice("scalars", scalars, SCALARS),
        choice("shortcut", shortcut, SHORTCUTS),
    )
    if style.scalars == "fixup" and style.norm:
        raise InputError(
            "Fixup's scalars stand in for BatchNorm, and both were asked for; pass norm=False, or scalars=None."
        )
    return style


def _blocks_per_stage(layers: Any) -> tuple[int, ...]:
    counts = tuple(layers) if isinstance(layers, list | tuple) else ()
    if not counts or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in counts):
        raise InputError(
            f"got layers = {layers!r}, expected the number of blocks of each stage, such as [2, 2, 2, 2]."
        )
    return counts
