"""The models by name, and what holds for all of them."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hooks import RankTracker
from zanalysis.errors import InputError
from zanalysis.experiments.models import MODELS, ResidualBlock, build, cnn, mlp, perceptron

TINY = {
    "perceptron": {"width": 8},
    "mlp": {"width": 8, "norm": True},
    "cnn": {},
    "resnet": {"width": 2, "layers": [1, 1]},
    "deep-resnet": {"width": 2, "depth": 8, "scalars": "fixup"},
    "vit": {"dim": 6, "depth": 1, "heads": 2, "head_dim": 2, "mlp": 8},
    "mixer": {"dim": 6, "depth": 1, "token_mlp": 3, "channel_mlp": 8},
    "transformer-lm": {"vocabulary": 9, "layers": 1, "d_model": 6, "heads": 2, "d_ff": 8},
}
VISION = [name for name in TINY if name != "transformer-lm"]


def tiny(name, image=(2, 8, 8)):
    return build(name, **({} if name == "transformer-lm" else {"image": image, "classes": 3}), **TINY[name])


def samples(name, image=(2, 8, 8)):
    generator = torch.Generator().manual_seed(5)
    if name == "transformer-lm":
        return torch.randint(9, (4, 5), generator=generator)
    return torch.randn(4, *image, generator=generator)


def test_every_model_is_tried_here():
    assert set(TINY) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_arguments_are_keywords(name):
    parameters = inspect.signature(MODELS[name]).parameters
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    needed = {n for n, p in parameters.items() if p.default is p.empty}
    assert needed == ({"vocabulary"} if name == "transformer-lm" else {"image", "classes"})


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("image", [(1, 8, 8), (3, 8, 12), [2, 16, 8]])
def test_vision_models_take_any_image(name, image):
    assert tiny(name, image)(samples(name, image)).shape == (4, 3)


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_decides_the_weights(name):
    first, again = (torch.manual_seed(7) and tiny(name) for _ in range(2))
    other = tiny(name)
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    same = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs]
    assert all(s for s, _ in same)
    assert not all(o for _, o in same)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_repeats_itself(name):
    model, x = tiny(name).eval(), samples(name)
    assert torch.equal(model(x), model(x))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", VISION)
def test_samples_are_judged_alone(name):
    model, x = tiny(name).eval(), samples(name)
    # Batched products sum in another order: float32 rounding.
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


class _Children(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return True


@pytest.mark.parametrize("name", MODELS)
def test_a_forward_can_be_followed_wherever_it_calls_layers(name):
    # Initializers find residual branches by following each module's forward from child to child.
    followed = 0
    for module in tiny(name).modules():
        if not type(module).__module__.startswith("torch.") and list(module.children()):
            nodes = _Children().trace(module).nodes
            called = {node.target.split(".")[0] for node in nodes if node.op == "call_module"}
            assert called == {child for child, _ in module.named_children()}
            followed += 1
    assert followed == {"perceptron": 0, "mlp": 0, "cnn": 3, "resnet": 2, "deep-resnet": 3, "mixer": 1}.get(
        name, 3
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_move_to_a_dtype(name, dtype):
    model, x = tiny(name).to(dtype), samples(name)
    assert model(x if name == "transformer-lm" else x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", MODELS)
def test_autocast_trains(name):
    model, x = tiny(name), samples(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_weights_load_into_a_twin(name):
    model, twin = tiny(name), tiny(name)
    assert twin.load_state_dict(model.state_dict())
    x = samples(name)
    assert torch.equal(twin.eval()(x), model.eval()(x))


TRACKED = {
    "perceptron": {"W1", "W2", "W3"},
    "mlp": {"fc1", "fc2", "fc"},
    "cnn": {"block1.conv", "block2.conv", "block3.conv", "fc"},
    "resnet": {f"layer{s}.0.conv{i}" for s in (1, 2) for i in (1, 2)}
    | {"conv1", "layer2.0.downsample.0", "fc"},
    "deep-resnet": {f"layer{s}.0.conv{i}" for s in (1, 2, 3) for i in (1, 2)} | {"conv1", "fc"},
    "vit": {f"blocks.0.attention.{r}" for r in ("query", "key", "value", "out")}
    | {"blocks.0.feedforward.first", "blocks.0.feedforward.second", "embedding.linear", "head", "positions"},
    "mixer": {f"blocks.0.{m}.{w}" for m in ("tokens", "channels") for w in ("first", "second")}
    | {"embedding", "head"},
    "transformer-lm": {f"layers.0.attention.{r}" for r in ("query", "key", "value", "out")}
    | {"layers.0.feedforward.first", "layers.0.feedforward.second", "embedding", "decoder"},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_tracker_attaches_and_layers_have_plain_names(name):
    model, x = tiny(name), samples(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with RankTracker(model, optimizer, tensors=("weight", "gradient"), schedule=lambda step: True) as tracker:
        model(x).square().sum().backward()
        optimizer.step()
        table = tracker.table()
    assert set(table.layer) == TRACKED[name]
    assert set(table.step) == {0, 1}
    assert set(table[(table.step == 1) & (table.tensor == "weight")].status) == {"ok"}


@pytest.mark.parametrize(
    ("image", "classes", "parameters"),
    [((1, 28, 28), 10, 7_880), ((3, 32, 32), 10, 30_982), ((3, 32, 32), 100, 307_552)],
)
def test_size_of_the_cnn(image, classes, parameters):
    c, h, w = image
    assert parameters == 3 * c * (9 * c + 1) + classes * (c * h * w + 1)
    assert sum(p.numel() for p in cnn(image=image, classes=classes).parameters()) == parameters


def test_cnn_written_out():
    model = cnn(image=(2, 5, 4), classes=3, depth=3).double()
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    z = x
    for block in (model.block1, model.block2, model.block3):
        assert isinstance(block, ResidualBlock)
        z = F.leaky_relu(F.conv2d(z, block.conv.weight, block.conv.bias, padding=1), 0.01) + z
    expected = z.flatten(1) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_cnn_of_zeros_moves_from_its_classifier_on():
    model = cnn(image=(1, 6, 6), classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.rand(8, 1, 6, 6)), torch.arange(8) % 3).backward()
        moved.append({name for name, p in model.named_parameters() if p.grad.any()})
        optimizer.step()
    assert moved[0] == {"fc.weight", "fc.bias"}
    assert moved[1] == {name for name, _ in model.named_parameters()}


def test_perceptron_of_images_is_that_of_theorem_1():
    torch.manual_seed(3)
    model = build("perceptron", image=(1, 4, 4), classes=3, width=20, network="notebook", activation="tanh")
    torch.manual_seed(3)
    plain = perceptron(16, 20, 3, network="notebook", activation=nn.Tanh)
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(model(x), plain(x.flatten(1)))
    assert list(model.state_dict()) == list(plain.state_dict())


def test_mlp_written_out():
    model = mlp(image=(1, 3, 3), classes=2, width=4, depth=3, activation="leaky-relu").double()
    x = torch.randn(5, 1, 3, 3, dtype=torch.float64)
    z = F.leaky_relu(model.fc1(x.flatten(1)))
    torch.testing.assert_close(model(x), model.fc(F.leaky_relu(model.fc2(z))), rtol=1e-12, atol=1e-12)
    assert not [n for n, _ in mlp(image=(1, 3, 3), classes=2, bias=False).named_parameters() if "bias" in n]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("restnet", {}, "unknown model 'restnet'; did you mean 'resnet'. Known: perceptron, mlp, cnn"),
        (None, {}, "unknown model None; known: perceptron"),
        ("vit", {"image": (1, 8, 8), "clases": 3}, "vit has no argument 'clases'; did you mean 'classes'"),
        ("cnn", {}, r"cnn needs image and classes; pass image=\(channels, height, width\)"),
        ("transformer-lm", {"layers": 2}, "transformer-lm needs vocabulary; pass"),
        ("cnn", {"image": (1, 8, 8), "classes": 0}, "got classes = 0, expected a whole number of 1 or more"),
        ("cnn", {"image": (1, 0, 8), "classes": 2}, r"got image = \(1, 0, 8\), expected its shape"),
        (
            "mlp",
            {"image": (1, 8, 8), "classes": 2, "activation": "rleu"},
            "unknown activation 'rleu'; did you",
        ),
        ("mlp", {"image": (1, 8, 8), "classes": 2, "norm": "yes"}, "unknown norm 'yes'; known: True, False"),
        ("cnn", {"image": (1, 8, 8), "classes": 2, "slope": "0.01"}, "got slope = '0.01', expected a number"),
        ("transformer-lm", {"vocabulary": 5, "rezero": None}, "unknown rezero None; known: True, False"),
        (
            "perceptron",
            {"image": (1, 8, 8), "classes": 2, "network": "book"},
            "unknown network 'book'; did you",
        ),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(InputError, match=message):
        build(name, **arguments)
