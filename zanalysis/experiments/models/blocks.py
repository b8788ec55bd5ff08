"""What residual networks are made of: the block, scalar multipliers and biases, the shortcut without weights."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Bias", "Multiplier", "PadShortcut", "ResidualBlock"]


class Multiplier(nn.Module):
    """Multiply by one learnable scalar, the parameter `scale` of shape [1].

    Source: Fixup's rule 3 (Zhang et al., ICLR 2019, arXiv 1901.09321), where it starts at 1; ReZero
    (arXiv 2003.04887) and SkipInit (arXiv 2002.10444), where it starts at 0.
    """

    def __init__(self, value: float = 1.0) -> None:
        """Set its start.

        Args:
            value: of the scalar before training.
        """
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), float(value)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale.

        Args:
            x: any shape.

        Returns:
            `scale · x`.
        """
        return x * self.scale


class Bias(nn.Module):
    """Add one learnable scalar, the parameter `bias` of shape [1], 0 before training.

    One number for all channels: Fixup's rule 3 (arXiv 1901.09321) and its authors' code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Shift.

        Args:
            x: any shape.

        Returns:
            `x + bias`.
        """
        return x + self.bias


class PadShortcut(nn.Module):
    """Pass every `stride`-th pixel on and append channels of zeros: a shortcut without weights.

    Option A of He et al. 2016 (arXiv 1512.03385, section 3.3), as Fixup's code for CIFAR has it: an average
    pooling of one pixel, then zeros for the channels that are new.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        """Set the sizes.

        Args:
            c_in: channels that come.
            c_out: channels that leave, at least as many.
            stride: of the pixels.
        """
        super().__init__()
        self.new = c_out - c_in
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad.

        Args:
            x: `[samples, c_in, height, width]`.

        Returns:
            `[samples, c_out, ⌈height/stride⌉, ⌈width/stride⌉]`.
        """
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


class ResidualBlock(nn.Module):
    """A branch and a skip path, added: `activation(branch(x) + skip(x))`.

    The layers are children of the block itself, so that they keep the names by which they are known
    (`layer1.0.conv1`, `layer1.0.downsample.0`); `branch` and `skip` show them in order.
    """

    def __init__(
        self,
        branch: Mapping[str, nn.Module],
        *,
        skip: Mapping[str, nn.Module] | None = None,
        shared: Mapping[str, nn.Module] | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        """Take the layers.

        Args:
            branch: the layers of the branch by name, in order.
            skip: those of the skip path; None for the identity.
            shared: those that both paths begin with, run once.
            activation: what follows the addition, under the name `relu`; None for nothing.
        """
        super().__init__()
        parts = [dict(shared or {}), dict(branch), dict(skip or {})]
        for part in parts:
            for name, module in part.items():
                self.add_module(name, module)
        self._shared, self._branch, self._skip = (tuple(part) for part in parts)
        self.relu = activation

    @property
    def branch(self) -> nn.Sequential:
        """The branch, from the block's input to the addition: a view of the block's own layers."""
        return self._view(self._shared + self._branch)

    @property
    def skip(self) -> nn.Module:
        """The skip path, a view of the block's own layers; `Identity` where nothing is done."""
        if not self._shared + self._skip:
            return nn.Identity()
        return self._view(self._shared + self._skip)

    def forward(self, x: Tensor) -> Tensor:
        """Add both paths.

        Args:
            x: `[samples, channels, height, width]`.

        Returns:
            The same, with the branch's channels and size.
        """
        start = self._through(self._shared, x)
        out = self._through(self._branch, start) + self._through(self._skip, start)
        return out if self.relu is None else self.relu(out)

    def _through(self, names: Iterable[str], x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x

    def _view(self, names: Iterable[str]) -> nn.Sequential:
        view = nn.Sequential(OrderedDict((name, self.get_submodule(name)) for name in names))
        view.training = self.training
        return view
