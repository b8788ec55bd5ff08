"""Initializations of whole models: against formulas written out, and by what the methods promise."""

import copy
import math
import warnings
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from init_models import BasicBlock, FixupBlock, Mixer, Single, TransformerBlock, resnet18
from torch import nn
from torch.nn.utils import prune

from hooks import RankTracker, every
from zanalysis import initializers as init
from zanalysis.errors import InputError

EYE = torch.eye


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ZerO


def literal_zero(shape):
    """Algorithms 1 and 2, entry by entry, in float64."""
    p, q, *taps = shape
    c = 2 ** (-math.ceil(math.log2(p)) / 2)
    kernel = torch.zeros(shape, dtype=torch.float64)
    for i in range(p):
        for j in range(q):
            entry = c * (-1) ** (i & j).bit_count() if p > q else float(i == j)
            kernel[(i, j, *(size // 2 for size in taps))] = entry
    return kernel


def test_zero_of_a_resnet_is_its_algorithms():
    model = resnet18().double()
    report = init.zero_(model)
    assert report.model is model
    assert not report.unknown
    blocks = {name for name, module in model.named_modules() if isinstance(module, BasicBlock)}
    last = {f"{name}.conv2.weight" for name in blocks}
    assert len(last) == 8
    for name, parameter in model.named_parameters():
        if name in last or name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            torch.testing.assert_close(parameter.detach(), literal_zero(parameter.shape), rtol=4e-16, atol=0)
    assert [s for s in report.assumed if "conv2 was taken as the last layer" in s and "BasicBlock" in s]
    assert report.rules()["3.conv1.weight"] == "identity"
    assert {entry.name: entry.shape for entry in report.layers} == {
        name: tuple(p.shape) for name, p in model.named_parameters()
    }


def test_every_residual_block_of_resnet_18_under_zero_has_the_jacobian_of_its_skip_path():
    model = resnet18(width=2).double().eval()
    init.zero_(model)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=generator())
    seen = 0
    for module in model:
        if isinstance(module, BasicBlock):
            whole = torch.func.jacrev(module)(x)
            skip = torch.func.jacrev(lambda z, m=module: torch.relu(m.skip(z)))(x)
            assert torch.equal(whole, skip)
            assert whole.any()
            seen += 1
        x = module(x).detach()
    assert seen == 8


@pytest.mark.parametrize(
    "name", ["zero", "partial-identity", "hadamard", "constnet", "all-constant", "all-zero"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_deterministic_ones_touch_no_generator_and_round_once(name, dtype):
    def initialized(of):
        model = nn.Sequential(nn.Conv2d(3, 5, 3), Single(5, 7), Single(7, 7), nn.Linear(7, 3)).to(of)
        before = torch.get_rng_state()
        init.initialize(model, name)
        assert torch.equal(before, torch.get_rng_state())
        return state(model)

    first, exact = initialized(dtype), initialized(torch.float64)
    assert same(first, initialized(dtype))
    assert same(first, {key: value.to(dtype) for key, value in exact.items()})


def test_deterministic_ones_ask_no_default_of_dtype_or_device():
    model = nn.Sequential(nn.Linear(3, 8), nn.Conv1d(8, 8, 3, groups=2))
    init.zero_(model)
    expected = state(model)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            init.zero_(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(state(model), expected)


def test_grouped_kernels_are_initialized_group_by_group():
    conv = nn.Conv2d(6, 12, 3, groups=3)
    report = init.zero_(conv)
    for group in conv.weight.chunk(3):
        assert torch.equal(group, init.zero_(torch.empty(4, 2, 3, 3)))
    assert report.rules()["weight"] == "Hadamard in each of 3 groups"
    depthwise = nn.Conv1d(5, 5, 3, groups=5, bias=False)
    init.zero_(depthwise)
    x = torch.randn(2, 5, 9)
    assert torch.equal(depthwise(x), x[..., 1:-1])


@pytest.mark.parametrize("shape", [(2, 6), (6, 2), (4, 4)])
def test_transposed_convolutions_map_inputs_to_outputs(shape):
    c_in, c_out = shape
    conv = nn.ConvTranspose2d(c_in, c_out, 3, padding=1, bias=False)
    init.zero_(conv)
    matrix = init.zero_(torch.empty(c_out, c_in))
    x = torch.randn(1, c_in, 5, 5, generator=generator())
    torch.testing.assert_close(conv(x), torch.einsum("oi,nihw->nohw", matrix, x), rtol=1e-6, atol=1e-6)


def test_attention_of_pytorch():
    for kdim in (None, 5):
        attention = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=True)
        report = init.zero_(attention)
        if kdim is None:
            q, k, v = attention.in_proj_weight.chunk(3)
            assert report.rules()["in_proj_weight"] == "Q identity, K 0, V 0"
        else:
            q, k, v = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
        assert torch.equal(q, EYE(8))
        assert not k.any()
        assert not v.any()
        assert torch.equal(attention.out_proj.weight, EYE(8))
        assert not attention.in_proj_bias.any()
        assert not attention.out_proj.bias.any()


@pytest.mark.parametrize("fused", [True, False])
def test_attention_of_linear_layers_is_found_by_name(fused):
    model = TransformerBlock(fused=fused)
    report = init.zero_(model)
    attn = model.attn
    q, k, v = (
        attn.qkv.weight.chunk(3) if fused else (attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight)
    )
    assert torch.equal(q, EYE(8))
    assert not k.any()
    assert not v.any()
    assert torch.equal(attn.proj.weight, EYE(8))
    assert torch.equal(model.mlp[0].weight, init.zero_(torch.empty(32, 8)))
    assert torch.equal(model.mlp[2].weight, EYE(8, 32))
    assert any("query, key and value matrices, by name: attn." in s for s in report.assumed)
    assert any("keeps Algorithm 1" in s and "attn.proj" in s for s in report.assumed)
    x = torch.randn(2, 3, 8)
    assert torch.equal(model(x), x + model.mlp(model.norm2(x)))  # the values are zero


def test_attention_can_be_given():
    model = nn.ModuleDict(
        {
            "a": nn.Linear(4, 12),
            "q_proj": nn.Linear(4, 4),
            "k_proj": nn.Linear(4, 4),
            "v_proj": nn.Linear(4, 4),
        }
    )
    init.zero_(model, attention={"a": "qkv", "[qkv]_proj": "none"})
    assert torch.equal(model["a"].weight, torch.cat((EYE(4), torch.zeros(8, 4))))
    assert torch.equal(model["k_proj"].weight, EYE(4))
    with pytest.raises(InputError, match="unknown role 'w' of 'a' in attention"):
        init.zero_(model, attention={"a": "w"})
    with pytest.raises(InputError, match="attention: no layer matches 'b'"):
        init.zero_(model, attention={"b": "q"})
    with pytest.raises(InputError, match="q_proj has 4 outputs, which 3 blocks of equal size do not fill"):
        init.zero_(model, attention={"q_proj": "qkv"})
    with pytest.raises(InputError, match="expected roles by name"):
        init.zero_(model, attention=["a"])


def test_patches_are_linear_layers_where_asked():
    model = Mixer()
    with pytest.raises(InputError, match=r"embed.weight: a kernel of size 2×2 has no centre tap"):
        init.zero_(model)
    report = init.zero_(model.to(memory_format=torch.channels_last), patches="linear")
    assert torch.equal(model.embed.weight.reshape(8, 12), EYE(8, 12))
    assert any("taken as the linear layer of a patch" in s for s in report.assumed)
    with pytest.raises(InputError, match="unknown patches 'flat'"):
        init.zero_(model, patches="flat")


def test_embeddings_and_their_padding():
    model = nn.Embedding(10, 4, padding_idx=3)
    report = init.zero_(model)
    expected = init.zero_(torch.empty(10, 4))
    expected[3] = 0
    assert torch.equal(model.weight, expected)
    assert any("states no rule for embeddings" in s for s in report.assumed)
    before = state(model)
    assert not init.zero_(model, embedding="keep").layers
    assert same(state(model), before)
    init.kaiming_(model, generator=generator())
    assert not model.weight[3].any()
    assert model.weight[4].all()


# Standard


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_kaiming_is_he_et_al(mode, distribution):
    model = nn.Sequential(nn.Conv2d(32, 64, 3, groups=2), nn.Linear(300, 400), nn.ConvTranspose1d(60, 80, 5))
    init.kaiming_(model, mode, distribution, generator=generator())
    fans = [(16 * 9, 32 * 9), (300, 400), (60 * 5, 80 * 5)]
    for layer, fan in zip(model, fans, strict=True):
        std = math.sqrt(2 / fan[mode == "fan_out"])
        assert abs(layer.weight.std() / std - 1) < 0.03
        if distribution == "uniform":
            assert 0.99 < layer.weight.abs().max() / (std * math.sqrt(3)) <= 1
        assert not layer.bias.any()


def test_kaiming_and_xavier_are_pytorchs_draws():
    layer = nn.Linear(7, 5)
    init.kaiming_(layer, generator=generator())
    assert torch.equal(
        layer.weight, nn.init.kaiming_normal_(torch.empty(5, 7), nonlinearity="relu", generator=generator())
    )
    init.xavier_(layer, 2.0, "uniform", generator=generator())
    assert torch.equal(layer.weight, nn.init.xavier_uniform_(torch.empty(5, 7), 2.0, generator=generator()))
    torch.manual_seed(5)
    init.xavier_(layer)
    torch.manual_seed(5)
    assert torch.equal(layer.weight, nn.init.xavier_normal_(torch.empty(5, 7)))


def test_fused_attention_has_the_fan_of_each_matrix():
    attention = nn.MultiheadAttention(64, 2)
    init.xavier_(attention, generator=generator())
    assert abs(attention.in_proj_weight.std() / math.sqrt(2 / 128) - 1) < 0.02


def test_perturbed_identity_of_a_model():
    model = nn.Sequential(nn.Conv2d(40, 40, 3), nn.BatchNorm2d(40))
    init.perturbed_identity_(model, 0.1, generator())
    noise = model[0].weight.detach().clone()
    noise[:, :, 1, 1] -= EYE(40)
    assert abs(noise.std() / 0.1 - 1) < 0.02
    assert abs(noise.mean()) < 0.01
    with pytest.raises(InputError, match="expected a positive number"):
        init.perturbed_identity_(model, 0)


# Residual networks


def fixup_net(depth=4, width=16):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), *[FixupBlock(width) for _ in range(depth)], nn.Flatten(), nn.Linear(width, 4)
    )


def test_fixup_follows_its_three_rules():
    model = fixup_net()
    report = init.fixup_(model, generator=generator())
    std = math.sqrt(2 / (16 * 9))
    for block in model[1:5]:
        assert not block.conv2.weight.any()
        assert abs(block.conv1.weight.std() / (std * 4**-0.5) - 1) < 0.05
        assert block.scale.item() == 1
        assert not any(p.any() for name, p in block.named_parameters() if name.startswith("bias"))
        x = torch.rand(1, 16, 5, 5)
        assert torch.equal(block(x), x)
    assert abs(model[0].weight.std() / std - 1) < 0.1
    assert not model[-1].weight.any()
    assert not model[-1].bias.any()
    assert report.rules()["2.conv1.weight"] == "4^(−1/2) · N(0, 2/fan_out)"
    assert any("6 was taken as the classification layer" in s for s in report.assumed)
    assert not any("rule 3 asks for" in s for s in report.assumed)


class Bottleneck(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv3 = nn.Conv2d(width, width, 1)  # defined first, called last
        self.conv1 = nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.conv3(self.conv2(self.conv1(x)).relu()).add(self.shortcut(x))


def test_fixup_of_three_layers_scales_by_the_fourth_root_and_spares_the_shortcut():
    model = nn.Sequential(*[Bottleneck(64) for _ in range(16)], nn.Linear(64, 2))
    report = init.fixup_(model, generator=generator())
    for block in model[:16]:
        assert not block.conv3.weight.any()
        assert abs(block.conv1.weight.std() / (math.sqrt(2 / 64) / 2) - 1) < 0.05
        assert abs(block.conv2.weight.std() / (math.sqrt(2 / (64 * 9)) / 2) - 1) < 0.05
        assert abs(block.shortcut.weight.std() / math.sqrt(2 / 64) - 1) < 0.05
    assert sum("rule 3 asks for" in s for s in report.assumed) == 2


@pytest.mark.parametrize("name", ["rezero", "skipinit"])
def test_scalars_at_zero_make_every_block_its_skip_path(name):
    model = fixup_net()
    init.initialize(model, name, generator=generator())
    x = torch.rand(2, 16, 5, 5)
    for block in model[1:5]:
        assert torch.equal(block(x), x)
        assert abs(block.conv2.weight.std() / math.sqrt(2 / (16 * 9)) - 1) < 0.05
    assert model[-1].weight.all()


def test_skipinit_counts_the_blocks():
    model = fixup_net(depth=9)
    init.skipinit_(model, "1/sqrt(d)")
    assert [block.scale.item() for block in model[1:10]] == pytest.approx([1 / 3] * 9, rel=1e-7)
    init.skipinit_(model, 0.25)
    assert model[1].scale.item() == 0.25
    with pytest.raises(InputError, match="got alpha = 'half'"):
        init.skipinit_(model, "half")


@pytest.mark.parametrize("name", ["rezero", "skipinit"])
def test_without_scalars_there_is_no_rezero(name):
    with pytest.raises(InputError, match="needs a learnable scalar at the end of each residual branch"):
        init.initialize(resnet18(), name)


def const_net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        Single(6, 6),
        nn.BatchNorm2d(6),
        Single(6, 8),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def test_constnet_is_the_channel_average():
    model = const_net()
    report = init.constnet_(model)
    x = torch.randn(2, 3, 8, 8, generator=generator())
    features = model[0](x)
    torch.testing.assert_close(features[:, :1], x.mean(1, keepdim=True), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(features[:, :1], features[:, i : i + 1]) for i in range(6))
    assert not any(
        p.any() for p in (model[1].conv.weight, model[3].conv.weight, model[-1].weight, model[-1].bias)
    )
    assert torch.equal(model[3].conv_res.weight, torch.full((8, 6, 1, 1), 1 / 6))
    assert model[0].weight.count_nonzero() == 18
    assert not any("ever gets a gradient" in s for s in report.assumed)
    assert any("ever gets a gradient" in s for s in init.constnet_(resnet18()).assumed)


def trained(model, steps=12, seed=3):
    draws = generator(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(
            model(torch.randn(8, 3, 8, 8, generator=draws)), torch.randint(3, (8,), generator=draws)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_noise_tells_the_features_of_constnet_apart():
    def spread(noise):
        model = const_net().double()
        init.constnet_(model, noise, generator=generator())
        trained(model.float())
        kernel = model[1].conv.weight.detach()
        assert kernel.any()
        return (kernel - kernel[:1]).abs().max() / kernel.abs().max()

    assert spread(False) < 1e-5  # rounding only
    assert spread(0.1) > 1e-2


@pytest.mark.parametrize("noise", [-0.1, 1.0, "much"])
def test_noise_is_a_probability(noise):
    with pytest.raises(InputError, match="got noise"):
        init.constnet_(const_net(), noise)


def test_constnet_and_skipinit_need_branches():
    with pytest.raises(InputError, match="no residual branch was found"):
        init.constnet_(nn.Linear(3, 3))
    with pytest.raises(InputError, match="needs the number of residual blocks"):
        init.skipinit_(nn.Linear(3, 3), "1/sqrt(d)")


# Zeros


def test_chosen_layers_become_zero_and_nothing_else_moves():
    model = resnet18()
    before = state(model)
    report = init.zeros_(model, ["*.conv1", "13"])
    assert len(report.layers) == 10
    for name, tensor in state(model).items():
        chosen = ".conv1." in name or name.startswith("13.")
        assert not tensor.any() if chosen else torch.equal(tensor, before[name])
    init.zeros_(nn.Sequential(model[-1]), weights_only=True)
    model[-1].bias.data.fill_(2)
    assert init.zeros_(model[-1], weights_only=True).rules() == {"weight": "0"}
    init.zeros_(model, lambda name, module: isinstance(module, nn.Linear))
    assert not model[-1].bias.any()
    with pytest.raises(InputError, match="layers: no layer matches 'conv9'"):
        init.zeros_(model, "conv9")


def test_zeroing_attention_takes_its_output_projection_along():
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    init.zeros_(model, "0")
    assert not any(p.any() for p in model[0].parameters())
    assert model[1].weight.any()


@pytest.mark.parametrize("name", ["all-constant", "all-zero"])
def test_the_noise_stops_by_itself_when_the_weight_moves(name):
    model = Mixer()
    report = init.initialize(model, name, generator=generator())
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.LayerNorm)]
    noisy = [m for m in layers if m._forward_hooks]
    assert len(noisy) == (7 if name == "all-zero" else 6)
    assert not any(p.any() for n, p in model.named_parameters() if name == "all-zero" or "norm" not in n)
    assert any(f"the noise of {len(noisy)} layers" in s for s in report.assumed)
    x = torch.randn(5, 8)
    first, second = model.head(x), model.head(x)
    assert torch.equal(first[:1].expand(5, 3), first)  # as a bias: one value for each feature
    assert not torch.equal(first, second)
    assert first.abs().max() <= 1 / math.sqrt(8)
    assert not model.eval().head(x).any()
    model.train().head.weight.data[1, 2] = 1e-30
    assert not model.head._forward_hooks or torch.equal(model.head(x), x @ model.head.weight.T)
    assert not model.head._forward_hooks
    model.head.weight.data.zero_()
    assert not model.head(x).any()  # once gone, it stays away


def test_an_all_constant_mixer_begins_to_learn_layer_by_layer():
    model = Mixer()
    init.all_constant_(model, generator=generator())
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    moved = []
    draws = generator(1)
    for _ in range(6):
        loss = nn.functional.cross_entropy(
            model(torch.randn(4, 3, 4, 4, generator=draws)), torch.tensor([0, 1, 2, 0])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved.append(
            {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.weight.any()}
        )
    assert moved[0] == {"head"}  # behind a zero layer nothing moves
    assert moved[0] < moved[1] < moved[-1]
    model(torch.randn(4, 3, 4, 4, generator=draws))
    assert all(not m._forward_hooks for n, m in model.named_modules() if n in moved[-1])


@pytest.mark.parametrize("name", ["all-constant", "constnet-noise"])
def test_noise_lives_through_copies_pickles_and_moves_and_not_in_the_state(name, tmp_path):
    model = const_net()
    keys = model.state_dict().keys()
    init.initialize(model, name, generator=generator())
    assert model.state_dict().keys() == keys
    twin = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    nets = [trained(net, 4) for net in (model, twin, loaded)]
    assert same(state(nets[0]), state(nets[1]))
    assert same(state(nets[0]), state(nets[2]))
    hooked = [m for m in twin.to(torch.float64).modules() if m._forward_hooks]
    assert name == "all-constant" or len(hooked) == 2
    assert twin(torch.zeros(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_another_initialization_takes_the_noise_off():
    model = Mixer()
    init.all_zero_(model)
    init.all_zero_(model)
    assert all(len(m._forward_hooks) <= 1 for m in model.modules())
    init.kaiming_(model)
    assert not any(m._forward_hooks for m in model.modules())


def test_noise_on_kernels_of_every_kind_has_the_layers_fan():
    model = nn.ModuleList(
        [nn.Conv1d(4, 6, 3, groups=2, padding=1), nn.ConvTranspose1d(4, 6, 3, groups=2, padding=1)]
    )
    init.all_constant_(model, generator=generator())
    for layer in model:
        outputs = torch.stack([layer(torch.randn(2, 4, 5)) for _ in range(200)])
        assert torch.equal(outputs[:, :1, :, :1].expand_as(outputs), outputs)
        assert 0.95 < outputs.abs().max() * math.sqrt(6) <= 1


# Bad models, and odd ones


class Prism(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 3))
        self.logit_scale = nn.Parameter(torch.full((1,), 2.6))
        self.lstm = nn.LSTM(2, 1)
        self.pair = nn.Bilinear(2, 2, 1)
        self.norm = RMSNorm(4)


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in init.INITIALIZATIONS
        if n not in ("zeros", "rezero", "skipinit", "constnet", "constnet-noise")
    ],
)
def test_what_is_unknown_is_named_warned_of_and_left(name):
    model = Prism()
    before = state(model)
    options = {"std": 0.1} if name == "perturbed-identity" else {}
    with pytest.warns(UserWarning, match="knows no rule for table, logit_scale"):
        report = init.initialize(model, name, **options)
    assert set(report.unknown) == {k for k in before if k != "norm.weight"}
    assert all(torch.equal(before[k], model.state_dict()[k]) for k in report.unknown)
    assert report.rules() == {"norm.weight": "0" if name == "all-zero" else "1"}
    assert "unknown: left as they were" in str(report)
    assert any("zero without a noise" in s for s in report.assumed) == (name == "all-zero")


@pytest.mark.parametrize("name", [n for n in init.INITIALIZATIONS if n != "perturbed-identity"])
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), "1.weight is lazy and has no shape yet"),
        (lambda: nn.Linear(2, 2, device="meta"), "weight is on the meta device.*to_empty"),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))),
            "weight of 0 is parametrized",
        ),
        (lambda: nn.Sequential(nn.ReLU()), "Sequential has no parameters"),
        (lambda: "model", "got str, expected"),
    ],
    ids=["lazy", "meta", "parametrized", "empty", "no model"],
)
def test_models_that_cannot_be_initialized(name, broken, says):
    with pytest.raises(
        InputError, match=says if broken() != "model" else "got str, expected (a tensor|an nn.Module)"
    ):
        init.initialize(broken(), name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_refused():
    with pytest.raises(InputError, match="got a scripted model; initialize the model that it is made of"):
        init.zero_(torch.jit.script(nn.Linear(2, 2)))


def test_computed_weights_are_refused():
    pruned = prune.random_unstructured(nn.Linear(3, 3), "weight", 0.5)
    with pytest.raises(
        InputError, match="weight of Linear is no parameter but computed from bias, weight_orig"
    ):
        init.kaiming_(pruned)


def test_a_refusal_changes_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 2))
    before = state(model)
    with pytest.raises(InputError, match=r"1\.weight: a kernel of size 2×2"):
        init.zero_(model)
    assert same(state(model), before)


