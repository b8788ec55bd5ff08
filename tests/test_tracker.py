"""The tracker: it records what it should, at the right moment, and nothing notices that it is there."""

import copy
import io
import logging
import math
import pickle
import random
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from hooks import RankTracker, at, every, logspaced
from hooks.layers import layer_name
from hooks.staging import StagedWriter
from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile import RunWriter, Series
from zanalysis.runfile.reader import open_run
from zanalysis.runfile.repair import repair


def random_metric(W):
    torch.randn(3), np.random.rand(), random.random()
    return W.abs().max()


# --- the observer does not disturb ------------------------------------------------------------------


def network():
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


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2, history_size=3),
}


def training(kind, watch, steps=200):
    """Train; return everything that must not change, and the weights at each step, in float64."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    past = []

    def remember():
        past.append({n: model.get_submodule(n).weight.detach().double().numpy().copy() for n in ("0", "7")})

    remember()
    with watch(model, optimizer):
        for _ in range(steps):
            x, y = torch.randn(4, 1, 4, 4), torch.randint(3, (4,))

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure) if kind == "lbfgs" else (closure(), optimizer.step())
            remember()
    state = {
        "model": model.state_dict(),
        "gradients": [p.grad for p in model.parameters()],
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    return state, past


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Nothing:
    def __init__(self, *_):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_200_steps_are_bit_identical_and_the_numbers_are_right(tmp_path, kind):
    plain, past = training(kind, Nothing)
    path = tmp_path / "run.h5"
    watched, again = training(
        kind,
        lambda model, optimizer: RankTracker(
            model,
            optimizer,
            path,
            schedule=every(20),
            metrics=("rank", "stable_rank", "singular_values", random_metric),
            reference=[None, "init"],
            on_record=lambda step, rows: random.random(),
        ),
    )
    assert same(plain, watched)
    assert same(past, again)

    run = open_run(path)
    assert run.steps.tolist() == list(range(0, 201, 20))
    assert run.layers == ["0", "5", "7"]
    table = run.table().set_index(["step", "layer", "reference", "metric"])
    assert len(table) == 11 * 3 * 2 * 3
    for step in range(0, 201, 20):
        for layer in ("0", "7"):
            W = past[step][layer].reshape(len(past[step][layer]), -1)
            W0 = past[0][layer].reshape(len(W), -1)
            for reference, residual in (("none", W), ("init", W - W0)):
                sigma = np.linalg.svd(residual, compute_uv=False)
                values = table.loc[(step, layer, reference), "value"]
                assert values["random_metric"] == np.float32(np.abs(residual).max())
                if step == 0 and reference == "init":
                    assert values["rank"] == 0
                    continue
                scale = max(np.linalg.norm(W, 2), np.linalg.norm(W0, 2) if reference == "init" else 0)
                tau = max(W.shape) * np.finfo(np.float32).eps * scale
                assert values["rank"] == (sigma > tau).sum()
                assert values["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-4)
                recorded = run.spectra(layer, reference=reference).values[step // 20]
                np.testing.assert_allclose(recorded[: len(sigma)], sigma, rtol=1e-6, atol=1e-12)
                assert np.isnan(recorded[len(sigma) :]).all()


def test_spectral_norm_gives_the_weight_that_acts_and_keeps_its_buffers(attach):
    model = nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 4))
    before = copy.deepcopy(model.state_dict())
    tracker = attach(model, schedule=every(1), metrics="spectral_norm")
    for _ in range(3):
        tracker.step()
    assert same(before, model.state_dict())
    assert all(module.training for module in model.modules())
    model.eval()
    sigma = torch.linalg.svdvals(model[0].weight.double())[0].item()
    values = tracker.table().query("layer == '0'")["value"]
    assert values.tolist() == pytest.approx([sigma] * 4, rel=1e-6)


def test_a_step_between_forward_and_backward_leaves_the_graph_intact(attach):
    model = nn.Sequential(spectral_norm(nn.Linear(6, 5)))
    tracker = attach(model, schedule=every(1), metrics="rank")
    loss = model(torch.ones(2, 6)).sum()
    tracker.step()
    loss.backward()
    assert tracker.table()["status"].tolist() == ["ok", "ok"]


def traces(model, optimizer):
    modules = {
        name: (sorted(module.__dict__), module.training, [len(h) for h in hook_dictionaries(module)])
        for name, module in model.named_modules()
    }
    parameters = [(id(p), p.requires_grad, p.grad, sorted(p.__dict__)) for p in model.parameters()]
    return modules, parameters, sorted(optimizer.__dict__), [len(h) for h in hook_dictionaries(optimizer)]


def hook_dictionaries(thing):
    return [
        value for key, value in sorted(thing.__dict__.items()) if "hooks" in key and isinstance(value, dict)
    ]


def fail(*_):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, None),
        ({"metrics": ("rank", fail)}, "error"),
        ({"on_record": fail}, "on_record"),
        ({"schedule": fail}, "schedule"),
        ({"view": lambda W: fail() if W.device.type != "meta" else W}, "error"),
    ],
)
@pytest.mark.parametrize("where", [None, "loop"])
def test_no_trace_is_left_after_the_end_or_an_exception(tmp_path, mlp, caplog, settings, kind, where):
    model, optimizer, train = mlp
    model[2].weight.requires_grad_(False)
    before, threads = traces(model, optimizer), threading.active_count()
    path = tmp_path / "run.h5"

    def loop():
        with RankTracker(model, optimizer, path, **{"schedule": every(1), **settings}):
            train(3)
            if where == "loop":
                raise KeyError("left")

    if where == "loop":
        with pytest.raises(KeyError, match="left"):
            loop()
    else:
        loop()
    for parameter in model.parameters():
        parameter.grad = None
    assert traces(model, optimizer) == before
    assert threading.active_count() == threads
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"]
    events = open_run(path).events
    assert (kind is None) or kind in events["kind"].tolist()
    assert (where is None) or events["text"].iloc[-1].startswith("the loop was left by KeyError")
    if kind is not None:
        said = [r for r in caplog.records if r.name == "hooks" and "on purpose" in r.getMessage()]
        assert 1 <= len(said) <= 4  # once for each layer and metric at most, not at each step
    if kind == "error" and "metrics" in settings:
        table = open_run(path).table()
        assert set(table.query("metric == 'fail'")["status"]) == {"error"}
        assert set(table.query("metric == 'rank'")["status"]) == {"ok"}


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"schedule": 50}, InputError, "expected a function step -> bool such as every"),
        ({"layers": "3"}, InputError, "no layer matches '3'"),
        ({"layers": []}, InputError, "layers is empty"),
        ({"layers": 3}, InputError, "got layers = 3"),
        ({"metrics": "rnak"}, InputError, "did you mean 'rank'"),
        ({"metrics": ()}, InputError, "no metric was asked for"),
        ({"reference": "start"}, InputError, "unknown reference 'start'"),
        ({"reference": torch.zeros(2, 2)}, InputError, r"shape \[2, 2\] fits no recorded layer"),
        ({"reference": {"0": torch.zeros(5, 6)}}, InputError, r"no tensor of shape \[4, 5\] for layer '2'"),
        ({"reference": []}, InputError, "reference is empty"),
        ({"tolerance": -1}, InputError, "got tolerance -1"),
        ({"view": "side"}, InputError, "unknown view 'side'"),
        ({"mode": "r"}, InputError, "unknown mode 'r'"),
        ({"start": -1}, InputError, "got start = -1"),
        ({"on_full": "wait"}, InputError, "expected 'block' or 'drop'"),
        ({"flush_seconds": -1}, InputError, "got flush_seconds = -1"),
        ({"spectrum_size": 0}, InputError, "got spectrum_size = 0"),
        ({"attributes": {"x": object()}}, InputError, "what JSON can hold"),
        ({"tensors": "weigth"}, InputError, "did you mean 'weight'"),
        ({"tensors": ()}, InputError, "tensors is empty"),
        ({"path": 3}, InputError, "got path = 3"),
        ({"optimizer": "run.h5"}, InputError, "got str as the optimizer"),
        ({"model": nn.ReLU()}, InputError, "has no weight to follow"),
        ({"model": nn.LazyLinear(3)}, InputError, "is lazy and has no shape yet"),
        ({"model": nn.Linear(3, 3, device="meta")}, InputError, "on the meta device"),
        ({"model": "model"}, InputError, "got str as the model"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_failed_construction_says_why_and_leaves_nothing(tmp_path, mlp, settings, error, sentence):
    model, optimizer, _ = mlp
    before, threads = traces(model, optimizer), threading.active_count()
    given = {"model": model, "optimizer": optimizer, "path": tmp_path / "run.h5", **settings}
    with pytest.raises(error, match=sentence):
        RankTracker(**given)
    assert traces(model, optimizer) == before
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


def test_a_construction_that_fails_late_leaves_nothing_either(tmp_path, mlp, monkeypatch):
    model, optimizer, _ = mlp
    before = traces(model, optimizer)
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        RankTracker(model, optimizer, tmp_path / "run.h5")
    assert traces(model, optimizer) == before
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.h5").touch()
    with pytest.raises(RunFileError, match="exists already"):
        RankTracker(model, optimizer, tmp_path / "run.h5")
    assert traces(model, optimizer) == before


# --- copies -----------------------------------------------------------------------------------------


def first_item(loader):
    return next(iter(loader))[0]


@pytest.mark.parametrize("path", [None, "run.h5"])
def test_copies_work_and_record_nothing(tmp_path, mlp, attach, path):
    model, optimizer, train = mlp
    tracker = attach(model, optimizer, path and tmp_path / path, schedule=every(1), metrics="rank")
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    copies = [copy.deepcopy(model), AveragedModel(model), torch.load(stream, weights_only=False)]
    for twin in copies:
        assert same([*twin.parameters()], [*model.parameters()])
        torch.optim.SGD(twin.parameters(), lr=0.1).step()
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        other.step()
    loaded = first_item(
        DataLoader(TensorDataset(torch.ones(4, 2)), num_workers=1, multiprocessing_context="fork")
    )
    assert loaded.tolist() == [[1.0, 1.0]]
    assert tracker.table()["step"].unique().tolist() == [0]
    train(2)
    assert tracker.table()["step"].unique().tolist() == [0, 1, 2]


def test_spawned_workers_start_while_attached(tmp_path, mlp, attach):
    model, optimizer, _ = mlp
    tracker = attach(model, optimizer, tmp_path / "run.h5")
    data = DataLoader(TensorDataset(torch.ones(4, 2)), num_workers=1, multiprocessing_context="spawn")
    assert first_item(data).tolist() == [[1.0, 1.0]]
    assert tracker.table()["step"].unique().tolist() == [0]


# --- the record -------------------------------------------------------------------------------------


def test_memory_and_file_hold_the_same_table(tmp_path, mlp, attach):
    model, optimizer, train = mlp
    settings = {
        "schedule": at([1, 3]),
        "metrics": ("rank", "support", "rank_margin", "stable_rank"),
        "reference": [None, "init", "identity"],
        "tolerance": ["default", 1e-4],
    }
    inside = attach(model, optimizer, **settings)
    file = attach(model, optimizer, tmp_path / "run.h5", **settings)
    train(4)
    pd.testing.assert_frame_equal(inside.table(), file.table())
    file.close()
    pd.testing.assert_frame_equal(inside.table(), file.table())
    table = inside.table()
    assert table["step"].unique().tolist() == [0, 1, 3]
    assert set(table["tolerance_rule"]) == {"default", "0.0001", "none"}
    rank = table[(table["metric"] == "rank") & (table["tolerance_rule"] == "0.0001")]
    assert rank["tolerance"].tolist() == [1e-4] * len(rank)
    assert "identity_scale" in set(table["metric"])


def test_spectra_alone_can_be_recorded(tmp_path, mlp, attach, caplog):
    model, optimizer, train = mlp
    inside = attach(model, optimizer, schedule=every(1), metrics="singular_values")
    file = attach(
        model, optimizer, tmp_path / "r.h5", schedule=every(1), metrics="singular_values", spectrum_size=3
    )
    train(2)
    assert len(inside.table()) == len(file.table()) == 0
    spectrum = open_run(tmp_path / "r.h5").spectra("2")
    assert spectrum.steps.tolist() == [0, 1, 2]
    sigma = torch.linalg.svdvals(model[2].weight.detach().double())[:3].numpy()
    np.testing.assert_allclose(spectrum.values[-1], sigma, rtol=1e-9)
    assert caplog.records == []


def test_the_first_of_several_optimizers_counts(attach):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    first, second = (torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model)
    tracker = attach(model, [first, second], schedule=every(1), metrics="rank")
    second.step(), second.step(), first.step()
    assert tracker.table()["step"].unique().tolist() == [0, 1]


def test_a_wrapped_optimizer_is_unwrapped(mlp, attach):
    model, optimizer, train = mlp
    tracker = attach(model, SimpleNamespace(optimizer=optimizer), schedule=every(1), metrics="rank")
    train(2)
    assert tracker.table()["step"].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_a_scaler_skips_is_not_counted(mlp, attach, fused):
    model, _, _ = mlp
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    tracker = attach(model, optimizer, schedule=every(1), metrics="frobenius_norm")
    norms = [torch.linalg.norm(model[0].weight.detach().double()).item()]
    for step in range(4):
        optimizer.zero_grad()
        loss = model(torch.full((2, 6), math.inf if step == 1 else 1.0)).square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if step != 1:
            norms.append(torch.linalg.norm(model[0].weight.detach().double()).item())
    table = tracker.table().query("layer == '0'")
    assert table["step"].tolist() == [0, 1, 2, 3]
    assert table["value"].tolist() == pytest.approx(norms, rel=1e-6)


def test_a_step_under_autocast_is_measured_in_its_own_precision(attach):
    model = nn.Sequential(spectral_norm(nn.Linear(6, 5)))
    tracker = attach(model, schedule=every(1), metrics=("spectral_norm", lambda_free), layers="0")
    with torch.autocast("cpu"):
        tracker.step()
    values = tracker.table().pivot_table(index="step", columns="metric", values="value")
    assert values.loc[0].tolist() == values.loc[1].tolist()


def lambda_free(W):
    return (W @ W.mT).sum()


@pytest.fixture
def product_precision():
    """Return what says how float32 is multiplied; all of it is given back as it was."""
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends]

    def said():
        return [backend.fp32_precision for backend in backends]

    before = said()
    yield said
    torch.set_float32_matmul_precision("highest")
    for backend, precision in zip(backends, before, strict=True):
        backend.fp32_precision = precision


@pytest.mark.parametrize("way", ["high", "medium", "allow_tf32", "backends", "generic"])
def test_a_training_in_tf32_is_measured_in_float32(attach, product_precision, way):
    if way in ("high", "medium"):
        torch.set_float32_matmul_precision(way)
    elif way == "allow_tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif way == "backends":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    else:
        torch.backends.fp32_precision = "tf32"
    before, during = product_precision(), []

    def precision(W):
        during.extend(product_precision()[:2])
        return 0.0

    tracker = attach(nn.Linear(6, 5), schedule=every(1), metrics=("stable_rank", precision))
    tracker.step()
    assert set(during) <= {"none", "ieee"}
    assert product_precision() == before
    assert tracker.table()["status"].eq("ok").all()


def test_resuming_goes_on_in_the_same_file(tmp_path, mlp, attach):
    model, optimizer, train = mlp
    path = tmp_path / "run.h5"
    with RankTracker(model, optimizer, path, schedule=every(2), metrics="rank", reference="init"):
        train(6)
    with pytest.raises(RunFileError, match="records other layers, metrics"):
        RankTracker(model, optimizer, path, metrics="stable_rank", mode="a", start=4)
    tracker = attach(
        model, optimizer, path, schedule=every(2), metrics="rank", reference="init", mode="a", start=4
    )
    train(4)
    tracker.close()
    run = open_run(path)
    assert run.steps.tolist() == [0, 2, 4, 6, 8]
    assert run.events["kind"].tolist() == ["resumed"]
    assert run.events["text"].tolist() == ["recording goes on from step 4"]


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_init_is_the_same_before_and_after_a_resume(tmp_path, attach, dtype):
    def start():
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv1d(2, 4, 3), spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 4)).to(dtype)

    settings = {"metrics": ("frobenius_norm", "singular_values"), "reference": "init", "schedule": every(1)}
    rng = torch.Generator().manual_seed(4)
    changes = [torch.randn(20, 20, generator=rng) for _ in range(6)]

    def move(model, tracker, steps):
        for step in steps:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(
                        changes[step].flatten()[: parameter.numel()].reshape_as(parameter).to(dtype)
                    )
            tracker.step()

    model = start()
    whole = attach(model, path=tmp_path / "whole.h5", **settings)
    move(model, whole, range(6))
    whole.close()

    model = start()
    first = attach(model, path=tmp_path / "parts.h5", **settings)
    move(model, first, range(3))
    state = copy.deepcopy(model.state_dict())
    move(model, first, range(3, 5))  # lost: the checkpoint is of step 3
    first.close()
    torch.manual_seed(9)
    model = start()
    model.load_state_dict(state)
    second = attach(model, path=tmp_path / "parts.h5", mode="a", start=3, **settings)
    move(model, second, range(3, 6))
    second.close()
    runs = [open_run(tmp_path / name) for name in ("whole.h5", "parts.h5")]
    pd.testing.assert_frame_equal(runs[1].table(), runs[0].table())
    assert runs[0].table()["value"].gt(0).any()
    for layer in runs[0].layers:
        spectra = [run.spectra(layer, reference="init").values for run in runs]
        np.testing.assert_array_equal(*spectra)


def test_a_resume_under_other_settings_says_which(tmp_path, mlp, attach):
    model, optimizer, train = mlp
    path = tmp_path / "run.h5"
    with RankTracker(model, optimizer, path, schedule=every(1), metrics="rank", attributes={"part": 1}):
        train(4)
    assert open_run(path).attributes["resumed"] == []
    other = nn.Sequential(model[0], nn.Tanh(), model[2])
    adam = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.3)
    settings = {"schedule": every(1), "metrics": "rank", "mode": "a"}
    attach(other, adam, path, start=3, attributes={"part": 2}, **settings).close()
    run = open_run(path)
    (text,) = run.events["text"]
    for phrase in (
        "from step 3; now module 1 Tanh(), before ReLU()",
        "optimizers ['AdamW'], before ['SGD']",
        "lr of optimizer 0, group 0: 0.01, before 0.1",
        "weight_decay of optimizer 0, group 0: 0.3, before 0",
    ):
        assert phrase in text
    (part,) = run.attributes["resumed"]
    assert (part["start"], part["user"], part["optimizers"][0]["type"]) == (3, {"part": 2}, "AdamW")
    assert part["model"]["modules"][1]["type"] == "Tanh"
    assert [layer["start"] for layer in part["layers"]] == ["other", "other"]
    assert part["versions"]["torch"] == torch.__version__
    assert run.attributes["optimizers"][0]["type"] == "SGD"
    attach(other, adam, path, start=0, **settings).close()
    run = open_run(path)
    assert run.attributes["resumed"] == []
    assert run.attributes["optimizers"][0]["type"] == "AdamW"
    assert "the record begins anew" in run.events["text"].iloc[-1]


@pytest.mark.parametrize("path", [None, "run.h5"])
def test_a_layer_with_an_undecodable_name_is_recorded(tmp_path, attach, caplog, path):
    model = nn.Module()
    for name in ("a", "a\udc80", "a\udc81", "a\0"):
        model.add_module(name, nn.Linear(3, 3))
    tracker = attach(
        model, path=path and tmp_path / path, metrics=("rank", "singular_values"), reference="init"
    )
    tracker.log(**{"loss\udc80": 1.0, "loss\0": 2.0})
    assert tracker.table()["layer"].tolist() == ["a", "a\\udc80", "a\\udc81", "a\\x00"]
    assert caplog.records == []


# --- layers -----------------------------------------------------------------------------------------


class Zoo(nn.Module):
    """Every kind of parameter whose name or shape is a question."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4)
        self.attn = nn.MultiheadAttention(4, 2)
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.experts = nn.Parameter(torch.randn(2, 3, 4))
        self.conv = nn.Conv1d(3, 4, 5)
        self.deep = nn.Conv3d(2, 3, (1, 3, 3))
        self.vector = nn.Linear(4, 1)
        self.norm = nn.LayerNorm(4)
        self.whole = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)


