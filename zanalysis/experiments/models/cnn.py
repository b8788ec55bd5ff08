"""The convolutional network that learns from all-zero weights."""

from collections import OrderedDict

from torch import nn

from zanalysis.experiments.models.arguments import fraction, image_shape, whole
from zanalysis.experiments.models.blocks import ResidualBlock

__all__ = ["HEAD", "cnn"]

HEAD = "fc"
"""Name of the classifier."""


def cnn(*, image: tuple[int, int, int], classes: int, depth: int = 3, slope: float = 0.01) -> nn.Sequential:
    """Build residual 3×3 convolutions at the input's own width and size, then one linear layer.

    Each of the convolutions is `LeakyReLU(conv(x)) + x`, with as many channels as the image, padding 1 and
    a bias; layers are `block1.conv`, …, `fc`. With c channels it has `depth · c (9 c + 1) + classes (c H W + 1)`
    parameters: 7,880 on MNIST at depth 3. Source: the code of "Deep Learning with Zero Initialization" (Seo).

    Args:
        image: channels, height, width.
        classes: number of classes.
        depth: number of convolutions.
        slope: of the LeakyReLU below zero, from 0 to below 1; 0.01 is PyTorch's.

    Returns:
        The model, `[samples, *image]` to `[samples, classes]`.

    Raises:
        InputError: if a size is not positive, or the slope out of range.

    Example:
        >>> sum(p.numel() for p in cnn(image=(1, 28, 28), classes=10).parameters())
        7880
    """
    channels, height, width = image_shape(image)
    whole("classes", classes)
    below = fraction("slope", slope)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, whole("depth", depth) + 1):
        convolution = nn.Conv2d(channels, channels, 3, padding=1)
        modules[f"block{i}"] = ResidualBlock({"conv": convolution, "activation": nn.LeakyReLU(below)})
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(channels * height * width, classes)
    return nn.Sequential(modules)
