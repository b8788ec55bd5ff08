"""What is measured on a trained network, as tables beside its run file: pruning and Tucker-2 curves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from zanalysis.analyzers.pruning import pruning_curve
from zanalysis.analyzers.tucker import tucker_curve
from zanalysis.experiments.feeding import Feed
from zanalysis.experiments.jobs import Job
from zanalysis.experiments.resuming import Files, write

__all__ = ["FRACTIONS", "SPARSITIES", "measure_after"]

SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Shares of each layer's weights that are set to zero (Figure 6, middle; the paper gives no grid)."""
FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Tucker-2 ranks as shares of the channels (Figure 6, right; the paper gives no grid)."""


def measure_after(job: Job, model: nn.Module, feed: Feed, files: Files) -> dict[str, Any]:
    """Measure a trained network by what its experiment asks for, and write each as a CSV file.

    Args:
        job: the training.
        model: the network; the same afterwards.
        feed: evaluates it.
        files: of the training.

    Returns:
        By what was measured: the name of the file.
    """

    def evaluate(network: nn.Module) -> float:
        return feed.evaluate(network)[f"test_{job.metric}"]

    made: dict[str, Callable[[], Any]] = {
        "pruning": lambda: pruning_curve(model, evaluate, SPARSITIES),
        "tucker": lambda: _tucker(model, evaluate),
    }
    written = {}
    for what in job.after:
        frame = pd.DataFrame(made[what]())
        path = files.folder / f"{files.name}-{what}.csv"
        write(path, lambda beside, frame=frame: _csv(frame, beside))  # type: ignore[misc]
        written[what] = path.name
    return written


def _csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def _tucker(model: nn.Module, evaluate: Callable[[nn.Module], float]) -> Any:
    """Score the last convolution between the most channels, of which Figure 6 shows one with 512.

    Args:
        model: the network.
        evaluate: gives the score.

    Returns:
        The columns of `tucker_curve`.
    """
    kernels = {
        name: module.weight.shape
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.weight.shape[-1] > 1
    }
    layer = max(kernels, key=lambda name: (min(kernels[name][:2]), list(kernels).index(name)))
    out, into = kernels[layer][:2]
    ranks = [(max(1, round(fraction * out)), max(1, round(fraction * into))) for fraction in FRACTIONS]
    return tucker_curve(model, evaluate, layer, list(dict.fromkeys(ranks)))