def test_eight_bits_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    for name in ("zero", "kaiming", "zeros"):
        with pytest.raises(InputError, match=r"0\.weight: got dtype torch.float8_e4m3fn"):
            init.initialize(model, name)


def test_tied_and_frozen_parameters_are_set_once_and_told_of():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    report = init.kaiming_(model, generator=generator())
    assert report.rules() == {"0.weight": "N(0, 2/fan_in)"}
    assert "0.weight is one parameter with 1.weight; it was set once." in report.assumed
    assert "set although frozen (requires_grad is False): 0.weight." in report.assumed
    assert not model[1].weight.requires_grad
    assert init.zeros_(model, "1").rules() == {"0.weight": "0"}


def test_a_block_used_twice_is_found_by_each_of_its_names():
    block = BasicBlock(4, 4)
    model = nn.Sequential(block, block, nn.Linear(4, 2))
    init.zero_(model)
    assert not block.conv2.weight.any()
    assert block.conv1.weight.any()
    init.zeros_(model, "1.conv1")
    assert not block.conv1.weight.any()


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    ],
)
def test_wrappers_leave_the_names_alone(wrap):
    plain, wrapped = fixup_net(), fixup_net()
    one = init.fixup_(plain, generator=generator(), last="*.conv2")
    two = init.fixup_(wrap(wrapped), generator=generator(), last="*.conv2")
    assert one.layers == two.layers
    assert one.assumed == two.assumed
    assert same(state(plain), state(wrapped))


