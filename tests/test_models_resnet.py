"""The ResNets: published sizes and names, and each method's order of layers, written out."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zanalysis.errors import InputError
from zanalysis.experiments.models import Bias, Multiplier, PadShortcut, ResidualBlock, deep_resnet, resnet

IMAGENET = {"image": (3, 224, 224), "classes": 1000, "stem": "imagenet"}
CIFAR = {"image": (3, 32, 32), "classes": 10}
SMALL = {"image": (2, 12, 12), "classes": 3, "width": 3, "layers": (2, 2)}


def count(model):
    return sum(p.numel() for p in model.parameters())


def channels(block):
    return block.conv1.in_channels


def stir(model, seed=1):
    """Give every parameter, scalars included, a value of no special kind, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.4 * noise + (0.7 if parameter.numel() == 1 else 0.0))
    return model


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        (IMAGENET, 11_689_512),
        (IMAGENET | {"block": "bottleneck", "layers": (3, 4, 6, 3)}, 25_557_032),
        (CIFAR, 11_173_962),
        (CIFAR | {"block": "bottleneck", "layers": (3, 4, 6, 3)}, 23_520_842),
    ],
)
def test_sizes_are_those_published(arguments, parameters):
    with torch.device("meta"):
        assert count(resnet(**arguments)) == parameters


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962), (1202, 19_421_274)],
)
def test_deep_sizes_are_those_published(depth, parameters):
    with torch.device("meta"):
        assert count(deep_resnet(**CIFAR, depth=depth, norm=True)) == parameters


def test_size_of_the_bottleneck_variant():
    # A 3×3 stem, four stages of four bottlenecks, a classifier; a BatchNorm has two vectors.
    expected, c_in = 3 * 64 * 9 + 2 * 64, 64
    for w in (64, 128, 256, 512):
        expected += (c_in * 4 * w) + 2 * 4 * w
        for c in (c_in, 4 * w, 4 * w, 4 * w):
            expected += c * w + 9 * w * w + 4 * w * w + 2 * (w + w + 4 * w)
        c_in = 4 * w
    expected += 2048 * 10 + 10
    with torch.device("meta"):
        assert count(resnet(**CIFAR, block="bottleneck", layers=[4, 4, 4, 4])) == expected


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("scalars", ["fixup", "rezero", "skipinit"])
def test_scalars_are_few_and_single(block, scalars):
    model = resnet(**SMALL, block=block, norm=False, scalars=scalars)
    convolutions = {"basic": 2, "bottleneck": 3}[block]
    multipliers = [m for m in model.modules() if isinstance(m, Multiplier)]
    assert len(multipliers) == 4  # one a block
    assert all(m.scale.shape == (1,) and m.scale == (scalars == "fixup") for m in multipliers)
    biases = [m for m in model.modules() if isinstance(m, Bias)]
    # Two for every convolution of every branch, one behind the stem, one before the classifier.
    assert len(biases) == (4 * 2 * convolutions + 2 if scalars == "fixup" else 0)
    assert all(m.bias.shape == (1,) and m.bias == 0 for m in biases)