NAMES = [
    "experts[0]", "experts[1]", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "attn.in_proj_weight",
    "attn.out_proj", "embed", "conv", "deep",
]  # fmt: skip


def layers_of(tracker):
    return list(dict.fromkeys(series.layer for series in tracker._columns.series))


def wrapped(model):
    holder = nn.Module()
    holder.module = model
    return holder


@pytest.mark.parametrize("wrap", [lambda m: m, wrapped, lambda m: wrapped(wrapped(m))])
def test_layers_have_the_same_names_however_the_model_is_wrapped(attach, wrap):
    model = Zoo()
    tracker = attach(wrap(model), schedule=every(1), metrics=("rank", "support"))
    assert layers_of(tracker) == NAMES
    ranks = tracker.table().query("metric == 'rank'").set_index("layer")["value"]
    assert ranks["conv"] == np.linalg.matrix_rank(model.conv.weight.detach().numpy().reshape(4, 15)) == 4
    assert ranks["experts[1]"] == 3
    assert set(tracker.table()["status"]) == {"ok"}


def test_names_lose_only_what_wrappers_add():
    assert layer_name("_orig_mod.module.a.weight") == "module.a".removeprefix("module.")
    assert layer_name("a._orig_mod.b.weight") == "a.b"
    assert layer_name("weight") == "weight"
    assert layer_name("a.weight_g") == "a.weight_g"
    assert layer_name("a.module.weight") == "a.module"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it loads its compiler
