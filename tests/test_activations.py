"""Activations and their gradients: the right samples, once each, from whatever a module does."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import hooks.reducer
from hooks import every
from hooks.layers import select_layers
from hooks.taps import Observer, Taps
from zanalysis.runfile.reader import open_run

BOTH = ("activation", "activation_gradient")


def product(W):
    return (W.double().flatten() * torch.arange(1, W.numel() + 1)).sum()


@pytest.fixture
def follow(attach):
    """Attach to the activations; return the model's optimizer and a function that gives what was recorded."""

    def make(model, **options):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        options = {"schedule": every(1), "tensors": BOTH, "metrics": product} | options
        tracker = attach(model, optimizer, **options)

        def recorded(column="value", step=1):
            rows = tracker.table().query("step == @step").set_index(["layer", "tensor"])[column]
            return {(layer, "z" if tensor == "activation" else "g"): v for (layer, tensor), v in rows.items()}

        recorded.tracker = tracker
        return optimizer, recorded

    return make


class Samples(Observer):
    """Keeps every sample that it is told, as a test would stack them."""

    def __init__(self):
        self.z, self.g = {}, {}

    def wants(self, step):
        return frozenset(BOTH)

    def activation(self, layer, z):
        self.z.setdefault(layer.name, []).append(z.clone())

    def activation_gradient(self, layer, g):
        self.g.setdefault(layer.name, []).append(g.clone())


def samples_of_a_step(model, train, observer=None):
    observer = observer or Samples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    taps = Taps(model, [optimizer], select_layers(model), observer, BOTH)
    try:
        train()
    finally:
        taps.remove()
    return observer


# --- what is recorded -----------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [1 << 30, 0])
def test_numbers_are_those_of_the_output_before_anything_overwrites_it(tmp_path, follow, monkeypatch, held):
    monkeypatch.setattr(hooks.reducer, "HELD_BYTES", held)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(12, 5), nn.ReLU(inplace=True), nn.Linear(5, 4),
    )  # fmt: skip
    optimizer, recorded = follow(
        model,
        path=tmp_path / "run.h5",
        metrics=("rank", "stable_rank", "zero_gradient", "singular_values", product),
    )
    for x in (torch.randn(6, 1, 4, 4), torch.randn(7, 1, 4, 4)):  # of two micro-batches the last counts
        optimizer.zero_grad()
        z0 = torch.nn.functional.conv2d(x, model[0].weight, model[0].bias)
        z3 = torch.nn.functional.linear(z0.relu().flatten(1), model[3].weight, model[3].bias)
        z5 = torch.nn.functional.linear(z3.relu(), model[5].weight, model[5].bias)
        outputs = {"0": z0, "3": z3, "5": z5}
        gradients = dict(
            zip(outputs, torch.autograd.grad(z5.square().sum(), list(outputs.values())), strict=True)
        )
        model(x).square().sum().backward()
    optimizer.step()
    recorded.tracker.close()
    run = open_run(tmp_path / "run.h5")
    table = run.table().query("step == 1").set_index(["layer", "tensor", "metric"])
    for kind, tensors in (("activation", outputs), ("activation_gradient", gradients)):
        for name, z in tensors.items():
            matrix = z.detach().movedim(1, -1).reshape(-1, z.shape[1]).double()
            assert table.loc[(name, kind, "product"), "value"] == pytest.approx(
                product(matrix).item(), rel=1e-9
            )
            sigma = torch.linalg.svdvals(matrix).numpy()
            found = run.spectra(name, tensor=kind).values[1][: len(sigma)]
            np.testing.assert_allclose(found, sigma, rtol=1e-6, atol=1e-9 * sigma[0])
            tau = max(matrix.shape) * np.finfo(np.float32).eps * sigma[0]
            assert table.loc[(name, kind, "rank"), "value"] == (sigma > tau).sum()
    assert table.loc[("0", "activation_gradient", "zero_gradient"), "value"] == 0
    assert ("0", "activation", "zero_gradient") not in table.index
    assert set(run.table().query("step == 0")["status"]) == {"skipped"}


def test_the_view_is_one_of_kernels_not_of_activations(follow):
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer, recorded = follow(model, view="in")
    z = model(torch.randn(5, 4))
    z.sum().backward()
    optimizer.step()
    assert recorded()["0", "z"] == pytest.approx(product(z).item())
    assert recorded()["0", "g"] == pytest.approx(product(torch.ones(5, 3)).item())


