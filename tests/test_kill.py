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

from hooks import RankTracker, Recorder, every
from zanalysis.runfile.reader import open_run
from zanalysis.runfile.repair import repair

# A process that imports torch once, and forks one training for each line it reads: the path to record into, how
# many steps, how long to pause after each, and what to record. A training tells each step it has completed, with
# the time. Nothing here has started a thread before the forks, so the children can start theirs.
SERVER = """
import os, sys, time
import torch
from torch import nn
from hooks import RankTracker, Recorder, every
torch.set_num_threads(1)

def attach(model, optimizer, path, kind):
    if kind == "numbers":
        return RankTracker(model, optimizer, path, schedule=every(1), reference=[None, "init"])
    tensors = ("weight", "gradient", "activation", "activation_gradient")
    compression = kind.removeprefix("raw").strip("-") or None
    return Recorder(model, optimizer, path, schedule=every(1), tensors=tensors, compression=compression)

def train(path, steps, pause, kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with attach(model, optimizer, path, kind) as tracker:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss = (model(torch.randn(4 + step % 3, 8)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            tracker.log(loss=loss)
            os.write(1, b"%d %.6f\\n" % (step, time.time()))
            time.sleep(pause)

keep, quiet = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(quiet, 1)
for kind in ("numbers", "raw"):
    train(None, 2, 0.0, kind)  # in memory, without a thread: what torch imports late is imported now
os.dup2(keep, 1)

for line in sys.stdin:
    path, steps, pause, kind = line.split()
    child = os.fork()
    if child == 0:
        train(path, int(steps), float(pause), kind)
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

    def start(self, path, steps, pause=0.0, kind="numbers"):
        self.process.stdin.write(f"{path} {steps} {pause} {kind}\n".encode())
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


def all_tensors(run, steps):
    """Read every raw tensor at the given steps."""
    found = {}
    for layer, tensor, _, _, there in run.tensors:
        at = [step for step in there if step in steps]
        series = run.tensor_over_time(layer, tensor, at)
        found |= {(layer, tensor, step): value for step, value in zip(at, series.values, strict=True)}
    return found


SAMPLED = frozenset([*range(20), *range(20, 300, 37)])


@pytest.fixture(scope="module")
def unkilled_tensors(trainings, tmp_path_factory):
    path = tmp_path_factory.mktemp("unkilled") / "raw.h5"
    trainings.start(path, 300, kind="raw")
    assert trainings.told()[1] == 0
    return all_tensors(open_run(path), frozenset(range(301)))


def kill_after(trainings, path, delay, kind, meanwhile=None):
    """Start a training, kill it; return the time of its death and what it told of its steps."""
    child = trainings.start(path, 100_000, pause=0.002, kind=kind)
    trainings.first_step()
    ends = time.time() + delay
    while meanwhile is not None and time.time() < ends:
        meanwhile()
    time.sleep(max(0.0, ends - time.time()))
    os.kill(child, signal.SIGKILL)
    died = time.time()
    progress, status = trainings.told()
    assert status == signal.SIGKILL
    return died, progress


def check_killed_tensors(path, whole, died, progress):
    run = open_run(path)
    last = len(run.steps) - 1  # none, where it died before the thread had flushed the first one
    assert run.steps.tolist() == list(range(last + 1))
    assert last >= max((step for step, when in progress if when < died - 1.0), default=-1)
    steps = (SAMPLED | {last, last - 1}) & frozenset(range(301))
    there = all_tensors(run, steps)
    assert there.keys() == {key for key in whole if key[2] in steps and key[2] <= last}
    for key, value in there.items():
        assert torch.equal(value, whole[key]), key
    logged = run.logged()
    assert repair(path)
    with h5py.File(path, "r") as file:
        done = int(file["tensors/committed"][0])
        assert file["tensors/step"][:done].tolist() == list(range(last + 1))
        for step in range(max(0, last), last + 1):
            weight = torch.from_numpy(file["tensors/data/0"][step])
            assert torch.equal(weight, run.tensor("0", "weight", step))
    assert open_run(path).logged().equals(logged)


@pytest.mark.parametrize("attempt", range(10))
def test_a_killed_recording_leaves_every_committed_step_whole(tmp_path, trainings, unkilled_tensors, attempt):
    path = tmp_path / "run.h5"
    delay = random.Random(attempt).uniform(0.0, 0.3)
    kind = "raw-lzf" if attempt % 5 == 4 else "raw"

    def follow():
        run = open_run(path)
        for layer, tensor, _, _, steps in run.tensors:
            if len(steps) and steps[-1] <= 300:
                value = run.tensor(layer, tensor, int(steps[-1]))
                assert torch.equal(value, unkilled_tensors[layer, tensor, int(steps[-1])])

    died, progress = kill_after(trainings, path, delay, kind, follow if attempt % 2 else None)
    check_killed_tensors(path, unkilled_tensors, died, progress)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numbers", "raw"])
@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("attempt", range(50))
def test_200_of_200(tmp_path, trainings, unkilled, unkilled_tensors, attempt, kind, follows):
    path = tmp_path / "run.h5"
    delay = random.Random(f"{attempt} {kind} {follows}").uniform(0.0, 1.2 if attempt % 5 == 0 else 0.3)
    died, progress = kill_after(
        trainings, path, delay, kind, (lambda: open_run(path).steps) if follows else None
    )
    if kind == "raw":
        check_killed_tensors(path, unkilled_tensors, died, progress)
    else:
        table = open_run(path).table()
        last = len(open_run(path).steps) - 1
        assert last >= max((step for step, when in progress if when < died - 1.0), default=-1)
        known = min(last, 600)
        whole = unkilled[0]
        assert table[table["step"] <= known].equals(whole[whole["step"] <= known])
        assert repair(path)
        with h5py.File(path, "r") as file:
            assert file["scalars/step"][: last + 1].tolist() == list(range(last + 1))
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    settings = {"schedule": every(1), "mode": "a", "start": last_kept(path)}
    if kind == "raw":
        tensors = ("weight", "gradient", "activation", "activation_gradient")
        after = Recorder(model, None, path, tensors=tensors, **settings)
    else:
        after = RankTracker(model, None, path, reference=[None, "init"], **settings)
    with after:
        after.step()
    assert open_run(path).steps.tolist() == list(range(settings["start"] + 2))


def last_kept(path):
    return max(0, len(open_run(path).steps) - 3)


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
    safe = max((step for step, when in progress if when < died - 1.0), default=-1)
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