def test_a_compiled_model_has_the_names_of_its_original(attach):
    tracker = attach(torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))), metrics="rank")
    assert layers_of(tracker) == ["0", "1"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("conv", ["conv"]),
        ("lstm.*", ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]),
        (re.compile("^(deep|embed)$"), ["embed", "deep"]),
        (lambda name: name.startswith("a"), ["attn.in_proj_weight", "attn.out_proj"]),
        (lambda name, p: p.ndim > 3, ["deep"]),
        (lambda name, p: p.requires_grad and p.shape[0] == 3, ["deep"]),
        (lambda name, wanted=("conv",): name in wanted, ["conv"]),
        (["experts", "conv", "co*"], ["experts[0]", "experts[1]", "conv"]),
    ],
)
def test_layers_are_chosen_by_name_glob_pattern_or_predicate(attach, selection, expected):
    assert layers_of(attach(Zoo(), layers=selection, metrics="rank")) == expected


def test_a_layer_of_one_row_is_followed_where_its_name_is_written_out(attach):
    # A convolution of one channel is a 1×9 matrix: the all-zero network on MNIST consists of three.
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 1))
    assert layers_of(attach(model, metrics="rank")) == ["2"]
    assert layers_of(attach(model, metrics="rank", layers="*")) == ["2"]
    named = attach(model, metrics=("rank", "stable_rank", "distinct_rows"), layers=["3", "*", "0"])
    assert layers_of(named) == ["0", "2", "3"]
    table = named.table().set_index(["layer", "metric"])["value"]
    assert [table["0", "rank"], table["0", "stable_rank"], table["3", "distinct_rows"]] == [1, 1, 1]


