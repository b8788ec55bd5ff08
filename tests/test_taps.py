"""Taps: what is told, in which order, at which moment; and nothing of them is left behind."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from hooks import RankTracker, every
from hooks.journal import Journal
from hooks.layers import select_layers
from hooks.taps import Observer, Taps
from zanalysis.runfile import MemoryWriter

ALL = ("weight", "gradient", "activation", "activation_gradient")


class Spy(Observer):
    """Writes down everything it is told."""

    def __init__(self, due=lambda step: True, tensors=ALL):
        self.due, self.tensors, self.heard, self.notes = due, frozenset(tensors), [], []

    def wants(self, step):
        self.heard.append(("wants", step))
        return self.tensors if self.due(step) else frozenset()

    def activation(self, layer, z):
        assert not z.requires_grad
        self.heard.append(("activation", layer.name))

    def activation_gradient(self, layer, g):
        self.heard.append(("activation_gradient", layer.name))

    def gradient(self, layer, g, status):
        self.heard.append(("gradient", layer.name, status))

    def gradients_told(self):
        self.heard.append(("gradients_told",))

    def discarded(self):
        self.heard.append(("discarded",))

    def completed(self, step):
        self.heard.append(("completed", step))

    def note(self, step, kind, what, text, layer=""):
        self.notes.append((step, kind, text))

    def heard_of(self, what):
        return [event[1:] for event in self.heard if event[0] == what]


@pytest.fixture
def tap():
    """Install taps that are removed whatever happens in the test."""
    installed = []

    def make(model, optimizers=(), spy=None, **options):
        spy = spy or Spy()
        installed.append(Taps(model, optimizers, select_layers(model), spy, ALL, **options))
        return installed[-1], spy

    yield make
    for taps in installed:
        taps.remove()


def hook_dictionaries(thing):
    return {key: len(value) for key, value in sorted(thing.__dict__.items()) if "hooks" in key and value}


def traces(model, *optimizers):
    return [
        (sorted(thing.__dict__), type(thing), getattr(thing, "training", None), hook_dictionaries(thing))
        for thing in (*model.modules(), *optimizers)
    ] + [(id(p), p.requires_grad, p.grad, sorted(p.__dict__), p._backward_hooks) for p in model.parameters()]


def test_one_step_is_told_in_its_order(mlp, tap):
    model, optimizer, train = mlp
    taps, spy = tap(model, [optimizer])
    train(1)
    assert spy.heard == [
        ("wants", 1),
        ("activation", "0"),
        ("activation", "2"),
        ("activation_gradient", "2"),
        ("activation_gradient", "0"),
        ("gradient", "0", "ok"),
        ("gradient", "2", "ok"),
        ("gradients_told",),
        ("completed", 1),
        ("wants", 2),
    ]
    assert taps.step == 1
    assert spy.notes == []


def test_the_observer_is_asked_once_ahead_of_each_step_and_told_of_those_that_are_due(mlp, tap):
    model, optimizer, train = mlp
    _, spy = tap(model, [optimizer], Spy(due=lambda step: step == 12), start=9)
    train(5)
    assert spy.heard_of("wants") == [(10,), (11,), (12,), (13,), (14,), (15,)]
    assert spy.heard_of("completed") == [(12,)]
    assert len(spy.heard_of("activation")) == 2


def test_only_what_is_wanted_is_told(mlp, tap):
    model, optimizer, train = mlp
    _, spy = tap(model, [optimizer], Spy(tensors={"gradient"}))
    train(1)
    assert {event[0] for event in spy.heard} == {"wants", "gradient", "gradients_told", "completed"}


@pytest.mark.parametrize("failing", ["wants", "activation", "activation_gradient", "gradient", "completed"])
def test_an_observer_that_fails_stops_nothing(mlp, tap, failing):
    def fail(*_):
        raise RuntimeError("on purpose")

    model, optimizer, train = mlp
    other = copy.deepcopy(model)
    spy = Spy()
    setattr(spy, failing, fail)
    taps, _ = tap(model, [optimizer], spy)
    train(2)
    assert taps.step == 2
    assert "on purpose" in spy.notes[0][2]
    assert not torch.equal(model[0].weight, other[0].weight)


def test_at_steps_that_are_not_due_nothing_is_called(mlp, attach, monkeypatch):
    model, optimizer, _ = mlp
    calls = []
    for module, name in (
        ("hooks.reducer", "measure"),
        ("hooks.reducer", "samples_of"),
        ("hooks.taps", "gradient_of"),
    ):
        original = getattr(__import__(module, fromlist=[name]), name)
        monkeypatch.setattr(f"{module}.{name}", lambda *a, f=original, n=name: (calls.append(n), f(*a))[1])
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda *a, f=torch.Tensor.clone: (calls.append("clone"), f(*a))[1]
    )
    attach(model, optimizer, tensors=ALL, schedule=every(3), metrics="frobenius_norm")
    calls.clear()
    closures = []
    optimizer.register_step_pre_hook(lambda _, args, kwargs: closures.append(args[1:]))

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(3, 6)).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
        assert calls == []
        assert closures.pop() == (closure,)
    optimizer.step(closure)
    assert closures.pop() != (closure,)
    assert set(calls) >= {"measure", "samples_of", "gradient_of", "clone"}


@pytest.mark.parametrize("failing", ["event", "log"])
def test_a_journal_whose_writer_fails_says_so_and_goes_on(caplog, failing):
    class Broken(MemoryWriter):
        pass

    def fail(*_):
        raise OSError("on purpose")

    journal = Journal(Broken(()))
    setattr(journal.writer, failing, fail)
    for _ in range(2):
        journal.note(1, "kind", "what", "said once")
        journal.log(1, {"loss": 1.0})
        journal.event(1, "kind", "text")
    said = [record.getMessage() for record in caplog.records]
    assert said.count("said once") == 1
    assert sum("on purpose" in text for text in said) == 1
    assert len(said) == 2


# --- nothing is left behind ---------------------------------------------------------------------------


class Fussy(nn.Module):
    """Fails where it is told to."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True))
        self.query = Query()
        self.fails = None

    def forward(self, x):
        x = self.inner(x) @ self.query().mT
        if self.fails == "forward":
            raise KeyError("forward")
        if self.fails == "backward":
            x.register_hook(lambda g: (_ for _ in ()).throw(KeyError("backward")))
        return x


