"""The probe: a fixed batch is run through the model, and nothing notices."""

import copy
import math
import random
from collections import namedtuple
from contextlib import ExitStack, nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm

from hooks import RankTracker, every
from hooks.guards import is_quiet
from hooks.layers import select_layers
from hooks.probing import Jacobians, Probe, unwrapped_model
from zanalysis.analyzers import jacobian
from zanalysis.analyzers.statuses import STATUSES
from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile.reader import open_run

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.(weight|spectral)_norm.*:FutureWarning")


class Counting(nn.Module):
    """A layer with a Python state of its own, which draws from every generator, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.new = x
        return x + 0 * (torch.randn(1) + np.random.rand() + random.random())


def network():
    model = nn.Sequential(
        nn.ReLU(inplace=True),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.3),
        spectral_norm(nn.Linear(64, 6)),
        old_spectral_norm(nn.Linear(6, 6)),
        Counting(),
        nn.Linear(6, 3),
    )
    model.train()
    model[2].eval()  # frozen by the user
    model[1].weight.requires_grad_(False)
    return model


def everything(model):
    """Return all that a probe must leave as it is: values to compare, and objects whose identity counts."""
    values = {
        "state": copy.deepcopy(model.state_dict()),
        "modes": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "rng": [torch.get_rng_state(), np.random.get_state(), random.getstate()],
        "hooks": [
            [list(getattr(module, name)) for name in vars(module) if name.endswith("_hooks")]
            for module in model.modules()
        ],
        "global": [
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            is_quiet(),
            torch.get_default_dtype(),
        ],
    }
    objects = [
        (name, key, id(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key != "training"
    ]
    objects += [(name, "grad", id(p.grad)) for name, p in model.named_parameters()]
    objects += [(name, "buffer", id(b)) for name, b in model.named_buffers()]
    return values, objects


def same(a, b):
    if isinstance(a, torch.Tensor | np.ndarray):  # on whatever device
        return bool((torch.as_tensor(a) == torch.as_tensor(b)).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def trained():
    model = network()
    model(torch.randn(5, 1, 4, 4)).sum().backward()
    return model


WAYS = {
    "run": lambda probe: probe.run(lambda layer, z: torch.randn(2)),
    "jacobian": lambda probe: Jacobians(probe, {"samples": 2}).measure(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_probe_leaves_no_trace(trained, way, autocast):
    batch = torch.randn(7, 1, 4, 4)
    kept = batch.clone()
    probe = Probe(trained, batch, select_layers(trained))
    before = everything(trained)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        inside = everything(trained)
        WAYS[way](probe)
        after = everything(trained)
    assert same(inside[0], after[0])
    assert inside[1] == after[1]
    assert same(before[0]["state"], after[0]["state"])
    assert torch.equal(batch, kept)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", [2, 9])
def test_nor_does_one_whose_forward_fails(trained, way, where):
    probe = Probe(trained, torch.randn(7, 1, 4, 4), select_layers(trained))

    def fail(module, args):
        raise RuntimeError("in the middle")

    handle = trained[where].register_forward_pre_hook(fail)
    before = everything(trained)
    with pytest.raises(RuntimeError, match="in the middle"):
        WAYS[way](probe)
    after = everything(trained)
    assert same(before[0], after[0])
    assert before[1] == after[1]
    handle.remove()


def test_it_gives_what_each_layer_puts_out_in_eval_mode(trained):
    batch = torch.randn(7, 1, 4, 4)
    kept = batch.clone()
    probe = Probe(trained, batch, select_layers(trained))
    batch.zero_()  # the probe has its own copy
    found = {}

    def take(layer, z):
        assert not torch.is_grad_enabled()
        found.setdefault(layer.name, []).append((z.clone(), z.requires_grad))

    for _ in range(2):
        found.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            probe.run(take)
    reference = network().eval()
    reference.load_state_dict(trained.state_dict())
    z, expected = kept.clone(), {}
    with torch.no_grad():
        for name, module in reference.named_children():
            z = module(z)
            expected[name] = z.clone()
    assert list(found) == ["1", "6", "7.weight_orig", "9"]
    for name, outputs in found.items():
        ((output, requires_grad),) = outputs
        assert torch.equal(output, expected[name[0]])
        assert not requires_grad
    assert probe.seen == set(found)
    assert torch.equal(probe.samples, kept)  # though the first layer works in place


def test_a_layer_that_is_used_twice_comes_twice_and_an_unused_one_is_not_seen():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(self.a(x))

    model, came = Model(), []
    probe = Probe(model, torch.randn(2, 3), select_layers(model))
    probe.run(lambda layer, z: came.append(layer.name))
    assert came == ["a", "a"]
    assert probe.seen == {"a"}


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x, shift=None, *, options=None):
        z = self.a(x)
        if options is not None:
            z = z + options["more"][0]
        return z if shift is None else z + shift


Pair = namedtuple("Pair", "x shift")
x, one = torch.ones(4, 3), torch.ones(2)
INPUTS = {
    "tensor": (x, 0),
    "tuple": ((x, one), 1),
    "list": ([x, one], 1),
    "named tuple": (Pair(x, one), 1),
    "mapping": ({"x": x, "shift": one}, 1),
    "nested": ({"x": x, "options": {"more": [one, "words"]}}, 1),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_whatever_inputs_the_model_takes(kind):
    batch, shift = INPUTS[kind]
    model, out = Several(), []
    model.register_forward_hook(lambda module, args, output: out.append(output))  # the user's own: it fires
    Probe(model, batch).run(lambda layer, z: None)
    assert torch.equal(out[-1], model.a(x) + shift)


@pytest.mark.parametrize("batch", ["words", 3, None, (), {}, [1, 2], {"x": "y"}])
def test_a_probe_is_inputs(batch):
    with pytest.raises(InputError, match=r"got probe = .*, expected the inputs of the model"):
        Probe(nn.Linear(2, 2), batch)


def test_a_probe_that_does_not_fit_is_refused_when_attached():
    with pytest.raises(
        InputError, match=r"Linear does not take the probe \(.*shapes.*\); pass what its forward takes"
    ):
        Probe(nn.Linear(2, 2), torch.ones(3, 5))


def test_the_model_behind_its_wrappers_is_run():
    model = nn.Linear(2, 2)
    assert unwrapped_model(nn.DataParallel(torch.compile(model, backend="eager"))) is model
    wrapped = nn.DataParallel(nn.Sequential(model))
    probe = Probe(wrapped, torch.ones(3, 2), select_layers(wrapped))
    probe.run(lambda layer, z: None)
    assert probe.seen == {"0"}


def test_a_compiled_model_is_run_as_written_and_not_compiled_anew():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model = Several()
    model.compile(backend=backend)
    before = model(x)
    probe = Probe(model, x, select_layers(model))
    probe.run(lambda layer, z: None)
    assert probe.seen == {"a"}
    assert torch.equal(model(x), before)
    assert len(compiled) == 1
    torch._dynamo.reset()


# --- Jacobians ----------------------------------------------------------------------------------------


def test_jacobians_are_those_of_the_first_samples_in_eval_mode(trained):
    x = torch.randn(5, 1, 4, 4)
    jacobians = Jacobians(Probe(trained, x), {"samples": 3}, k=2)
    numbers, values = jacobians.measure()
    reference = network().eval()
    reference.load_state_dict(trained.state_dict())
    for i in range(3):
        J = torch.autograd.functional.jacobian(lambda z: reference(z[None].clone()).flatten(), x[i]).reshape(
            3, 16
        )
        sigma = torch.linalg.svdvals(J.double()).numpy()
        assert values[i] == pytest.approx(sigma[:2], rel=1e-5)
        value, tolerance, code = numbers[i]
        assert (value, math.isnan(tolerance), STATUSES[code]) == (values[i][0], True, "ok")
    assert [s.layer for s in jacobians.series] == ["model[0]", "model[1]", "model[2]"]
    assert {s[1:] for s in jacobians.series} == {("jacobian", "none", "none", "spectral_norm")}
    assert [tuple(key) for key in jacobians.spectra] == [
        (f"model[{i}]", "jacobian", "none") for i in range(3)
    ]


def test_a_jacobian_has_no_more_singular_values_than_there_are():
    numbers, values = Jacobians(Probe(nn.Linear(5, 3), torch.randn(20, 5)), k=16).measure()
    assert values.shape == (16, 3)
    assert len(numbers) == 16
    assert Jacobians(Probe(nn.Linear(5, 3), torch.randn(4, 5))).options["samples"] == 4


class Special(nn.Module):
    """Its Jacobian at a sample is what the sample's first entry says."""

    def forward(self, x):
        return x * torch.where(x[:, :1] > 2, torch.inf, torch.where(x[:, :1] > 1, 0.0, 3.0))