def test_a_view_changes_the_matrices_and_is_stored(tmp_path, attach):
    kernel = nn.Conv2d(3, 4, 3)
    W = kernel.weight.detach().double().numpy()
    expected = {
        "in": W.transpose(1, 0, 2, 3).reshape(3, -1),
        "out": W.reshape(4, -1),
        "first": W[:, :, 0, 0],
    }
    for view, matrix in expected.items():
        chosen = (lambda V: V[:, :, 0, 0]) if view == "first" else view
        tracker = attach(kernel, metrics="nuclear_norm", view=chosen)
        assert tracker.table()["value"].item() == pytest.approx(np.linalg.norm(matrix, "nuc"), rel=1e-9)
    tracker = attach(
        kernel, None, tmp_path / "r.h5", view="taps", metrics="spectral_norm", reference=[None, "identity"]
    )
    table = tracker.table()
    assert open_run(tmp_path / "r.h5").attributes["view"] == "taps"
    assert layers_of(tracker) == [f"weight[{i}]" for i in range(9)]
    assert set(table["status"]) == {"ok"}
    norms = table.query("metric == 'spectral_norm' and reference == 'none'").set_index("layer")["value"]
    for i in range(9):
        assert norms[f"weight[{i}]"] == pytest.approx(np.linalg.norm(W[:, :, i // 3, i % 3], 2), rel=1e-9)
    assert table.query("metric == 'identity_scale'")["value"].tolist() == [1.0] * 9


# --- metrics and references -------------------------------------------------------------------------


def test_references_are_subtracted(attach):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False))
    other = {"0.weight": torch.randn(4, 4), "module.1": torch.randn(3, 4)}
    W = {str(i): layer.weight.detach().double().numpy() for i, layer in enumerate(model)}
    tracker = attach(
        model, metrics="frobenius_norm", reference=[None, "init", other, torch.ones(4, 4)], schedule=every(1)
    )
    with torch.no_grad():
        model[0].weight += 1
    tracker.step()
    table = tracker.table().query("step == 1").set_index(["layer", "reference"])
    given = {k: v.double().numpy() for k, v in zip("01", other.values(), strict=True)}
    now = {"0": model[0].weight.detach().double().numpy(), "1": W["1"]}
    for layer in "01":
        for reference, start in (("none", 0), ("init", W[layer]), ("tensor", given[layer])):
            value = np.linalg.norm(now[layer] - start)
            assert table.loc[(layer, reference), "value"] == pytest.approx(value, rel=1e-9), reference
    assert table.loc[("0", "tensor_2"), "value"] == pytest.approx(np.linalg.norm(now["0"] - 1))
    assert table.loc[("1", "tensor_2"), "status"] == "error"


def test_a_reference_of_another_shape_is_never_bent_to_fit(attach):
    model = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(4, 3, bias=False))
    tracker = attach(model, metrics="frobenius_norm", reference=torch.ones(2, 6))
    assert tracker.table()["status"].tolist() == ["ok", "error"]