class Query(nn.Module):
    """Puts out its own parameter: a leaf."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5))

    def forward(self):
        return self.weight


def fails_in_metric(W):
    raise KeyError("metric")


@pytest.mark.parametrize("where", [None, "forward", "backward", "loop", "metric"])
def test_no_trace_is_left(where):
    model = Fussy()
    model.inner[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = traces(model, optimizer)
    metrics = ("rank", fails_in_metric) if where == "metric" else "rank"

    def loop():
        with RankTracker(model, optimizer, schedule=every(1), tensors=ALL, metrics=metrics) as tracker:
            assert traces(model, optimizer) != before
            for step in range(3):
                model.fails = where if step == 1 else None
                optimizer.zero_grad()
                model(torch.randn(4, 6)).square().sum().backward()
                if where == "loop":
                    raise KeyError("loop")
                optimizer.step()
        assert set(tracker.table().query("step > 0 and metric == 'rank'")["status"]) == {"ok"}

    if where in (None, "metric"):
        loop()
    else:
        with pytest.raises(KeyError, match=where):
            loop()
    optimizer.zero_grad()
    assert traces(model, optimizer) == before


def test_after_an_exception_that_the_loop_survives_the_record_goes_on(attach):
    model = Fussy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = attach(model, optimizer, schedule=every(1), tensors=ALL, metrics="frobenius_norm")
    for step in range(4):
        model.fails = ("forward", None, "backward", None)[step]
        optimizer.zero_grad()
        try:
            z = model(torch.randn(4, 6))
            z.square().sum().backward()
        except KeyError:
            continue
        optimizer.step()
    table = tracker.table().query("step > 0")
    assert table["step"].unique().tolist() == [1, 2]
    assert set(table["status"]) == {"ok"}


def test_a_tracker_may_be_closed_in_the_midst_of_a_step(mlp):
    model, optimizer, _ = mlp
    before = traces(model, optimizer)
    tracker = RankTracker(model, optimizer, schedule=every(1), tensors=ALL)
    loss = model(torch.ones(3, 6)).square().sum()
    tracker.close()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    assert traces(model, optimizer) == before
    assert tracker.table()["step"].unique().tolist() == [0]


def test_a_tracker_may_be_closed_by_what_it_calls(mlp, caplog):
    model, optimizer, train = mlp
    before = traces(model, optimizer)
    tracker = RankTracker(
        model,
        optimizer,
        schedule=every(1),
        tensors=ALL,
        on_record=lambda step, _: step == 2 and tracker.close(),
    )
    train(4)
    optimizer.zero_grad()
    assert traces(model, optimizer) == before
    assert tracker.table()["step"].unique().tolist() == [0, 1, 2]
    assert caplog.records == []


def test_a_tracker_that_nobody_holds_completes_its_file(tmp_path, mlp):
    model, _, _ = mlp
    RankTracker(model, None, tmp_path / "run.h5", metrics="rank")
    tracker = RankTracker(
        model, None, tmp_path / "run.h5", metrics="rank", mode="a", start=1, schedule=every(1)
    )
    tracker.close()
    assert tracker.table()["step"].unique().tolist() == [0, 1]


# --- copies ---------------------------------------------------------------------------------------------


def saved(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    assert b"activation_tap" not in stream.getvalue()  # it loads where zanalysis is not installed
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "deepcopy of a deepcopy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "AveragedModel": lambda model: AveragedModel(model).module,
    "torch.save": saved,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_works_and_tells_nothing(mlp, tap, kind):
    model, optimizer, _ = mlp
    _, spy = tap(model, [optimizer])
    twin = COPIES[kind](model)
    optimizer_of_twin = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(torch.ones(3, 6)).sum().backward()
    optimizer_of_twin.step()
    assert spy.heard == [("wants", 1)]
    assert torch.equal(twin.eval()(torch.ones(3, 6)), twin(torch.ones(3, 6)))
    model(torch.ones(3, 6))
    assert spy.heard_of("activation") == [("0",), ("2",)]


class Predictions(Dataset):
    """Runs the model in the worker."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 2

    def __getitem__(self, index):
        z = self.model(torch.full((6,), float(index)))
        z.sum().backward()
        return z.detach()


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_that_hold_the_model_work(tmp_path, mlp, attach, how):
    model, optimizer, train = mlp
    tracker = attach(model, optimizer, tmp_path / "run.h5", schedule=every(1), tensors=ALL, metrics="rank")
    data = DataLoader(Predictions(model), num_workers=1, multiprocessing_context=how)
    expected = [model(torch.full((6,), float(i))).tolist() for i in range(2)]
    assert [z[0].tolist() for z in data] == expected
    train(1)
    table = tracker.table()
    assert table["step"].unique().tolist() == [0, 1]
    assert set(table.query("step == 1")["status"]) == {"ok"}


