"""Replicas trained together against the same replicas trained one by one, plainly."""

import copy
import gzip
import json
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adafactor, Adagrad, Adam, AdamW, Muon, RMSprop
from torch.optim.lr_scheduler import StepLR

import zanalysis as za
from hooks import RankTracker, at
from zanalysis.errors import InputError
from zanalysis.experiments.together import Together, channels_last

REPLICAS, BATCH, STEPS = 3, 6, 50
# Sums are formed in another order; rounding of float64 grows over the steps, to 1e-13 where measured.
ATOL = 1e-10
ROOT = Path(__file__).resolve().parents[1]


class Skip(nn.Module):
    """A layer with a skip path."""

    def __init__(self, layer, activation=None):
        super().__init__()
        self.layer, self.activation = layer, activation or nn.LeakyReLU()

    def forward(self, x):
        """Return the layer's activated output, and its input."""
        return self.activation(self.layer(x)) + x


class Tied(nn.Module):
    """One weight, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        """Return logits."""
        return self.head(self.second(torch.tanh(self.first(x.flatten(1)))))


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 4))


def convolutions(channels=1):
    def kernel():
        return nn.Conv2d(channels, channels, 3, padding=1)

    return nn.Sequential(Skip(kernel()), Skip(kernel()), nn.Flatten(), nn.Linear(12, 4))


def normalized():
    kernel = nn.Conv2d(3, 5, 1, bias=False)
    return nn.Sequential(kernel, nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 4))


def attention():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(4, 6), layer, nn.Flatten(), nn.Linear(18, 4))


def frozen():
    model = perceptron()
    model[1].weight.requires_grad_(False)
    return model


CASES = {
    "perceptron": (perceptron, (12,)),
    "one-channel": (convolutions, (1, 3, 4)),
    "three-channels": (partial(convolutions, 3), (3, 2, 2)),
    "batch-norm": (normalized, (3, 2, 2)),
    "attention": (attention, (3, 2, 2)),
    "tied": (Tied, (12,)),
    "frozen": (frozen, (12,)),
}
OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": partial(Adam, lr=1e-2),
    "adamw-fused": partial(AdamW, lr=1e-2, fused=True),
    "rmsprop": partial(RMSprop, lr=1e-3),
    "adagrad": partial(Adagrad, lr=1e-2),
}


def replicas(make, count=REPLICAS, dtype=torch.float64):
    return [make().to(dtype) for _ in range(count)]


def batches(sample, steps=STEPS, dtype=torch.float64, count=REPLICAS):
    """Draw one set of samples, and an order of it for every replica."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(40, *sample, generator=generator, dtype=dtype)
    labels = torch.randint(0, 4, (40,), generator=generator)
    for _ in range(steps):
        rows = torch.stack([torch.randperm(40, generator=generator)[:BATCH] for _ in range(count)])
        yield inputs[rows], labels[rows]


def train_apart(models, optimizer, steps, loss=nn.functional.cross_entropy):
    """Train each by a loop of its own, as anyone would write it; return the losses `[steps, replicas]`."""
    losses = []
    for index, model in enumerate(models):
        own = optimizer([p for p in model.parameters() if p.requires_grad])
        schedule = StepLR(own, 10, 0.8)
        losses.append([])
        for inputs, labels in steps:
            own.zero_grad()
            value = loss(model(inputs[index]), labels[index])
            value.backward()
            own.step()
            schedule.step()
            losses[-1].append(value.item())
    return np.array(losses).T


def assert_same(models, others, atol=ATOL, rtol=0):
    for model, other in zip(models, others, strict=True):
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, other.state_dict()[name], atol=atol, rtol=rtol, msg=name)
        for name, parameter in model.named_parameters():
            expected = dict(other.named_parameters())[name].grad
            assert (parameter.grad is None) == (expected is None), name
            if expected is not None:
                torch.testing.assert_close(parameter.grad, expected, atol=atol, rtol=rtol, msg=name)


