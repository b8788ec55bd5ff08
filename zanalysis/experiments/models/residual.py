"""The residual blocks of the ResNets: three shapes, each with or without normalization and scalars.

Orders of the layers, by `scalars` (x the block's input, F the convolutions of the branch):

- `None`: convolution, BatchNorm, ReLU, …, addition, ReLU (He et al. 2016, arXiv 1512.03385).
- `"fixup"`: every convolution between two scalar biases, a multiplier behind the last, addition, ReLU
  (arXiv 1901.09321 and its authors' code). A projection reads `x + bias1a`, as theirs for ImageNet.
- `"rezero"`: `x + α ReLU(F(x))`, α = 0 at first: the addition comes after the nonlinearity, and nothing
  follows it (arXiv 2003.04887 and its authors' notebook, where BatchNorm stays).
- `"skipinit"`: pre-activation, `x + α F(ReLU(norm(x)))`, α = 0 at first; a projection reads the activated
  input (arXiv 2002.10444; placement as in its authors' later code).

The shape `"single"` has one 3×3 convolution per skip path and pre-activation, `conv(ReLU(norm(x))) + x`, or
`+ projection(norm(x))` where shapes change (ConstNet, arXiv 2007.01038); ConstNet's own variant without
normalization, `scale · (conv(ReLU(x + bias1a)) + bias1b)`, is its `"fixup"`. Its `"rezero"` is its `"skipinit"` but
for what a projection reads: the order of the block leaves them no other difference.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from zanalysis.experiments.models.blocks import Bias, Multiplier, PadShortcut, ResidualBlock

__all__ = [
    "BLOCKS",
    "EXPANSION",
    "NORMS",
    "SCALARS",
    "SHORTCUTS",
    "Block",
    "Norm",
    "Scalars",
    "Shortcut",
    "Style",
]

Block = Literal["basic", "bottleneck", "single"]
Scalars = Literal["fixup", "rezero", "skipinit"]
Shortcut = Literal["projection", "pad"]
Norm = bool | Literal["outer"]

BLOCKS = ("basic", "bottleneck", "single")
SCALARS = ("fixup", "rezero", "skipinit", None)
SHORTCUTS = ("projection", "pad")
NORMS = (True, False, "outer")
EXPANSION = {"basic": 1, "bottleneck": 4, "single": 1}
"""Channels that leave a block, in multiples of its stage's width."""

Modules = dict[str, nn.Module]


@dataclass(frozen=True)
class Style:
    """What the blocks of one network have in common.

    Attributes:
        block: shape of the branch.
        norm: BatchNorm everywhere (True), nowhere (False) or only outside the branches (`"outer"`).
        scalars: which scalar multipliers and biases there are.
        shortcut: where shapes change, a 1×1 convolution or subsampling and zero channels.
    """

    block: Block
    norm: Norm
    scalars: Scalars | None
    shortcut: Shortcut

    @property
    def preactivated(self) -> bool:
        """Whether normalization and ReLU come before each convolution, and none after the addition."""
        return self.block == "single" or self.scalars == "skipinit"

    def normalization(self, name: str, channels: int, *, outer: bool = False) -> Modules:
        """Build the layer that follows or precedes a convolution.

        Args:
            name: of the layer.
            channels: of its input.
            outer: whether it stands outside the branches.

        Returns:
            The layer by name, or nothing.
        """
        return {name: nn.BatchNorm2d(channels)} if self.norm is True or (outer and self.norm) else {}

    def convolution(
        self, c_in: int, c_out: int, size: int, stride: int = 1, *, outer: bool = False
    ) -> nn.Conv2d:
        """Build a convolution that keeps the image's size up to its stride.

        It has biases of its own where neither BatchNorm nor Fixup's scalars shift its output.

        Args:
            c_in: channels of the input.
            c_out: channels of the output.
            size: side of the kernel, odd.
            stride: of the pixels.
            outer: whether it stands outside the branches.

        Returns:
            The layer.
        """
        bias = self.scalars != "fixup" and not self.normalization("", c_out, outer=outer)
        return nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=bool(bias))

    def residual(self, c_in: int, width: int, stride: int) -> ResidualBlock:
        """Build one block.

        Args:
            c_in: channels that come.
            width: of the stage; `EXPANSION` times as many channels leave.
            stride: of the pixels.

        Returns:
            The block, its scalars at their start.
        """
        sizes = {"basic": (3, 3), "bottleneck": (1, 3, 1), "single": (3,)}[self.block]
        c_out = width * EXPANSION[self.block]
        channels = [c_in, *[width] * (len(sizes) - 1), c_out]
        strided = sizes.index(3)
        branch: Modules = {}
        for i, size in enumerate(sizes):
            convolution = self.convolution(channels[i], channels[i + 1], size, stride if i == strided else 1)
            last = i == len(sizes) - 1
            branch |= self._unit(i + 1, convolution, last=last)
        if self.scalars in {"rezero", "skipinit"}:
            branch["scale"] = Multiplier(0.0)
        skip = self._shortcut(c_in, c_out, stride)
        projected = bool(skip) and self.shortcut == "projection"
        names = [name for name in self._common() if projected and name in branch]
        shared = {name: branch.pop(name) for name in names}
        after = nn.ReLU() if not self.preactivated and self.scalars != "rezero" else None
        return ResidualBlock(branch, skip=skip, shared=shared, activation=after)

    def _unit(self, i: int, convolution: nn.Conv2d, *, last: bool) -> Modules:
        # One convolution of a branch with all that belongs to it, in order.
        conv: Modules = {f"conv{i}": convolution}
        relu: Modules = {f"relu{i}": nn.ReLU()}
        if self.scalars == "fixup":
            before: Modules = {f"bias{i}a": Bias()}
            end: Modules = {"scale": Multiplier(1.0)} if last else {}
            after: Modules = {f"bias{i}b": Bias()}
            if self.block == "single":
                return before | relu | conv | after | end
            return before | conv | end | after | ({} if last else relu)
        if self.preactivated:
            return self.normalization(f"bn{i}", convolution.in_channels) | relu | conv
        norm = self.normalization(f"bn{i}", convolution.out_channels)
        return conv | norm | ({} if last and self.scalars != "rezero" else relu)

    def _shortcut(self, c_in: int, c_out: int, stride: int) -> Modules:
        if stride == 1 and c_in == c_out:
            return {}
        if self.shortcut == "pad":
            return {"downsample": PadShortcut(c_in, c_out, stride)}
        layers: list[nn.Module] = [self.convolution(c_in, c_out, 1, stride, outer=not self.preactivated)]
        if not self.preactivated:
            layers += self.normalization("", c_out, outer=True).values()
        return {"downsample": nn.Sequential(*layers)}

    def _common(self) -> tuple[str, ...]:
        # The first layers of the branch that a projection reads too.
        if self.scalars == "fixup":
            return ("bias1a",)
        if self.block == "single" and self.scalars != "skipinit":
            return ("bn1",)
        return ("bn1", "relu1") if self.preactivated else ()
