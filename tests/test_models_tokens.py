"""The models of tokens: the language model, the Vision Transformer, the Mixer."""

import math
from fnmatch import fnmatch

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zanalysis.errors import InputError
from zanalysis.experiments.models import mixer, transformer_lm, vit
from zanalysis.experiments.models.attention import Patches
from zanalysis.experiments.models.mixer import FIRST_LINEARS as MIXER_FIRST
from zanalysis.experiments.models.mixer import SECOND_LINEARS as MIXER_SECOND
from zanalysis.experiments.models.transformer import ATTENTION, TransformerLayer, sinusoids
from zanalysis.experiments.models.transformer import FIRST_LINEARS as LM_FIRST
from zanalysis.experiments.models.transformer import SECOND_LINEARS as LM_SECOND
from zanalysis.experiments.models.vit import FIRST_LINEARS as VIT_FIRST
from zanalysis.experiments.models.vit import HEAD
from zanalysis.experiments.models.vit import SECOND_LINEARS as VIT_SECOND

TEXT = {"vocabulary": 11, "layers": 2, "d_model": 6, "heads": 2, "d_ff": 10}
VIT = {
    "image": (2, 6, 9),
    "classes": 4,
    "patch": 3,
    "dim": 5,
    "depth": 2,
    "heads": 3,
    "head_dim": 2,
    "mlp": 7,
}
MIXER = {"image": (2, 6, 9), "classes": 4, "patch": 3, "dim": 5, "depth": 2, "token_mlp": 3, "channel_mlp": 8}


def count(model):
    return sum(p.numel() for p in model.parameters())


def exact(actual, expected):
    """The same formula in float64: only rounding may differ."""
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def stir(model):
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * 0.5)
    return model


def test_sizes_are_those_published():
    with torch.device("meta"):
        # Mixer-S/16 as its authors' models have it.
        assert count(mixer(image=(3, 224, 224), classes=1000, patch=16)) == 18_528_264
        base = vit(image=(3, 224, 224), classes=1000, patch=16, dim=768, depth=12, heads=12, mlp=3072)
        # ViT-B/16 has 86,567,656, of which ours leaves out the biases of queries, keys and values.
        assert count(base) == 86_567_656 - 12 * 3 * 768


def test_size_on_cifar():
    with torch.device("meta"):
        attention = 3 * 500 * 640 + 640 * 500 + 500
        block = attention + 500 * 2000 + 2000 + 2000 * 500 + 500 + 4 * 500
        rest = 48 * 500 + 500 + 500 + 65 * 500 + 2 * 500 + 500 * 10 + 10
        assert count(vit(image=(3, 32, 32), classes=10)) == 6 * block + rest


def library_model(d_model, heads, d_ff, layers):
    layer = nn.TransformerEncoderLayer(d_model, heads, d_ff, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(d_model), enable_nested_tensor=False)


def library_weights(model):
    """Our tensors, under the names of PyTorch's encoder."""
    names = {
        "attention.out": "self_attn.out_proj",
        "feedforward.first": "linear1",
        "feedforward.second": "linear2",
    }
    names |= {"norm1": "norm1", "norm2": "norm2"}
    weights = {f"norm.{n}": p for n, p in model.norm.named_parameters()}
    for i, layer in enumerate(model.layers):
        for kind in ("weight", "bias"):
            matrices = [getattr(getattr(layer.attention, r), kind) for r in ("query", "key", "value")]
            weights[f"layers.{i}.self_attn.in_proj_{kind}"] = torch.cat(matrices)
            for ours, theirs in names.items():
                weights[f"layers.{i}.{theirs}.{kind}"] = getattr(layer.get_submodule(ours), kind)
    return weights


def test_language_model_is_the_library_s_encoder():
    model = stir(transformer_lm(**TEXT, dropout=0.0))
    library = library_model(6, 2, 10, 2).double()
    library.load_state_dict(library_weights(model))
    assert count(model) == count(library) + 11 * 6 + 11 * 6 + 11
    tokens = torch.randint(11, (3, 7))
    model.positions.table = sinusoids(7, 6).double()
    x = model.embedding(tokens) * math.sqrt(6) + model.positions.table
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    exact(model(tokens), model.decoder(library(x, mask=mask)))


def test_size_of_the_language_model_on_wikitext_2():
    with torch.device("meta"):
        assert count(transformer_lm(vocabulary=33_278)) == count(library_model(200, 2, 200, 2)) + 33_278 * 401