def test_what_was_measured_at_once_gives_way_to_what_comes_later(follow, monkeypatch):
    # The first of two outputs finds no room to wait, the second one does, and the other way round.
    for room in ([0, 1 << 30], [1 << 30, 0]):
        model = nn.Sequential(nn.Linear(3, 3))
        optimizer, recorded = follow(model)
        for limit in room:
            monkeypatch.setattr(hooks.reducer, "HELD_BYTES", limit)
            z = model(torch.randn(4, 3))
            z.sum().backward()
        optimizer.step()
        assert recorded()["0", "z"] == pytest.approx(product(z).item(), rel=1e-12)


def test_micro_batches_replace_each_other_while_they_wait(follow, monkeypatch):
    model = nn.Sequential(nn.Linear(3, 3))
    optimizer, recorded = follow(model, tensors="activation")
    monkeypatch.setattr(hooks.reducer, "HELD_BYTES", 4 * 3 * 4)
    measured = []
    monkeypatch.setattr(
        hooks.reducer, "measure", lambda *a, f=hooks.reducer.measure: (measured.append(z), f(*a))[1]
    )
    for _ in range(3):
        z = model(torch.randn(4, 3))
        z.sum().backward()
        assert measured == []
    optimizer.step()
    assert len(measured) == 1
    assert recorded()["0", "z"] == pytest.approx(product(z).item())


def test_of_several_calls_in_one_forward_every_sample_is_told_and_the_last_is_measured(follow):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(4, 4)

        def forward(self, x):
            self.outputs = [self.shared(x)]
            self.outputs.append(self.shared(self.outputs[0].tanh()))
            return self.outputs[1]

    model = Twice()
    told = samples_of_a_step(model, lambda: model(torch.randn(3, 4)).sum().backward())
    assert all(map(torch.equal, told.z["shared"], model.outputs))
    assert len(told.g["shared"]) == 2
    optimizer, recorded = follow(model)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    assert recorded()["shared", "z"] == pytest.approx(product(model.outputs[1]).item())


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
        self.head = nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, x):
        if self.reentrant is None:
            return self.head(self.body(x))
        if self.reentrant == "sequential":
            return self.head(checkpoint_sequential(self.body, 2, x, use_reentrant=False))
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True, "sequential"])
def test_a_forward_that_checkpointing_repeats_is_told_once(reentrant):
    torch.manual_seed(1)
    model = Checkpointed(reentrant)
    batches = [torch.randn(3, 4, requires_grad=True) for _ in range(3)]

    def train():
        for x in batches:
            model(x).square().sum().backward()

    told = samples_of_a_step(model, train)
    model.reentrant = None
    plain = samples_of_a_step(model, train)
    for kind in ("z", "g"):
        found, expected = getattr(told, kind), getattr(plain, kind)
        assert found.keys() == expected.keys() == {"body.0", "body.2", "head"}
        for name in expected:
            assert len(found[name]) == 3
            assert all(map(torch.equal, found[name], expected[name])), (kind, name)


# --- which forwards count -------------------------------------------------------------------------------


def functional(model):
    return lambda parameters, x: torch.func.functional_call(model, parameters, (x,)).square().sum()


OTHER_FORWARDS = {
    "no_grad": lambda model, x: torch.no_grad()(model)(x),
    "inference_mode": lambda model, x: torch.inference_mode()(model)(x),
    "validation": lambda model, x: torch.no_grad()(model.eval())(x),
    "func.grad": lambda model, x: torch.func.grad(functional(model))(dict(model.named_parameters()), x),
    "func.vmap": lambda model, x: torch.func.vmap(model)(x),
    "func.jacrev": lambda model, x: torch.func.jacrev(model)(x),
    "func.jvp": lambda model, x: torch.func.jvp(model, (x,), (x,)),
    "func.hessian": lambda model, x: torch.func.hessian(functional(model), argnums=1)(
        dict(model.named_parameters()), x
    ),
    "per-sample gradients": lambda model, x: torch.func.vmap(
        torch.func.grad(functional(model)), in_dims=(None, 0)
    )(dict(model.named_parameters()), x),
    "jit.trace": lambda model, x: torch.jit.trace(model, x),
    "export": lambda model, x: torch.export.export(model, (x,)).module()(x),
    "make_fx": lambda model, x: len(make_fx(model)(x).graph.nodes),
    "fx": lambda model, x: torch.fx.symbolic_trace(model).graph.nodes and 0,
    "fake tensors": lambda model, x: tuple(
        model(FakeTensorMode(allow_non_fake_inputs=True).from_tensor(x)).shape
    ),
}


