"""What each of several processes does in `test_distributed`: functions of a folder, run by `ranks`."""

import copy
import itertools
import logging
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hooks import RankTracker, Recorder, every
from hooks.distributed import team_of
from hooks.layers import select_layers
from hooks.shards import Moment, ShardedLayers
from hooks.slices import indices
from hooks.team import Team
from zanalysis.analyzers.metrics import plan
from zanalysis.analyzers.span import ActivationSpan

PRODUCTS = ("stable_rank", "spectral_norm", "frobenius_norm", "support")
"""What never needs more than small sums."""

METRICS = ("rank", *PRODUCTS, "effective_rank", "condition_number", "identity_scale")

WHOLE = ("rank_margin", "rank", "stable_rank")
"""What needs the whole."""


class Experts(nn.Module):
    """A batch of matrices, one for each expert, summed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 11, 8) / 4)

    def forward(self, x):
        return torch.einsum("eoi,bi->bo", self.weight, x)


def build(dtype=torch.float32):
    """A model whose rows are divisible by nothing, with a kernel, a batch of matrices and a dead row."""
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Unflatten(1, (2, 6)), nn.Conv1d(2, 5, 3), nn.Flatten(), nn.Linear(20, 37), nn.ReLU(),
        nn.Linear(37, 8), Experts(), nn.ReLU(), nn.Linear(11, 3),
    )  # fmt: skip
    with torch.no_grad():
        model[3].weight[30] = 0
    return model.to(dtype)


def batches(steps, samples=12):
    torch.manual_seed(11)
    return [(torch.randn(samples, 12), torch.randn(samples, 3)) for _ in range(steps)]


def own(batch):
    """The share of a batch that belongs to this process."""
    rank, world = dist.get_rank(), dist.get_world_size()
    return [part.chunk(world)[rank] for part in batch]


def loss_of(model, batch):
    dtype = next(p.dtype for p in model.parameters())
    x, y = (part.to(dtype) for part in batch)
    return (model(x) - y).square().mean()


def full(tensor, device="cpu"):
    if tensor is None:
        return None
    return (tensor.to(device).full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().clone()


def train(model, optimizer, steps, snapshots, share=own):
    """Train, and keep weights and gradients whole after each step."""
    for batch in batches(steps):
        optimizer.zero_grad()
        loss_of(model, share(batch)).backward()
        optimizer.step()
        snapshots.append(snapshot(model))


def snapshot(model, device="cpu"):
    named = {name.removeprefix("module."): p for name, p in model.named_parameters()}
    return {name: (full(p, device), full(p.grad, device)) for name, p in named.items()}


def rows(tracker):
    return tracker.table().to_dict("list")


def ddp(folder, path=None, steps=3, tensors=("weight", "gradient"), metrics=METRICS):
    model = nn.parallel.DistributedDataParallel(build())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshots = []
    tracker = RankTracker(
        model, optimizer, path, schedule=every(1), tensors=tensors, metrics=metrics, reference=[None, "init"]
    )
    snapshots.append(snapshot(model))
    train(model, optimizer, steps, snapshots)
    tracker.log(loss=1.0)
    tracker.close()
    tracker.close()
    return rows(tracker), snapshots, len(model._forward_hooks)


def sharded(folder, path=None, steps=2, mesh=None, tensors=("weight", "gradient"), metrics=METRICS, dtype="float32",
            reference=(None, "init", "identity"), view="out", accumulate=1, evaluate=False, keep=False, mode="x",
            start=0, close=True, halves=False, optimizer="sgd", device="cpu", offload=False):  # fmt: skip
    """FSDP2 over all processes, or over a mesh of two dimensions, whose first replicates."""
    model = build(getattr(torch, dtype)).to(device)
    names = ("replicate", "shard") if mesh else ("shard",)
    mesh = init_device_mesh(device, tuple(mesh or [dist.get_world_size()]), mesh_dim_names=names)
    policy = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)} if halves else {}
    policy |= {"offload_policy": CPUOffloadPolicy()} if offload else {}
    fully_shard(model[3], mesh=mesh, **policy)
    fully_shard(model, mesh=mesh, **policy)
    if keep:
        model.set_reshard_after_backward(False)
    kind = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1), "adam": lambda p: torch.optim.AdamW(p, lr=0.01)}[
        optimizer
    ]
    optimizer = kind(model.parameters())
    if evaluate:
        with torch.no_grad():
            loss_of(model, [part.to(device) for part in own(batches(1)[0])])
    tracker = RankTracker(
        model, optimizer, path, schedule=every(1), tensors=tensors, metrics=metrics, reference=list(reference),
        view=view, mode=mode, start=start,
    )  # fmt: skip
    held = dict(model.named_parameters())
    snapshots = [snapshot(model, device)]
    for batch in batches(steps):
        optimizer.zero_grad()
        for i in range(accumulate):
            model.set_requires_gradient_sync(i == accumulate - 1)
            loss_of(model, [part.to(device) for part in own(batch)]).backward()
        optimizer.step()
        model.reshard()
        model[3].reshard()
        held = dict(model.named_parameters())
        snapshots.append({name: (full(p, device), full(p.grad, device)) for name, p in held.items()})
        if evaluate:
            with torch.no_grad():
                loss_of(model, [part.to(device) for part in own(batch)])
    if close:
        tracker.close()
    return rows(tracker), snapshots


def parallel(folder, steps=2, mesh=(2,), fsdp=False, local_output=True, tensors=("weight", "gradient")):
    """Tensor parallelism, alone or inside FSDP2."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(12, 22), nn.ReLU(), nn.Linear(22, 10), nn.Linear(10, 3))
    plain = copy.deepcopy(model)
    names = ("data", "tensor") if len(mesh) > 1 else ("tensor",)
    mesh = init_device_mesh("cpu", tuple(mesh), mesh_dim_names=names)
    plan_ = {"0": ColwiseParallel(use_local_output=local_output), "2": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"] if len(names) > 1 else mesh, plan_)
    if fsdp:
        fully_shard(model, mesh=mesh["data"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = RankTracker(
        model, optimizer, schedule=every(1), tensors=tensors, reference=[None, "init", "identity"],
        metrics=("rank", "stable_rank", "spectral_norm", "support"),
    )  # fmt: skip
    snapshots, seen = [snapshot(model)], []
    data = mesh["data"].get_local_rank() if len(names) > 1 else 0
    parts = mesh["data"].size() if len(names) > 1 else 1
    for x, y in batches(steps):
        x, y = x.chunk(parts)[data], y.chunk(parts)[data]
        with torch.no_grad():
            plain.load_state_dict({name: w for name, (w, _) in snapshots[-1].items()})
            seen.append([plain[:1](x), plain[:3](x), plain(x)])
        optimizer.zero_grad()
        loss_of(model, (x, y)).backward()
        optimizer.step()
        snapshots.append(snapshot(model))
    tracker.close()
    return rows(tracker), snapshots, seen


def placements(folder, mesh, seed=0):
    """Every layout of a matrix, a kernel and a batch of matrices over a mesh, measured and compared."""
    mesh = init_device_mesh("cpu", tuple(mesh))
    torch.manual_seed(seed)
    tensors = {
        "tall": torch.randn(9, 4), "wide": torch.randn(4, 9), "short": torch.randn(2, 6),
        "kernel": torch.randn(5, 3, 2, 1), "batch": torch.randn(5, 4, 3), "low": torch.randn(13, 2) @ torch.randn(2, 7),
    }  # fmt: skip
    team = Team(mesh.get_all_groups())
    compared = 0
    ways = [("out", PRODUCTS), ("in", PRODUCTS), ("out", (*METRICS[:-1], "singular_values")), ("in", WHOLE)]
    for (name, W), (view, metrics) in itertools.product(tensors.items(), ways):
        choices = [Replicate(), *(Shard(dim) for dim in range(min(W.ndim, 3)))]
        for layout in itertools.product(choices, repeat=mesh.ndim):
            D = distribute_tensor(W, mesh, layout)
            found = indices(D)
            expected = W
            for dim, index in enumerate(found):
                expected = expected.index_select(dim, index)
            assert torch.equal(expected, D.to_local()), (name, layout)
            start = distribute_tensor(W / 2, mesh, layout)
            references = {"none": None, "tensor": start}
            wanted = plan(metrics, tuple(references))
            layers = ShardedLayers(team, [name], wanted, {name: references}, view, {name: None})
            layers.warm = {name: _cold()}
            moment = Moment(layers, lambda _, D=D: D)
            errors = []
            got = moment.share(
                0, lambda m=moment, n=name, e=errors: m.measured(n, lambda key, error: e.append(error))
            )
            assert not errors, errors
            if team.leader:
                compare(
                    wanted.keys,
                    got,
                    wanted.evaluate(W, {"none": None, "tensor": W / 2}, view),
                    (name, layout, view),
                )
                compared += 1
    return compared


def _cold():
    from zanalysis.analyzers.lanczos import WarmStart

    return WarmStart()


def compare(keys, got, want, where):
    exact = {"rank", "support_rows", "support_columns"}
    for key, a, b in zip(keys, got[0], want[0], strict=True):
        assert torch.equal(a.code, b.code), (where, key, a.code, b.code)
        rtol = 0 if key.metric in exact else 1e-4 if key.metric == "stable_rank" else 1e-6
        torch.testing.assert_close(
            a.value, b.value, rtol=rtol, atol=0, equal_nan=True, msg=lambda m, w=where, k=key: f"{w} {k}: {m}"
        )
    for name, values in want[1].items():
        torch.testing.assert_close(got[1][name].reshape(values.shape), values, rtol=1e-6, atol=1e-9)


def spans(folder, kind):
    """Merge spans of which each process has some samples, and compare with that of all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(3)
    options, dtype = {}, torch.float32
    basis = torch.randn(5, 9)
    if kind == "triangle":
        dtype = torch.float64
    elif kind == "bfloat16":
        dtype = torch.bfloat16
    elif kind == "sketch":
        options = {"max_features": 7}
    elif kind == "skipping":
        basis = torch.randn(9, 9)
    wide = torch.float64 if kind == "triangle" else torch.float32
    z = (torch.randn(world * 40, len(basis), dtype=wide) @ basis.to(wide)).to(dtype)
    if kind == "nonfinite":
        z[-1, 2] = torch.nan
    span, everything = ActivationSpan(9, **options), ActivationSpan(9, **options)
    own_rows = z.chunk(world)[rank]
    if kind == "one empty" and rank == world - 1:
        own_rows = own_rows[:0]
    rest = z if kind != "one empty" else torch.cat(z.chunk(world)[:-1])
    for part in own_rows.split(5) if len(own_rows) else ():
        span.update(part)
    everything.update(rest)
    held = [None if kind == "none" else span]
    team = Team([dist.group.WORLD])
    moment = Moment(
        ShardedLayers(team, ["fc"], plan("rank"), {"fc": {}}, "out", {}), lambda _: None, None, held
    )
    merged = moment.share(1, lambda: moment.span(0))
    if merged is None:
        return None
    rules = ("default", "rounding", 1.0) if kind == "bfloat16" else ("default", "numpy", 1e-3)
    readings = [
        [
            (float(s.dimension(rule)), float(s.reading(rule).tolerance), s.reading(rule).status)
            for rule in rules
        ]
        for s in (merged, everything)
    ]
    return (
        readings,
        merged.samples,
        everything.samples,
        span.skipped,
        float(merged.support),
        float(everything.support),
    )


def spanning(folder, kind, window=2, probe=False, tensors=("activation", "activation_gradient"), lost=False):
    """Record the spans of windows of a model that all processes train, on a share of the data each."""
    model = build()
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp":
        fully_shard(model[3])
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"probe": batches(1, 30)[0][0]} if probe else {"span_window": window}
    tracker = RankTracker(
        model, optimizer, schedule=every(2), metrics=("span_dimension", "rank"), tensors=tensors,
        tolerance=["default", 1e-2], **options,
    )  # fmt: skip
    if lost and dist.get_rank() == 1:
        logging.getLogger("hooks").setLevel(logging.CRITICAL)
        tracker._reducer._beside.combine = None
    train(model, optimizer, 4, [])
    tracker.close()
    return rows(tracker)


def thinned(folder):
    """A budget that the processes would answer differently: the first one's answer counts."""
    from hooks.budget import Budget

    answers = itertools.cycle([True, False, False] if dist.get_rank() == 0 else [False, True])
    Budget._affords = lambda self: next(answers)
    model = build()
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = RankTracker(model, optimizer, schedule=every(1), metrics="frobenius_norm", budget=0.5)
    budget = tracker._reducer._budget
    train(model, optimizer, 6, [])
    tracker.close()
    return sorted(set(rows(tracker)["step"])), budget.kept, budget.skipped


def construction_error(folder, which):
    """Raise in every process what goes wrong in the first."""
    model = build()
    if which == "fsdp":
        fully_shard(model)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    path = folder / "missing" / "run.h5" if which == "folder" else folder / "there.h5"
    if dist.get_rank() == 0:
        (folder / "there.h5").write_text("something else")
    dist.barrier()
    try:
        RankTracker(model, None, path, **({"metrics": "rnak"} if which == "metric" else {}))
    except Exception as error:
        dist.barrier()
        return (
            type(error).__name__,
            str(error),
            sorted(p.name for p in folder.iterdir() if p.suffix != ".pkl"),
        )
    return None


def failing(folder, where):
    """Something fails in one process; the others must go on, and the next record must be whole."""
    logging.getLogger("hooks").setLevel(logging.CRITICAL)
    rank = dist.get_rank()
    model = build()
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    broken = {"now": False}

    def picky(matrix):
        if broken["now"] and where == "function":
            raise ValueError("a metric that fails")
        return float(matrix[0, 0])

    metrics = ("rank", "stable_rank", picky) if where == "function" else ("rank", "stable_rank")
    tracker = RankTracker(
        model,
        optimizer,
        schedule=every(1),
        layers=["3", "6", "8"],
        tensors=("weight", "gradient"),
        metrics=metrics,
    )
    reducer = tracker._reducer
    if where in ("leader's part", "other's part"):
        from zanalysis.analyzers.parts import Part

        answer = Part.answer

        def fails(self, *arguments):
            if broken["now"] and rank == (where == "other's part"):
                raise RuntimeError("out of memory")
            return answer(self, *arguments)

        Part.answer = fails
    elif where == "writing" and rank == 0:
        append = tracker._memory.append

        def full_disk(*arguments):
            if broken["now"]:
                raise OSError("No space left on device")
            append(*arguments)

        tracker._memory.append = full_disk
    elif where in ("leader's gradients", "other's gradients") and rank == (where == "other's gradients"):
        told = reducer.gradients_told

        def lost():
            if broken["now"]:
                raise RuntimeError("lost")
            told()

        reducer.gradients_told = lost
    elif where == "reading" and rank == 1:
        weight = reducer._weight

        def unreadable(name):
            if broken["now"]:
                raise RuntimeError("unreadable")
            return weight(name)

        reducer._weight = unreadable
    for step, batch in enumerate(batches(3)):
        broken["now"] = step == 1
        optimizer.zero_grad()
        loss_of(model, own(batch)).backward()
        optimizer.step()
    tracker.close()
    return rows(tracker), [p.to_local().sum().item() for p in model.parameters()]


def undisturbed(folder, attach):
    """Train with a tracker and without."""
    model = build()
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    tracker = None
    if attach:
        tracker = RankTracker(
            model, optimizer, schedule=every(1), tensors=("weight", "gradient", "activation"),
            metrics=("rank", "stable_rank", "support"), reference=[None, "init"],
        )  # fmt: skip
    for batch in batches(4):
        optimizer.zero_grad()
        loss_of(model, own(batch)).backward()
        optimizer.step()
    if tracker:
        tracker.close()
    return [full(p) for p in model.parameters()], torch.get_rng_state()


def alone(folder):
    """A plain model in a program with a process group: only the first process attaches."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = (
        RankTracker(model, optimizer, folder / "run.h5", schedule=every(1)) if dist.get_rank() == 0 else None
    )
    for batch in batches(2):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    if tracker:
        tracker.close()
        return sorted(set(rows(tracker)["step"]))
    return None


def zero(folder):
    """DDP with an optimizer whose state is sharded."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = nn.parallel.DistributedDataParallel(build())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.01)
    tracker = RankTracker(
        model,
        optimizer,
        schedule=every(1),
        tensors=("weight", "gradient"),
        metrics=("rank", "frobenius_norm"),
    )
    snapshots = [snapshot(model)]
    train(model, optimizer, 2, snapshots)
    tracker.close()
    return rows(tracker), snapshots


def resumed(folder, first):
    """Record two steps, and go on in the same file in another life."""
    path = str(Path(folder).parent / "run.h5")
    if first:
        return sharded(folder, path, 2, tensors=("weight",), metrics=("frobenius_norm",), reference=("init",))
    torch.manual_seed(99)
    model = build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    fully_shard(model)
    tracker = RankTracker(
        model, None, path, schedule=every(1), metrics="frobenius_norm", reference="init", mode="a", start=2
    )
    snapshots = snapshot(model)
    parts = {
        name: (full(given["init"]), isinstance(given["init"], DTensor))
        for name, given in tracker._reducer._references.items()
    }
    tracker.close()
    return rows(tracker), snapshots, parts


def agreement(folder):
    """What the first process says holds for all."""
    team = Team([dist.group.WORLD])
    values = [team.agreed(value) for value in (dist.get_rank() == 0, 0.25 + dist.get_rank())]
    return values, team.leader, team.number


def teams(folder, mesh):
    """Numbers along the dimensions of a mesh."""
    mesh = init_device_mesh("cpu", tuple(mesh))
    team = Team(mesh.get_all_groups())
    total = float(team.everyone(torch.tensor([2.0 ** dist.get_rank()])))
    from hooks.team import Message, Task

    def answer(message):
        return torch.full((message.size,), 2.0 ** dist.get_rank()) * message.vector.sum()

    if team.leader:
        vector = torch.tensor([1.0, 2.0], dtype=torch.float64)
        found = team.lead(
            0,
            lambda: [
                team.ask(Message(task, 2, (1.0,), vector), answer).tolist()
                for task in (Task.SUM, Task.MAXIMUM)
            ],
        )
        return total, team.number, found
    team.follow(0, answer)
    return total, team.number, None


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight


def parametrized(folder):
    """A sharded weight that is computed from what is trained."""
    model = nn.Sequential(nn.Linear(12, 9, bias=False), nn.Linear(9, 3))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    fully_shard(model)
    tracker = RankTracker(model, None, schedule=every(1), metrics=("rank", "frobenius_norm"))
    tracker.step()
    tracker.close()
    return rows(tracker), full(model[0].parametrizations.weight.original)


def mixed(folder):
    """Layers that are sharded beside layers that are not, some of which the tracker follows."""
    model = build()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model[3].weight = nn.Parameter(distribute_tensor(model[3].weight.detach(), mesh, [Shard(0)]))
    layers = select_layers(model, ["3", "5"])
    tracker = RankTracker(model, None, layers=["3", "5"], metrics=("rank", "support"))
    tracker.step()
    tracker.close()
    return team_of(model, layers) is not None, team_of(model, layers[1:]), rows(tracker)


def recorded(folder, path, steps=3):
    """A Recorder under DDP: what the first process wrote is read by all, what the others hold is returned."""
    model = nn.parallel.DistributedDataParallel(build())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, path, schedule=every(1), tensors=("weight", "gradient")) as recorder:
        train(model, optimizer, steps, [])
        recorder.log(loss=1.0)
    listed = sum(len(one.steps) for one in recorder.tensors)
    weights = {
        n.removeprefix("module.").removesuffix(".weight"): p.detach().clone()
        for n, p in model.named_parameters()
    }
    return listed, weights, len(model._forward_hooks)


def recorder_refused(folder, which):
    """What a Recorder says of a file that is there, or of weights in parts, in every process."""
    model = build()
    if which == "sharded":
        fully_shard(model)
    else:
        model = nn.parallel.DistributedDataParallel(model)
        if dist.get_rank() == 0:
            (folder / "there.h5").write_text("something else")
        dist.barrier()
    try:
        Recorder(model, None, folder / "there.h5", schedule=every(1))
    except Exception as error:
        return type(error).__name__, str(error)
    return None