def test_identity_is_scaled_by_what_decay_left_of_it(attach):
    model = nn.Linear(5, 5, bias=False)
    with torch.no_grad():
        model.weight.copy_(0.9 * torch.eye(5))
        model.weight[1, 3] = 2.0
    tracker = attach(model, metrics=("rank", "support"), reference="identity")
    values = tracker.table().set_index("metric")["value"]
    assert values["identity_scale"] == pytest.approx(0.9, rel=1e-6)
    assert values[["rank", "support_rows", "support_columns"]].tolist() == [1, 1, 1]


def test_a_metric_that_writes_to_its_argument_changes_nothing(attach):
    def careless(W):
        W.zero_()
        return 1.0

    model = nn.Linear(4, 3).double()
    before = model.weight.detach().clone()
    tracker = attach(model, metrics=(careless, "rank"))
    assert torch.equal(model.weight, before)
    assert tracker.table().set_index("metric")["value"].to_dict() == {"careless": 1.0, "rank": 3.0}


# --- what a training may do to its parameters --------------------------------------------------------


def test_parameters_may_be_replaced_converted_removed_or_not_finite(attach, caplog):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tracker = attach(model, schedule=every(1), metrics=("rank", "frobenius_norm"), reference=[None, "init"])
    model[0].weight = nn.Parameter(torch.eye(4))
    tracker.step()
    model.to(torch.bfloat16)
    tracker.step()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
        model[1].weight[0, 0] = math.inf
    tracker.step()
    model[0].weight = nn.Parameter(torch.ones(3, 2))
    tracker.step()
    del model[1].weight
    tracker.step()
    table = tracker.table().set_index(["step", "reference", "metric", "layer"]).sort_index()
    assert table.loc[(1, "none", "frobenius_norm", "0"), "value"] == 2
    assert table.loc[(2, "none", "rank", "0"), "status"] == "ok"
    assert set(table.loc[3]["status"]) == {"nonfinite"}
    assert table.loc[3]["value"].isna().all()
    assert table.loc[(4, "none", "rank", "0"), "value"] == 1
    assert table.loc[(4, "init", "rank", "0"), "status"] == "error"
    assert table.loc[(5, "none", "rank", "1"), "status"] == "error"
    assert len(table) == 6 * 2 * 4


