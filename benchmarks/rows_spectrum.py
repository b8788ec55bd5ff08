"""The spectral quantities against what a user could call instead, side by side in one process.

Every repetition draws fresh inputs, and the two contestants take turns. `python
benchmarks/rows_spectrum.py` prints the rows; `rows` returns them.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zanalysis.analyzers import spectrum
from zanalysis.analyzers.lanczos import WarmStart
from zanalysis.analyzers.metrics import plan
from zanalysis.analyzers.residual import Residual

SIZE = 2048
RESNET18 = (
    [(64, 3, 7, 7)]
    + [(64, 64, 3, 3)] * 4
    + [(128, 64, 3, 3), (128, 128, 3, 3), (128, 64, 1, 1)]
    + [(128, 128, 3, 3)] * 2
    + [(256, 128, 3, 3), (256, 256, 3, 3), (256, 128, 1, 1)]
    + [(256, 256, 3, 3)] * 2
    + [(512, 256, 3, 3), (512, 512, 3, 3), (512, 256, 1, 1)]
    + [(512, 512, 3, 3)] * 2
)
"""The twenty convolutions of a ResNet-18 (He et al. 2016, table 1)."""


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds a call took, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def duel(
    name: str,
    required: float,
    inputs: Callable[[int], Any],
    ours: Callable[[Any], float],
    peer: Callable[[Any], float],
    repetitions: int = 7,
) -> dict[str, Any]:
    """Time two ways to the same number on fresh inputs; the values are of the last repetition."""
    times: list[tuple[float, float]] = []
    worst = 0.0
    for repetition in range(repetitions + 1):
        given = inputs(repetition)
        peer_s, peer_value = timed(partial(peer, given))
        ours_s, ours_value = timed(partial(ours, given))
        worst = max(worst, abs(ours_value - peer_value) / max(1.0, abs(peer_value)))
        if repetition:  # the first warms up
            times.append((ours_s, peer_s))
    return row(name, required, times, ours_value, peer_value) | {"worst_difference": worst}


def row(
    name: str, required: float, times: list[tuple[float, float]], ours_value: Any, peer_value: Any
) -> dict[str, Any]:
    """Lay out one row: medians of the times, and the median of the ratios."""
    return {
        "name": name,
        "ours_s": statistics.median(ours for ours, _ in times),
        "peer_s": statistics.median(peer for _, peer in times),
        "ratio": statistics.median(peer / ours for ours, peer in times),
        "ours_value": ours_value,
        "peer_value": peer_value,
        "required": required,
    }


def product(rank: int, seed: int) -> torch.Tensor:
    """Return a float32 matrix of the given numerical rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, rank, generator=generator) @ torch.randn(rank, SIZE, generator=generator)