def test_language_model_sees_no_future():
    model = transformer_lm(**TEXT).eval()
    tokens = torch.randint(11, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()


def test_positions():
    expected = torch.empty(9, 5)
    for t in range(9):
        for i in range(5):
            angle = t / 10000 ** ((i - i % 2) / 5)
            expected[t, i] = math.cos(angle) if i % 2 else math.sin(angle)
    torch.testing.assert_close(sinusoids(9, 5), expected)


def test_rezero_layer():
    model = transformer_lm(**TEXT, rezero=True, dropout=0.0)
    assert not [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    x = torch.randn(2, 4, 6)
    assert torch.equal(model.layers(x), x)
    layer = stir(TransformerLayer(6, 2, 10, 0.0, rezero=True))
    assert [p.shape for n, p in layer.named_parameters() if n.startswith("resweight")] == [(1,)]
    x, alpha = x.double(), layer.resweight.scale
    y = x + alpha * layer.attention(x)
    exact(layer(x), y + alpha * layer.feedforward(y))


def test_standard_initialization_of_the_language_model():
    model = transformer_lm(vocabulary=500, layers=2, d_model=64, heads=2, d_ff=32)
    for weight in (model.embedding.weight, model.decoder.weight):
        assert 0.0999 < weight.abs().max() <= 0.1
    attention = model.layers[1].attention
    bound = math.sqrt(6 / (64 + 3 * 64))
    for linear in (attention.query, attention.key, attention.value):
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()
    assert not attention.out.bias.any()
    assert not model.decoder.bias.any()


def attend(x, a, heads):
    """Attention, head by head."""
    size = a.query.out_features // heads
    out = []
    for h in range(heads):
        rows = slice(h * size, (h + 1) * size)
        q, k, v = (x @ linear.weight[rows].T for linear in (a.query, a.key, a.value))
        out.append(torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(size), -1) @ v)
    return a.out(torch.cat(out, -1))


def tiles(x, side):
    """Patches, one by one."""
    rows, columns = x.shape[-2] // side, x.shape[-1] // side
    cut = [
        x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side].flatten(1)
        for i in range(rows)
        for j in range(columns)
    ]
    return torch.stack(cut, 1)


def test_patches():
    x = torch.arange(2 * 2 * 6 * 9).reshape(2, 2, 6, 9).float()
    assert torch.equal(Patches(3)(x), tiles(x, 3))


def test_vit_written_out():
    model = stir(vit(**VIT))
    x = torch.randn(3, 2, 6, 9, dtype=torch.float64)
    z = model.embedding.linear(tiles(x, 3))
    z = torch.cat((model.class_token.expand(3, 1, 5), z), 1) + model.positions
    for block in model.blocks:
        z = z + attend(block.norm1(z), block.attention, 3)
        f = block.feedforward
        z = z + f.second(F.gelu(f.first(block.norm2(z))))
    exact(model(x), model.head(model.norm(z)[:, 0]))


def test_mixer_written_out():
    model = stir(mixer(**MIXER))
    x = torch.randn(3, 2, 6, 9, dtype=torch.float64)
    z = model.embedding(tiles(x, 3))
    for block in model.blocks:
        y = block.norm1(z).mT
        z = z + block.tokens.second(F.gelu(block.tokens.first(y))).mT
        z = z + block.channels.second(F.gelu(block.channels.first(block.norm2(z))))
    exact(model(x), model.head(model.norm(z).mean(1)))


@pytest.mark.parametrize(
    ("model", "globs", "shapes"),
    [
        (vit(**VIT), VIT_FIRST, [(7, 5)] * 2),
        (vit(**VIT), VIT_SECOND, [(5, 7)] * 2),
        (vit(**VIT), (HEAD,), [(4, 5)]),
        (mixer(**MIXER), MIXER_FIRST, [(3, 6), (8, 5)] * 2),
        (mixer(**MIXER), MIXER_SECOND, [(6, 3), (5, 8)] * 2),
        (mixer(**MIXER), (HEAD,), [(4, 5)]),
        (transformer_lm(**TEXT), LM_FIRST, [(10, 6)] * 2),
        (transformer_lm(**TEXT), LM_SECOND, [(6, 10)] * 2),
        (transformer_lm(**TEXT), ATTENTION["query"], [(6, 6)] * 2),
        (transformer_lm(**TEXT), [g for globs in ATTENTION.values() for g in globs], [(6, 6)] * 8),
        (transformer_lm(**TEXT), ("decoder",), [(11, 6)]),
    ],
)
def test_globs_find_their_layers(model, globs, shapes):
    found = [m for name, m in model.named_modules() if any(fnmatch(name, glob) for glob in globs)]
    assert all(isinstance(m, nn.Linear) for m in found)
    assert [tuple(m.weight.shape) for m in found] == shapes