# --- logging, events, overhead, closing ---------------------------------------------------------------


def test_logged_scalars_share_the_step_axis_and_wrong_ones_are_said_once(tmp_path, mlp, attach, caplog):
    model, optimizer, train = mlp
    tracker = attach(model, optimizer, tmp_path / "run.h5", metrics="rank")
    for step in range(3):
        tracker.log(
            loss=torch.tensor(step / 2, requires_grad=True), array=np.array([[step]]), flag=True, self=1
        )
        tracker.log(wrong=f"text {step}", many=torch.ones(step + 2), nothing=None, step=step)
        train(1)
    tracker.close()
    tracker.log(late=1.0), tracker.log(late=1.0)
    run = open_run(tmp_path / "run.h5")
    assert list(run.logged().columns) == ["step", "loss", "array", "flag", "self"]
    assert run.logged()["step"].tolist() == [0, 1, 2]
    assert run.logged()["loss"].tolist() == [0.0, 0.5, 1.0]
    assert run.events["kind"].tolist() == ["log"] * 4
    assert [r.getMessage().split("(")[0] for r in caplog.records] == ["log"] * 5
    assert "expected one number" in run.events["text"][0]
    assert "counts the steps itself" in run.events["text"][3]


def test_overhead_is_recorded(tmp_path, mlp):
    model, optimizer, train = mlp
    with RankTracker(model, optimizer, tmp_path / "run.h5", schedule=every(1)):
        train(5)
    table = open_run(tmp_path / "run.h5").overhead.set_index("part")
    assert (table["seconds"] >= 0).all()
    assert table.loc["rank", "seconds"] > 0
    assert 0 < table.loc["total", "share"] < 1


