"""What the Transformer, the ViT and the Mixer are made of: self-attention, feed-forward, patches.

The matrices W_Q, W_K, W_V are the layers `query`, `key`, `value`, and those of a feed-forward `first` and
`second`, so that initializers and the tracker find them by name.
"""

import math
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Patches", "SelfAttention", "feedforward"]


class SelfAttention(nn.Module):
    """Multi-head self-attention with each matrix a layer of its own (Vaswani et al. 2017, arXiv 1706.03762).

    `softmax(Q Kᵀ / √d_head) V` in each head, heads joined by `out`; the heads' dimension need not divide that
    of the model. Written out, as `nn.MultiheadAttention` keeps the three matrices in one tensor, and the fused
    attention of PyTorch has neither batching rules nor forward derivatives on a CPU, and no fixed bits on a GPU.
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
        self.heads, self.root, self.dropout, self.causal = heads, math.sqrt(head_dim), dropout, causal
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
            projection(x).reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / self.root
        if self.causal:
            future = scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        seen = functional.dropout(scores.softmax(-1), self.dropout, self.training) @ value
        joined: Tensor = self.out(seen.transpose(1, 2).flatten(2))
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

    The entries of a token are ordered by channel, row and column.
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
            `[samples, patches, channels · side · side]`.
        """
        return functional.unfold(x, self.side, stride=self.side).transpose(-2, -1)