# --- which steps count ----------------------------------------------------------------------------------


def test_an_accelerate_like_wrapper_a_scheduler_and_a_loaded_state_change_nothing(mlp, attach):
    model, optimizer, train = mlp

    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def register_step_post_hook(self, hook):
            raise NotImplementedError

    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    tracker = attach(model, Wrapper(optimizer), schedule=every(1), tensors=ALL, metrics="rank")
    for _ in range(2):
        train(1)
        scheduler.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(1)
    assert tracker.table()["step"].unique().tolist() == [0, 1, 2, 3]
    assert set(tracker.table().query("step > 0")["status"]) == {"ok"}


def test_a_step_that_is_captured_in_a_cuda_graph_is_not_counted_and_it_is_said(
    mlp, attach, monkeypatch, caplog
):
    model, optimizer, train = mlp
    tracker = attach(model, optimizer, schedule=every(1), tensors=ALL, metrics="frobenius_norm")
    for module in ("hooks.taps", "hooks.activation_tap"):
        monkeypatch.setattr(f"{module}.capturing", lambda: True)
    train(2)  # the warm-up and the capture call the hooks, the replays would not
    assert tracker.table()["step"].unique().tolist() == [0]
    assert "call tracker.step() after each replay" in caplog.text
    for module in ("hooks.taps", "hooks.activation_tap"):
        monkeypatch.setattr(f"{module}.capturing", lambda: False)
    tracker.step()
    table = tracker.table().query("step == 1").set_index(["layer", "tensor"])
    assert table.loc[("0", "gradient"), "value"] == pytest.approx(model[0].weight.grad.double().norm().item())
    assert table.loc[("0", "weight"), "status"] == "ok"
    assert table.loc[("0", "activation"), "status"] == "unused"


