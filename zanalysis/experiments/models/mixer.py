"""The MLP-Mixer."""

from collections import OrderedDict

from torch import Tensor, nn

from zanalysis.experiments.models.arguments import fraction, image_shape, patches_of, whole
from zanalysis.experiments.models.attention import Patches, feedforward

__all__ = ["FIRST_LINEARS", "HEAD", "SECOND_LINEARS", "MixerBlock", "mixer"]

FIRST_LINEARS = ("blocks.*.tokens.first", "blocks.*.channels.first")
"""Globs of the first linear layer of each feed-forward."""
SECOND_LINEARS = ("blocks.*.tokens.second", "blocks.*.channels.second")
"""Globs of the second linear layer of each feed-forward."""
HEAD = "head"
"""Name of the classifier."""


class MixerBlock(nn.Module):
    """Mix tokens, then channels: `y = x + tokens(norm1(x)ᵀ)ᵀ`, `y + channels(norm2(y))`."""

    def __init__(self, tokens: int, dim: int, token_mlp: int, channel_mlp: int, dropout: float) -> None:
        """Set the sizes.

        Args:
            tokens: how many there are.
            dim: of each.
            token_mlp: hidden dimension of the mixing of tokens.
            channel_mlp: hidden dimension of the mixing of channels.
            dropout: of the hidden units.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.tokens = feedforward(tokens, token_mlp, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.channels = feedforward(dim, channel_mlp, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Mix.

        Args:
            x: `[samples, tokens, dim]`.

        Returns:
            The same shape.
        """
        x = x + self.tokens(self.norm1(x).transpose(-2, -1)).transpose(-2, -1)
        out: Tensor = x + self.channels(self.norm2(x))
        return out


class TokenMean(nn.Module):
    """Average the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Average.

        Args:
            x: `[samples, tokens, dim]`.

        Returns:
            `[samples, dim]`.
        """
        return x.mean(-2)


def mixer(
    *,
    image: tuple[int, int, int],
    classes: int,
    patch: int = 4,
    dim: int = 512,
    depth: int = 8,
    token_mlp: int = 256,
    channel_mlp: int = 2048,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build an MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601).

    The defaults are the paper's Mixer-S, whose dimension and depth the second seed has too. Every weight outside
    the norms is that of an `nn.Linear`: `embedding`, `blocks.0.tokens.first`, `.second`,
    `blocks.0.channels.first`, `.second`, `head`. See `FIRST_LINEARS`, `SECOND_LINEARS` and `HEAD`.

    Args:
        image: channels, height, width.
        classes: number of classes.
        patch: side of a patch in pixels, a divisor of height and width.
        dim: of the tokens.
        depth: number of blocks.
        token_mlp: hidden dimension of the mixing of tokens.
        channel_mlp: hidden dimension of the mixing of channels.
        dropout: of the hidden units, while training.

    Returns:
        The model, `[samples, *image]` to `[samples, classes]`.

    Raises:
        InputError: if an argument is out of range, or the patches do not tile the image.

    Example:
        >>> model = mixer(image=(3, 64, 64), classes=200, patch=8)
        >>> model.blocks[0].tokens.first
        Linear(in_features=64, out_features=256, bias=True)
    """
    shape = image_shape(image)
    patches = patches_of(shape, patch)
    whole("dim", dim)
    sizes = (whole("token_mlp", token_mlp), whole("channel_mlp", channel_mlp), fraction("dropout", dropout))
    blocks = [MixerBlock(patches, dim, *sizes) for _ in range(whole("depth", depth))]
    modules: OrderedDict[str, nn.Module] = OrderedDict(patches=Patches(patch))
    modules["embedding"] = nn.Linear(shape[0] * patch * patch, dim)
    modules["blocks"] = nn.Sequential(*blocks)
    modules["norm"] = nn.LayerNorm(dim)
    modules["mean"] = TokenMean()
    modules["head"] = nn.Linear(dim, whole("classes", classes))
    return nn.Sequential(modules)
