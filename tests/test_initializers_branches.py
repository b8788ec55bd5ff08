"""Where residual branches end: found in models as people write them, and not where there are none."""

import pytest
import torch
from init_models import Attention, BasicBlock, Single, TransformerBlock, resnet18
from torch import nn

from zanalysis import initializers as init
from zanalysis.errors import InputError
from zanalysis.initializers.branches import find_branches
from zanalysis.initializers.tracing import follow


def last(model, given=None):
    return sorted(find_branches(model, given).last)


def conv(c_in=4, c_out=4, size=3):
    return nn.Conv2d(c_in, c_out, size, padding=size // 2)


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(6)
        self.conv1, self.conv2 = conv(4, 6), conv(6, 6)
        self.proj = nn.Conv2d(4, 6, 1)  # no name that a skip would have

    def forward(self, x):
        x = torch.relu(self.bn1(x))
        out = self.conv2(torch.relu(self.bn2(self.conv1(x))))
        return torch.add(out, self.proj(x))


class Pyramid(nn.Module):
    """A top-down path: sums of different levels, none of them a residual branch."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3 = conv(), conv(), conv()
        self.l1, self.l2, self.l3 = conv(size=1), conv(size=1), conv(size=1)

    def forward(self, x):
        a = self.c1(x)
        b = self.c2(a)
        c = self.c3(b)
        top = self.l3(c)
        middle = self.l2(b) + top
        return self.l1(a) + middle, middle, top


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv1d(2, 8, 3)
        self.position = nn.Parameter(torch.zeros(1, 8, 16))

    def forward(self, x):
        x = self.patch(x)
        return x + self.position[:, :, : x.shape[2]] + torch.zeros(x.size(0), 1, 1)


class LearnedPositions(nn.Module):
    """Positions from a layer that sees only the input's length."""

    def __init__(self):
        super().__init__()
        self.patch, self.position = nn.Linear(2, 8), nn.Linear(1, 8)

    def forward(self, x):
        x = self.patch(x)
        return x + self.position(x.new_ones(x.shape[1], 1) * x.size(0))


class OutFirst(nn.Module):
    """A branch of a module of its own, whose last layer is defined first."""

    def __init__(self):
        super().__init__()
        self.out, self.first = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.out(torch.relu(self.first(x)))


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = OutFirst()

    def forward(self, x):
        return x + self.inner(x)


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), Attention(8, True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        y = self.norm(x)
        return x + self.attn(y) + self.mlp(y)


class Loop(nn.Module):
    """The sum stands in the model, not in a block; and the forward keeps things."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(3)]
        )
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(3)])
        self.calls, self.kept = 0, None
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, mask=None, *, noisy=True):
        self.calls += 1
        self.kept = x
        self.count += 1
        if noisy:
            x = x + torch.rand(4)
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = x + scale * block(x)
        return x if mask is None else x * mask


class Stubborn(nn.Module):
    """A forward that asks for values."""

    def __init__(self, name):
        super().__init__()
        self.conv1, self.conv2 = conv(), conv()
        setattr(self, name, nn.Conv2d(4, 4, 1))

    def forward(self, x):
        out = self.conv2(self.conv1(x)) if x.sum() > 0 else x
        return out + x


class ResidualBlock(nn.Module):
    def __init__(self, branch, skip):
        super().__init__()
        self.branch, self.skip = branch, skip

    def forward(self, x):
        return self.branch(x) + self.skip(x) if x.sum() > 0 else self.skip(x)


class Squeeze(nn.Module):
    """Squeeze-and-excitation as a module of its own: it multiplies its input by what it makes of it."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = conv(4, 2, 1), conv(2, 4, 1)

    def forward(self, x):
        scale = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return torch.sigmoid(scale) * x


class Gated(nn.Module):
    """A block of an SE-ResNet, its gate written out or a child."""

    def __init__(self, child):
        super().__init__()
        self.conv1, self.conv2 = conv(), conv()
        self.gate = Squeeze() if child else nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(size=1), nn.Sigmoid())
        self.child = child

    def forward(self, x):
        out = self.conv2(torch.relu(self.conv1(x)))
        if self.child:
            out = self.gate(out)
        else:
            out *= self.gate(out).expand_as(out)
        return torch.relu(out + x)


class OnlyGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = Squeeze()

    def forward(self, x):
        return x + self.gate(x)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 8, 2)), ["0.conv2", "1.conv2"]),
        (PreActivation(), ["conv2"]),
        (nn.Sequential(Single(4, 4), Single(4, 6)), ["0.conv", "1.conv"]),
        (TransformerBlock(), ["attn.proj", "mlp.2"]),
        (Parallel(), ["attn.proj", "mlp.2"]),
        (Loop(), ["blocks.0.2", "blocks.1.2", "blocks.2.2"]),
        (Stubborn("shortcut"), ["conv2"]),
        (ResidualBlock(nn.Sequential(conv(), nn.ReLU(), conv()), conv(size=1)), ["branch.2"]),
        (nn.TransformerDecoderLayer(8, 2, 16), ["linear2", "multihead_attn.out_proj", "self_attn.out_proj"]),
        (Pyramid(), []),
        (Positions(), []),
        (LearnedPositions(), []),
        (Around(), ["inner.out"]),
        (torch.fx.symbolic_trace(nn.Sequential(PreActivation(), Single(6, 6))), ["0.conv2", "1.conv"]),
        (nn.Sequential(conv(), nn.ReLU(), conv()), []),
        (Stubborn("side"), []),
        (Gated(child=False), ["conv2"]),
        (nn.Sequential(Gated(child=True)), ["0.conv2"]),
        (nn.Sequential(nn.Sequential(conv(), Squeeze()), OnlyGate()), ["1.gate.fc2"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_last_layers_of_branches(model, expected):
    assert last(model) == expected


@pytest.mark.parametrize("child", [False, True])
def test_a_branch_that_ends_in_a_gate_is_zero_under_zero(child):
    block, x = Gated(child), torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    init.zero_(block)
    assert torch.equal(block(x), torch.relu(x))


def test_projections_are_shortcuts_and_in_no_branch():
    found = find_branches(nn.Sequential(PreActivation(), BasicBlock(6, 8), Stubborn("skip"), Single(8, 4)))
    assert found.shortcuts == {"0.proj", "1.downsample.0", "2.skip", "3.conv_res"}
    assert not found.shortcuts & found.inside.keys()
    assert found.inside["1.conv1"].layers == ("1.conv1", "1.conv2")


def test_what_cannot_be_followed_is_said():
    said = " ".join(find_branches(nn.Sequential(Stubborn("side"))).assumed)
    assert "no residual branch was found" in said
    assert "the forward of 0 could not be followed (TraceError:" in said
    assert "its forward could not be followed" in " ".join(find_branches(Stubborn("shortcut")).assumed)


def test_following_a_forward_leaves_the_module_as_it_was():
    model = Loop()
    before, random = dict(vars(model)), torch.get_rng_state()
    buffers, parameters = dict(model._buffers), dict(model._parameters)
    flow = follow(model)
    assert flow.calls == ("blocks.0", "blocks.1", "blocks.2")
    assert all(vars(model)[key] is value for key, value in before.items())
    assert vars(model).keys() == before.keys()
    assert model._buffers == buffers
    assert model._parameters == parameters
    assert torch.equal(random, torch.get_rng_state())
    assert model.calls == 0
    assert model.count == 0


def test_scalars_in_a_list_are_multipliers():
    model = Loop()
    assert init.rezero_(model).rules()["scales.1"] == "0"
    x = torch.randn(3, 4)
    assert torch.equal(model(x, noisy=False), x)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("*.conv1", [f"{i}.conv1" for i in (10, 3, 4, 5, 6, 7, 8, 9)]),
        (["3.conv2", "13"], ["13", "3.conv2"]),
        (lambda name: name.startswith("4.conv"), ["4.conv1", "4.conv2"]),
        (
            lambda name, module: module.weight.shape[-1] == 1,
            ["5.downsample.0", "7.downsample.0", "9.downsample.0"],
        ),
        ([], []),
    ],
)
def test_the_last_layers_can_be_given(given, expected):
    model = resnet18()
    expected = [name.replace("13", str(len(model) - 1)) for name in expected]
    if isinstance(given, list):
        given = [name.replace("13", str(len(model) - 1)) for name in given]
    assert last(model, given) == expected
    init.zero_(model, last=given)
    zero = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and not m.weight.any()
    ]
    assert sorted(zero) == expected


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused, self.head = nn.Linear(2, 2), nn.Linear(4, 2)
        self.blocks = nn.ModuleList([Single(4, 4)])
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(torch.relu(self.last(x.mean((2, 3)))))


def test_the_classifier_is_the_last_linear_layer_of_the_forward():
    model = HeadFirst()
    report = init.fixup_(model)
    assert any(s.startswith("head was taken as the classification layer") for s in report.assumed)
    assert not model.head.weight.any()
    assert model.last.weight.any()
    assert model.unused.weight.any()


def test_given_layers_that_are_none_are_refused():
    with pytest.raises(InputError, match="last: no layer matches 'conv9'; did you mean"):
        init.zero_(resnet18(), last="conv9")
    with pytest.raises(InputError, match="classifier: no layer matches 'head'"):
        init.fixup_(resnet18(), classifier="head")


def test_the_classifier_can_be_given_or_left_out():
    model = nn.Sequential(BasicBlock(4, 4), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    init.fixup_(model)
    assert model[2].weight.any()
    assert not model[3].weight.any()
    init.fixup_(model, classifier="2")
    assert model[3].weight.any()
    assert not model[2].weight.any()
    init.fixup_(model, classifier=[])
    assert model[2].weight.any()
    assert any("no linear layer outside" in s for s in init.fixup_(BasicBlock(4, 4)).assumed)