@pytest.mark.parametrize("k", [None, 1])
@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_a_missing_jacobian_has_a_reason(k, method):
    x = torch.stack([torch.full((4,), v) for v in (0.0, 1.5, 2.5)]).double()
    reading = jacobian.jacobian_reading(Special(), x, k=k, method=method)
    assert reading.status == ("ok", "zero", "nonfinite")
    assert reading.values[:, 0].tolist() == pytest.approx([3.0, 0.0, math.nan], nan_ok=True)


def test_a_value_that_was_not_certified_is_not_converged():
    model = nn.Linear(400, 400, bias=False)
    reading = jacobian.jacobian_reading(model, torch.zeros(1, 400), k=1, method="lanczos", memory=1)
    assert reading.values.isnan().all()
    assert reading.status == ("not_converged",)


def test_jacobians_of_tokens_start_from_a_layer():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 5))
    tokens = torch.randint(7, (2, 3))
    with pytest.raises(
        InputError, match=r"of dtype torch.int64, .* name the layer to start .*jacobian=\{'source'"
    ):
        Jacobians(Probe(model, tokens))
    numbers, values = Jacobians(Probe(model, tokens), {"source": "0"}).measure()
    assert values[0] == pytest.approx(
        torch.linalg.svdvals(model[2].weight.detach().double()).numpy(), rel=1e-5
    )
    assert [STATUSES[n[2]] for n in numbers] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 3}, r"unknown option 'sample' of jacobian; .*samples"),
        ({"samples": 0}, r"got jacobian samples = 0, expected a whole number, 1 or more"),
        ({"samples": True}, r"got jacobian samples = True, expected"),
        ({"source": "nothing"}, r"the model has no layer 'nothing'"),
        ({"target": "nothing"}, r"the model has no layer 'nothing'"),
    ],
)
def test_options_of_the_jacobian_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        Jacobians(Probe(nn.Linear(2, 2), torch.ones(3, 2)), options)


