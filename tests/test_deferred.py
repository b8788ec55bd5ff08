"""Stable ranks that the training does not wait for, attached to a tracker; on the CPU as if it were a GPU."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from hooks import RankTracker, deferred, every
from zanalysis.analyzers import following
from zanalysis.runfile.reader import open_run


@pytest.fixture(autouse=True)
def the_cpu_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(deferred, "DEVICES", frozenset({"cpu"}))


def literal(W):
    values = np.linalg.svd(np.asarray(W, dtype=np.float64).reshape(len(W), -1), compute_uv=False)
    return float((values**2).sum() / values[0] ** 2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(320, 90), nn.ReLU(), nn.Linear(90, 90)
    )


def train(model, steps, each=lambda step: None):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    yield optimizer
    for step in range(1, steps + 1):
        x = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x)[:, :5] - x[:, 0, :5, 0]).square().mean().backward()
        optimizer.step()
        each(step)


@pytest.mark.parametrize("reference", [None, "init"])
@pytest.mark.parametrize("in_file", [True, False], ids=["file", "memory"])
def test_the_numbers_are_those_of_the_weights_at_their_step(tmp_path, in_file, reference):
    model, weights = network(), {}
    names = ["0", "3", "5"]

    def keep(step):
        weights[step] = [model.get_submodule(name).weight.detach().clone() for name in names]

    keep(0)
    training = train(model, 12, keep)
    path = tmp_path / "run.h5" if in_file else None
    tracker = RankTracker(
        model, next(training), path, schedule=every(1), metrics="stable_rank", reference=reference
    )
    for _ in training:
        pass
    table = tracker.table()
    tracker.close()
    assert table["step"].unique().tolist() == list(range(13))
    for row in table.itertuples():
        now, start = weights[row.step][names.index(row.layer)], weights[0][names.index(row.layer)]
        change = now if reference is None else now - start
        if not change.any():
            assert row.status == "zero"
        else:
            assert row.status in ("ok", "not_converged")
            if row.status == "ok":
                assert row.value == pytest.approx(literal(change), rel=1e-4)
    assert (table["status"] == "ok").mean() > 0.85


def test_training_is_bit_identical():
    results = []
    for attached in (False, True):
        model = network()
        training = train(model, 8)
        optimizer = next(training)
        tracker = (
            RankTracker(model, optimizer, schedule=every(1), metrics="stable_rank") if attached else None
        )
        for _ in training:
            pass
        if tracker:
            tracker.close()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *results))


def test_the_thread_that_writes_finishes_them(tmp_path, monkeypatch):
    threads = []
    finished = deferred.finished
    monkeypatch.setattr(
        deferred,
        "finished",
        lambda *given: threads.append(threading.current_thread().name) or finished(*given),
    )
    model = network()
    training = train(model, 4)
    with RankTracker(model, next(training), tmp_path / "run.h5", schedule=every(1), metrics="stable_rank"):
        settled = len(threads)
        for _ in training:
            pass
    assert settled >= 3
    assert set(threads[-12:]) == {"zanalysis-writer"}


def test_on_record_has_them_at_its_step(tmp_path):
    seen = []
    model = network()
    training = train(model, 3)
    with RankTracker(
        model,
        next(training),
        tmp_path / "run.h5",
        schedule=every(1),
        metrics="stable_rank",
        on_record=lambda step, rows: seen.append((step, rows[0]["value"])),
    ):
        for _ in training:
            pass
    table = open_run(tmp_path / "run.h5").table()
    assert seen == list(table[table["layer"] == "0"][["step", "value"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("alone", [True, False])
def test_a_weight_that_changes_its_shape_is_measured_all_the_same(tmp_path, caplog, alone):
    """Alone it is followed anew; among others of its old shape all are waited for from then on, which is said."""
    model = nn.Sequential(nn.Linear(90, 80), nn.Linear(80, 80 if alone else 90), nn.Linear(90, 80))
    with RankTracker(model, None, tmp_path / "run.h5", schedule=every(1), metrics="stable_rank") as tracker:
        tracker.step()
        model[2 * (not alone) or 1].weight = nn.Parameter(
            torch.randn(40, 90, generator=torch.Generator().manual_seed(1))
        )
        tracker.step()
    table = open_run(tmp_path / "run.h5").table()
    assert ("weights are waited for from now on" in caplog.text) == (not alone)
    last = table[(table["layer"] == ("1" if alone else "2")) & (table["step"] == 2)]
    changed = model[1 if alone else 2].weight.detach()
    assert last["value"].item() == pytest.approx(literal(changed), rel=1e-4)


def test_a_failure_in_the_thread_costs_that_step_only(tmp_path, monkeypatch, caplog):
    model = network()
    training = train(model, 0)
    with RankTracker(
        model, next(training), tmp_path / "run.h5", schedule=every(1), metrics="stable_rank"
    ) as tracker:
        tracker.table()  # waits for what is on its way
        with monkeypatch.context() as patch:
            patch.setattr(deferred, "finished", lambda *given: 1 / 0)
            tracker.step()
            tracker.table()
        tracker.step()
    run = open_run(tmp_path / "run.h5")
    assert run.steps.tolist() == [0, 2]
    assert "step 1 could not be recorded" in caplog.text
    assert "step 1 could not be recorded" in run.events["text"].str.cat()


def test_after_records_outside_their_error_the_device_is_waited_for_which_is_counted(tmp_path, monkeypatch):
    model = network()
    with RankTracker(model, None, tmp_path / "run.h5", schedule=every(1), metrics="stable_rank") as tracker:
        monkeypatch.setattr(following, "ENOUGH", -1.0)  # nothing is good enough
        for _ in range(3 * deferred.PATIENCE):
            tracker.step()
            tracker.table()  # waits for what is on its way
        waits = tracker._reducer._deferred.waits
    assert 3 <= waits <= 9  # three groups of one matrix each
    run = open_run(tmp_path / "run.h5")
    assert set(run.table().query("step > 0")["status"]) == {"not_converged"}
    assert run.events["kind"].tolist() == ["waits"]


def test_more_than_stable_ranks_is_measured_at_once():
    model = network()
    with RankTracker(model, schedule=every(1), metrics=("rank", "stable_rank")) as tracker:
        tracker.step()
        assert tracker._reducer._deferred is None
        assert (tracker.table()["status"] == "ok").all()


@pytest.mark.cuda
def test_no_step_synchronizes_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(deferred, "DEVICES", frozenset({"cuda"}))
    model = network().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x = torch.randn(16, 3, 6, 6).cuda()

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    with RankTracker(model, optimizer, tmp_path / "run.h5", schedule=every(1), metrics="stable_rank"):
        for _ in range(3):
            step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(20):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    table = open_run(tmp_path / "run.h5").table()
    assert table["step"].max() == 23
    assert (table["status"] == "ok").mean() > 0.8
