"""Trainings killed by SIGKILL: what was committed is there, whole, and equal to an unkilled run's."""

import os
import random
import signal
import subprocess
import sys
import time

import h5py
import pytest
import torch
from torch import nn

from hooks import every
from zanalysis.runfile.reader import open_run
from zanalysis.runfile.repair import repair

# A process that imports torch once, and forks one training for each line it reads: the path to record
# into, and how many steps. A training tells each step it has completed, with the time. Nothing here has
# started a thread before the forks, so the children can start theirs.
SERVER = """
import os, sys, time
import torch
from torch import nn
from hooks import RankTracker, every
torch.set_num_threads(1)

def train(path, steps, pause):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with RankTracker(model, optimizer, path, schedule=every(1), reference=[None, "init"]) as tracker:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss = (model(torch.randn(4, 8)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            tracker.log(loss=loss)
            os.write(1, b"%d %.6f\\n" % (step, time.time()))
            time.sleep(pause)

keep, quiet = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(quiet, 1)
train(None, 2, 0.0)  # in memory, without a thread: what torch imports late is imported now
os.dup2(keep, 1)

for line in sys.stdin:
    path, steps, pause = line.split()
    child = os.fork()
    if child == 0:
        train(path, int(steps), float(pause))
        os._exit(0)
    os.write(1, b"child %d\\n" % child)
    status = os.waitpid(child, 0)[1]
    os.write(1, b"ended %d\\n" % status)
"""


class Trainings:
    """Trainings in processes of their own."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def start(self, path, steps, pause=0.0):
        self.process.stdin.write(f"{path} {steps} {pause}\n".encode())
        self.process.stdin.flush()
        return int(self._line("child"))

    def told(self):
        """Return the completed steps with their times, until the training has ended, and how it ended."""
        progress = []
        while True:
            kind, rest = self.process.stdout.readline().decode().split(" ", 1)
            if kind == "ended":
                return progress, int(rest)
            progress.append((int(kind), float(rest)))

    def first_step(self):
        return self.process.stdout.readline()

    def _line(self, kind):
        word, rest = self.process.stdout.readline().decode().split(" ", 1)
        assert word == kind
        return rest

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def trainings():
    server = Trainings()
    yield server
    server.end()


@pytest.fixture(scope="module")
def unkilled(trainings, tmp_path_factory):
    path = tmp_path_factory.mktemp("unkilled") / "run.h5"
    trainings.start(path, 600)
    assert trainings.told()[1] == 0
    run = open_run(path)
    assert run.steps.tolist() == list(range(601))
    return run.table(), run.logged()


@pytest.mark.parametrize("attempt", range(20))
def test_a_killed_training_leaves_every_committed_step(tmp_path, trainings, unkilled, attempt):
    path = tmp_path / "run.h5"
    delay = random.Random(attempt).uniform(0.0, 0.2 if attempt % 5 else 0.8)
    child = trainings.start(path, 100_000, pause=0.002)
    trainings.first_step()
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    died = time.time()
    progress, status = trainings.told()
    assert status == signal.SIGKILL

    run = open_run(path)
    table, logged = run.table(), run.logged()
    steps = run.steps.tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= 1  # the first record is flushed at once
    safe = max((step for step, when in progress if when < died - 1.0), default=0)
    assert steps[-1] >= safe

    whole, losses = unkilled
    known = min(steps[-1], 600)
    assert table[table["step"] <= known].equals(whole[whole["step"] <= known])
    losses = losses[losses["step"] <= logged["step"].max()] if len(logged) else losses[:0]
    if len(logged):
        assert logged[: len(losses)].equals(losses)

    assert repair(path)
    with h5py.File(path, "r") as file:
        assert file["scalars/step"][: len(steps)].tolist() == steps
    assert open_run(path).table().equals(table)


def test_a_follower_sees_whole_steps_only_and_never_fewer(tmp_path, trainings, unkilled):
    path = tmp_path / "run.h5"
    child = trainings.start(path, 100_000, pause=0.001)
    trainings.first_step()
    seen, ends = 0, time.time() + 1.2
    whole = unkilled[0]
    looks = []
    while time.time() < ends:
        run = open_run(path)
        table = run.table()
        per_step = len(run.series)
        assert len(table) % per_step == 0
        assert len(table) >= seen
        seen = len(table)
        known = min(seen, len(whole))
        assert table[:known].equals(whole[:known])
        run.logged(), run.events, run.overhead
        looks.append(seen // per_step)
    os.kill(child, signal.SIGKILL)
    trainings.told()
    assert len(set(looks)) >= 3  # it moved on while we looked


def test_a_killed_run_goes_on_to_what_an_unkilled_one_would_be(tmp_path, trainings, attach):
    path = tmp_path / "run.h5"
    child = trainings.start(path, 100_000, pause=0.002)
    trainings.first_step()
    time.sleep(0.7)
    os.kill(child, signal.SIGKILL)
    trainings.told()
    last = int(open_run(path).steps[-1])
    assert last > 3

    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tracker = attach(
        model, optimizer, path, schedule=every(1), reference=[None, "init"], mode="a", start=last - 2
    )
    tracker.close()
    run = open_run(path)
    assert run.steps.tolist() == list(range(last - 1))
    assert run.events["kind"].tolist() == ["resumed"]
    assert run.events["text"].item().startswith(f"recording goes on from step {last - 2}")