@pytest.mark.parametrize("kind", OTHER_FORWARDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # which torch hides itself
def test_a_forward_that_trains_nothing_does_not_count_and_works(follow, caplog, kind):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(3, 4)
    expected = OTHER_FORWARDS[kind](model, x)
    optimizer, recorded = follow(model)
    model.train()
    z = model(x)
    z.sum().backward()
    found = OTHER_FORWARDS[kind](model, 2 * x), OTHER_FORWARDS[kind](model, x)
    optimizer.step()
    assert recorded()["2", "z"] == pytest.approx(product(z).item())
    assert recorded()["2", "g"] == pytest.approx(product(torch.ones_like(z)).item())
    if not isinstance(expected, torch.jit.ScriptModule):
        torch.testing.assert_close(found[1], expected, rtol=0, atol=0)
    assert [record for record in caplog.records if record.name == "hooks"] == []


def test_a_vectorized_jacobian_in_the_midst_of_a_step_works(follow, caplog):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(2, 4)
    optimizer, recorded = follow(model)
    jacobian = torch.autograd.functional.jacobian(model, x, vectorize=True)
    assert jacobian.shape == (2, 3, 2, 4)
    model(x).sum().backward()
    optimizer.step()
    assert set(recorded("status").values()) == {"ok"}
    assert caplog.records == []


def test_a_model_that_trains_in_eval_mode_counts(follow):
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    optimizer, recorded = follow(model)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert set(recorded("status").values()) == {"ok"}


def test_between_two_steps_only_the_due_one_is_told(follow):
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer, recorded = follow(model, schedule=every(2))
    outputs = []
    for _ in range(3):
        outputs.append(model(torch.randn(2, 4)))
        outputs[-1].sum().backward()
        optimizer.step()
    assert recorded(step=2)["0", "z"] == pytest.approx(product(outputs[1]).item())


def test_a_backward_of_an_earlier_step_is_not_told():
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    observer = Samples()
    taps = Taps(model, [optimizer], select_layers(model), observer, BOTH)
    late = model(torch.randn(2, 4)).sum()
    optimizer.step()
    late.backward()
    taps.remove()
    assert len(observer.z["0"]) == 1
    assert observer.g == {}


def test_of_several_evaluations_of_a_closure_the_first_counts(attach):
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    tracker = attach(model, optimizer, schedule=every(1), tensors=BOTH, metrics=product)
    x, outputs = torch.randn(5, 4), []

    def closure():
        optimizer.zero_grad()
        outputs.append(model(x))
        loss = outputs[-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(outputs) > 2
    values = tracker.table().query("step == 1").set_index("tensor")["value"]
    assert values["activation"] == pytest.approx(product(outputs[0]).item())
    assert values["activation_gradient"] == pytest.approx(2 * product(outputs[0]).item())


# --- outputs of every kind ------------------------------------------------------------------------------


class Gives(nn.Module):
    """Puts out what a function makes of a linear layer's output."""

    def __init__(self, make):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.make = make

    def forward(self, x):
        self.z = x @ self.weight.mT
        return self.make(self.z)


OUTPUTS = {
    "tuple": lambda z: (z, z + 1),
    "list behind an index": lambda z: [torch.arange(3), z],
    "dict": lambda z: {"index": torch.arange(3), "hidden": z},
    "nested": lambda z: ((None, {"a": [z]}), "text"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_first_floating_tensor_of_an_output_is_recorded(follow, kind):
    model = Gives(OUTPUTS[kind])
    optimizer, recorded = follow(model)
    model(torch.randn(2, 4))
    model.z.sum().backward()
    optimizer.step()
    assert recorded()["weight", "z"] == pytest.approx(product(model.z).item())
    assert recorded("status") == {("weight", "z"): "ok", ("weight", "g"): "ok"}


@pytest.mark.parametrize(
    "output", [None, "text", torch.arange(3), []], ids=["None", "text", "integers", "empty"]
)
def test_an_output_without_a_floating_tensor_is_said_once(follow, caplog, output):
    model = Gives(lambda z: output)
    optimizer, recorded = follow(model)
    for _ in range(2):
        model(torch.randn(2, 4))
        model.z.sum().backward()
        optimizer.step()
    assert recorded("status")["weight", "z"] == "unused"
    assert [r.getMessage() for r in caplog.records] == [
        "the output of weight holds no floating tensor; its activations are not recorded"
    ]


def test_a_scalar_output_is_an_error_of_that_layer_alone(follow, caplog):
    model = nn.Sequential(nn.Linear(4, 4), Gives(torch.sum))
    optimizer, recorded = follow(model)
    model(torch.randn(2, 4)).backward()
    optimizer.step()
    assert recorded("status") == {
        ("0", "z"): "ok", ("0", "g"): "ok", ("1", "z"): "error", ("1", "g"): "error",
    }  # fmt: skip
    assert "the activation of 1 was not recorded" in caplog.text


SHAPES = {
    "linear, one sample": (nn.Linear(4, 3), (4,), (1, 3)),
    "linear, sequence": (nn.Linear(4, 3), (2, 5, 4), (10, 3)),
    "linear, image": (nn.Linear(4, 3), (2, 5, 6, 4), (60, 3)),
    "conv1d": (nn.Conv1d(4, 3, 2), (2, 4, 6), (10, 3)),
    "conv1d, one sample": (nn.Conv1d(4, 3, 2), (4, 6), (5, 3)),
    "conv2d, one sample": (nn.Conv2d(4, 3, 2), (4, 6, 6), (25, 3)),
    "conv3d": (nn.Conv3d(4, 3, 2), (2, 4, 3, 3, 3), (16, 3)),
    "transposed": (nn.ConvTranspose2d(4, 3, 2), (2, 4, 3, 3), (32, 3)),
    "lstm": (nn.LSTM(4, 3, batch_first=True), (2, 5, 4), (10, 3)),
    "attention": (nn.MultiheadAttention(4, 2), (5, 2, 4), (10, 4)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_samples_and_features_are_told_apart_by_the_module(follow, kind):
    module, shape, expected = SHAPES[kind]
    shapes = []

    def shape_of(W):
        shapes.append(tuple(W.shape))
        return 0

    optimizer, recorded = follow(module, metrics=shape_of)
    x = torch.randn(shape)
    output = module(x, x, x) if isinstance(module, nn.MultiheadAttention) else module(x)
    (output[0] if isinstance(output, tuple) else output).sum().backward()
    optimizer.step()
    assert shapes == [expected, expected]
    assert "ok" in recorded("status").values()


def test_a_packed_sequence_and_a_module_with_several_weights_are_recorded_once(follow):
    model = nn.LSTM(4, 3)
    optimizer, recorded = follow(model)
    packed = pack_sequence([torch.randn(5, 4), torch.randn(2, 4)])
    output, _ = model(packed)
    output.data.sum().backward()
    optimizer.step()
    assert recorded() == {
        ("weight_ih_l0", "z"): pytest.approx(product(output.data).item()),
        ("weight_ih_l0", "g"): pytest.approx(product(torch.ones(7, 3)).item()),
    }


def test_layers_that_are_frozen_or_not_called_or_without_a_backward_say_which(follow, caplog):
    class Some(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.used, self.aside, self.idle, self.lent = (nn.Linear(3, 3) for _ in range(5))
            self.frozen.requires_grad_(False)

        def forward(self, x):
            x = self.used(self.frozen(x))
            self.aside(x)
            return x @ self.lent.weight

    model = Some()
    optimizer, recorded = follow(model)
    for _ in range(2):
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    assert recorded("status") == {
        ("frozen", "z"): "ok", ("frozen", "g"): "no_gradient",
        ("used", "z"): "ok", ("used", "g"): "ok",
        ("aside", "z"): "ok", ("aside", "g"): "no_gradient",
        ("idle", "z"): "unused", ("idle", "g"): "unused",
        ("lent", "z"): "unused", ("lent", "g"): "unused",
    }  # fmt: skip
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("no output of lent was seen at step 1, though the weight has a gradient")


def test_of_two_backwards_the_last_is_measured_and_both_are_told(follow):
    model = nn.Sequential(nn.Linear(4, 3))

    def backwards():
        z = model(torch.ones(2, 4))
        z.sum().backward(retain_graph=True)
        (3 * z).sum().backward()

    told = samples_of_a_step(model, backwards)
    assert [g.unique().tolist() for g in told.g["0"]] == [[1], [3]]
    optimizer, recorded = follow(model)
    backwards()
    optimizer.step()
    assert recorded()["0", "g"] == pytest.approx(product(torch.full((2, 3), 3.0)).item())


def test_several_losses_that_are_added_give_the_gradient_of_the_sum(follow):
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer, recorded = follow(model)
    z = model(torch.ones(2, 4))
    (z.sum() + (3 * z).sum()).backward()
    optimizer.step()
    assert recorded()["0", "g"] == pytest.approx(product(torch.full((2, 3), 4.0)).item())


def test_a_parametrized_layer_has_activations_and_its_buffers_go_on_as_they_would(follow):
    torch.manual_seed(3)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3)))
    torch.manual_seed(3)
    plain = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3)))
    optimizer, recorded = follow(model, tensors=("weight", "gradient", *BOTH))
    x = torch.randn(2, 4)
    for network in (model, plain):
        network(x).sum().backward()
    optimizer.step()
    assert set(recorded("status").values()) == {"ok"}
    for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_metric_that_fails_on_an_activation_is_said_once_and_costs_no_other_number(follow, caplog):
    def fail(W):
        raise RuntimeError("on purpose")

    model = nn.Sequential(nn.Linear(4, 3))
    optimizer, recorded = follow(model, metrics=(fail, "rank"), tensors=("activation", "weight"))
    for _ in range(3):
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
    table = recorded.tracker.table().query("tensor == 'activation' and step > 0")
    assert table.query("metric == 'fail'")["status"].tolist() == ["error"] * 3
    assert table.query("metric == 'rank'")["status"].tolist() == ["ok"] * 3
    assert [r.getMessage() for r in caplog.records] == [
        "fail (reference none) of 0: on purpose",
        "fail (reference none) of the activation of 0: on purpose",
    ]


def test_under_autocast_an_activation_keeps_its_dtype_and_the_arithmetic_its_precision(follow):
    dtypes = []

    def norm(W):
        dtypes.append(W.dtype)
        return torch.linalg.vector_norm((W.float() @ W.float().mT).double())

    model = nn.Sequential(nn.Linear(4, 3))
    optimizer, recorded = follow(model, metrics=norm, tensors="activation")
    with torch.autocast("cpu", torch.bfloat16):
        z = model(torch.randn(5, 4))
        z.float().sum().backward()
        optimizer.step()
    assert dtypes == [torch.bfloat16]
    z = z.detach().float()
    assert recorded()["0", "z"] == pytest.approx(
        torch.linalg.vector_norm((z @ z.mT).double()).item(), rel=1e-7
    )


# --- compiled models ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it loads its compiler
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # which it hides itself
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("period", [1, 2])
def test_a_model_that_is_compiled_after_attaching_has_activations(attach, wrapped, period):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = attach(
        compiled if wrapped else model, optimizer, schedule=every(period),
        tensors=("weight", "gradient", *BOTH), metrics=product,
    )  # fmt: skip
    for step in range(1, 5):
        optimizer.zero_grad()
        z = compiled(torch.randn(3, 4))
        z.sum().backward()
        optimizer.step()
        if step % period == 0:
            table = tracker.table().query("step == @step and layer == '2'").set_index("tensor")
            assert set(table["status"]) == {"ok"}
            assert table.loc["activation", "value"] == pytest.approx(product(z).item())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_model_that_was_compiled_before_or_whole_says_so_and_trains(attach, caplog, fullgraph):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if not fullgraph:
        compiled(torch.randn(3, 4))
    tracker = attach(
        compiled, optimizer, schedule=every(1), tensors=("weight", "gradient", *BOTH), metrics="rank"
    )
    for _ in range(3):
        compiled(torch.randn(3, 4)).sum().backward()
        optimizer.step()
    words = tracker.table().query("step > 0").groupby("tensor")["status"].unique()
    assert words["activation"].tolist() == ["unused"]
    assert words["weight"].tolist() == words["gradient"].tolist() == ["ok"]
    assert caplog.text.count("was compiled before the tracker was attached or with fullgraph=True") == 1