def test_names_lead_to_every_initialization():
    with pytest.raises(InputError, match="unknown initialization 'kaimin'; did you mean 'kaiming'"):
        init.initialize(nn.Linear(2, 2), "kaimin")
    with pytest.raises(InputError, match="fixup has no option 'lst'; did you mean 'last'"):
        init.initialize(nn.Linear(2, 2), "fixup", lst="x")
    with pytest.raises(InputError, match="all-zero has no option 'lst'; it has none"):
        init.initialize(nn.Linear(2, 2), "all-zero", lst="x")
    with pytest.raises(InputError, match="perturbed-identity needs the option 'std'"):
        init.initialize(nn.Linear(2, 2), "perturbed-identity")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("zero", "kaiming", "fixup", "zeros"):
            assert init.initialize(nn.Linear(2, 2), name, generator=generator()).layers


# Properties


LAYERS = {
    "linear": lambda a, b: nn.Linear(a, b),
    "conv1d": lambda a, b: nn.Conv1d(a, b, 3),
    "conv3d": lambda a, b: nn.Conv3d(a, b, (1, 3, 5), bias=False),
    "grouped": lambda a, b: nn.Conv2d(2 * a, 2 * b, 3, groups=2),
    "transposed": lambda a, b: nn.ConvTranspose2d(a, b, 3),
    "embedding": lambda a, b: nn.Embedding(b, a),
    "batch norm": lambda a, b: nn.BatchNorm2d(a),
    "layer norm": lambda a, b: nn.LayerNorm(b),
    "prelu": lambda a, b: nn.PReLU(),
    "attention": lambda a, b: nn.MultiheadAttention(2 * a, 2),
    "block": lambda a, b: Single(a, b),
}
layers = st.lists(
    st.tuples(st.sampled_from(sorted(LAYERS)), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    layers,
    st.sampled_from([n for n in init.INITIALIZATIONS if n not in ("rezero", "skipinit", "constnet-noise")]),
)
def test_every_parameter_is_set_or_named_and_a_seed_gives_the_same_bits(drawn, name):
    def initialized(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(*[LAYERS[kind](a, b) for kind, a, b in drawn])
        options = {"std": 0.1} if name == "perturbed-identity" else {}
        report = init.initialize(model, name, generator=generator(7), **options)
        return report, state(model)

    if name == "constnet" and not any(kind == "block" for kind, _, _ in drawn):
        with pytest.raises(InputError, match="no residual branch"):
            initialized(0)
        return
    if name == "zeros" and not any(
        kind in ("linear", "attention", "block") or "conv" in kind for kind, _, _ in drawn
    ):
        return
    (report, first), (_, second) = initialized(0), initialized(1)
    named = {entry.name for entry in report.layers} | set(report.unknown)
    every = {key for key, tensor in report.model.named_parameters()}
    assert not report.unknown
    assert named == every if name != "zeros" else named <= every
    assert all(torch.equal(first[key], second[key]) for key in named)  # whatever was there before
    assert (
        str(report).splitlines()[0].endswith(f"{len(report.layers)} of {len(report.layers)} parameters set")
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 70))
def test_zero_of_a_matrix_is_an_isometry_where_it_can_be_one(p, q):
    weight = init.zero_(torch.empty(p, q, dtype=torch.float64))
    whole = p <= q or p & (p - 1) == 0
    values = torch.linalg.svdvals(weight)
    if whole:
        torch.testing.assert_close(values, torch.ones(min(p, q), dtype=torch.float64), rtol=1e-12, atol=0)
    assert values.max() <= 1 + 1e-12


def test_a_tracker_disturbs_no_noise():
    def run(attached):
        model = Mixer()
        init.all_constant_(model, generator=generator())
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        draws, probe = generator(1), torch.ones(2, 3, 4, 4)
        with ExitStack() as stack:
            if attached:
                tensors, metrics = (
                    ("weight", "activation"),
                    ("rank", "span_dimension", "jacobian_singular_values"),
                )
                tracker = RankTracker(
                    model, optimizer, schedule=every(1), probe=probe, tensors=tensors, metrics=metrics
                )
                stack.enter_context(tracker)
            for _ in range(6):
                loss = nn.functional.cross_entropy(
                    model(torch.randn(4, 3, 4, 4, generator=draws)), torch.tensor([0, 1, 2, 0])
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return state(model)

    assert same(run(False), run(True))


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["zero", "hadamard", "constnet-noise", "kaiming", "fixup", "all-constant"])
def test_on_a_gpu_the_bits_are_those_of_the_cpu(name):
    weights = []
    for device in ("cpu", "cuda"):
        model = const_net().to(device)
        before = torch.cuda.get_rng_state()
        init.initialize(model, name, generator=generator())
        assert torch.equal(before, torch.cuda.get_rng_state())
        weights.append({key: tensor.cpu() for key, tensor in state(model).items()})
        outputs = [model(torch.ones(2, 3, 8, 8, device=device)) for _ in range(2)]
        assert torch.equal(*outputs) == (
            name not in ("constnet-noise", "all-constant") or not outputs[0].any()
        )
    assert same(*weights)


def test_dropout_keeps_the_mean_of_a_branch():
    model = Single(4, 4)
    report = init.constnet_(model, 0.25, classifier=[], generator=generator())
    model.conv.weight.data.normal_()
    x = torch.rand(3, 4, 9, 9)
    exact = model.eval().conv(x)
    dropped = model.train().conv(x)
    kept = dropped != 0
    assert abs(kept.float().mean() - 0.75) < 0.05
    torch.testing.assert_close(dropped[kept], exact[kept] / 0.75, rtol=1e-6, atol=0)
    assert not model.conv_res._forward_hooks
    assert "the noise lives in the model and in no state dict." in report.assumed


def test_attention_gets_no_noise_within_and_says_so():
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    report = init.all_constant_(model)
    assert not any(p.any() for p in model.parameters())
    assert [name for name, module in model.named_modules() if module._forward_hooks] == ["1"]
    assert any("where no noise can be given: 0." in s for s in report.assumed)
