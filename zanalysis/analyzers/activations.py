"""Activations at the edge: which dimensions are features, and where the inputs come from.

Layout: everything behind this module sees `[samples, features]` in place of a layer's output.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from zanalysis.errors import InputError, did_you_mean

__all__ = ["Layout", "as_samples", "inputs", "layout_of"]

Layout = Literal["auto", "channels_last", "channels_first", "flatten"]
_LAYOUTS = ("auto", "channels_last", "channels_first", "flatten")
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)
# Whatever the number of dimensions: attention over images puts [batch, height, width, features] into these.
_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.LayerNorm, nn.RNNBase, nn.MultiheadAttention)


def as_samples(z: Tensor, layout: Layout = "auto") -> Tensor:
    """View activations as a matrix of samples.

    Args:
        z: activations, the batch first unless there is only one dimension.
        layout: which dimensions are features. `"channels_last"`: the last; all others count samples.
            `"channels_first"`: the second; the batch and the positions count samples. `"flatten"`: all but
            the first. `"auto"`: channels first from four dimensions on, as of a convolution, else channels
            last.

    Returns:
        `[samples, features]`, a view where that is possible.

    Raises:
        InputError: if the layout is unknown or needs more dimensions than there are.

    Example:
        >>> as_samples(torch.zeros(2, 3, 5, 5)).shape
        torch.Size([50, 3])
    """
    if layout not in _LAYOUTS:
        raise InputError(f"layout={layout!r} is unknown: {did_you_mean(str(layout), _LAYOUTS)}")
    if layout == "auto":
        layout = "channels_first" if z.ndim >= 4 else "channels_last"
    if z.ndim < (1 if layout == "channels_last" else 2):
        raise InputError(
            f"layout {layout!r} needs a batch dimension, but the activations are {tuple(z.shape)}."
        )
    if layout == "flatten":
        return z.flatten(1)
    if layout == "channels_first":
        z = z.movedim(1, -1)
    return z.reshape(z.shape[:-1].numel(), z.shape[-1])


def layout_of(module: nn.Module, layout: Layout) -> Layout:
    """Settle `"auto"` by the kind of module, where that tells.

    Convolutions, batch normalization and pooling put channels first; linear, embedding, recurrent and
    attention layers and layer normalization put them last.

    Args:
        module: the module whose output it is.
        layout: as the user asked.

    Returns:
        The layout; `"auto"` still where only the number of dimensions can tell.
    """
    # A linear layer feeds [batch, features] to BatchNorm1d: channels first is right there too.
    if layout != "auto":
        return layout
    if isinstance(module, _CHANNELS_LAST):
        return "channels_last"
    return "channels_first" if isinstance(module, _CHANNELS_FIRST) else layout


def inputs(
    data: Tensor | Iterable[object], batch_size: int, max_samples: int | None = None
) -> Iterator[Tensor]:
    """Draw the inputs out of a tensor or of batches.

    Args:
        data: a tensor of inputs, the batch first, or batches: each a tensor or a sequence that starts with
            one.
        batch_size: inputs per batch where data is a tensor.
        max_samples: stop after so many inputs; the last batch is cut.

    Yields:
        The inputs, batch by batch.

    Raises:
        InputError: if a batch neither is a tensor nor starts with one.
    """
    left = max_samples
    for batch in torch.split(data, batch_size) if isinstance(data, Tensor) else data:
        x = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if not isinstance(x, Tensor):
            raise InputError(f"a batch must be a tensor or start with one, got {type(batch).__name__}.")
        if left is not None:
            x = x[:left]
            left -= len(x)
        yield x
        # Asked here, so that no batch is drawn in vain: the data may be a stream.
        if left == 0:
            return
