"""The Transformer language model of ZerO's Table 4."""

import math

import torch
from torch import Tensor, nn

from zanalysis.errors import InputError
from zanalysis.experiments.models.arguments import choice, fraction, whole
from zanalysis.experiments.models.attention import SelfAttention, feedforward
from zanalysis.experiments.models.blocks import Multiplier

__all__ = [
    "ATTENTION",
    "FIRST_LINEARS",
    "HEAD",
    "SECOND_LINEARS",
    "LanguageModel",
    "TransformerLayer",
    "transformer_lm",
]

ATTENTION = {role: (f"layers.*.attention.{role}",) for role in ("query", "key", "value", "out")}
"""Globs of the attention matrices by role."""
FIRST_LINEARS = ("layers.*.feedforward.first",)
"""Globs of the first linear layer of each feed-forward."""
SECOND_LINEARS = ("layers.*.feedforward.second",)
"""Globs of the second linear layer of each feed-forward."""
HEAD = "decoder"
"""Name of the layer that scores the vocabulary."""


class TransformerLayer(nn.Module):
    """Causal self-attention, then a feed-forward, each with a skip connection.

    Post-norm as in Vaswani et al. 2017: `y = norm1(x + attention(x))`, `norm2(y + feedforward(y))`. With ReZero
    (arXiv 2003.04887, its authors' `RZTXEncoderLayer`) no norms: `y = x + α attention(x)`,
    `y + α feedforward(y)`, the scalar α of both sub-layers one parameter, 0 at first.
    """

    def __init__(self, d_model: int, heads: int, d_ff: int, dropout: float, *, rezero: bool) -> None:
        """Set the sizes.

        Args:
            d_model: of the tokens, a multiple of heads.
            heads: of the attention.
            d_ff: hidden dimension of the feed-forward.
            dropout: of attention weights, hidden units and both sub-layers' outputs.
            rezero: whether a scalar takes the norms' place.
        """
        super().__init__()
        self.attention = SelfAttention(d_model, heads, d_model // heads, dropout=dropout, causal=True)
        self.feedforward = feedforward(d_model, d_ff, dropout=dropout, activation="relu")
        self.dropout = nn.Dropout(dropout)
        self.resweight = Multiplier(0.0) if rezero else nn.Identity()
        self.norm1 = nn.Identity() if rezero else nn.LayerNorm(d_model)
        self.norm2 = nn.Identity() if rezero else nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Attend and transform.

        Args:
            x: `[samples, tokens, d_model]`.

        Returns:
            The same shape.
        """
        x = self.norm1(x + self.resweight(self.dropout(self.attention(x))))
        out: Tensor = self.norm2(x + self.resweight(self.dropout(self.feedforward(x))))
        return out


class Positions(nn.Module):
    """Add the sinusoidal encoding of the places; the table is no part of the weights."""

    table: Tensor

    def __init__(self, length: int, d_model: int) -> None:
        """Compute the table.

        Args:
            length: of the longest text.
            d_model: dimension of the tokens.
        """
        super().__init__()
        self.register_buffer("table", sinusoids(length, d_model), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add.

        Args:
            x: `[samples, tokens, d_model]`.

        Returns:
            The same shape.

        Raises:
            InputError: if the text is longer than the model was built for.
        """
        length, longest = x.shape[1], self.table.shape[0]
        if length > longest:
            raise InputError(
                f"got texts of {length} tokens, expected at most {longest}; build the model with length={length}."
            )
        return x + self.table[:length]


class LanguageModel(nn.Module):
    """Score the next token of a text; see `transformer_lm`."""

    def __init__(
        self,
        vocabulary: int,
        layers: int,
        d_model: int,
        heads: int,
        d_ff: int,
        dropout: float,
        *,
        rezero: bool,
        length: int,
    ) -> None:
        """Set the sizes, as `transformer_lm` has checked them.

        Args:
            vocabulary: number of tokens there are.
            layers: number of layers.
            d_model: dimension of the tokens.
            heads: of the attention.
            d_ff: hidden dimension of the feed-forwards.
            dropout: everywhere.
            rezero: whether scalars take the norms' place.
            length: of the longest text.
        """
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.positions = Positions(length, d_model)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(TransformerLayer(d_model, heads, d_ff, dropout, rezero=rezero) for _ in range(layers))
        )
        self.norm = nn.Identity() if rezero else nn.LayerNorm(d_model)
        self.decoder = nn.Linear(d_model, vocabulary)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the standard initialization of PyTorch's word-language-model example.

        Embedding and decoder uniform in ±0.1, the decoder's bias zero; W_Q, W_K, W_V as
        `nn.MultiheadAttention` draws its one matrix of all three, uniform in ±√(6 / 4d); biases of the attention zero.
        """
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        for module in self.modules():
            if isinstance(module, SelfAttention):
                bound = math.sqrt(6 / (4 * module.out.out_features))
                for linear in (module.query, module.key, module.value):
                    nn.init.uniform_(linear.weight, -bound, bound)
                    nn.init.zeros_(linear.bias)
                nn.init.zeros_(module.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Score what comes next at every place.

        Args:
            tokens: integers `[samples, tokens]`.

        Returns:
            Logits `[samples, tokens, vocabulary]`; those at place t depend on the tokens up to t only.
        """
        x = self.positions(self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim))
        logits: Tensor = self.decoder(self.norm(self.layers(self.dropout(x))))
        return logits


