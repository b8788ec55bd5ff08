"""What a recording survives: full disks, folders that vanish, followers, long runs, network file systems."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from hooks import RankTracker, Recorder, every
from zanalysis.errors import RunFileError
from zanalysis.runfile import RunWriter, Series, predicted_size
from zanalysis.runfile.mounts import network_filesystem
from zanalysis.runfile.reader import open_run
from zanalysis.runfile.repair import repair

TRAINING = """
import os, resource, signal, sys, time
import torch
from hooks import RankTracker, Recorder, every
torch.set_num_threads(1)
path, kind, steps = {path!r}, {kind!r}, {steps}
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 8))
{before}
if kind == "raw":
    tracker = Recorder(model, None, path, schedule=every(1), flush_seconds=0.01)
else:
    tracker = RankTracker(model, None, path, schedule=every(1), metrics="rank", flush_seconds=0.01)
for step in range(1, steps + 1):
    with torch.no_grad():
        model[0].weight.fill_(step)
    tracker.log(loss=float(step))
    tracker.step()
    {during}
tracker.close()
print("trained to the end")
"""


# A process that imports torch once, and forks one training for each line it reads, which ends as an interpreter
# does: that is where HDF5 would crash after a failed flush.
SERVER = """
import json, os, sys
import torch
from hooks import RankTracker, Recorder, every
torch.set_num_threads(1)
with RankTracker(torch.nn.Linear(2, 2), schedule=every(1)): pass  # what torch imports late is imported now
for line in sys.stdin:
    code, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        for name, number in ((out, 1), (err, 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), number)
        exec(code)
        sys.exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def server():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait(timeout=20)
    process.stdout.close()