def test_closing_ends_the_recording_and_twice_is_harmless(tmp_path, mlp):
    model, optimizer, train = mlp
    tracker = RankTracker(model, optimizer, tmp_path / "run.h5", schedule=every(1), metrics="rank")
    train(2)
    tracker.close()
    tracker.close()
    train(2)
    tracker.step()
    assert tracker.table()["step"].unique().tolist() == [0, 1, 2]


def test_attributes_say_what_was_recorded(tmp_path, mlp, attach):
    model, optimizer, _ = mlp
    attach(
        model,
        optimizer,
        tmp_path / "r.h5",
        schedule=every(7),
        attributes={"seed": 3},
        tolerance=[1e-4, "numpy"],
    )
    facts = open_run(tmp_path / "r.h5").attributes
    assert facts["schedule"] == "every(7)"
    assert facts["user"] == {"seed": 3}
    assert facts["tolerances"] == ["0.0001", "numpy"]
    assert [module["type"] for module in facts["model"]["modules"]] == ["Linear", "ReLU", "Linear"]
    assert facts["optimizers"][0]["type"] == "SGD"
    assert facts["optimizers"][0]["groups"][0]["lr"] == 0.1
    assert facts["versions"]["torch"] == torch.__version__
    assert "zanalysis" in facts["versions"]
    assert [layer["shape"] for layer in facts["layers"]] == [[5, 6], [4, 5]]


@pytest.mark.parametrize("end", ["", pytest.param("raise SystemExit(0)", marks=pytest.mark.slow)])
def test_a_forgotten_tracker_completes_its_file_at_exit(tmp_path, end):
    code = f"""
import sys, tempfile
folder = tempfile.TemporaryDirectory()  # registers with atexit before anything else does
import torch
from hooks import RankTracker, every
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
RankTracker(model, optimizer, {str(tmp_path / "run.h5")!r}, schedule=every(1), flush_seconds=1000)
for _ in range(20):
    model(torch.ones(4)).sum().backward()
    optimizer.step()
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert open_run(tmp_path / "run.h5").steps.tolist() == list(range(21))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"]


def test_a_full_disk_stops_the_recording_with_a_warning_and_nothing_else(tmp_path):
    code = f"""
import resource, signal, torch
from hooks import RankTracker, every
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
model = torch.nn.Linear(4, 3)
with RankTracker(model, None, {str(tmp_path / "run.h5")!r}, schedule=every(1), flush_seconds=0.01) as tracker:
    for step in range(10_000):
        tracker.log(loss=1.0, **{{f"more{{i}}": 2.0 for i in range(20)}})
        if step % 100 == 0: tracker.step()