@pytest.mark.parametrize(
    ("case", "optimizer", "layout"),
    [
        *((case, "adam", "plain") for case in CASES),
        *((case, "adam", "channels-last") for case, (_, sample) in CASES.items() if len(sample) == 3),
        *(("one-channel", name, "channels-last") for name in OPTIMIZERS if name != "adam"),
    ],
)
def test_replicas_equal_separate_trainings(case, optimizer, layout):
    make, sample = CASES[case]
    models = replicas(make)
    apart = copy.deepcopy(models)
    before = [tensor.clone() for tensor in models[0].state_dict().values()]
    steps = list(batches(sample))
    # The orders differ, else one replica's batch in place of another's would go unseen.
    assert not torch.equal(steps[0][0][0], steps[0][0][1])
    expected = train_apart(apart, OPTIMIZERS[optimizer], steps)

    together = Together(models, OPTIMIZERS[optimizer])
    schedule = StepLR(together.optimizer, 10, 0.8)
    losses = []
    for inputs, labels in steps:
        losses.append(together.step(channels_last(inputs) if layout == "channels-last" else inputs, labels))
        schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(before, models[0].state_dict().values(), strict=True))
    together.write_back()
    assert_same(models, apart)
    np.testing.assert_allclose(torch.stack(losses).numpy(), expected, atol=ATOL, rtol=0)
    assert not losses[0].requires_grad
    assert together.steps == STEPS
    assert len(together) == REPLICAS