def partial_identity(seed: int) -> torch.Tensor:
    """Return a width-2048 identity that has learned in its leading 784 rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    learned = torch.linalg.qr(torch.randn(784, 784, generator=generator))[0]
    W = torch.eye(SIZE)
    W[:784, :784] += learned * (0.05 + torch.rand(784, generator=generator))  # no σ near any tolerance
    return W


def rank_with_margin(W: torch.Tensor) -> float:
    """Count, and measure the margin, at once."""
    return float(plan(("rank", "rank_margin")).evaluate(W, {"none": None})[0][0].value)


def stable_rank_by_svd(W: torch.Tensor) -> float:
    """Take the whole spectrum for it, as one does."""
    values = torch.linalg.svdvals(W).double()
    return float(values.square().sum() / values[0] ** 2)


def along_a_training(records: int = 24, every: int = 5) -> dict[str, Any]:
    """Train a network of width 2048 on the digits and take the stable rank at each record."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)
    weights = [
        (torch.randn(shape, generator=generator) / shape[1] ** 0.5).requires_grad_()
        for shape in ((SIZE, 64), (SIZE, SIZE), (10, SIZE))
    ]
    optimizer = torch.optim.SGD(weights, 0.05, momentum=0.9)
    warm, times, worst, ours_value, peer_value = WarmStart(), [], 0.0, 0.0, 0.0
    for step in range(records * every):
        if step % every == 0:
            W = weights[1].detach().clone()
            peer_s, peer_value = timed(lambda W=W: stable_rank_by_svd(W))
            ours_s, ours_value = timed(lambda W=W: float(Residual.of(W, warm=warm).stable_rank))
            worst = max(worst, abs(ours_value / peer_value - 1))
            if step:
                times.append((ours_s, peer_s))
        batch = torch.randint(len(x), (128,), generator=generator)
        hidden = torch.relu(torch.relu(x[batch] @ weights[0].mT) @ weights[1].mT)
        loss = torch.nn.functional.cross_entropy(hidden @ weights[2].mT, y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    name = "stable rank along a training, 2048×2048, warm, against svdvals"
    return row(name, 60, times, ours_value, peer_value) | {"worst_difference": worst}


ALL = ("rank", "rank_margin", "stable_rank", "effective_rank", "spectral_norm", "frobenius_norm")
ALL += ("nuclear_norm", "condition_number", "support", "singular_values")


SHARED = ("stable_rank", "spectral_norm", "frobenius_norm")
"""What WeightWatcher has too, and where it takes whole spectra for it."""


def resnet_seconds(seed: int, metrics: tuple[str, ...] = ALL) -> tuple[float, float]:
    """Measure spectral metrics of every convolution of a ResNet-18; seconds, and the last stable rank.

    The stable rank returned is of what WeightWatcher takes the spectrum of, one matrix for each tap with
    all their singular values together, and is not timed.
    """
    generator = torch.Generator().manual_seed(seed)
    kernels = [
        torch.randn(shape, generator=generator) * (2 / (shape[0] * shape[2] * shape[3])) ** 0.5
        for shape in RESNET18
    ]
    measured = plan(metrics)
    seconds, results = timed(lambda: [measured.evaluate(kernel, {"none": None}) for kernel in kernels])
    assert len(results) == len(RESNET18)
    values = spectrum.singular_values(kernels[-1], view="taps")
    return seconds, float(values.square().sum() / values.max() ** 2)


PEER = """
import json, logging, sys, time, torch
logging.disable(logging.CRITICAL)
import weightwatcher as ww
shapes, seed = json.loads(sys.argv[1]), int(sys.argv[2])
generator = torch.Generator().manual_seed(seed)
layers = []
for out, into, k, l in shapes:
    layer = torch.nn.Conv2d(into, out, (k, l), bias=False)
    layer.weight.data = torch.randn(out, into, k, l, generator=generator) * (2 / (out * k * l)) ** 0.5
    layers.append(layer)
watcher = ww.WeightWatcher(model=torch.nn.Sequential(*layers))
start = time.perf_counter()
details = watcher.analyze(plot=False)
seconds = time.perf_counter() - start
print("RESULT", json.dumps([seconds, len(details), float(details["stable_rank"].iloc[-1])]))
"""


def against_weightwatcher(repetitions: int = 3) -> list[dict[str, Any]]:
    """Run WeightWatcher where it is installed: its pins do not go with ours, so in its own environment.

    `WEIGHTWATCHER_PYTHON` names the interpreter; without it this one is tried. No rows if it has none.
    """
    python = os.environ.get("WEIGHTWATCHER_PYTHON", sys.executable)
    kinds = {"all spectral metrics": ALL, "the norms and the stable rank": SHARED}
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    ours_value, peer_value = 0.0, 0.0
    for seed in range(repetitions):
        command = [python, "-W", "ignore", "-c", PEER, json.dumps(RESNET18), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        if not lines:
            return []
        peer_s, layers, peer_value = json.loads(lines[0].removeprefix("RESULT"))
        for kind, metrics in kinds.items():
            ours_s, ours_value = resnet_seconds(seed, metrics)
            times[kind].append((ours_s, peer_s))
    name = f"of ResNet-18's convolutions, against WeightWatcher ({layers} layers)"
    return [row(f"{kind} {name}", 20, times[kind], ours_value, peer_value) for kind in kinds]


def rows() -> list[dict[str, Any]]:
    """Measure each row of the table that this module answers for."""

    def gaussian(seed: int) -> torch.Tensor:
        return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed))

    def matrix_rank(W: torch.Tensor) -> float:
        return float(torch.linalg.matrix_rank(W))

    identity = torch.eye(SIZE)
    table = [
        duel(
            "rank and margin, 2048×2048 of rank 1228, against matrix_rank",
            3,
            lambda seed: product(1228, seed),
            rank_with_margin,
            matrix_rank,
        ),
        duel(
            "rank of W − I, 784-dimensional support in 2048×2048, against matrix_rank",
            15,
            partial_identity,
            lambda W: float(spectrum.rank(W, reference="identity")),
            lambda W: float(torch.linalg.matrix_rank(W - identity)),
        ),
        duel(
            "rank of 2048×2048 of numerical rank 64, against matrix_rank",
            8,
            lambda seed: product(64, seed),
            lambda W: float(spectrum.rank(W)),
            matrix_rank,
        ),
        duel(
            "stable rank, 2048×2048 Gaussian, cold, against svdvals",
            25,
            gaussian,
            lambda W: float(spectrum.stable_rank(W)),
            stable_rank_by_svd,
        ),
        along_a_training(),
    ]
    return [*table, *against_weightwatcher()]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    for entry in rows():
        print(json.dumps(entry, ensure_ascii=False))