@pytest.mark.parametrize("batch", [{"input": torch.ones(3, 2)}, torch.ones(0, 2)])
def test_jacobians_need_one_tensor_of_samples(batch):
    with pytest.raises(InputError, match=r"needs a probe that is one tensor \[samples, ...\]"):
        Jacobians(Probe(nn.Linear(2, 2), batch))


# --- attached -----------------------------------------------------------------------------------------


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.3),
        spectral_norm(nn.Linear(64, 6)),
        nn.ReLU(inplace=True),
        nn.Linear(6, 3),
    )


class Fragile(nn.Module):
    """Fails in the middle of some forward passes in eval mode."""

    def __init__(self):
        super().__init__()
        self.inner, self.countdown = cnn(), [None]

    def forward(self, x):
        if not self.training and self.countdown[0] is not None:
            torch.rand(3)
            self.inner[:3](x)
            raise RuntimeError("in the middle of the probe")
        return self.inner(x)


EVERYTHING = {
    "tensors": ("weight", "gradient", "activation", "activation_gradient"),
    "metrics": ("rank", "stable_rank", "span_dimension", "jacobian_singular_values", "singular_values"),
    "span_window": 3,
    "jacobian": {"samples": 2},
}


def training(model_of, attach, autocast, steps=20, spoil=None):
    """Train; return all that must not change by being watched."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    with attach(model, optimizer):
        for step in range(steps):
            if spoil is not None:
                spoil(model, step)
            x, y = torch.randn(6, 1, 4, 4), torch.randint(3, (6,))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return {
        "losses": losses,
        "model": model.state_dict(),
        "modes": [module.training for module in model.modules()],
        "gradients": [p.grad for p in model.parameters()],
        "optimizer": optimizer.state_dict()["state"],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("budget", [None, 1.0])
def test_training_with_a_probe_is_bit_identical(tmp_path, autocast, budget):
    batch = torch.randn(8, 1, 4, 4)
    plain = training(cnn, lambda *_: nullcontext(), autocast)
    watched = training(
        cnn,
        lambda model, optimizer: RankTracker(
            model, optimizer, tmp_path / "run.h5", schedule=every(2), probe=batch, budget=budget, **EVERYTHING
        ),
        autocast,
    )
    assert same(plain, watched)
    run = open_run(tmp_path / "run.h5")
    assert run.steps.tolist() == list(range(0, 21, 2))
    table = run.table()
    assert set(table["tensor"]) == {*EVERYTHING["tensors"], "jacobian"}
    assert not (table["status"] == "error").any()
    assert set(run.events["kind"]) == {"gradient"}  # that of a parametrized weight is explained
    ranks = table[(table["metric"] == "span_dimension") & (table["tensor"] == "activation_gradient")]
    assert (ranks["status"][ranks["step"] > 0].isin(["ok", "too_few_samples", "below_noise"])).all()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_so_is_one_whose_probe_fails_on_the_way(tmp_path, autocast, caplog):
    batch = torch.randn(8, 1, 4, 4)

    def spoil(model, step):
        model.countdown[0] = 1 if 5 <= step < 11 else None

    plain = training(Fragile, lambda *_: nullcontext(), autocast)
    watched = training(
        Fragile,
        lambda model, optimizer: RankTracker(
            model, optimizer, tmp_path / "run.h5", schedule=every(4), probe=batch, **EVERYTHING
        ),
        autocast,
        spoil=spoil,
    )
    assert same(plain, watched)
    run = open_run(tmp_path / "run.h5")
    assert run.steps.tolist() == [0, 4, 8, 12, 16, 20]
    table = run.table()
    broken = table[table["status"] == "error"]
    assert set(broken["step"]) == {8}
    assert set(broken["tensor"]) == {"activation", "jacobian"}
    assert broken["value"].isna().all()
    of_step = table[(table["step"] == 8) & table["tensor"].isin(["activation", "jacobian"])]
    assert (of_step["status"] == "error").all()
    assert run.events["kind"].unique().tolist() == ["gradient", "error"]
    assert any("the probe failed at step 8" in text for text in run.events["text"])
    assert "the probe failed at step 8" in caplog.text


def test_the_numbers_are_those_of_the_probe_after_the_step(tmp_path):
    model = cnn()
    batch = torch.randn(8, 1, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    past = {}

    def remember(step):
        reference = cnn().eval()
        reference.load_state_dict(model.state_dict())
        outputs, z = {}, batch.clone()
        with torch.no_grad():
            for name, module in reference.named_children():
                z = module(z)
                outputs[name] = z.clone()
        J = [
            torch.autograd.functional.jacobian(
                lambda x, m=reference: m(x[None].clone()).flatten(), x
            ).reshape(3, 16)
            for x in batch[:2]
        ]
        past[step] = outputs, J

    remember(0)
    path = tmp_path / "run.h5"
    with RankTracker(
        model,
        optimizer,
        path,
        schedule=every(3),
        probe=(batch,),
        tensors="activation",
        metrics=("stable_rank", "span_dimension", "support_columns", "jacobian_singular_values"),
        jacobian={"samples": 2},
        spectrum_size=5,
    ):
        batch_before = batch.clone()
        for step in range(1, 7):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(6, 1, 4, 4)), torch.randint(3, (6,))).backward()
            optimizer.step()
            remember(step)
    assert torch.equal(batch, batch_before)
    run = open_run(path)
    table = run.table().set_index(["step", "layer", "tensor", "metric"])
    assert table.index.is_unique
    assert run.steps.tolist() == [0, 3, 6]
    assert run.layers == ["0", "5", "7"]
    for step in (0, 3, 6):
        outputs, J = past[step]
        for layer in ("0", "5", "7"):
            z = outputs[layer]
            Z = (z.movedim(1, -1).flatten(0, -2) if z.ndim == 4 else z).double().numpy()
            sigma = np.linalg.svd(Z, compute_uv=False)
            span = table.loc[(step, layer, "activation", "span_dimension")]
            assert span["value"] == (sigma > span["tolerance"]).sum()
            assert span["tolerance"] == pytest.approx(Z.shape[1] * 2**-23 * sigma[0], rel=1e-5)
            stable = table.loc[(step, layer, "activation", "stable_rank")]
            assert stable["value"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-4)
            assert table.loc[(step, layer, "activation", "support_columns")]["value"] == Z.shape[1]
        for i in range(2):
            sigma = torch.linalg.svdvals(J[i].double()).numpy()
            row = table.loc[(step, f"model[{i}]", "jacobian", "spectral_norm")]
            assert (row["value"], row["status"]) == (pytest.approx(sigma[0], rel=1e-5), "ok")
            spectrum = run.spectra(f"model[{i}]", "jacobian")
            assert spectrum.steps.tolist() == [0, 3, 6]
            values = spectrum.values[[0, 3, 6].index(step)]
            assert values[:3] == pytest.approx(sigma, rel=1e-5)
            assert np.isnan(values[3:]).all()
    assert run.attributes["probe"]["inputs"] == [{"shape": [8, 1, 4, 4], "dtype": "float32"}]
    assert run.attributes["jacobian"] == {"samples": 2, "source": None, "target": None}


def test_no_other_tracker_takes_note_of_a_probe():
    # The Jacobian of an LSTM takes forward passes with gradients, outside of torch.func.
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.inner(x)[0][:, -1])

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def trained(*trackers):
        with ExitStack() as stack:
            for tracker in trackers:
                stack.enter_context(tracker)
            for i in range(3):
                model(torch.full((1, 5, 3), float(i + 1))).sum().backward()
                optimizer.step()

    other = {"tensors": "activation", "metrics": ("frobenius_norm", "span_dimension"), "schedule": every(1)}
    probing = {"metrics": "jacobian_singular_values", "schedule": every(1), "probe": torch.randn(4, 5, 3)}
    state = copy.deepcopy(model.state_dict())
    alone = RankTracker(model, optimizer, **other)
    trained(alone)
    model.load_state_dict(state)
    optimizer.zero_grad()
    first = RankTracker(model, optimizer, **probing)
    watched = RankTracker(model, optimizer, **other)
    last = RankTracker(model, optimizer, **probing)
    trained(first, watched, last)
    pd.testing.assert_frame_equal(alone.table(), watched.table())
    jacobians = first.table()
    assert len(jacobians) == 16
    assert (jacobians["status"] == "ok").all()
    pd.testing.assert_frame_equal(jacobians, last.table())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "jacobian_singular_values"}, "is taken at fixed samples; pass them as probe=…"),
        ({"probe": torch.ones(2, 6)}, "nothing is asked for of the probe; add 'activation' to tensors"),
        ({"jacobian": {"samples": 3}}, "jacobian=… is for the metric jacobian_singular_values"),
        ({"probe": torch.ones(2, 5), "tensors": "activation"}, "Sequential does not take the probe"),
        ({"probe": "words", "tensors": "activation"}, "got probe = 'words', expected the inputs"),
    ],
)
def test_what_does_not_fit_together_is_refused(mlp, options, message):
    model, optimizer, _ = mlp
    with pytest.raises(InputError, match=message):
        RankTracker(model, optimizer, **options)
    assert not model[0]._forward_hooks


def test_without_activations_of_the_training_its_forward_is_left_alone(mlp):
    model, optimizer, _ = mlp
    with RankTracker(model, optimizer, probe=torch.ones(2, 6), tensors="activation", metrics="rank"):
        assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_the_probe_does_not_come_by_is_unused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(x)

    tracker = RankTracker(
        Model(), probe=torch.randn(5, 3), tensors="activation", metrics=("rank", "span_dimension")
    )
    statuses = tracker.table().set_index(["layer", "metric"])["status"]
    assert statuses.to_dict() == {
        ("a", "rank"): "ok", ("a", "span_dimension"): "ok", ("b", "rank"): "unused", ("b", "span_dimension"): "unused",
    }  # fmt: skip
    tracker.close()


def test_a_run_goes_on_with_a_probe_and_another_one_is_said(tmp_path, mlp):
    model, optimizer, train = mlp
    path, options = tmp_path / "run.h5", {"schedule": every(1), "tensors": "activation", "metrics": "rank"}
    with RankTracker(model, optimizer, path, probe=torch.ones(2, 6), **options):
        train(2)
    with pytest.raises(RunFileError, match="or another view, window or probe than this tracker would"):
        RankTracker(model, optimizer, path, mode="a", start=2, **options)
    with RankTracker(model, optimizer, path, mode="a", start=2, probe=torch.zeros(2, 6), **options):
        train(2)
    run = open_run(path)
    assert run.steps.tolist() == [0, 1, 2, 3, 4]
    text = run.events["text"][0]
    assert "now probe of digest" in text
    assert run.attributes["resumed"][0]["probe"]["digest"] in text


def test_a_probe_is_computed_in_the_precision_of_the_weights(mlp):
    model, optimizer, train = mlp
    with torch.autocast("cpu", dtype=torch.bfloat16):  # around the optimizer's step too
        tracker = RankTracker(
            model,
            optimizer,
            probe=torch.randn(40, 6),
            tensors="activation",
            metrics="span_dimension",
            schedule=every(1),
        )
        train(1)
    table = tracker.table().set_index(["step", "layer"])
    assert table["value"].to_dict() == {(0, "0"): 5, (0, "2"): 4, (1, "0"): 5, (1, "2"): 4}
    # τ is of float32's eps, not of bfloat16's, which is 65,536 times as large.
    assert (table["tolerance"] < 1e-3).all()
    tracker.close()


@pytest.mark.cuda
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_training_on_a_gpu_with_a_probe_is_bit_identical(tmp_path, autocast):
    batch = torch.randn(8, 1, 4, 4)  # on the host: it is moved once

    def trained(attach):
        torch.manual_seed(0)
        model = cnn().cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        with attach(model, optimizer):
            for _ in range(20):
                x = torch.randn(6, 1, 4, 4, generator=generator).cuda()
                y = torch.randint(3, (6,), generator=generator).cuda()
                optimizer.zero_grad()
                with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
                    loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
        return [
            model.state_dict(),
            optimizer.state_dict()["state"],
            torch.get_rng_state(),
            torch.cuda.get_rng_state(),
        ]

    torch.backends.cudnn.deterministic = True
    plain = trained(lambda *_: nullcontext())
    path = tmp_path / "run.h5"
    watched = trained(lambda m, o: RankTracker(m, o, path, schedule=every(2), probe=batch, **EVERYTHING))
    assert same(plain, watched)
    run = open_run(path)
    assert run.steps.tolist() == list(range(0, 21, 2))
    assert not (run.table()["status"] == "error").any()
    assert "device" in run.overhead["part"].tolist()