def test_float32_stays_as_near_to_float64_as_separate_float32_does():
    steps = list(batches((1, 3, 4), dtype=torch.float32))
    double = [(inputs.double(), labels) for inputs, labels in steps]
    models = replicas(convolutions, dtype=torch.float32)
    apart, exact = copy.deepcopy(models), [copy.deepcopy(model).double() for model in models]
    make = OPTIMIZERS["sgd"]
    train_apart(apart, make, steps)
    train_apart(exact, make, double)
    together = Together(models, make)
    for inputs, labels in steps:
        together.step(channels_last(inputs), labels)
        # The loop of the separate ones has a schedule; here the rates are set by hand, as any code may.
        together.optimizer.param_groups[0]["lr"] = 0.1 * 0.8 ** (together.steps // 10)
    together.write_back()

    def distance(some):
        vectors = [
            [nn.utils.parameters_to_vector(model.parameters()) for model in each] for each in (some, exact)
        ]
        return (torch.stack(vectors[0]) - torch.stack(vectors[1])).abs().max().item()

    assert distance(models) < 10 * distance(apart) + 1e-6
    assert distance(models) < 1e-4


def test_a_replica_does_not_depend_on_the_others():
    steps = list(batches((12,)))
    models = replicas(perceptron)
    alone, together = Together(models[:1], OPTIMIZERS["adam"]), Together(models, OPTIMIZERS["adam"])
    for inputs, labels in steps:
        inputs = inputs.clone()
        inputs[2] *= 1e6 if together.steps < 10 else float("inf")
        together.step(inputs, labels)
        alone.step(inputs[:1], labels[:1])
    for name, stacked in together.parameters.items():
        torch.testing.assert_close(stacked[:1], alone.parameters[name], atol=ATOL, rtol=0)
    assert together.parameters["1.weight"][2].isnan().any()
    assert together.parameters["1.weight"][1].isfinite().all()


def test_a_loss_of_ones_own():
    models = replicas(perceptron)
    apart = copy.deepcopy(models)
    steps = [(x, torch.nn.functional.one_hot(y, 4).double()) for x, y in batches((12,), 20)]
    train_apart(apart, OPTIMIZERS["sgd"], steps, nn.functional.mse_loss)
    together = Together(models, OPTIMIZERS["sgd"], nn.functional.mse_loss)
    schedule = StepLR(together.optimizer, 10, 0.8)
    for inputs, labels in steps:
        together.step(inputs, labels)
        schedule.step()
    together.write_back()
    assert_same(models, apart)
    bad = Together(replicas(perceptron), OPTIMIZERS["sgd"], partial(nn.functional.mse_loss, reduction="none"))
    with pytest.raises(InputError, match=r"loss of one replica has shape \(6, 4\), expected a scalar"):
        bad.step(*steps[0])


def test_predict_is_in_eval_mode_and_changes_nothing():
    models = replicas(normalized)
    together = Together(models, OPTIMIZERS["adam"])
    steps = list(batches((3, 2, 2), 3))
    for inputs, labels in steps:
        together.step(inputs, labels)
    together.write_back()
    before = together.state_dict()
    inputs = steps[0][0]
    own, shared = together.predict(inputs), together.predict(inputs[1], shared=True)
    assert not own.requires_grad
    for index, model in enumerate(models):
        model.eval()
        torch.testing.assert_close(own[index], model(inputs[index]).detach(), atol=ATOL, rtol=0)
        torch.testing.assert_close(shared[index], model(inputs[1]).detach(), atol=ATOL, rtol=0)
    after = together.state_dict()
    for kind in ("parameters", "buffers"):
        assert all(torch.equal(before[kind][name], after[kind][name]) for name in before[kind])
    # And the next step counts a batch again.
    together.step(*steps[0])
    assert together.buffers["1.num_batches_tracked"].tolist() == [4, 4, 4]


def test_going_on_from_a_state_gives_the_same_bits():
    steps = list(batches((3, 2, 2), 30))
    models = replicas(normalized, dtype=torch.float32)
    steps = [(inputs.float(), labels) for inputs, labels in steps]
    straight = Together(models, OPTIMIZERS["adam"])
    for index, (inputs, labels) in enumerate(steps):
        if index == 12:
            state = straight.state_dict()
        straight.step(inputs, labels)
    resumed = Together(replicas(normalized, dtype=torch.float32), OPTIMIZERS["adam"])
    for _ in range(2):  # the state is not used up
        resumed.load_state_dict(state)
        assert resumed.steps == 12
        for inputs, labels in steps[12:]:
            resumed.step(inputs, labels)
        for name, stacked in {**straight.parameters, **straight.buffers}.items():
            assert torch.equal(stacked, {**resumed.parameters, **resumed.buffers}[name])


def test_a_state_of_other_replicas_is_refused_and_changes_nothing():
    together = Together(replicas(perceptron), OPTIMIZERS["adam"])
    before = together.state_dict()
    with pytest.raises(InputError, match=r"parameter '1.weight' of shape \(2, 9, 12\), these replicas have"):
        together.load_state_dict(Together(replicas(perceptron, 2), OPTIMIZERS["adam"]).state_dict())
    with pytest.raises(InputError, match="give a state of as many replicas of the same architecture"):
        together.load_state_dict(Together(replicas(Tied), OPTIMIZERS["adam"]).state_dict())
    with pytest.raises(InputError, match="the state lacks buffers, optimizer, steps; give what state_dict"):
        together.load_state_dict({"parameters": {}})
    assert all(torch.equal(before["parameters"][name], p) for name, p in together.parameters.items())


def test_random_layers_are_refused_unless_wanted():
    def dropping():
        return nn.Sequential(nn.Linear(12, 9), nn.Dropout(0.5), nn.Linear(9, 4))

    same = [dropping() for _ in range(3)]
    for model in same[1:]:
        model.load_state_dict(same[0].state_dict())
    inputs, labels = torch.ones(3, BATCH, 12), torch.zeros(3, BATCH, dtype=torch.int64)
    with pytest.raises(InputError, match='pass randomness="different"'):
        Together(same, partial(SGD, lr=0.1)).step(inputs, labels)
    different = Together(same, partial(SGD, lr=0.1), randomness="different")
    assert len(set(different.step(inputs, labels).tolist())) == 3
    alike = Together(same, partial(SGD, lr=0.1), randomness="same")
    assert len(set(alike.step(inputs, labels).tolist())) == 1
    # In eval mode nothing is drawn.
    assert len(set(Together(same, partial(SGD, lr=0.1)).predict(inputs)[:, 0, 0].tolist())) == 1


class NormScaled(SGD):
    """Layer-wise scaled SGD: the update has the length of the weight."""

    def step(self, closure=None):
        """Scale the gradients, then step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad *= parameter.detach().norm() / parameter.grad.norm()
        return super().step(closure)


class Clipped(SGD):
    """SGD that clips by the norm of all gradients, where it is large."""

    def step(self, closure=None):
        """Clip, then step."""
        for group in self.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 20.0)
        return super().step(closure)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (partial(Clipped, lr=0.1), "mixes elements of a tensor"),
        (partial(NormScaled, lr=0.1), "mixes elements of a tensor"),
        (partial(Adafactor, lr=0.1), "mixes elements of a tensor"),
        (torch.optim.LBFGS, "cannot take stacked parameters"),
        (
            lambda _: SGD(nn.Linear(2, 2).parameters(), lr=0.1),
            "holds parameters other than those it was given",
        ),
    ],
)
def test_optimizers_that_would_be_wrong_are_refused(optimizer, message):
    with pytest.raises(InputError, match=message):
        Together(replicas(perceptron), optimizer)


def test_an_optimizer_of_matrices_is_refused():
    with pytest.raises(InputError, match=r"cannot take stacked parameters .* element by element"):
        Together([nn.Linear(4, 4, bias=False) for _ in range(2)], partial(Muon, lr=0.1))


ELEMENTWISE = (
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_elementwise_optimizer_of_torch_is_taken(name):
    Together(replicas(perceptron), partial(getattr(torch.optim, name), lr=0.1))


def test_trying_an_optimizer_draws_nothing_from_the_global_generator():
    models = replicas(perceptron)
    state = torch.get_rng_state()
    Together(models, OPTIMIZERS["adam"]).step(*next(batches((12,))))
    assert torch.equal(state, torch.get_rng_state())


def test_modules_that_differ_are_refused():
    make = OPTIMIZERS["adam"]
    model = perceptron()
    with pytest.raises(InputError, match="got no modules"):
        Together([], make)
    with pytest.raises(InputError, match="given twice"):
        Together([model, model], make)
    with pytest.raises(
        InputError, match=r"replica 1 differs from replica 0 in '1.weight': \(\(9, 12\).*float64"
    ):
        Together([perceptron(), perceptron().double()], make)
    with pytest.raises(InputError, match=r"differs .* in '4': \('Identity', 'train'\) instead of \('Linear'"):
        Together([model, nn.Sequential(*perceptron()[:4], nn.Identity())], make)
    with pytest.raises(InputError, match=r"in 'the model': \('Sequential', 'eval'\)"):
        Together([perceptron(), perceptron().eval()], make)
    with pytest.raises(InputError, match=r"in '1.weight': .*False\) instead of .*True"):
        Together([perceptron(), frozen()], make)
    with pytest.raises(InputError, match="no parameter of these modules requires a gradient"):
        Together([nn.Linear(2, 2).requires_grad_(False)], make)


def test_batches_of_the_wrong_shape_are_refused():
    together = Together(replicas(perceptron), OPTIMIZERS["adam"])
    inputs, labels = next(batches((12,)))
    with pytest.raises(InputError, match=r"inputs have shape \(6, 12\), expected \[3, batch, ...\]"):
        together.step(inputs[0], labels)
    with pytest.raises(InputError, match=r"labels have shape \(6,\), expected \[3, batch, ...\]"):
        together.step(inputs, labels[0])
    with pytest.raises(InputError, match=r"inputs have shape \(6, 12\)"):
        together.predict(inputs[0])
    with pytest.raises(InputError, match="only images have channels"):
        channels_last(inputs)
    assert together.steps == 0


@pytest.mark.parametrize("sample", [(1, 3, 4), (3, 2, 5), (2, 7), (2, 2, 3, 4)])
def test_the_layout_changes_strides_and_no_value(sample):
    inputs = torch.randn(3, 5, *sample)
    laid = channels_last(inputs)
    assert torch.equal(laid, inputs)
    channels, spatial = sample[0], sample[1:]
    # Literally: element (r, b, c, *s) lies at ((b * spatial + s) * replicas + r) * channels + c.
    flat = torch.as_strided(laid, (laid.numel(),), (1,))
    for r, b, c, s in [(0, 0, 0, 0), (2, 4, channels - 1, 1), (1, 3, 0, int(np.prod(spatial)) - 1)]:
        at = ((b * int(np.prod(spatial)) + s) * 3 + r) * channels + c
        assert flat[at] == inputs[r, b, c].flatten()[s]
    assert channels_last(laid).data_ptr() == laid.data_ptr()


class Recurrent(nn.Module):
    """An LSTM over the features, and a head."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 4)

    def forward(self, x):
        """Return logits."""
        return self.head(self.recurrent(x.unsqueeze(-1))[0][:, -1])


class Branching(nn.Linear):
    """A layer that looks at its values."""

    def forward(self, x):
        """Return the output, or its negative."""
        return super().forward(x) if self.weight.sum() > 0 else -super().forward(x)


class Failing(nn.Linear):
    """A layer with an error of its own."""

    def forward(self, x):
        """Fail."""
        raise RuntimeError("the user's own")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Recurrent, "Batching rule not implemented for aten::lstm"),
        (partial(Branching, 12, 4), "control flow"),
    ],
)
def test_what_cannot_be_batched_is_refused(make, words):
    together = Together(replicas(make), OPTIMIZERS["adam"])
    with pytest.raises(
        InputError, match=f"cannot be computed for all replicas at once .*{words}.*one by one"
    ):
        together.step(*next(batches((12,))))
    assert together.steps == 0


