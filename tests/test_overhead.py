"""The account of what recording costs: by metric, in the file, and honest about who pays."""

import functools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hooks import RankTracker, every
from hooks.account import Account, account_of
from zanalysis.analyzers.residual import Residual
from zanalysis.runfile import RunWriter, Series
from zanalysis.runfile.reader import open_run

SERIES = (Series("a", "weight", "none", "none", "rank"),)


def written(path, seconds, mode="x", start=0, **more):
    writer = RunWriter(path, SERIES, mode=mode, start=start, **more)
    writer.append(start, np.ones(1), np.ones(1), np.zeros(1, np.uint8), np.empty((0, 16)))
    writer.overhead(seconds, 10.0)
    writer.close()
    return open_run(path).overhead


def test_the_parts_of_the_account_are_those_the_writer_was_given(tmp_path):
    table = written(tmp_path / "run.h5", {"rank": 1.0, "writing": 0.5}, parts=("rank", "writing", "probe"))
    assert table["part"].tolist() == ["rank", "writing", "probe", "total"]
    assert table["seconds"].tolist() == [1.0, 0.5, 0.0, 1.5]
    assert table["share"].tolist() == pytest.approx([0.1, 0.05, 0.0, 0.15])


def test_a_resumed_run_begins_a_new_account_with_its_own_parts(tmp_path):
    # As it was before the parts could be chosen: such a file is read, and goes on.
    table = written(tmp_path / "run.h5", {"metrics": 2.0})
    assert table["part"].tolist() == ["metrics", "writing", "total"]
    table = written(tmp_path / "run.h5", {"rank": 1.0}, mode="a", start=1, parts=("rank", "writing"))
    assert table["part"].tolist() == ["rank", "writing", "total"]
    assert table["seconds"].tolist() == [1.0, 0.0, 1.0]
    assert open_run(tmp_path / "run.h5").steps.tolist() == [0, 1]


# --- booking ------------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_parts_nest_and_nothing_counts_twice():
    clock = Clock()
    account = Account(["rank", "stable_rank"], clock)

    def spend(seconds):
        clock.now += seconds

    spend(1)
    with account.timed("shared"):
        spend(2)
        with account.timed("rank"):
            spend(4)
            with account.timed("stable_rank"):
                spend(8)
            spend(16)
        with account.timed("rank"):
            spend(32)
        spend(64)
    spend(128)
    with account.timed("nobody knows"):
        spend(256)
    assert account.parts == ("rank", "stable_rank", "shared", "hooks", "probe", "writing")
    assert {part: s for part, s in account.seconds.items() if s} == {
        "rank": 52,
        "stable_rank": 8,
        "shared": 322,
    }
    assert account.total == 382
    assert account.elapsed == 511


def test_what_an_exception_cut_short_is_booked_too():
    clock = Clock()
    account = Account(["rank"], clock)

    def fail():
        with account.timed("shared"), account.timed("rank"):
            clock.now += 3
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    with account.timed("writing"):
        clock.now += 1
    assert (account.seconds["rank"], account.seconds["writing"], account.total) == (3, 1, 4)


def test_parts_in_different_threads_do_not_mix():
    account = Account(["rank", "stable_rank"])
    entered, leave = threading.Event(), threading.Event()

    def other():
        with account.timed("stable_rank"):
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    with account.timed("rank"):
        thread.start()
        assert entered.wait(5)
    before = account.seconds["rank"]
    leave.set()
    thread.join(5)
    assert account.seconds["rank"] == before
    assert account.seconds["stable_rank"] > 0


class Event:
    """A GPU's event: it passes when the work queued before it is done."""

    def __init__(self, gpu):
        self.gpu, self.at = gpu, None

    def record(self):
        self.at = self.gpu.queued

    def query(self):
        return self.gpu.done >= self.at

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at)


def test_what_a_gpu_works_on_after_the_host_is_booked_once_it_is_known():
    clock, gpu = Clock(), SimpleNamespace(queued=0.0, done=0.0)
    account = Account(["rank"], clock, lambda: Event(gpu))
    assert account.parts[-1] == "device"
    with account.timed("shared"):
        with account.timed("rank"):
            clock.now += 1
            gpu.queued += 5
        gpu.queued += 2
    assert account.total == 1  # nobody waits for the GPU
    gpu.done = 7.0
    assert account.seconds["device"] == 6
    with account.timed("rank"):  # the host is the slower one here
        clock.now += 4
        gpu.queued += 3
    gpu.done = 10.0
    assert (account.seconds["device"], account.total) == (6, 11)


