"""Rows of the benchmark table: activation spans and Jacobian spectra, each beside what one would use instead.

Ours and the peer take turns in one process, on fresh inputs in each repetition; a row gives medians. Memory
is taken in a process of its own for each side, as the growth of its high-water mark (VmHWM) over what it
was after a warm-up on small inputs, so that neither the interpreter nor the libraries count.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zanalysis.analyzers.jacobian import jacobian_singular_values
from zanalysis.analyzers.span import ActivationSpan, Stop

SAMPLES, FEATURES, DIMENSION, BATCH = 60_000, 1024, 784, 1000


def activations(seed: int, samples: int = SAMPLES, features: int = FEATURES) -> Iterator[Tensor]:
    """Draw batches that span 784 of 1024 dimensions, as behind 784 inputs.

    Args:
        seed: of a generator of its own.
        samples: how many in all.
        features: how wide.

    Yields:
        `[BATCH, features]` float32.
    """
    rng = torch.Generator().manual_seed(seed)
    dimension = DIMENSION * features // FEATURES
    mixing = torch.randn(dimension, features, generator=rng) / dimension**0.5
    for _ in range(samples // BATCH):
        yield torch.randn(BATCH, dimension, generator=rng) @ mixing


def span_by_accumulation(
    batches: Iterator[Tensor], features: int = FEATURES, stop: Stop = "settled"
) -> float:
    """Count with memory O(features²)."""
    span = ActivationSpan(features, stop=stop)
    for z in batches:
        span.update(z)
    return span.dimension().item()


def span_by_stacking(batches: Iterator[Tensor], samples: int = SAMPLES, features: int = FEATURES) -> float:
    """Count in the stacked matrix at the same tolerance, filled in place to spare the peer a second copy."""
    stacked = torch.empty(samples, features)
    for index, z in enumerate(batches):
        stacked[index * BATCH : (index + 1) * BATCH] = z
    sigma = torch.linalg.svdvals(stacked)
    return float((sigma > features * torch.finfo(stacked.dtype).eps * sigma[0]).sum())


def perceptron(seed: int) -> tuple[nn.Module, Tensor]:
    """Build the network and its 64 inputs."""
    torch.manual_seed(seed)
    sizes = [784, 512, 512, 10]
    layers = [nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2]), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[2], sizes[3])), torch.rand(64, 784)


def spectra_by_loop(model: nn.Module, x: Tensor) -> Tensor:
    """Take one Jacobian after another."""
    return torch.stack(
        [
            torch.linalg.svdvals(torch.autograd.functional.jacobian(model, sample[None]).reshape(10, 784))
            for sample in x
        ]
    )


def _timed(function: Callable, *arguments: object) -> tuple[float, Any]:
    start = time.perf_counter()
    value = function(*arguments)
    return time.perf_counter() - start, value


def _span_row(repetitions: int, stop: Stop, required: float) -> dict:
    ours, peer, values = [], [], []
    for seed in range(repetitions):
        batches = list(activations(seed))
        seconds, own = _timed(span_by_accumulation, iter(batches), FEATURES, stop)
        ours.append(seconds)
        seconds, other = _timed(span_by_stacking, iter(batches))
        peer.append(seconds)
        values.append((own, other))
    assert all(own == other for own, other in values), values
    name = f"activation span, 60,000x1024, stop={stop!r}: time (s)"
    return _row(name, ours, peer, *values[-1], required=required)


def _memory_row() -> dict:
    ours, peer = (_peak_of(side) for side in ("accumulation", "stacking"))
    assert ours["value"] == peer["value"], (ours, peer)
    return _row(
        "activation span, 60,000x1024: peak memory (MiB)",
        [ours["mib"]],
        [peer["mib"]],
        ours["value"],
        peer["value"],
        required=10.0,
    )


def _jacobian_row(repetitions: int) -> dict:
    ours, peer, error = [], [], 0.0
    for seed in range(repetitions + 1):
        model, x = perceptron(seed)
        # They take turns in going first, which finds the weights cold.
        if seed % 2:
            own_seconds, own = _timed(jacobian_singular_values, model, x)
            other_seconds, other = _timed(spectra_by_loop, model, x)
        else:
            other_seconds, other = _timed(spectra_by_loop, model, x)
            own_seconds, own = _timed(jacobian_singular_values, model, x)
        error = max(error, ((own - other).abs() / other[:, :1]).max().item())
        # The first repetition pays for lazy imports on either side.
        if seed:
            ours.append(own_seconds)
            peer.append(other_seconds)
    assert error < 1e-5, error
    largest = own[0, 0].item(), other[0, 0].item()
    return _row("Jacobian spectra of 64 samples, 784-512-512-10 (s)", ours, peer, *largest, required=8.0)


def _row(name: str, ours: list, peer: list, ours_value: float, peer_value: float, required: float) -> dict:
    ours_median, peer_median = statistics.median(ours), statistics.median(peer)
    return {
        "name": name,
        "ours_s": ours_median,
        "peer_s": peer_median,
        "ratio": peer_median / ours_median,
        "ours_value": ours_value,
        "peer_value": peer_value,
        "required": required,
    }


def _peak_of(side: str) -> dict:
    command = [sys.executable, str(Path(__file__).resolve()), side]
    # The allocator gives back at once what is freed, so that the peak is that of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def _high_water_mib() -> float:
    # Not ru_maxrss: that one survives exec, and would start at what the parent process once used.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _measure_peak(side: str) -> dict:
    function = {"accumulation": span_by_accumulation, "stacking": span_by_stacking}[side]
    warm = {} if side == "accumulation" else {"samples": 2 * BATCH}
    function(activations(0, 2 * BATCH, 64), features=64, **warm)
    before = _high_water_mib()
    value = function(activations(0))
    return {"mib": _high_water_mib() - before, "value": value}


def rows(repetitions: int = 5) -> list[dict]:
    """Measure all rows.

    Args:
        repetitions: of each timing.

    Returns:
        Rows with name, ours_s, peer_s (seconds, or MiB where the name says so), ratio, ours_value,
        peer_value and the ratio required.
    """
    return [
        _span_row(repetitions, "settled", 1.3),
        # With nothing skipped, the products alone: what data without a gap costs.
        _span_row(repetitions, "never", 1.0),
        _memory_row(),
        _jacobian_row(4 * repetitions),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_measure_peak(sys.argv[1])))
    else:
        for row in rows():
            print(row)