def test_an_error_of_the_users_own_is_not_reworded():
    together = Together(replicas(partial(Failing, 12, 4)), OPTIMIZERS["adam"])
    with pytest.raises(RuntimeError, match="the user's own"):
        together.step(*next(batches((12,))))


def test_write_back_keeps_the_identity_of_what_a_tracker_holds():
    models = replicas(normalized)
    together = Together(models, OPTIMIZERS["adam"])
    weight, mean = models[1][0].weight, models[1][1].running_mean
    weight.grad = torch.ones_like(weight)
    together.write_back()
    assert weight.grad is None
    inputs, labels = next(batches((3, 2, 2)))
    together.step(inputs, labels)
    together.write_back()
    gradient = weight.grad
    gradient.zero_()
    assert together.parameters["0.weight"].grad[1].any()
    together.step(inputs, labels)
    together.write_back()
    assert models[1][0].weight is weight
    assert weight.grad is gradient
    assert torch.equal(weight, together.parameters["0.weight"][1])
    assert torch.equal(gradient, together.parameters["0.weight"].grad[1])
    assert models[1][1].running_mean is mean
    assert torch.equal(mean, together.buffers["1.running_mean"][1])
    # Nothing is shared: a step does not reach into a replica.
    kept = weight.detach().clone()
    together.step(inputs, labels)
    assert torch.equal(weight, kept)


