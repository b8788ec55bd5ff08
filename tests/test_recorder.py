"""The recorder: the tensors of the right moment, copied before anything changes them, in bounded memory."""

import contextlib
import os
import signal
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import hooks.recorder
from hooks import Recorder, at, every
from hooks.pool import BufferPool
from hooks.staging import StagedWriter
from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile import RunWriter
from zanalysis.runfile.reader import open_run

ALL = ("weight", "gradient", "activation", "activation_gradient")


@pytest.fixture
def record():
    """Construct recorders that are closed whatever happens in the test."""
    recorders = []

    def make(*args, **kwargs):
        recorders.append(Recorder(*args, **kwargs))
        return recorders[-1]

    yield make
    for recorder in recorders:
        recorder.close()


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


def training(watch, steps=12, accumulate=2):
    """Train with accumulation and clipping; return the final state, and by hand what is to be recorded of layer 7."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    by_hand = {0: (model[7].weight.detach().clone(), None, None, None)}
    with watch(model, optimizer):
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            for micro in range(accumulate):
                x = torch.randn(4 + micro, 1, 4, 4)
                hidden = model[:7](x)
                z = nn.functional.linear(hidden, model[7].weight, model[7].bias)
                # The module itself is called on the same input, so that what it puts out can be worked out here.
                out = model[7](hidden)
                kept = out.detach().clone()
                assert torch.equal(kept, z.detach())
                out = out.mul_(2)  # in place, behind the hook
                nn.functional.cross_entropy(out, torch.randint(3, (len(x),))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            gradient = model[7].weight.grad.clone()
            optimizer.step()
            by_hand[step] = (model[7].weight.detach().clone(), gradient, kept, len(x))
    return [model.state_dict(), optimizer.state_dict(), torch.get_rng_state()], by_hand


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("where", ["file", "memory"])
def test_the_tensors_are_those_of_the_right_moment_and_nothing_is_disturbed(tmp_path, where):
    path = tmp_path / "run.h5" if where == "file" else None
    held = []

    def watch(model, optimizer):
        held.append(Recorder(model, optimizer, path, schedule=every(3), tensors=ALL))
        return held[0]

    plain, _ = training(lambda *_: contextlib.nullcontext())
    watched, by_hand = training(watch)
    assert same(plain, watched)
    run = open_run(path) if path else held[0]
    steps = {one.tensor: one.steps.tolist() for one in run.tensors if one.layer == "7"}
    assert steps.pop("weight") == [0, 3, 6, 9, 12]
    assert list(steps.items()) == [(tensor, [3, 6, 9, 12]) for tensor in ALL[1:]]
    for step in (0, 3, 6, 9, 12):
        weight, gradient, activation, samples = by_hand[step]
        assert torch.equal(run.tensor("7", "weight", step), weight)
        if step:
            assert torch.equal(run.tensor("7", "gradient", step), gradient)
            assert torch.equal(run.tensor("7", "activation", step), activation)
            assert run.tensor("7", "activation_gradient", step).shape == (samples, 3)
    with pytest.raises(InputError, match=r"at step 0 \(status skipped\)"):
        run.tensor("7", "gradient", 0)
    # The effective weight of a parametrized layer, in its own shape.
    assert torch.linalg.matrix_norm(run.tensor("5", "weight", 12), 2) < 1.2


def test_of_a_module_used_twice_the_last_call_counts_and_its_own_gradient(record):
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    recorder = record(layer, optimizer, schedule=every(1), tensors=ALL)
    first = layer(torch.ones(2, 3))
    second = layer(first)
    second.retain_grad()
    second.square().sum().backward()
    optimizer.step()
    assert torch.equal(recorder.tensor("weight", "activation", 1), second.detach())
    assert torch.equal(recorder.tensor("weight", "activation_gradient", 1), second.grad)
    alone = record(layer, optimizer, schedule=every(1), tensors="activation_gradient")
    layer(layer(torch.ones(2, 3))).square().sum().backward()
    optimizer.step()
    assert [one.tensor for one in alone.tensors] == ["activation_gradient"]
    assert torch.equal(
        alone.tensor("weight", "activation_gradient", 1), recorder.tensor("weight", "activation_gradient", 2)
    )


def test_what_is_not_there_has_its_reason(tmp_path, record):
    model = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("used", "frozen", "idle")})
    model["frozen"].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = record(
        model, optimizer, tmp_path / "r.h5", schedule=every(1), tensors=("gradient", "activation")
    )
    model["frozen"](model["used"](torch.ones(2, 3))).sum().backward()
    optimizer.step()
    for layer, tensor, word in (
        ("frozen", "gradient", "no_gradient"),
        ("idle", "gradient", "unused"),
        ("idle", "activation", "unused"),
    ):
        with pytest.raises(InputError, match=rf"at step 1 \(status {word}\)"):
            recorder.tensor(layer, tensor, 1)
    assert recorder.tensor("frozen", "activation", 1).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_tensors_are_stored_in_the_dtype_that_is_asked_for(tmp_path, mlp, record, dtype):
    model, optimizer, train = mlp
    recorder = record(
        model, optimizer, tmp_path / "r.h5", schedule=every(1), tensors=("weight", "activation"), dtype=dtype
    )
    train(2)
    assert recorder.tensor("2", step=2).dtype == dtype
    assert torch.equal(recorder.tensor("2", step=2).float(), model[2].weight.detach().to(dtype).float())
    assert recorder.tensor("0", "activation", 2).dtype == dtype
    assert {one.dtype for one in recorder.tensors} == {str(dtype).removeprefix("torch.")}


def test_a_model_in_bfloat16_is_kept_as_it_is(tmp_path, record):
    model = nn.Linear(5, 4).bfloat16()
    recorder = record(model, None, tmp_path / "r.h5", schedule=every(1))
    recorder.step()
    value = recorder.tensor("weight", step=1)
    assert value.dtype == torch.bfloat16
    assert torch.equal(value, model.weight.detach())


def test_the_first_rows_of_an_activation_are_kept(tmp_path, mlp, record):
    model, optimizer, train = mlp
    tensors = ("activation", "activation_gradient", "weight")
    some = record(model, optimizer, tmp_path / "r.h5", schedule=every(1), tensors=tensors, rows=2)
    every_row = record(model, optimizer, schedule=every(1), tensors=tensors)
    train(3)
    for layer in ("0", "2"):
        for tensor in tensors[:2]:
            whole = every_row.tensor(layer, tensor, 3)
            assert whole.shape[0] == 3
            assert torch.equal(some.tensor(layer, tensor, 3), whole[:2])
        assert torch.equal(some.tensor(layer, "weight", 3), model[int(layer)].weight.detach())


def test_kernels_of_one_dimension_keep_their_own_shape(record):
    model = nn.Conv1d(2, 4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = record(model, optimizer, schedule=every(1), tensors=("weight", "gradient"))
    model(torch.ones(1, 2, 5)).sum().backward()
    optimizer.step()
    assert torch.equal(recorder.tensor("weight", "weight", 1), model.weight.detach())
    assert torch.equal(recorder.tensor("weight", "gradient", 1), model.weight.grad)


def test_a_weight_that_changes_its_shape_is_an_error_of_its_own(tmp_path, record, caplog):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    recorder = record(model, None, tmp_path / "r.h5", schedule=every(1))
    model[0].weight = nn.Parameter(torch.ones(3, 2))
    recorder.step(), recorder.step()
    with pytest.raises(InputError, match=r"at step 1 \(status error\)"):
        recorder.tensor("0", step=1)
    assert torch.equal(recorder.tensor("1", step=2), model[1].weight.detach())
    recorder.close()
    assert open_run(tmp_path / "r.h5").events["kind"].tolist() == ["replaced", "error"]
    assert len(caplog.records) == 2


# --- between the loop and the file ----------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch):
    """Let no tensor be written until the event is set."""
    may_write = threading.Event()
    writes = RunWriter.append_tensors

    def wait(self, *args):
        assert may_write.wait(20)
        writes(self, *args)

    monkeypatch.setattr(RunWriter, "append_tensors", wait)
    yield may_write
    may_write.set()


def test_what_waits_for_the_file_is_not_changed_by_the_training(tmp_path, mlp, record, slow):
    model, optimizer, train = mlp
    recorder = record(model, optimizer, tmp_path / "r.h5", schedule=every(1), tensors=("weight", "gradient"))
    past = [model[0].weight.detach().clone()]
    gradients = [None]
    for _ in range(5):
        train(1)
        past.append(model[0].weight.detach().clone())
        gradients.append(model[0].weight.grad.clone())
    slow.set()
    for step in range(6):
        assert torch.equal(recorder.tensor("0", step=step), past[step])
        assert step == 0 or torch.equal(recorder.tensor("0", "gradient", step), gradients[step])


def test_a_full_queue_drops_whole_steps_and_counts_them(tmp_path, mlp, monkeypatch, slow):
    model, optimizer, train = mlp
    monkeypatch.setattr(hooks.recorder, "HELD_BYTES", 0)  # two steps then
    settings = {"schedule": every(1), "tensors": ("weight", "activation"), "on_full": "drop"}
    recorder = Recorder(model, optimizer, tmp_path / "r.h5", **settings)
    train(20)
    pool = recorder._taps._observer._transfer._pool
    one = sum(p.numel() * 4 for p in model.parameters() if p.ndim > 1)
    assert pool.limit == 2 * one
    assert pool.allocated <= pool.limit
    slow.set()
    recorder.close()
    run = open_run(tmp_path / "r.h5")
    steps = run.steps.tolist()
    assert 1 <= len(steps) <= 4
    assert len(steps) + run.dropped == 21
    assert set(run.events["kind"]) == {"dropped"}
    assert "steps of raw tensors were dropped" in run.events["text"].iloc[0]
    for listed in run.tensors:
        expected = [step for step in steps if step or listed.tensor == "weight"]
        assert listed.steps.tolist() == expected  # of a step everything is there, or nothing


def test_a_full_queue_that_blocks_loses_nothing(tmp_path, mlp, monkeypatch, slow):
    model, optimizer, train = mlp
    monkeypatch.setattr(hooks.recorder, "HELD_BYTES", 0)
    recorder = Recorder(
        model, optimizer, tmp_path / "r.h5", schedule=every(1), tensors=("weight", "gradient")
    )
    threading.Timer(0.3, slow.set).start()
    began = threading.Event()
    train(20)
    began.set()
    recorder.close()
    run = open_run(tmp_path / "r.h5")
    assert run.steps.tolist() == list(range(21))
    assert run.dropped == 0
    assert slow.is_set()  # the loop has waited for it


def test_a_failed_file_neither_blocks_nor_costs(tmp_path, mlp, monkeypatch, caplog):
    model, optimizer, train = mlp
    monkeypatch.setattr(hooks.recorder, "HELD_BYTES", 0)

    def fail(self, *_):
        raise OSError("no space left")

    recorder = Recorder(model, optimizer, tmp_path / "r.h5", schedule=every(1), tensors=ALL)
    train(1)
    recorder._journal.flush()
    monkeypatch.setattr(RunWriter, "append_tensors", fail)
    train(50)
    assert recorder._taps._observer.wants(99) == frozenset()
    recorder.close()
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == [
        "no space left. What was flushed is safe."
    ]
    assert open_run(tmp_path / "r.h5").steps.tolist() == [0, 1]


def test_buffers_are_reused_within_their_limit():
    pool = BufferPool(100)

    def nobody():
        return False

    first = pool.take(60, wait=True, served=nobody)
    assert pool.take(60, wait=True, served=nobody) is not None  # one step always fits
    pool.pass_on()
    assert pool.take(10, wait=True, served=nobody) is None
    assert pool.take(10, wait=False, served=lambda: True) is None
    pool.give_back([first])
    assert pool.allocated == 60
    kept = pool.take(40, wait=False, served=nobody)
    assert kept.numel() == 40
    pool.give_back([kept], passed_on=False)
    assert pool.allocated == 100
    assert pool.take(40, wait=False, served=nobody) is kept
    waiting = threading.Timer(0.1, lambda: pool.give_back([torch.empty(60, dtype=torch.uint8)]))
    waiting.start()
    assert pool.take(50, wait=True, served=lambda: True).numel() == 50
    waiting.join()
    assert pool.allocated <= 100


def test_what_a_thread_did_not_take_is_given_back(tmp_path):
    staged = StagedWriter(RunWriter(tmp_path / "r.h5", ()))
    staged.close()
    given = []
    staged.append_tensors(0, [], done=lambda: given.append(1))
    assert given == [1]


# --- its life -------------------------------------------------------------------------------------------


def test_logging_stepping_closing_and_leaving_are_those_of_the_tracker(tmp_path, mlp, caplog):
    model = mlp[0]

    def loop():
        with Recorder(model, None, tmp_path / "r.h5", schedule=at([2]), attributes={"seed": 3}) as recorder:
            for step in range(3):
                recorder.log(loss=step / 2)
                recorder.step()
            raise KeyError("left")

    with pytest.raises(KeyError, match="left"):
        loop()
    run = open_run(tmp_path / "r.h5")
    assert run.steps.tolist() == [0, 2]
    assert run.logged()["loss"].tolist() == [0.0, 0.5, 1.0]
    assert run.events["text"].tolist() == ["the loop was left by KeyError: 'left'"]
    assert run.attributes["user"] == {"seed": 3}
    assert (run.attributes["tensors"], run.attributes["schedule"]) == (["weight"], "at([2])")
    assert run.overhead.set_index("part").loc["writing", "seconds"] > 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.h5"]


def test_a_recording_is_resumed_in_the_same_file(tmp_path, mlp, record):
    model, optimizer, train = mlp
    settings = {"schedule": every(2), "tensors": ("weight", "activation"), "rows": 2}
    with Recorder(model, optimizer, tmp_path / "r.h5", **settings):
        train(6)
    for other in ({"rows": 3}, {"dtype": torch.float16}, {"tensors": ("weight",)}, {"layers": "0"}):
        with pytest.raises(RunFileError, match="attach with the settings it was made with"):
            Recorder(model, optimizer, tmp_path / "r.h5", mode="a", start=4, **{**settings, **other})
    recorder = record(model, optimizer, tmp_path / "r.h5", mode="a", start=4, **settings)
    train(4)
    assert torch.equal(recorder.tensor("0", step=8), model[0].weight.detach())
    run = open_run(tmp_path / "r.h5")
    assert run.events["text"].tolist() == ["recording goes on from step 4"]
    assert run.steps.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"schedule": 10}, "expected a function step -> bool"),
        ({"tensors": "bias"}, "unknown tensor 'bias'"),
        ({"dtype": "float16"}, "expected a torch.dtype"),
        ({"dtype": torch.int8}, "would round the tensors"),
        ({"rows": 0}, "got rows = 0"),
        ({"compression": "blosc"}, "expected None, 'lzf' or 'gzip'"),
        ({"on_full": "wait"}, "expected 'block' or 'drop'"),
        ({"layers": "9"}, "no layer matches '9'"),
    ],
)
def test_a_failed_construction_says_why_and_leaves_nothing(tmp_path, mlp, settings, sentence):
    model, optimizer, _ = mlp
    threads = threading.active_count()
    with pytest.raises(InputError, match=sentence):
        Recorder(model, optimizer, tmp_path / "r.h5", **{"schedule": every(1), **settings})
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads
    assert not optimizer._optimizer_step_post_hooks


def test_a_forked_child_leaves_the_file_alone_and_does_not_hang(tmp_path, mlp, record):
    model, optimizer, train = mlp
    recorder = record(model, optimizer, tmp_path / "r.h5", schedule=every(1), tensors=ALL)
    train(2)
    lock, held, forked = (
        recorder._taps._observer._transfer._pool._changed,
        threading.Event(),
        threading.Event(),
    )

    def hold():  # as the parent's thread may, at the moment of the fork
        with lock:
            held.set()
            forked.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        train(3)
        recorder.close()
        os._exit(0)
    forked.set()
    holder.join()
    assert os.waitpid(pid, 0)[1] == 0
    train(2)
    recorder.close()
    assert open_run(tmp_path / "r.h5").steps.tolist() == list(range(5))


# --- on a GPU -------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_copies_on_a_gpu_are_of_their_moment_and_wait_for_nothing(tmp_path):
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(inplace=True), nn.Linear(512, 512)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    past = {}
    with Recorder(model, optimizer, tmp_path / "r.h5", schedule=every(2), tensors=ALL) as recorder:
        for step in range(1, 9):
            x = torch.randn(64, 512, device="cuda")
            if step == 3:
                torch.cuda.set_sync_debug_mode("error")
            optimizer.zero_grad()
            hidden = nn.functional.linear(x, model[0].weight, model[0].bias).detach().clone()
            model(x).square().mean().backward()
            gradient = model[0].weight.grad.clone()
            optimizer.step()
            past[step] = (model[0].weight.detach().clone(), gradient, hidden)
        torch.cuda.set_sync_debug_mode("default")
        assert recorder._taps._observer._transfer._pool._pinned
    run = open_run(tmp_path / "r.h5")
    for step in (2, 4, 6, 8):
        for tensor, expected in zip(ALL, past[step], strict=False):
            assert torch.equal(run.tensor("0", tensor, step), expected.cpu()), (tensor, step)


def test_a_weight_stored_in_eight_bits_is_kept_in_its_own_dtype(record, tmp_path):
    model = nn.Linear(6, 5)
    model.scaled = nn.Parameter(torch.randn(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    record(model, None, tmp_path / "run.h5", schedule=every(1)).close()
    kept = open_run(tmp_path / "run.h5").tensor("scaled", "weight", 0)
    assert kept.dtype == torch.float8_e4m3fn
    assert torch.equal(kept.float(), model.scaled.float())