# --- attached -----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Trackers tell the time by a clock that only the test moves."""
    clock = Clock()
    monkeypatch.setattr("hooks.tracker.account_of", lambda metrics, device: Account(metrics, clock))
    return clock


def test_each_metric_pays_for_itself_and_the_first_for_what_is_shared(tmp_path, clock, mlp, monkeypatch):
    model, optimizer, train = mlp
    largest = Residual.largest.func

    def slow_largest(residual):
        clock.now += 10
        return largest(residual)

    shared = functools.cached_property(slow_largest)
    shared.__set_name__(Residual, "largest")
    monkeypatch.setattr(Residual, "largest", shared)

    def cheap(W):
        clock.now += 1
        return 0.0

    def dear(W):
        clock.now += 3
        return 0.0

    path = tmp_path / "run.h5"
    metrics = (cheap, "spectral_norm", "condition_number", dear)
    with RankTracker(
        model,
        optimizer,
        path,
        schedule=every(2),
        metrics=metrics,
        on_record=lambda *_: setattr(clock, "now", clock.now + 7),
    ):
        clock.now += 100
        train(4)
    table = open_run(path).overhead.set_index("part")
    assert table.index.tolist() == [
        "cheap", "spectral_norm", "condition_number", "dear", "shared", "hooks", "probe", "writing", "total",
    ]  # fmt: skip
    seconds = table["seconds"]
    # Two layers, at the steps 0, 2 and 4.
    assert seconds["cheap"] == 6
    assert seconds["dear"] == 18
    assert seconds["spectral_norm"] == 60
    assert seconds["condition_number"] == 0
    assert seconds["writing"] == 21
    assert seconds["total"] == 105
    assert table["share"]["total"] == pytest.approx(105 / 205)


def test_spans_probe_and_jacobians_have_parts_of_their_own(tmp_path):
    class Slow(nn.Module):
        def forward(self, x):
            clock.now += 5
            return x

    clock = Clock()
    model = nn.Sequential(nn.Linear(4, 3), Slow(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hooks.tracker.account_of", lambda metrics, device: Account(metrics, clock))
        patch.setattr("hooks.beside.SpanWindows.take", lambda *_: setattr(clock, "now", clock.now + 2))
        tracker = RankTracker(
            model,
            optimizer,
            tmp_path / "run.h5",
            tensors=("activation", "activation_gradient"),
            metrics=("span_dimension", "jacobian_singular_values"),
            schedule=every(1),
            probe=torch.randn(3, 4),
        )
        before = open_run(tmp_path / "run.h5")
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        tracker.close()
    seconds = before.overhead.set_index("part")["seconds"]
    # Twice the probe; in between a backward pass with two layers.
    assert seconds["probe"] == 10
    assert seconds["span_dimension"] == 2 * 2 * 2 + 2 * 2
    assert seconds["jacobian_singular_values"] > 0
    assert seconds["jacobian_singular_values"] % 5 == 0
    assert seconds["hooks"] == 0
    assert seconds["total"] == seconds.drop("total").sum()


def test_by_the_real_clock_the_parts_add_up_and_stay_below_the_whole(tmp_path, mlp):
    model, optimizer, train = mlp
    with RankTracker(
        model, optimizer, tmp_path / "run.h5", schedule=every(1), tensors=("weight", "activation")
    ):
        train(5)
    table = open_run(tmp_path / "run.h5").overhead.set_index("part")
    assert (table["seconds"] >= 0).all()
    for part in ("rank", "stable_rank", "shared", "hooks", "writing"):
        assert table["seconds"][part] > 0
    assert table["seconds"]["probe"] == 0
    assert 0 < table["share"]["total"] < 1


@pytest.mark.cuda
def test_a_gpu_that_works_on_is_measured_without_waiting_for_it():
    account = account_of(["rank"], torch.device("cuda"))
    W = torch.randn(4096, 4096, device="cuda")
    W @ W
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with account.timed("rank"):
            for _ in range(50):
                W = torch.tanh(W @ W)
        host = account.total
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    # 50 products of 1.4e11 operations each take longer than to ask for them.
    assert account.seconds["device"] > 0
    assert account.total > host
