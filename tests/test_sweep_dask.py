"""The same sweep on `dask.distributed`: the same table, whatever becomes of the workers."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

import zanalysis as za
from zanalysis.sweep import cluster as cluster_module

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    generator = torch.Generator().manual_seed(3)
    for step in range(6):
        state = {f"{i}.weight": torch.randn(24, 16, generator=generator) for i in range(3)}
        torch.save(state, folder / f"step-{step}.pt")
    return folder


def dies_once(matrix):
    """Kill the worker process that measures this first; the one that comes after it finds the mark."""
    mark = os.environ.get("ZANALYSIS_TEST_MARK")
    if mark and matrix.shape == (24, 16):
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return float(matrix.sum())
        os.kill(os.getpid(), signal.SIGKILL)
    return float(matrix.sum())


def always_dies(matrix):
    if os.environ.get("ZANALYSIS_TEST_DIE") and matrix[0, 0] > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(matrix.sum())


@pytest.mark.slow
def test_two_workers_give_the_table_of_this_process(folder, tmp_path):
    here = za.analyze(folder, reference=["init", None], metrics=("rank", "stable_rank", "support"))
    out = tmp_path / "there.parquet"
    there = za.analyze(
        folder, reference=["init", None], metrics=("rank", "stable_rank", "support"), workers=2, out=out
    )
    pd.testing.assert_frame_equal(there, here, rtol=1e-6)
    pd.testing.assert_frame_equal(pd.read_parquet(out), there)


@pytest.mark.slow
def test_a_worker_that_dies_midway_changes_nothing(folder, tmp_path, monkeypatch):
    here = za.analyze(folder, metrics=["rank", dies_once])
    monkeypatch.setenv("ZANALYSIS_TEST_MARK", str(tmp_path / "mark"))
    there = za.analyze(folder, metrics=["rank", dies_once], workers=2)
    assert (tmp_path / "mark").exists()
    pd.testing.assert_frame_equal(there, here)


@pytest.mark.slow
def test_what_every_worker_dies_of_is_a_row(tmp_path, monkeypatch, caplog):
    torch.save({"good.weight": -torch.eye(4), "fatal.weight": torch.eye(4)}, tmp_path / "a.pt")
    monkeypatch.setenv("ZANALYSIS_TEST_DIE", "1")
    table = za.analyze(tmp_path / "a.pt", metrics=[always_dies], workers=1)
    assert table[["layer", "status"]].to_numpy().tolist() == [["fatal", "error"], ["good", "ok"]]
    assert "KilledWorker" in caplog.text


@pytest.mark.slow
def test_killing_a_process_of_a_users_own_cluster(folder):
    here = za.analyze(folder)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        pids = list(client.run(os.getpid).values())
        killed = []

        def kill(done, _):
            if done == 4:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(time.monotonic())

        pd.testing.assert_frame_equal(za.analyze(folder, scheduler=client, progress=kill), here)
        assert killed
        pd.testing.assert_frame_equal(za.analyze(folder, scheduler=cluster.scheduler_address), here)


@pytest.mark.slow
def test_without_any_worker_ours_come_back_and_others_are_missed(folder, monkeypatch):
    monkeypatch.setattr(cluster_module, "REVIVE", 1.0)
    monkeypatch.setattr(cluster_module, "_AHEAD", 2)
    started, real = [], cluster_module._local
    monkeypatch.setattr(cluster_module, "_local", lambda n: started.append(real(n)) or started[-1])
    here = za.analyze(folder)
    there = za.analyze(folder, workers=1, progress=lambda done, _: done == 4 and started[0].scale(0))
    pd.testing.assert_frame_equal(there, here)
    monkeypatch.setattr(cluster_module, "PATIENCE", 1.0)
    with real(1) as cluster, distributed.Client(cluster, set_as_default=False) as client:
        cluster.scale(0)
        client.run_on_scheduler(gone)
        with pytest.raises(za.ZAnalysisError, match="no Dask worker has been there for 1 seconds"):
            za.analyze(folder, scheduler=client)


async def gone(dask_scheduler):
    while dask_scheduler.workers:
        await asyncio.sleep(0.01)


def test_without_dask_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(za.ZAnalysisError, match=r"pip install 'zanalysis\[dask\]'"):
        za.analyze(folder, workers=2)
    with pytest.raises(za.ZAnalysisError, match=r"pip install 'zanalysis\[dask\]'"):
        za.analyze(folder, scheduler="tcp://127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.parametrize("address", ["foo", "bad://x:1"])
def test_what_is_no_address_of_a_scheduler_is_one_sentence(folder, address):
    words = [sys.executable, "-m", "zanalysis.cli", "analyze", str(folder), "--scheduler", address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "no Dask scheduler answers at" in done.stderr


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_said(folder):
    with pytest.raises(za.ZAnalysisError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:1'"):
        za.analyze(folder, scheduler="tcp://127.0.0.1:1")