def test_hooks_put_on_a_replica_later_do_not_fire():
    models = replicas(perceptron)
    together = Together(models, OPTIMIZERS["adam"])
    calls = []
    models[0].register_forward_hook(lambda *_: calls.append(1))
    together.step(*next(batches((12,))))
    assert not calls


def zeroed(model):
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def stacked_blocks(width=12):
    """Two residual blocks of two layers, and a head: the second layer of a branch acts on the first's."""

    def block():
        return Skip(nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width)))

    return zeroed(nn.Sequential(block(), block(), nn.Linear(width, 4)))


def test_a_tracker_follows_each_replica_and_sees_what_moves_when(tmp_path):
    # Three channels: the matrix of a one-channel kernel has one row, and a tracker takes two or more.
    models = [zeroed(convolutions(3)) for _ in range(REPLICAS)]
    together = Together(models, partial(Adam, lr=1e-2))
    due = at([1, 2, 3, 6])
    layers = [name for name, parameter in models[0].named_parameters() if parameter.ndim > 1]
    trackers = [
        RankTracker(
            model,
            path=tmp_path / f"{seed}.h5",
            schedule=due,
            layers=[name.removesuffix(".weight") for name in layers],
            tensors=("weight", "gradient"),
            metrics=("frobenius_norm", "distinct_rows", "zero_gradient"),
        )
        for seed, model in enumerate(models)
    ]
    norms = {}
    for inputs, labels in batches((3, 2, 2), 7, torch.float32):
        losses = together.step(inputs, labels)
        if due(together.steps):
            together.write_back()
        for tracker, loss in zip(trackers, losses.tolist(), strict=True):
            tracker.step()
            tracker.log(loss=loss)
        norms[together.steps] = together.parameters["3.weight"].flatten(1).norm(dim=1)
    for tracker in trackers:
        tracker.close()
    for seed in range(REPLICAS):
        run = za.open_run(tmp_path / f"{seed}.h5")
        rows = run.table()
        table = rows.set_index(["metric", "tensor", "layer", "step"])["value"].sort_index()
        assert sorted(set(rows["step"])) == [0, 1, 2, 3, 6]
        head = table["frobenius_norm", "weight", "3"]
        for step in (1, 2, 3, 6):
            assert head[step] == pytest.approx(norms[step][seed].item(), rel=1e-6)
        # The head's rows are alike at zero; then each class goes its own way.
        assert table["distinct_rows", "weight", "3"].tolist() == [1, 4, 4, 4, 4]
        some = rows.query("metric == 'frobenius_norm' and tensor == 'weight'")[["step", "layer", "value"]]
        moved = za.first_moved(some.itertuples(index=False, name=None))
        assert moved == {"0.layer": 2, "1.layer": 2, "3": 1}
        for name, step in moved.items():
            flags = table["zero_gradient", "gradient", name]
            assert [flags[k] for k in (1, 2, 3, 6)] == [k < step for k in (1, 2, 3, 6)]
        assert len(run.logged()) >= 7
    values = [za.open_run(tmp_path / f"{seed}.h5").table()["value"].tolist() for seed in range(REPLICAS)]
    assert values[0] != values[1] != values[2]


