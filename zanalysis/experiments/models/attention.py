"""What the Transformer, the ViT and the Mixer are made of: self-attention, feed-forward, patches.

The matrices W_Q, W_K, W_V are the layers `query`, `key`, `value`, and those of a feed-forward `first` and
`second`, so that initializers and the tracker find them by name.
"""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Patches", "SelfAttention", "feedforward"]


class SelfAttention(nn.Module):
    """Multi-head self-attention with each matrix a layer of its own (Vaswani et al. 2017, arXiv 1706.03762).

    `softmax(Q Kᵀ / √d_head) V` in each head, heads joined by `out`; the heads' dimension need not divide that
    of the model. A custom forward because `nn.MultiheadAttention` keeps the three matrices in one tensor.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        """Set the sizes.

        Args:
            dim: of the tokens that come and leave.
            heads: number of heads.
            head_dim: dimension of each.
            dropout: of the attention weights, while training.
            bias: whether queries, keys and values have biases; `out` always has.
            causal: whether each token sees only those up to itself.
        """
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.query = nn.Linear(dim, heads * head_dim, bias=bias)
        self.key = nn.Linear(dim, heads * head_dim, bias=bias)
        self.value = nn.Linear(dim, heads * head_dim, bias=bias)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: `[samples, tokens, dim]`.

        Returns:
            The same shape.
        """
        query, key, value = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for projection in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=self.causal
        )
        joined: Tensor = self.out(seen.transpose(-3, -2).flatten(-2))
        return joined


def feedforward(
    dim: int, hidden: int, *, dropout: float = 0.0, activation: Literal["relu", "gelu"] = "gelu"
) -> nn.Sequential:
    """Build a feed-forward: `first`, activation, `second`, with dropout between.

    Args:
        dim: of the tokens that come and leave.
        hidden: dimension in between.
        dropout: behind the activation, while training.
        activation: ReLU or GELU.

    Returns:
        The layers.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(first=nn.Linear(dim, hidden))
    layers["activation"] = nn.ReLU() if activation == "relu" else nn.GELU()
    layers["dropout"] = nn.Dropout(dropout)
    layers["second"] = nn.Linear(hidden, dim)
    return nn.Sequential(layers)


class Patches(nn.Module):
    """Cut images into square patches, each flattened to a token, row by row.

    The entries of a token are ordered by row, column and channel.
    """

    def __init__(self, side: int) -> None:
        """Set the size.

        Args:
            side: of a patch, in pixels.
        """
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Cut.

        Args:
            x: `[samples, channels, height, width]`, both multiples of the side.

        Returns:
            `[samples, patches, side · side · channels]`.
        """
        tiles = x.unflatten(-1, (-1, self.side)).unflatten(-3, (-1, self.side))
        # Axes from the end: channels, row of patches, row within, column of patches, column within.
        return tiles.movedim((-4, -2), (-5, -4)).movedim(-3, -1).flatten(-3).flatten(-3, -2)