def test_every_weight_of_the_mixer_is_a_linear_layer_or_a_norm():
    model = mixer(**MIXER)
    owned = [p for m in model.modules() if isinstance(m, nn.Linear | nn.LayerNorm) for p in m.parameters()]
    assert len(owned) == len(list(model.parameters()))


@pytest.mark.parametrize("build", [lambda: vit(**VIT), lambda: mixer(**MIXER)])
def test_gradients_reach_every_parameter_of_the_vision_models(build):
    model = build()
    F.cross_entropy(model(torch.randn(4, 2, 6, 9)), torch.arange(4)).backward()
    assert not [name for name, p in model.named_parameters() if not p.grad.any()]


@pytest.mark.parametrize("rezero", [False, True])
def test_gradients_reach_every_parameter_of_the_language_model(rezero):
    model = transformer_lm(**TEXT, rezero=rezero).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tokens = torch.randint(11, (8, 9))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    largest = {name: p.grad.abs().max() for name, p in model.named_parameters()}
    still = {name for name, gradient in largest.items() if gradient < 1e-13}
    # A bias of the keys adds the same to all scores of a query, which the softmax takes away: rounding is left.
    assert still == {f"layers.{i}.attention.key.bias" for i in range(2)}


def test_dropout_acts_in_training_only():
    tokens = torch.randint(11, (2, 5))
    for model, x in ((transformer_lm(**TEXT), tokens), (vit(**VIT, dropout=0.5), torch.randn(2, 2, 6, 9))):
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


def test_attention_dropout_acts():
    layer = TransformerLayer(6, 2, 10, 0.5, rezero=False).attention
    x = torch.randn(2, 5, 6)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_positions_travel_and_stay_out_of_the_weights():
    model = transformer_lm(**TEXT).double()
    assert model.positions.table.dtype == torch.float64
    assert not [name for name in model.state_dict() if "positions" in name]


# PyTorch compiles its forward derivative of LayerNorm by the means that it warns of.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_functional_transforms_pass_through():
    model = vit(**VIT).eval()
    x = torch.randn(2, 2, 6, 9)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: model(one[None])[0]))(x)
    assert jacobian.shape == (2, 4, 2, 6, 9)
    ahead = torch.func.vmap(torch.func.jacfwd(lambda one: model(one[None])[0]))(x)
    torch.testing.assert_close(ahead, jacobian, rtol=1e-4, atol=1e-5)
    stacked, buffers = torch.func.stack_module_state([vit(**VIT), vit(**VIT)])

    def call(parameters, buffers):
        return torch.func.functional_call(model, (parameters, buffers), (x,))

    outputs = torch.func.vmap(call)(stacked, buffers)
    one = {name: value[1] for name, value in stacked.items()}
    # Batched products sum in another order: float32 rounding.
    torch.testing.assert_close(outputs[1], call(one, {}), rtol=1e-4, atol=1e-5)


def test_too_long_a_text():
    model = transformer_lm(**TEXT, length=4)
    with pytest.raises(InputError, match=r"texts of 5 tokens, expected at most 4; build .* length=5"):
        model(torch.zeros(1, 5, dtype=torch.long))


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (transformer_lm, {"heads": 4}, "4 heads do not divide d_model = 6; use one of 1, 2, 3, 6"),
        (transformer_lm, {"dropout": 1.0}, "got dropout = 1.0, expected a number from 0 to just below 1"),
        (transformer_lm, {"vocabulary": 0}, "got vocabulary = 0, expected a whole number of 1 or more"),
        (transformer_lm, {"layers": True}, "got layers = True, expected a whole number"),
        (vit, {"patch": 4}, r"4×4 pixels do not tile an image of 6×9; use .* both: 1, 3\."),
        (vit, {"depth": 0}, "got depth = 0"),
        (mixer, {"patch": 2}, "2×2 pixels do not tile an image of 6×9"),
        (mixer, {"token_mlp": None}, "got token_mlp = None"),
    ],
)
def test_bad_arguments(build, arguments, message):
    base = {transformer_lm: TEXT, vit: VIT, mixer: MIXER}[build]
    with pytest.raises(InputError, match=message):
        build(**(base | arguments))