@pytest.fixture
def trained(server, tmp_path_factory):
    """Train in a process of its own, to the end; return what it wrote to the standard error."""
    folder = tmp_path_factory.mktemp("said")

    def train(path, kind, steps, before="", during="pass"):
        code = TRAINING.format(path=str(path), kind=kind, steps=steps, before=before, during=during)
        out, err = folder / "out", folder / "err"
        server.stdin.write(json.dumps([code, str(out), str(err)]) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        assert (status, out.read_text()) == (0, "trained to the end\n"), err.read_text()
        return err.read_text()

    return train


def check_prefix(path, kind):
    """The file holds every step up to some step, whole; return how many."""
    run = open_run(path)
    steps = run.steps.tolist()
    assert steps == list(range(len(steps)))
    if kind == "raw":
        values = run.tensor_over_time("0").values
        assert len(values) == len(steps)
        for step in range(1, len(steps)):
            assert bool((values[step] == step).all())
    else:
        assert set(run.table()["status"]) <= {"ok"}
    logged = run.logged()
    assert logged["loss"].tolist() == [float(step + 1) for step in range(len(logged))]
    return len(steps)


FULL = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))
"""


def test_a_full_disk_costs_the_rest_of_the_record_and_nothing_else(tmp_path, trained):
    path = tmp_path / "run.h5"
    said = trained(path, "raw", 600, before=FULL)
    assert said == (
        f"recording into {path} has stopped, the training goes on: File too large. What was flushed is safe.\n"
    )
    assert check_prefix(path, "raw") > 100
    assert repair(path) is True
    check_prefix(path, "raw")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one mebibyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True
    )
    if not done or done.returncode:
        pytest.skip("mounting is not allowed here; the limit of a file's size stands in for it")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("kind", ["raw", pytest.param("numbers", marks=pytest.mark.slow)])
def test_a_small_file_system_that_fills_up_is_survived(small_disk, trained, kind):
    said = trained(small_disk / "run.h5", kind, 600 if kind == "raw" else 30_000)
    assert said.endswith("the training goes on: No space left on device. What was flushed is safe.\n")
    assert said.count("\n") == 1
    assert check_prefix(small_disk / "run.h5", kind) > 100


@pytest.mark.parametrize(
    ("what", "kind"), [("removed", "raw"), ("removed", "numbers"), ("replaced", "raw"), ("unwritable", "raw")]
)
def test_a_folder_that_vanishes_and_a_file_that_may_not_be_written_are_survived(
    tmp_path, trained, what, kind
):
    path = tmp_path / "folder" / "run.h5"
    path.parent.mkdir()
    act = {
        "removed": "import shutil; shutil.rmtree(os.path.dirname(path))",
        "replaced": "os.replace(path, path + '.old'); open(path, 'wb').write(b'mine')",
        "unwritable": "os.chmod(path, 0o400); os.chmod(os.path.dirname(path), 0o500)",
    }[what]
    said = trained(path, kind, 100, during=f"(time.sleep(0.1), exec({act!r})) if step == 50 else None")
    Path(path.parent).chmod(0o700) if path.parent.exists() else None
    if what == "unwritable":  # it was open already: nothing is lost
        assert said == ""
        assert check_prefix(path, kind) == 101
    else:
        assert said.count("has stopped, the training goes on") == 1
        assert said.count("\n") == 1
    if what == "removed":
        assert not path.parent.exists()
    elif what == "replaced":
        assert path.read_bytes() == b"mine"
        path.with_name("run.h5.old").rename(path)
        assert check_prefix(path, kind) > 1


# --- a follower -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_reader_in_another_process_never_sees_part_of_a_step(tmp_path, seconds):
    path = tmp_path / "run.h5"
    code = TRAINING.format(path=str(path), kind="raw", steps=10**9, before="", during="time.sleep(0.001)")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        while not path.exists():
            assert child.poll() is None
            time.sleep(0.01)
        ends, looks = time.time() + seconds, []
        while time.time() < ends:
            run = open_run(path)
            steps = {one.layer: one.steps for one in run.tensors}
            last = int(steps["0"][-1]) if len(steps["0"]) else 0
            assert len(steps["0"]) in (0, last + 1)
            assert all(np.array_equal(steps["0"], other) for other in steps.values())
            if last:
                assert bool((run.tensor("0", step=last) == last).all())
                if last > 1:
                    assert bool((run.tensor("0", step=last // 2) == last // 2).all())
            assert run.steps.tolist()[:1] in ([], [0])
            looks.append(last)
        assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert looks == sorted(looks)
    assert len(set(looks)) > 3
    assert check_prefix(path, "raw") > looks[-1]


# --- long runs ------------------------------------------------------------------------------------------


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Fifty(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(50))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", ["raw", "numbers"])
def test_ten_thousand_steps_of_fifty_layers(tmp_path, kind, capsys):
    torch.manual_seed(0)
    model, path = Fifty(), tmp_path / "run.h5"
    if kind == "raw":
        tracker = Recorder(model, None, path, schedule=every(1))
    else:
        tracker = RankTracker(model, None, path, schedule=every(1), metrics=("rank", "stable_rank"))
    with tracker:
        for step in range(1, 10_001):
            tracker.step()
            if step == 1000:
                tracker._journal.flush()
                before = resident()
        tracker._journal.flush()
        grown = resident() - before
    run = open_run(path)
    facts = run.attributes
    names = [f"layers.{i}" for i in range(50)]
    if kind == "raw":
        from zanalysis.runfile import TensorKey

        keys = [TensorKey(name, "weight", "float32", (8, 8)) for name in names]
        expected = predicted_size(attributes=facts, tensors=keys, tensor_steps=10_001)
    else:
        expected = predicted_size(run.series, 10_001, attributes=facts)
    size = path.stat().st_size
    began = time.perf_counter()
    rows = len(run.table()) if kind == "numbers" else len(run.tensor_over_time("layers.7").values)
    took = time.perf_counter() - began
    with capsys.disabled():
        sys.stdout.write(
            f"\n{kind}: {grown / 1e6:+.1f} MB over 9,000 steps; {size} bytes, predicted {expected}; "
            f"read in {took:.2f} s\n"
        )
    assert rows == (100 * 10_001 if kind == "numbers" else 10_001)
    assert grown < 16e6
    assert abs(size - expected) <= 0.01 * expected + 16_384
    assert took < 20


# --- places -----------------------------------------------------------------------------------------------

TABLE = """\
/dev/sda1 / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/export {root}/nfs nfs4 rw,vers=4.2 0 0
//server/share {root}/with\\040blank cifs rw 0 0
user@host: {root}/sshfs fuse.sshfs rw 0 0
tmpfs {root}/nfs/local tmpfs rw 0 0
/dev/sdb1 {root}/disk fuseblk rw 0 0
over {root}/over nfs rw 0 0
/dev/sdc {root}/over ext4 rw 0 0
broken
"""


@pytest.fixture
def mounts(tmp_path):
    table = tmp_path / "mounts"
    table.write_text(TABLE.format(root=tmp_path.resolve()))
    return table


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("nfs/run.h5", "nfs4"),
        ("nfs/a/b/run.h5", "nfs4"),
        ("nfs/local/run.h5", None),
        ("nfsother/run.h5", None),
        ("with blank/run.h5", "cifs"),
        ("sshfs/run.h5", "fuse.sshfs"),
        ("disk/run.h5", None),
        ("over/run.h5", None),
        ("run.h5", None),
    ],
)
def test_a_network_file_system_is_known_by_the_table_of_mounts(tmp_path, mounts, place, kind):
    assert network_filesystem(tmp_path / place, mounts) == kind
    assert network_filesystem(tmp_path / place, tmp_path / "none") is None


def test_a_link_to_a_network_file_system_is_followed(tmp_path, mounts):
    (tmp_path / "nfs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nfs")
    assert network_filesystem(tmp_path / "link" / "run.h5", mounts) == "nfs4"


@pytest.mark.parametrize("attach", [RankTracker, Recorder])
def test_recording_to_a_network_file_system_is_said_once(tmp_path, monkeypatch, mounts, caplog, attach):
    monkeypatch.setattr("zanalysis.runfile.mounts.MOUNTS", mounts)
    (tmp_path / "nfs").mkdir()
    with attach(nn.Linear(3, 3), None, tmp_path / "nfs" / "r.h5", schedule=every(1)) as tracker:
        tracker.step(), tracker.step()
    events = open_run(tmp_path / "nfs" / "r.h5").events
    assert events["kind"].tolist() == ["network"]
    assert "lies on a network file system (nfs4)" in events["text"].item()
    assert len(caplog.records) == 1
    with attach(nn.Linear(3, 3), None, tmp_path / "r.h5", schedule=every(1)):
        pass
    assert len(caplog.records) == 1


# --- the command ------------------------------------------------------------------------------------------


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "zanalysis.cli", *map(str, words)], capture_output=True, text=True, timeout=120
    )


def killed(path):
    pid = os.fork()
    if pid == 0:
        recorder = Recorder(nn.Linear(3, 3), None, path, schedule=every(1), tensors=("weight", "gradient"))
        recorder.step()
        recorder._journal.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_repair_and_info_on_the_command_line(tmp_path):
    path = tmp_path / "run.h5"
    killed(path)
    done = command("info", path)
    assert done.returncode == 0, done.stderr
    for word in ("raw tensors", "weight", "gradient", "2 steps, 0 to 1", "3×3", "float32"):
        assert word in done.stdout, done.stdout
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(path, "r")
    done = command("repair", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "its writer was killed" in done.stdout
    with h5py.File(path, "r") as file:
        assert file["tensors/step"][:].tolist() == [0, 1]
    done = command("repair", path)
    assert done.returncode == 0
    assert "nothing to mend" in done.stdout
    other = tmp_path / "text.h5"
    other.write_text("step,value\n")
    for wrong, sentence in ((other, "is not a run file"), (tmp_path / "none.h5", "does not exist")):
        done = command("repair", wrong)
        assert done.returncode == 2
        assert sentence in " ".join(done.stderr.split())
    writer = RunWriter(tmp_path / "live.h5", [Series("a", "weight", "none", "none", "x")])
    done = command("repair", tmp_path / "live.h5")
    assert done.returncode == 2
    assert "is being written by another tracker" in " ".join(done.stderr.split())
    with pytest.raises(RunFileError, match="is being written by another tracker"):
        repair(tmp_path / "live.h5")
    writer.close()


@pytest.mark.parametrize("attached", [RankTracker, Recorder])
def test_a_loop_that_changes_its_folder_goes_on_in_the_same_file(tmp_path, monkeypatch, mlp, attached):
    model, optimizer, train = mlp
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    with attached(model, optimizer, "run.h5", schedule=every(1)) as recording:
        train(2)
        os.chdir("outputs")
        train(2)
        read = recording.table()["step"] if attached is RankTracker else recording.tensors[0].steps
        assert sorted(set(read)) == [0, 1, 2, 3, 4]
    assert not list((tmp_path / "outputs").iterdir())


def test_a_training_with_a_default_device_of_its_own_is_recorded(tmp_path, mlp):
    model, optimizer, _ = mlp
    x, metrics = torch.ones(3, 6), ("rank", "stable_rank", "span_dimension", "singular_values")
    run, raw = tmp_path / "run.h5", tmp_path / "raw.h5"
    tensors = ("weight", "gradient", "activation", "activation_gradient")
    torch.set_default_device("meta")
    try:
        with (
            RankTracker(model, optimizer, run, schedule=every(1), metrics=metrics, tensors=tensors),
            Recorder(model, optimizer, raw, schedule=every(1), tensors=tensors),
        ):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            assert torch.empty(0).is_meta
    finally:
        torch.set_default_device(None)
    table = open_run(run).table()
    assert set(table[table["step"] == 1]["status"]) <= {"ok", "too_few_samples"}
    assert torch.equal(open_run(raw).tensor("0", "weight", 1), model[0].weight)
    assert torch.equal(open_run(raw).tensor("2", "gradient", 1), model[2].weight.grad)


def test_a_probe_runs_the_model_with_the_default_device_of_the_training(mlp):
    model, optimizer, _ = mlp
    seen, probe = set(), torch.ones(3, 6)
    model.register_forward_hook(lambda *_: seen.add(torch.get_default_device().type))
    torch.set_default_device("meta")
    try:
        with RankTracker(model, optimizer, schedule=every(1), tensors="activation", probe=probe):
            pass
    finally:
        torch.set_default_device(None)
    assert seen == {"meta"}


def test_a_torch_that_cannot_tell_its_default_device_means_the_host(monkeypatch):
    # torch 2.6 after set_default_device(None).
    def unknown():
        raise AttributeError("'NoneType' object has no attribute 'type'")

    monkeypatch.setattr(torch, "get_default_device", unknown)
    model = nn.Linear(4, 3)
    with RankTracker(model, metrics="rank") as tracker:
        tracker.step()
    assert tracker.table()["value"].tolist() == [3]