print("trained to the end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "trained to the end\n")
    assert done.stderr.count("has stopped, the training goes on") == 1
    run = open_run(tmp_path / "run.h5")
    assert run.steps.tolist() == list(range(len(run.steps)))
    assert set(run.logged()["loss"]) == {1.0}
    assert repair(tmp_path / "run.h5")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"]


def test_a_forgotten_tracker_is_complete_before_h5py_ends(tmp_path):
    """What h5py does at exit, in the main thread, must find no thread of ours within HDF5."""
    code = f"""
import atexit, h5py, torch
from hooks import RankTracker, every
atexit.register(lambda: print(tracker._journal.writer.working))  # after h5py's own: it runs just before that
tracker = RankTracker(torch.nn.Linear(4, 3), path={str(tmp_path / "run.h5")!r}, schedule=every(1))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    assert result.stderr == ""
    assert open_run(tmp_path / "run.h5").steps.tolist() == [0]


def test_importing_loads_no_plotting_and_no_pandas():
    code = "import hooks, sys; print([m for m in ('pandas', 'matplotlib', 'seaborn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- between the loop and the file --------------------------------------------------------------------

SERIES = (Series("a", "weight", "none", "none", "x"),)
ROW = np.ones(1), np.ones(1), np.zeros(1, np.uint8), np.empty((0, 16))


class Slow(RunWriter):
    """A writer that waits until it may write, or fails."""

    def __init__(self, *args, error=None):
        super().__init__(*args)
        self.may_write, self.error = threading.Event(), error

    def append(self, *args):
        self.may_write.wait(10)
        if self.error:
            raise self.error
        super().append(*args)


def test_a_full_queue_that_drops_never_waits_and_counts(tmp_path):
    writer = Slow(tmp_path / "run.h5", SERIES)
    staged = StagedWriter(writer, 0.5, "drop", capacity=4)
    for step in range(20):
        staged.append(step, *ROW)
        staged.overhead({"metrics": 1.0}, 2.0)
        staged.log(step, "loss", 1.0)
    writer.may_write.set()
    staged.close()
    run = open_run(tmp_path / "run.h5")
    kept = len(run.steps) + len(run.logged())
    dropped = sum(int(text.split()[0]) for text in run.events["text"])
    assert set(run.events["kind"]) == {"dropped"}
    assert kept + dropped == 40
    assert 0 < kept < 12


def test_a_failed_writer_says_so_once_and_never_stops_the_loop(tmp_path, caplog):
    writer = Slow(tmp_path / "run.h5", SERIES, error=OSError("no space left"))
    staged = StagedWriter(writer, 0.5, "block", capacity=2)
    threading.Timer(0.1, writer.may_write.set).start()
    for step in range(200):
        staged.append(step, *ROW)
    staged.flush()
    staged.event(1, "note", "text")
    staged.close()
    staged.close()
    assert [r.getMessage() for r in caplog.records] == [
        f"recording into {tmp_path / 'run.h5'} has stopped, the training goes on: no space left. "
        "What was flushed is safe."
    ]
    assert not staged._thread.is_alive()
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"]


def test_a_thread_that_is_gone_blocks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    writer = Slow(tmp_path / "run.h5", SERIES, error=SystemExit())
    writer.may_write.set()
    staged = StagedWriter(writer, 0.5, "block", capacity=1)
    for step in range(10):
        staged.append(step, *ROW)
    staged.flush()
    staged.close()
    writer.close()


@pytest.mark.parametrize("seconds", [0, 0.01, math.inf])
def test_any_flush_interval_ends_in_a_whole_file(tmp_path, seconds):
    staged = StagedWriter(RunWriter(tmp_path / "run.h5", SERIES), seconds)
    for step in range(50):
        staged.append(step, *ROW)
    staged.flush()
    assert len(open_run(tmp_path / "run.h5").steps) == 50
    staged.close()


# --- schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("offset", [0, 3])
def test_every_is_its_definition(n, offset):
    assert [s for s in range(60) if every(n, offset)(s)] == list(range(offset, 60, n))


@pytest.mark.parametrize("density", [1, 2, 3, 7, 10, 100])
def test_logspaced_is_its_definition(density):
    expected = {round(10 ** (i / density)) for i in range(4 * density + 1)}
    assert {s for s in range(10_001) if logspaced(density)(s)} == expected


def test_at_is_its_definition():
    assert [s for s in range(20) if at([5, 3, 5])(s)] == [3, 5]
    assert at([]).__name__ == "at([])"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: every(0), "got n = 0, expected a whole number, 1 or more"),
        (lambda: every(2.0), r"got n = 2\.0"),
        (lambda: every(True), "got n = True"),
        (lambda: every(1, -1), "got offset = -1"),
        (lambda: logspaced(0), "got per_decade = 0"),
        (lambda: at([-1]), "got step = -1"),
    ],
)
def test_impossible_schedules_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_warnings_go_to_the_logger_of_hooks(attach, caplog):
    with caplog.at_level(logging.WARNING, logger="hooks"):
        attach(nn.Linear(3, 3), metrics=fail)
    assert {record.name for record in caplog.records} == {"hooks"}


def test_small_layers_of_one_shape_are_measured_together_with_the_same_numbers():
    import hooks.measuring

    calls = []
    plan_type = hooks.measuring.Plan

    class Counting(plan_type):
        def evaluate(self, W, *rest, **options):
            calls.append(tuple(W.shape))
            return super().evaluate(W, *rest, **options)

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(100)), nn.Linear(12, 5))
    with torch.no_grad():
        model[3].weight.zero_()
        model[4].weight[0, 0] = torch.nan
        model[5].weight.copy_(0.5 * torch.eye(12))
    metrics = ("rank", "stable_rank", "support", "singular_values")
    options = {"metrics": metrics, "reference": ["identity", None, "init"]}
    together = RankTracker(model, **options)
    alone = pd.concat(RankTracker(model, layers=str(i), **options).table() for i in range(101))
    alone = alone.sort_values(["step", "layer", "tensor", "reference", "metric", "tolerance_rule"])
    pd.testing.assert_frame_equal(together.table(), alone.reset_index(drop=True), rtol=1e-12)
    plan = together._reducer._plans["weight"]
    together._reducer._plans["weight"] = Counting(plan.metrics, plan.references, plan.tolerances)
    together._reducer.record(1)
    assert sorted(calls) == [(5, 12), (100, 12, 12)]