def usual_names(layers, convolutions, widened):
    """The names of a ResNet's tensors as its users know them."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", *(f"bn1.{n}" for n in norm)]
    for stage, blocks in enumerate(layers, 1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            for i in range(1, convolutions + 1):
                names += [f"{prefix}.conv{i}.weight", *(f"{prefix}.bn{i}.{n}" for n in norm)]
            if block == 0 and (stage > 1 or widened):
                names += [f"{prefix}.downsample.0.weight", *(f"{prefix}.downsample.1.{n}" for n in norm)]
    return [*names, "fc.weight", "fc.bias"]


def test_names_are_the_usual_ones():
    with torch.device("meta"):
        assert list(resnet(**IMAGENET).state_dict()) == usual_names((2, 2, 2, 2), 2, widened=False)
        large = resnet(**IMAGENET, block="bottleneck", layers=(3, 4, 6, 3))
        assert list(large.state_dict()) == usual_names((3, 4, 6, 3), 3, widened=True)
        strides = [large.layer2[0].conv1.stride, large.layer2[0].conv2.stride]
    assert strides == [(1, 1), (2, 2)]


def test_stems():
    x = torch.randn(2, 3, 32, 32)
    large = resnet(image=(3, 32, 32), classes=4, width=2, stem="imagenet")
    small = resnet(image=(3, 32, 32), classes=4, width=2)
    assert nn.Sequential(*list(large)[:4])(x).shape == (2, 2, 8, 8)
    assert nn.Sequential(*list(small)[:3])(x).shape == (2, 2, 32, 32)
    assert small.layer4(small.layer3(small.layer2(torch.randn(2, 2, 32, 32)))).shape == (2, 16, 4, 4)


# Each order of layers, written out. `p` are a block's tensors by name, `s` its stride, x its input.


def conv(x, p, name, s=1):
    w = p[f"{name}.weight"]
    return F.conv2d(x, w, p.get(f"{name}.bias"), stride=s, padding=w.shape[-1] // 2)


def bn(x, p, name):
    return F.batch_norm(x, None, None, p[f"{name}.weight"], p[f"{name}.bias"], training=True)


def b(p, name):
    return p[f"{name}.bias"]


def plain_basic(x, p, s):
    out = bn(conv(F.relu(bn(conv(x, p, "conv1", s), p, "bn1")), p, "conv2"), p, "bn2")
    if "downsample.0.weight" in p:
        x = bn(conv(x, p, "downsample.0", s), p, "downsample.1")
    return F.relu(out + x)


def plain_bottleneck(x, p, s):
    out = F.relu(bn(conv(x, p, "conv1"), p, "bn1"))
    out = F.relu(bn(conv(out, p, "conv2", s), p, "bn2"))
    out = bn(conv(out, p, "conv3"), p, "bn3")
    if "downsample.0.weight" in p:
        x = bn(conv(x, p, "downsample.0", s), p, "downsample.1")
    return F.relu(out + x)


def fixup_basic(x, p, s):
    out = conv(x + b(p, "bias1a"), p, "conv1", s)
    out = F.relu(out + b(p, "bias1b"))
    out = conv(out + b(p, "bias2a"), p, "conv2")
    out = out * p["scale.scale"] + b(p, "bias2b")
    if "downsample.0.weight" in p:
        x = conv(x + b(p, "bias1a"), p, "downsample.0", s)
    return F.relu(out + x)


def fixup_bottleneck(x, p, s):
    out = conv(x + b(p, "bias1a"), p, "conv1")
    out = F.relu(out + b(p, "bias1b"))
    out = conv(out + b(p, "bias2a"), p, "conv2", s)
    out = F.relu(out + b(p, "bias2b"))
    out = conv(out + b(p, "bias3a"), p, "conv3")
    out = out * p["scale.scale"] + b(p, "bias3b")
    if "downsample.0.weight" in p:
        x = conv(x + b(p, "bias1a"), p, "downsample.0", s)
    return F.relu(out + x)


def rezero_basic(x, p, s):
    out = F.relu(bn(conv(F.relu(bn(conv(x, p, "conv1", s), p, "bn1")), p, "conv2"), p, "bn2"))
    if "downsample.0.weight" in p:
        x = bn(conv(x, p, "downsample.0", s), p, "downsample.1")
    return p["scale.scale"] * out + x


def rezero_outer(x, p, s):
    out = F.relu(conv(F.relu(conv(x, p, "conv1", s)), p, "conv2"))
    if "downsample.0.weight" in p:
        x = bn(conv(x, p, "downsample.0", s), p, "downsample.1")
    return p["scale.scale"] * out + x


def skipinit_basic(x, p, s):
    active = F.relu(x)
    out = p["scale.scale"] * conv(F.relu(conv(active, p, "conv1", s)), p, "conv2")
    return out + (conv(active, p, "downsample.0", s) if "downsample.0.weight" in p else x)


def skipinit_norm(x, p, s):
    active = F.relu(bn(x, p, "bn1"))
    out = conv(F.relu(bn(conv(active, p, "conv1", s), p, "bn2")), p, "conv2")
    return p["scale.scale"] * out + (conv(active, p, "downsample.0", s) if "downsample.0.weight" in p else x)


def constnet(x, p, s):
    z = bn(x, p, "bn1")
    return conv(F.relu(z), p, "conv1", s) + (
        conv(z, p, "downsample.0", s) if "downsample.0.weight" in p else x
    )


def constnet_scalars(x, p, s):
    z = x + b(p, "bias1a")
    out = p["scale.scale"] * (conv(F.relu(z), p, "conv1", s) + b(p, "bias1b"))
    return out + (conv(z, p, "downsample.0", s) if "downsample.0.weight" in p else x)


ORDERS = {
    "plain basic": ({}, plain_basic),
    "plain bottleneck": ({"block": "bottleneck"}, plain_bottleneck),
    "Fixup basic": ({"norm": False, "scalars": "fixup"}, fixup_basic),
    "Fixup bottleneck": ({"block": "bottleneck", "norm": False, "scalars": "fixup"}, fixup_bottleneck),
    "ReZero": ({"scalars": "rezero"}, rezero_basic),
    "ReZero without norm": ({"norm": "outer", "scalars": "rezero"}, rezero_outer),
    "SkipInit": ({"norm": False, "scalars": "skipinit"}, skipinit_basic),
    "SkipInit with norm": ({"scalars": "skipinit"}, skipinit_norm),
    "ConstNet": ({"block": "single"}, constnet),
    "ConstNet with scalars": ({"block": "single", "norm": False, "scalars": "fixup"}, constnet_scalars),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", ["same size", "smaller"])
def test_order_of_layers(order, place):
    arguments, reference = ORDERS[order]
    model = stir(resnet(**SMALL, **arguments))
    block, stride = (model.layer2[0], 2) if place == "smaller" else (model.layer2[1], 1)
    x = torch.randn(4, channels(block), 6, 6, dtype=torch.float64)
    expected = reference(x, dict(block.named_parameters()), stride)
    # The same formula in float64: only rounding may differ.
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_views_are_the_block(order):
    model = stir(resnet(**SMALL, **ORDERS[order][0])).eval()
    for block in (m for m in model.modules() if isinstance(m, ResidualBlock)):
        x = torch.randn(2, channels(block), 6, 6, dtype=torch.float64)
        added = block.branch(x) + block.skip(x)
        assert torch.equal(block(x), added if block.relu is None else block.relu(added))
        own = {id(m) for m in block.modules()}
        assert {id(m) for m in block.branch.children()} <= own
        assert not block.branch.training
    assert isinstance(model.layer2[1].skip, nn.Identity)
    assert "branch" not in dict(model.layer2[0].named_modules())


@pytest.mark.parametrize("order", ["ConstNet", "SkipInit with norm"])
def test_shared_normalization_runs_once(order):
    model = resnet(**SMALL, **ORDERS[order][0])
    model(torch.randn(4, 2, 12, 12))
    tracked = {int(v) for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert tracked == {1}


def test_fixup_of_the_whole_small_network_as_its_authors_have_it():
    model = stir(deep_resnet(image=(2, 8, 8), classes=3, depth=8, width=2, scalars="fixup"))
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    p = dict(model.named_parameters())
    z = F.relu(conv(x, p, "conv1") + b(p, "bias1"))
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        prefix = f"layer{stage}.0."
        q = {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}
        out = F.relu(conv(z + b(q, "bias1a"), q, "conv1", stride) + b(q, "bias1b"))
        out = conv(out + b(q, "bias2a"), q, "conv2") * q["scale.scale"] + b(q, "bias2b")
        if stride == 2:
            z = nn.AvgPool2d(1, stride=2)(z)
            z = torch.cat((z, torch.zeros_like(z)), 1)
        z = F.relu(out + z)
    expected = F.linear(z.mean((2, 3)) + b(p, "bias2"), p["fc.weight"], p["fc.bias"])
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("size", [7, 8])
def test_pad_shortcut_is_a_pooling_of_one_pixel_and_zeros(size):
    x = torch.randn(2, 3, size, size)
    pooled = nn.AvgPool2d(1, stride=2)(x)
    expected = torch.cat((pooled, torch.zeros(2, 4, *pooled.shape[2:])), 1)
    assert torch.equal(PadShortcut(3, 7, 2)(x), expected)


def test_rezero_blocks_are_their_skip_path_at_first():
    model = deep_resnet(image=(2, 8, 8), classes=3, depth=14, width=2, scalars="rezero")
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(model.layer1[1](x), x)
    assert torch.equal(model.layer2[0](x), model.layer2[0].skip(x))


def test_ends_of_a_preactivated_network():
    names = [name for name, _ in resnet(**SMALL, block="single").named_children()]
    assert names == ["conv1", "layer1", "layer2", "bn", "relu_last", "avgpool", "flatten", "fc"]
    names = [name for name, _ in resnet(**SMALL, norm=False, scalars="skipinit").named_children()]
    assert names == ["conv1", "layer1", "layer2", "relu_last", "avgpool", "flatten", "fc"]


@pytest.mark.parametrize("norm", [True, False, "outer"])
def test_normalization_stands_where_asked(norm):
    model = resnet(**SMALL, norm=norm, scalars="rezero")
    found = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    outer = {"bn1", "layer2.0.downsample.1"}
    inner = {f"layer{s}.{i}.bn{j}" for s in (1, 2) for i in (0, 1) for j in (1, 2)}
    assert found == {True: outer | inner, False: set(), "outer": outer}[norm]
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            normalized = norm is True or (norm == "outer" and name in {"conv1", "layer2.0.downsample.0"})
            assert (module.bias is None) == normalized, name


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_reach_every_parameter(order):
    model = resnet(**SMALL, **ORDERS[order][0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 2, 12, 12), torch.arange(16) % 3
    for _ in range(3):  # ReZero's and SkipInit's branches wait for their scalar to move
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert not [name for name, p in model.named_parameters() if not p.grad.any()]


@pytest.mark.parametrize("scalars", ["fixup", "rezero", "skipinit", None])
def test_five_hundred_layers(scalars):
    model = deep_resnet(
        image=(1, 28, 28), classes=10, depth=500, width=2, norm=scalars is None, scalars=scalars
    )
    weights = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == 500
    model(torch.randn(2, 1, 28, 28)).square().sum().backward()
    assert model.fc.weight.grad.isfinite().all()


def test_copies_and_pickles_are_whole():
    model = resnet(**SMALL, scalars="skipinit").eval()
    x = torch.randn(2, 2, 12, 12)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        with torch.no_grad():
            twin.layer2[0].conv1.weight.zero_()
        assert model.layer2[0].conv1.weight.any()
        assert not twin.layer2[0].branch.conv1.weight.any()


def test_branches_of_a_stage_follow_each_other():
    model = resnet(**SMALL, block="bottleneck")
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    for before, after in pairwise(blocks):
        assert before.conv3.out_channels == after.conv1.in_channels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": "bottelneck"}, "unknown block 'bottelneck'; did you mean 'bottleneck'"),
        ({"scalars": "fixup"}, "stand in for BatchNorm, and both were asked for; pass norm=False"),
        ({"scalars": "rezerro"}, "unknown scalars 'rezerro'; did you mean 'rezero'"),
        ({"stem": "cifar10"}, "unknown stem 'cifar10'; did you mean 'cifar'"),
        ({"shortcut": "padding"}, "unknown shortcut 'padding'; did you mean 'pad'"),
        ({"norm": 1}, "unknown norm 1; known: True, False, outer"),
        ({"layers": 18}, "got layers = 18, expected the number of blocks of each stage"),
        ({"layers": []}, r"got layers = \[\], expected"),
        ({"layers": [2, 0]}, r"got layers = \[2, 0\], expected"),
        ({"width": 0}, "got width = 0, expected a whole number of 1 or more"),
        ({"classes": 2.0}, "got classes = 2.0, expected a whole number"),
        ({"image": (28, 28)}, r"got image = \(28, 28\), expected its shape as three whole numbers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        resnet(**({"image": (1, 8, 8), "classes": 2} | arguments))


@pytest.mark.parametrize(
    ("depth", "advice"),
    [(21, "use 20 or 26"), (7, "use 8"), (9, "use 8 or 14"), (1, "use 8"), (503, "500 or 506")],
)
def test_depths_that_do_not_exist(depth, advice):
    with pytest.raises(InputError, match=f"got depth = {depth}, expected one of the form 6n.* {advice}"):
        deep_resnet(image=(1, 8, 8), classes=2, depth=depth)