def test_a_module_that_takes_the_place_of_another_is_followed(attach, caplog):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    tracker = attach(model, optimizer, schedule=every(1), tensors=ALL, metrics="frobenius_norm")
    old = model[1]

    def step():
        optimizer.zero_grad()
        z = model(torch.ones(2, 6))
        z.square().sum().backward()
        optimizer.step()
        return z

    step()
    model[1] = nn.Linear(5, 4)
    optimizer.add_param_group({"params": list(model[1].parameters())})
    z = [step(), step()][1]
    table = tracker.table().set_index(["step", "layer", "tensor"])
    for at in (2, 3):
        assert table.loc[(at, "1", "weight"), "value"] == pytest.approx(
            model[1].weight.norm().item(), rel=1e-6
        )
        assert table.loc[(at, "1", "gradient"), "value"] == pytest.approx(
            model[1].weight.grad.norm().item(), rel=1e-6
        )
    assert table.loc[(2, "1", "activation"), "status"] == "unused"
    assert table.loc[(3, "1", "activation"), "value"] == pytest.approx(z.norm().item(), rel=1e-6)
    assert caplog.text.count("another module is in the place of 1; it is followed from now on") == 1
    assert hook_dictionaries(old) == {}
    del model[1]
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    assert set(tracker.table().query("step == 4 and layer == '1'")["status"]) == {"error", "unused"}
    assert set(tracker.table().query("step == 4 and layer == '0'")["status"]) == {"ok"}


def test_data_parallel_is_seen_through(attach):
    model = nn.DataParallel(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = attach(model, optimizer, schedule=every(1), tensors=ALL, metrics="rank")
    model(torch.randn(9, 6)).square().sum().backward()
    optimizer.step()
    table = tracker.table().query("step == 1")
    assert set(table["layer"]) == {"0", "1"}
    assert set(table["status"]) == {"ok"}


@pytest.mark.cuda
def test_the_replays_of_a_captured_step_are_recorded_by_calling_step(attach):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, capturable=True)
    x = torch.randn(3, 6, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(x).square().sum().backward()
        optimizer.step()

    tracker = attach(model, optimizer, schedule=every(1), tensors=ALL, metrics="frobenius_norm")
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    assert tracker.table()["step"].unique().tolist() == [0, 1, 2, 3]
    for at in (4, 5):
        graph.replay()
        tracker.step()
        table = tracker.table().query(f"step == {at}").set_index(["layer", "tensor"])
        for name, norm in (("weight", model[0].weight.norm()), ("gradient", model[0].weight.grad.norm())):
            assert table.loc[("0", name), "value"] == pytest.approx(norm.item(), rel=1e-6)
        assert table.loc[("0", "activation"), "status"] == "unused"
