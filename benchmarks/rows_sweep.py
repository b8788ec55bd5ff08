"""The benchmark rows of sweeps: 200 checkpoints of an MLP on two Dask workers, on one, and without Dask.

Workers have one thread each. What it takes to start them and to import torch there is left out: the clusters are
up, and have measured a few checkpoints, before the clock runs. Half of what is timed is the client's own: it opens
the checkpoints and sends their layers out.
"""

import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import distributed
import torch
from torch import nn

import zanalysis as za

CHECKPOINTS, REPETITIONS = 200, 3
METRICS = ("rank", "stable_rank", "effective_rank")


def _write(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    for step in range(CHECKPOINTS):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
        torch.save(model.state_dict(), folder / f"step-{step}.pt")


def _cluster(workers: int) -> distributed.LocalCluster:
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address=":0",
        memory_limit=0,
        silence_logs=50,
        env={"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )


def rows() -> list[dict[str, str | float]]:
    """Time the same sweep three ways, interleaved; medians.

    The values are the sums of all ranks, which must agree.

    Returns:
        Rows with name, ours_s, peer_s, ratio, ours_value, peer_value, required.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        _cluster(1) as one,
        _cluster(2) as two,
        distributed.Client(one, set_as_default=False) as alone,
        distributed.Client(two, set_as_default=False) as both,
    ):
        folder = Path(name)
        _write(folder)
        few = sorted(folder.iterdir())[:8]
        ways = {"one": {"scheduler": alone}, "two": {"scheduler": both}, "default": {}}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        ranks: dict[str, float] = {}
        for settings in ways.values():
            za.analyze(few, metrics=METRICS, **settings)
        for _ in range(REPETITIONS):
            for way, settings in ways.items():
                start = perf_counter()
                table = za.analyze(folder, metrics=METRICS, **settings)
                seconds[way].append(perf_counter() - start)
                ranks[way] = table.loc[table["metric"] == "rank", "value"].sum().item()
    took = {way: median(times) for way, times in seconds.items()}
    return [
        _row(f"{CHECKPOINTS} checkpoints of an MLP: two Dask workers against one", "two", took, ranks, 1.5),
        _row("the same without Dask, in threads, against one Dask worker", "default", took, ranks, 1.0),
    ]


def _row(
    name: str, way: str, took: dict[str, float], ranks: dict[str, float], required: float
) -> dict[str, str | float]:
    return {
        "name": name,
        "ours_s": took[way],
        "peer_s": took["one"],
        "ratio": took["one"] / took[way],
        "ours_value": ranks[way],
        "peer_value": ranks["one"],
        "required": required,
    }


if __name__ == "__main__":
    for row in rows():
        print(row)