@pytest.mark.parametrize(
    ("make", "sample", "order"),
    [
        # The head first; every convolution sits beside a skip path, so all of them move one step later.
        (lambda: zeroed(convolutions()), (1, 3, 4), {"3": 1, "0.layer": 2, "1.layer": 2}),
        # A layer whose input is zero has no gradient: of two zero layers in a branch, neither moves, ever.
        (
            stacked_blocks,
            (12,),
            {"2": 1, "0.layer.0": None, "0.layer.2": None, "1.layer.0": None, "1.layer.2": None},
        ),
    ],
    ids=["skip-around-each", "two-in-a-branch"],
)
def test_a_layer_behind_a_zero_layer_moves_only_after_it(make, sample, order):
    models = [make() for _ in range(REPLICAS)]
    together = Together(models, partial(Adam, lr=1e-2))
    weights = {name: f"{name}.weight" for name in order}
    records = [
        [(0, {n: together.parameters[w][r].clone() for n, w in weights.items()})] for r in range(REPLICAS)
    ]
    for inputs, labels in batches(sample, 6, torch.float32):
        together.step(inputs, labels)
        for name, weight in weights.items():
            expected = order[name] is None or together.steps < order[name]
            for gradient in together.parameters[weight].grad:
                assert za.zero_gradient(gradient).item() == expected, (name, together.steps)
        for r, record in enumerate(records):
            record.append(
                (together.steps, {n: together.parameters[w][r].clone() for n, w in weights.items()})
            )
    for record in records:
        moved = {name: None if step != step else step for name, step in za.first_moved(record).items()}
        assert moved == order


def write_idx(path, array):
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.mark.slow
def test_the_training_of_the_benchmark_goes_on_with_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    data = tmp_path / "mnist"
    data.mkdir()
    for part, count in (("train", 250), ("t10k", 60)):
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        images = rng.integers(0, 256, (count, 6, 7), dtype=np.uint8)
        images[np.arange(count), labels % 6, labels % 7] = 255
        write_idx(data / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(data / f"{part}-labels-idx1-ubyte.gz", labels)

    def train(out, epochs):
        command = [sys.executable, ROOT / "benchmarks" / "cnn_mnist_together.py", tmp_path / out]
        command += ["--seeds", "2", "--epochs", str(epochs), "--data-dir", data]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, cwd=tmp_path)
        return json.loads((tmp_path / out / "results.json").read_text())

    straight = train("straight", 22)
    train("resumed", 13)
    resumed = train("resumed", 22)
    for results in (straight, resumed):
        for row in results["epochs"]:
            del row["seconds"]
    assert resumed["epochs"] == straight["epochs"]
    assert resumed["first_steps"] == straight["first_steps"]
    assert [row["epoch"] for row in resumed["epochs"]] == list(range(1, 23))
    assert straight["best"] == [
        max(row["test_accuracy"][seed] for row in straight["epochs"]) for seed in (0, 1)
    ]
    assert [row["lr"] for row in straight["epochs"]] == pytest.approx([1e-4] * 20 + [0.95e-4] * 2, rel=1e-12)
    first, second = straight["first_steps"][:2]
    assert first["zero_gradient"]["head.weight"] == [False, False]
    assert first["zero_gradient"]["convolutions.0.weight"] == [True, True]
    assert second["zero_gradient"]["convolutions.0.weight"] == [False, False]
