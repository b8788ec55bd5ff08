"""The Vision Transformer."""

import torch
from torch import Tensor, nn

from zanalysis.experiments.models.arguments import fraction, image_shape, patches_of, whole
from zanalysis.experiments.models.attention import Patches, SelfAttention, feedforward

__all__ = ["FIRST_LINEARS", "HEAD", "SECOND_LINEARS", "ViTBlock", "VisionTransformer", "vit"]

FIRST_LINEARS = ("blocks.*.feedforward.first",)
"""Globs of the first linear layer of each feed-forward."""
SECOND_LINEARS = ("blocks.*.feedforward.second",)
"""Globs of the second linear layer of each feed-forward."""
HEAD = "head"
"""Name of the classifier."""


class ViTBlock(nn.Module):
    """Pre-norm attention and feed-forward: `y = x + attention(norm1(x))`, `y + feedforward(norm2(y))`."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp: int, dropout: float) -> None:
        """Set the sizes.

        Args:
            dim: of the tokens.
            heads: of the attention.
            head_dim: dimension of each.
            mlp: hidden dimension of the feed-forward.
            dropout: of attention weights, hidden units and both outputs.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, head_dim, dropout=dropout, bias=False)
        self.norm2 = nn.LayerNorm(dim)
        self.feedforward = feedforward(dim, mlp, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Attend and transform.

        Args:
            x: `[samples, tokens, dim]`.

        Returns:
            The same shape.
        """
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: Tensor = x + self.dropout(self.feedforward(self.norm2(x)))
        return out


class VisionTransformer(nn.Module):
    """Classify images as sequences of patches; see `vit`."""

    def __init__(self, embedding: nn.Sequential, tokens: int, blocks: list[ViTBlock], classes: int) -> None:
        """Join the parts.

        Args:
            embedding: from images to tokens, its last layer linear.
            tokens: how many, without the class token.
            blocks: the layers, in order.
            classes: number of classes.
        """
        super().__init__()
        dim = blocks[0].norm1.normalized_shape[0]
        self.embedding = embedding
        self.class_token = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens + 1, dim), std=0.02))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: `[samples, channels, height, width]`.

        Returns:
            Logits `[samples, classes]`, read from the class token.
        """
        tokens = self.embedding(x)
        first = self.class_token.expand(tokens.shape[0], 1, -1)
        tokens = torch.cat((first, tokens), 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


def vit(
    *,
    image: tuple[int, int, int],
    classes: int,
    patch: int = 4,
    dim: int = 500,
    depth: int = 6,
    heads: int = 10,
    head_dim: int = 64,
    mlp: int = 2000,
    dropout: float = 0.0,
) -> VisionTransformer:
    """Build a Vision Transformer with a class token (Dosovitskiy et al. 2021, arXiv 2010.11929).

    The defaults are the second seed's on CIFAR-10; the heads' 10 × 64 dimensions are more than the tokens' 500, and
    queries, keys and values have no biases. Class token and positions are single parameters, zero and a
    normal of deviation 0.02, as in the paper's code. See `FIRST_LINEARS`, `SECOND_LINEARS` and `HEAD`.

    Args:
        image: channels, height, width.
        classes: number of classes.
        patch: side of a patch in pixels, a divisor of height and width.
        dim: of the tokens.
        depth: number of blocks.
        heads: of the attention.
        head_dim: dimension of each.
        mlp: hidden dimension of the feed-forwards.
        dropout: everywhere, while training.

    Returns:
        The model, `[samples, *image]` to `[samples, classes]`.

    Raises:
        InputError: if an argument is out of range, or the patches do not tile the image.

    Example:
        >>> model = vit(image=(3, 32, 32), classes=10)
        >>> model.blocks[0].attention.query
        Linear(in_features=500, out_features=640, bias=False)
    """
    shape = image_shape(image)
    patches = patches_of(shape, patch)
    share = fraction("dropout", dropout)
    whole("dim", dim)
    sizes = (whole("heads", heads), whole("head_dim", head_dim), whole("mlp", mlp))
    blocks = [ViTBlock(dim, *sizes, share) for _ in range(whole("depth", depth))]
    embedding = nn.Sequential()
    embedding.add_module("patches", Patches(patch))
    embedding.add_module("linear", nn.Linear(shape[0] * patch * patch, dim))
    return VisionTransformer(embedding, patches, blocks, whole("classes", classes))