def sinusoids(length: int, d_model: int) -> Tensor:
    """Compute the positional encoding of Vaswani et al. 2017, section 3.5.

    Entry (t, 2i) is `sin(t / 10000^(2i/d))`, entry (t, 2i + 1) its cosine.

    Args:
        length: number of places t.
        d_model: number d of entries.

    Returns:
        `[length, d_model]`, in the default dtype, computed in float64.

    Example:
        >>> sinusoids(2, 3)[0]
        tensor([0., 1., 0.])
    """
    places = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    entries = torch.arange(d_model, dtype=torch.float64)
    angles = places / 10000 ** (2 * (entries // 2) / d_model)
    return torch.where(entries % 2 == 0, angles.sin(), angles.cos()).to(torch.get_default_dtype())


def transformer_lm(
    *,
    vocabulary: int,
    layers: int = 2,
    d_model: int = 200,
    heads: int = 2,
    d_ff: int = 200,
    dropout: float = 0.2,
    rezero: bool = False,
    length: int = 5000,
) -> LanguageModel:
    """Build the Transformer language model of PyTorch's word-language-model example, which Table 4 trains.

    Embedding times √d_model, sinusoidal positions, post-norm layers of causal self-attention and feed-forward,
    a last norm, a linear decoder. The defaults are the example's. The matrices are layers named
    `layers.0.attention.query`, `.key`, `.value`, `.out`, `layers.0.feedforward.first`, `.second`; see `ATTENTION`,
    `FIRST_LINEARS`, `SECOND_LINEARS` and `HEAD`.

    Args:
        vocabulary: number of tokens there are.
        layers: number of layers, 2 to 20 in Table 4.
        d_model: dimension of the tokens, a multiple of heads.
        heads: of the attention.
        d_ff: hidden dimension of the feed-forwards.
        dropout: everywhere, while training.
        rezero: whether each layer has one scalar in the place of its norms (arXiv 2003.04887), the last norm
            left out as well.
        length: of the longest text.

    Returns:
        The model, integers `[samples, tokens]` to logits `[samples, tokens, vocabulary]`.

    Raises:
        InputError: if an argument is out of range, or heads does not divide d_model.

    Example:
        >>> model = transformer_lm(vocabulary=7, layers=1, d_model=4, heads=2, d_ff=8)
        >>> model(torch.zeros(3, 5, dtype=torch.long)).shape
        torch.Size([3, 5, 7])
    """
    if whole("d_model", d_model) % whole("heads", heads):
        divisors = ", ".join(str(n) for n in range(1, d_model + 1) if d_model % n == 0)
        raise InputError(f"{heads} heads do not divide d_model = {d_model}; use one of {divisors}.")
    return LanguageModel(
        whole("vocabulary", vocabulary),
        whole("layers", layers),
        d_model,
        heads,
        whole("d_ff", d_ff),
        fraction("dropout", dropout),
        rezero=choice("rezero", rezero, (True, False)),
        length=whole("length", length),
    )
