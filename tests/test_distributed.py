"""Models that several processes hold: recorded once, equal to a single process, and nobody waits for ever."""

import json
import pickle
import select
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from hooks import RankTracker, every
from hooks.distributed import check_supported
from zanalysis.errors import InputError
from zanalysis.runfile.reader import open_run

sys.path.insert(0, str(Path(__file__).parent))
import distributed_cases
from distributed_cases import METRICS, batches, build, loss_of

PATIENCE = 60


def slow(*values, id=None):
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


KEYS = ["step", "layer", "tensor", "reference", "tolerance_rule", "metric"]
EXACT = {"rank", "support_rows", "support_columns", "distinct_rows"}


@pytest.fixture(scope="module")
def server():
    """A process that forks the ranks of each case, so that torch is imported once."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ranks.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait(10)


@pytest.fixture
def ranks(server, tmp_path):
    """Run a case in several processes, and return what each of them answers."""
    count = 0

    def run(case, world=2, backend="gloo", **arguments):
        nonlocal count
        count += 1
        folder = tmp_path / f"case{count}"
        folder.mkdir()
        request = {
            "case": case,
            "world": world,
            "backend": backend,
            "folder": str(folder),
            "arguments": arguments,
            "patience": 40,
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        assert select.select([server.stdout], [], [], PATIENCE)[0], f"{case} hangs"
        codes = json.loads(server.stdout.readline())
        assert codes == [0] * world, f"{case}: {codes}"
        answers = [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(world)]
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    return run


def replayed(snapshots, model=None, **options):
    """The table of one process that sees the same weights and gradients."""
    model = build() if model is None else model
    _load(model, snapshots[0])
    tracker = RankTracker(model, None, schedule=every(1), **options)
    for one in snapshots[1:]:
        _load(model, one)
        tracker.step()
    tracker.close()
    return tracker.table()


def _load(model, snapshot):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(snapshot[name][0])
            parameter.grad = snapshot[name][1]


def assert_same(rows, expected, rtol=1e-6):
    found = pd.DataFrame(rows).sort_values(KEYS).reset_index(drop=True)
    expected = expected.sort_values(KEYS).reset_index(drop=True)
    pd.testing.assert_frame_equal(found[[*KEYS, "status"]], expected[[*KEYS, "status"]])
    for metric, part in expected.groupby("metric"):
        tolerance = 0.0 if metric in EXACT else 1e-4 if metric == "stable_rank" else rtol
        both = (torch.tensor(t.loc[part.index, "value"].to_numpy()) for t in (found, expected))
        torch.testing.assert_close(
            *both, rtol=tolerance, atol=0, equal_nan=True, msg=lambda m, w=metric: f"{w}: {m}"
        )
    both = (torch.tensor(t["tolerance"].to_numpy()) for t in (found, expected))
    torch.testing.assert_close(*both, rtol=1e-6, atol=0, equal_nan=True)
    assert len(found)


# DistributedDataParallel


def test_ddp_writes_once_and_what_the_optimizer_used(ranks, tmp_path):
    path = tmp_path / "run.h5"
    (rows, snapshots, _), (other, *_) = ranks("ddp", path=str(path))
    options = {"tensors": ("weight", "gradient"), "metrics": METRICS, "reference": [None, "init"]}
    assert_same(rows, replayed(snapshots, **options))
    assert {key: len(column) for key, column in other.items()} == dict.fromkeys(rows, 0)
    assert len(open_run(path).table()) == len(rows["step"])
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["run.h5"]
    assert set(rows["layer"]) & {"3", "1"}
    assert not any(name.startswith("module") for name in rows["layer"])


def test_a_recorder_under_ddp_writes_once(ranks, tmp_path):
    path = tmp_path / "raw.h5"
    (listed, weights, _), (none, others, _) = ranks("recorded", path=str(path))
    run = open_run(path)
    assert listed == sum(len(one.steps) for one in run.tensors) > 0
    assert none == 0
    for name, weight in weights.items():
        if name in run.layers:
            assert torch.equal(run.tensor(name, "weight", 3), weight)
            assert torch.equal(weight, others[name])
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["raw.h5"]


@pytest.mark.parametrize(
    ("which", "match"), [("ddp", "there.h5"), ("sharded", "sharded over several processes")]
)
def test_what_a_recorder_refuses_is_raised_in_every_process(ranks, which, match):
    first, second = ranks("recorder_refused", which=which)
    assert first == second
    assert match in first[1]


@pytest.mark.slow
def test_ddp_records_what_one_process_records_of_all_the_data(ranks):
    (rows, _, _), _ = ranks("ddp", metrics=["frobenius_norm", "stable_rank"])
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = RankTracker(
        model, optimizer, schedule=every(1), tensors=("weight", "gradient"), metrics=("frobenius_norm", "stable_rank"),
        reference=[None, "init"],
    )  # fmt: skip
    for batch in batches(3):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    tracker.close()
    expected = tracker.table()
    found = pd.DataFrame(rows)
    kept = expected["reference"] == "none"
    # Sums in another order: the gradients agree to single precision.
    torch.testing.assert_close(
        torch.tensor(found[kept]["value"].to_numpy()),
        torch.tensor(expected[kept]["value"].to_numpy()),
        rtol=1e-4, atol=0, equal_nan=True,
    )  # fmt: skip


def test_zero_redundancy_optimizer(ranks):
    (rows, snapshots), _ = ranks("zero")
    assert_same(rows, replayed(snapshots, tensors=("weight", "gradient"), metrics=("rank", "frobenius_norm")))


# FSDP2


@pytest.mark.parametrize("world", [slow(2), 3])
def test_fsdp_measures_on_the_shards_what_one_process_measures(ranks, world):
    answers = ranks("sharded", world)
    rows, snapshots = answers[0]
    options = {"tensors": ("weight", "gradient"), "metrics": METRICS, "reference": [None, "init", "identity"]}
    assert_same(rows, replayed(snapshots, **options))
    assert all(not other["step"] for other, _ in answers[1:])


@pytest.mark.parametrize(
    "how",
    [
        {"keep": True, "dtype": "bfloat16"},
        slow({"evaluate": True}),
        slow({"metrics": ("rank_margin", "rank")}),
        slow({"keep": True}),
        slow({"accumulate": 2}),
        slow({"halves": True}),
        slow({"optimizer": "adam"}),
        slow({"view": "in"}),
        slow({"dtype": "float64"}),
        slow({"dtype": "bfloat16"}),
    ],
)
def test_fsdp_however_it_is_used(ranks, how):
    how, reference = dict(how), (None, "init")
    metrics = how.pop("metrics", ("rank", "stable_rank", "frobenius_norm", "support"))
    (rows, snapshots), _ = ranks("sharded", 2, metrics=metrics, reference=reference, **how)
    model = build(getattr(torch, how.get("dtype", "float32")))
    options = {"tensors": ("weight", "gradient"), "metrics": metrics, "reference": list(reference)}
    assert_same(rows, replayed(snapshots, model, view=how.get("view", "out"), **options))


@pytest.mark.slow
def test_fsdp_with_replicas_counts_each_row_once(ranks):
    answers = ranks("sharded", 4, mesh=[2, 2])
    rows, snapshots = answers[0]
    options = {"tensors": ("weight", "gradient"), "metrics": METRICS, "reference": [None, "init", "identity"]}
    assert_same(rows, replayed(snapshots, **options))


def test_fsdp_trains_as_without_a_tracker(ranks):
    with_tracker, without = (ranks("undisturbed", 2, attach=attach) for attach in (True, False))
    for (weights, rng), (plain, plain_rng) in zip(with_tracker, without, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights, plain, strict=True))
        assert torch.equal(rng, plain_rng)


def test_a_run_goes_on_from_the_weights_it_began_with(ranks, tmp_path):
    (_, snapshots), _ = ranks("resumed", first=True)
    modules = open_run(tmp_path / "run.h5").attributes["model"]["modules"]
    assert [module["type"] for module in modules if module["name"] in ("3", "4")] == ["Linear", "ReLU"]
    (rows, now, parts), (_, _, others) = ranks("resumed", first=False)
    assert sorted(set(rows["step"])) == [0, 1, 2]
    for name, (weight, distributed) in parts.items():
        expected = snapshots[0][f"{name}.weight"][0].reshape(weight.shape)
        assert distributed
        assert torch.equal(weight, expected)
        assert torch.equal(others[name][0], expected)
    found = pd.DataFrame(rows).set_index(["step", "layer"])["value"]
    moved = now["5.weight"][0] - snapshots[0]["5.weight"][0]
    assert found[2, "5"] == pytest.approx(float(moved.double().norm()), rel=1e-6)


def test_a_sharded_weight_that_is_computed(ranks):
    (rows, original), _ = ranks("parametrized")
    found = pd.DataFrame(rows).set_index(["step", "layer", "metric"])["value"]
    assert found[1, "0", "rank"] == 9
    assert found[1, "0", "frobenius_norm"] == pytest.approx(2 * float(original.double().norm()), rel=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("how", [{}, {"offload": True}, {"halves": True}, {"dtype": "bfloat16"}], ids=str)
def test_fsdp_on_a_gpu(ranks, how):
    ((rows, snapshots),) = ranks("sharded", 1, backend="nccl", device="cuda", **how)
    options = {"tensors": ("weight", "gradient"), "metrics": METRICS, "reference": [None, "init", "identity"]}
    assert_same(rows, replayed(snapshots, build(getattr(torch, how.get("dtype", "float32"))), **options))


# Tensor parallelism, and every layout


@pytest.mark.parametrize("local_output", [True, slow(False)])
def test_tensor_parallel_layers(ranks, local_output):
    tensors = ("weight", "gradient", "activation")
    (rows, snapshots, seen), _ = ranks("parallel", 2, tensors=tensors, local_output=local_output)
    _assert_parallel(rows, snapshots, seen, True)


def test_tensor_parallel_layers_inside_fsdp(ranks):
    tensors = ("weight", "gradient", "activation")
    rows, snapshots, seen = ranks("parallel", 4, mesh=[2, 2], fsdp=True, tensors=tensors)[0]
    _assert_parallel(rows, snapshots, seen, True)


def _assert_parallel(rows, snapshots, seen, activations):
    model = nn.Sequential(nn.Linear(12, 22), nn.ReLU(), nn.Linear(22, 10), nn.Linear(10, 3))
    metrics = ("rank", "stable_rank", "spectral_norm", "support")
    expected = replayed(
        snapshots,
        model,
        tensors=("weight", "gradient"),
        metrics=metrics,
        reference=[None, "init", "identity"],
    )
    table = pd.DataFrame(rows)
    assert_same(table[table["tensor"] != "activation"], expected)
    if activations:
        found = table[table["tensor"] == "activation"].set_index(["step", "layer", "metric"])["value"]
        for step, outputs in enumerate(seen, 1):
            for layer, z in zip(("0", "2", "3"), outputs, strict=True):
                norm = float(torch.linalg.matrix_norm(z.double(), 2))
                assert found[step, layer, "spectral_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    ("world", "mesh"),
    [pytest.param(3, [3], id="uneven and empty"), slow(4, [2, 2], id="two dimensions")],
)
def test_every_layout_of_every_shape(ranks, world, mesh):
    compared = ranks("placements", world, mesh=mesh)
    assert compared[0] == {1: 80, 2: 272}[len(mesh)]
    assert compared[1:] == [0] * (world - 1)


def test_layers_of_the_leaders_own_beside_sharded_ones(ranks):
    (together, no_team, rows), (_, _, others) = ranks("mixed")
    assert together
    assert no_team is None
    model = build()
    tracker = RankTracker(model, None, layers=["3", "5"], metrics=("rank", "support"))
    assert_same(rows, pd.concat([tracker.table()]))
    tracker.close()
    assert not others["step"]


# Spans


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    "kind", ["gram", "triangle", "bfloat16", "sketch", "skipping", "nonfinite", "one empty"]
)
def test_spans_are_those_of_all_the_data(ranks, kind, world):
    answers = ranks("spans", world, kind=kind)
    readings, samples, all_samples, skipped, support, all_support = answers[0]
    assert samples == all_samples
    assert support == all_support
    assert (skipped > 0) == (kind == "skipping")
    for (dimension, tau, status), (expected, all_tau, all_status) in zip(*readings, strict=True):
        assert (status, dimension) == (all_status, pytest.approx(expected, nan_ok=True))
        if not skipped:
            assert tau == pytest.approx(all_tau, rel=1e-6, nan_ok=True)
    assert answers[1:] == [None] * (world - 1)


@pytest.mark.parametrize(
    ("kind", "probe"), [("ddp", False), slow("ddp", True), slow("fsdp", False), ("fsdp", True)]
)
def test_the_spans_of_a_window_are_those_of_all_the_data(ranks, kind, probe):
    tensors = ("activation",) if probe else ("activation", "activation_gradient")
    if probe and kind == "fsdp":
        with pytest.raises(InputError, match="no process has all of a sharded model"):
            ranks("spanning", kind=kind, probe=True, tensors=tensors)
        return
    rows, others = ranks("spanning", kind=kind, probe=probe, tensors=tensors)
    assert not others["step"]
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"probe": batches(1, 30)[0][0]} if probe else {"span_window": 2}
    tracker = RankTracker(
        model, optimizer, schedule=every(2), metrics=("span_dimension", "rank"), tensors=tensors,
        tolerance=["default", 1e-2], **options,
    )  # fmt: skip
    for batch in batches(4):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    tracker.close()
    found, expected = (
        table[table["metric"] == "span_dimension"].set_index([*KEYS[1:], "step"]).sort_index()
        for table in (pd.DataFrame(rows), tracker.table())
    )
    assert len(found)
    assert list(found["status"]) == list(expected["status"])
    # The gradient of a process's own loss is as many times larger as there are processes.
    forward = expected.index.get_level_values("tensor") == "activation"
    forward |= expected.index.get_level_values("tolerance_rule") == "default"
    both = (torch.tensor(table[forward]["value"].to_numpy()) for table in (found, expected))
    torch.testing.assert_close(*both, rtol=0, atol=0, equal_nan=True)


def test_spans_that_one_process_has_lost_are_missed(ranks):
    rows, _ = ranks("spanning", kind="ddp", lost=True)
    table = pd.DataFrame(rows)
    spans = table[(table["metric"] == "span_dimension") & (table["step"] > 0)]
    assert set(spans["status"]) == {"error"}
    assert "ok" in set(table[table["metric"] == "rank"]["status"])


def test_a_budget_is_one_for_all(ranks):
    (steps, kept, skipped), (others, *same) = ranks("thinned")
    assert steps == [0, 1, 4]
    assert others == []
    assert [kept, skipped] == same


def test_no_span_anywhere(ranks):
    assert ranks("spans", kind="none") == [None, None]


# Nobody waits for ever


@pytest.mark.parametrize(
    ("which", "kind", "match"),
    [
        ("ddp", "RunFileError", "there.h5"),
        ("fsdp", "RunFileError", "there.h5"),
        slow("folder", "RunFileError", "missing"),
        slow("metric", "InputError", "did you mean 'rank'"),
    ],
)
def test_an_error_at_construction_is_raised_in_every_process(ranks, which, kind, match):
    first, second = ranks("construction_error", which=which)
    assert first[0] == second[0] == kind
    assert match in first[1]
    assert first[1] == second[1]
    assert "run.h5" not in first[2]


@pytest.mark.parametrize(
    ("where", "tensor"),
    [
        slow("function", None),
        slow("leader's part", None),
        ("other's part", None),
        ("reading", "weight"),
        ("writing", None),
        ("leader's gradients", "gradient"),
        slow("other's gradients", "gradient"),
    ],
)
def test_what_fails_in_one_process_leaves_no_other_waiting(ranks, where, tensor):
    (rows, weights), (_, others) = ranks("failing", where=where)
    table = pd.DataFrame(rows)
    broken = table[table["step"] == 2]
    kept = table[(table["step"] != 2) & ((table["step"] > 0) | (table["tensor"] == "weight"))]
    assert set(kept["step"]) == {0, 1, 3}
    assert set(kept["status"]) == {"ok"}
    if where == "writing":
        assert not len(broken)
    elif tensor == "gradient":
        assert set(broken[broken["tensor"] == "gradient"]["status"]) <= {"error", "skipped"}
        assert set(broken[broken["tensor"] == "weight"]["status"]) == {"ok"}
    else:
        assert "error" in set(broken["status"])
        if tensor:
            assert set(broken[broken["tensor"] == tensor]["status"]) == {"error"}
    assert weights
    assert others


def test_a_plain_model_waits_for_nobody(ranks):
    assert ranks("alone") == [[0, 1, 2], None]


def test_the_first_process_decides(ranks):
    answers = ranks("agreement", 3)
    assert [values for values, _, _ in answers] == [[1.0, 0.25]] * 3
    assert [(leader, number) for _, leader, number in answers] == [(True, 0), (False, 1), (False, 2)]


def test_a_team_along_two_dimensions(ranks):
    answers = ranks("teams", 4, mesh=[2, 2])
    assert [total for total, _, _ in answers] == [15.0] * 4
    assert [number for _, number, _ in answers] == [0, 1, 2, 3]
    assert answers[0][2] == [[45.0, 45.0], [24.0, 24.0]]


# Refused by name


def test_deepspeed_is_refused_by_name():
    engine = type("DeepSpeedEngine", (nn.Module,), {"__module__": "deepspeed.runtime.engine"})
    with pytest.raises(InputError, match=r"DeepSpeed engine .* engine.module"):
        RankTracker(engine())
    model = build()
    model[3].weight.ds_id = 3
    with pytest.raises(InputError, match=r"3.weight is partitioned by DeepSpeed ZeRO-3"):
        RankTracker(model)


def test_fsdp1_is_refused_by_name():
    wrapped = type(
        "FullyShardedDataParallel",
        (nn.Module,),
        {"__module__": "torch.distributed.fsdp.fully_sharded_data_parallel"},
    )
    outer = nn.Sequential(wrapped(), nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"0 is wrapped in FSDP1 .* use FSDP2"):
        RankTracker(outer)
    with pytest.raises(InputError, match="the model is wrapped in FSDP1"):
        RankTracker(wrapped())


def test_data_parallel_replicas_have_no_activations():
    model = nn.DataParallel(build())
    check_supported(model, ("activation",))
    model.device_ids = [0, 1]
    check_supported(model, ("weight", "gradient"))
    with pytest.raises(InputError, match="DataParallel runs copies"):
        check_supported(model, ("weight", "activation_gradient"))
    with RankTracker(model, metrics="rank") as tracker:
        assert "3" in set(tracker.table()["layer"])


def test_cases_import_nothing_of_pytest():
    assert "pytest" not in Path(distributed_cases.__file__).read_text()
