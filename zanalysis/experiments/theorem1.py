"""Theorem 1 and Figure 3 of the ZerO paper: train the networks, with the tracker attached.

Left panel: the partial identity at every width. Right panel, at the largest width: random, partial
identity and Hadamard. For the second cap, Hadamard once more in float64, at every width.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hooks import RankTracker, every
from zanalysis import initializers
from zanalysis.analyzers.span import activation_span
from zanalysis.errors import InputError
from zanalysis.experiments.data import Dataset
from zanalysis.experiments.models import Network, perceptron
from zanalysis.verify.theorem1 import SPAN

__all__ = [
    "INITIALIZATIONS",
    "PAPER_WIDTHS",
    "SCALES",
    "WIDTHS",
    "Case",
    "Training",
    "cases",
    "settings",
    "train",
]

Initialization = Literal["random", "identity", "hadamard", "hadamard-float64"]
Scale = Literal["smoke", "small", "paper"]
Progress = Callable[[int, int], None]

INITIALIZATIONS = ("random", "identity", "hadamard", "hadamard-float64")
SCALES: dict[str, int | None] = {"smoke": 100, "small": 300, "paper": None}
"""Steps of each scale; at the paper's it is 20 epochs."""
WIDTHS = {
    "digits": (64, 128, 256),
    "mnist": (1024,),
    "fashion-mnist": (1024,),
}
PAPER_WIDTHS = (256, 512, 1024, 2048)

# Section 2.3 and the authors' notebook: plain SGD, lr 0.1, times 0.7 every 12 epochs, batch 64.
BATCH, LEARNING_RATE, EPOCHS, DECAY_EVERY, DECAY = 64, 0.1, 20, 12, 0.7
RECORD_EVERY = 50
ABSOLUTE_TOLERANCE = 1e-4
_SPAN_SAMPLES = 10_000


@dataclass(frozen=True)
class Training:
    """How every network of one verification is trained.

    Attributes:
        data: the data set.
        network: the paper's perceptron, or that of its notebook.
        scale: how long.
        seed: of the order of the samples, and of the random initialization.
        device: where.
    """

    data: Dataset
    network: Network = "paper"
    scale: Scale = "small"
    seed: int = 0
    device: str = "cpu"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return SCALES[self.scale] or EPOCHS * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the incomplete last one included."""
        return -(-len(self.data.train_images) // BATCH)


@dataclass(frozen=True)
class Case:
    """One network: an initialization at a width. Its run file is `{initialization}-{width}.h5`."""

    initialization: Initialization
    width: int

    @property
    def filename(self) -> str:
        """Name of its run file."""
        return f"{self.initialization}-{self.width}.h5"


def cases(widths: Sequence[int]) -> list[Case]:
    """Return the networks that both panels and the second cap need.

    Args:
        widths: hidden dimensions.

    Returns:
        The cases, in the order they are trained.

    Raises:
        InputError: if a width is not a whole number of 2 or more.
    """
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int) or width < 2:
            raise InputError(f"got width {width!r}, expected a whole number, 2 or more.")
    if not widths:
        raise InputError("no width was given; pass at least one.")
    chosen = sorted(set(widths))
    left = [Case("identity", width) for width in chosen]
    right = [Case("random", chosen[-1]), Case("hadamard", chosen[-1])]
    return [*left, *right, *(Case("hadamard-float64", width) for width in chosen)]


def settings(case: Case, training: Training) -> dict[str, str | int]:
    """Return what decides the outcome of a training; it is stored with the run.

    Args:
        case: the network.
        training: how it is trained.

    Returns:
        The facts, by name.
    """
    return {
        "experiment": "theorem1",
        "initialization": case.initialization,
        "width": case.width,
        "network": training.network,
        "data": training.data.name,
        "data_fingerprint": training.data.fingerprint,
        "scale": training.scale,
        "steps": training.steps,
        "seed": training.seed,
        "device": training.device,
    }


def _initialized(case: Case, training: Training) -> nn.Sequential:
    dtype = torch.float64 if case.initialization == "hadamard-float64" else torch.float32
    data = training.data
    model = perceptron(data.features, case.width, data.classes, network=training.network, dtype=dtype)
    if case.initialization == "random":
        generator = torch.Generator().manual_seed(training.seed)
        for parameter in model.parameters():
            nn.init.kaiming_normal_(parameter, generator=generator)
    else:
        kind: Literal["standard", "hadamard"] = (
            "standard" if case.initialization == "identity" else "hadamard"
        )
        initializers.gi_(model, kind, _normalization(case))
    return model.to(training.device)


def _normalization(case: Case) -> initializers.Normalization:
    """Return the Hadamard factor: the orthonormal one, but a power of two where ties are to be kept.

    With an irrational factor a unit whose pre-activation is exactly 0 gets a rounding error of either
    sign, and the ReLU passes the gradient of one of two tied units and not of the other: an error of
    1e-17 becomes one of 1e-6 in the first step. `2^{−m/2}` is a power of two where m is even, the
    paper's printed `2^{−(m−1)/2}` where it is odd.

    Args:
        case: the network.

    Returns:
        The normalization.
    """
    even = (case.width - 1).bit_length() % 2 == 0
    return "orthonormal" if case.initialization != "hadamard-float64" or even else "paper"


def _batches(data: Dataset, seed: int, steps: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while True:
        order = torch.randperm(len(data.train_images), generator=generator)
        for batch in torch.split(order, BATCH):
            if done == steps:
                return
            done += 1
            yield batch


def train(
    case: Case,
    training: Training,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress = lambda done, of: None,
) -> Path:
    """Train one network with the tracker attached.

    Every 50 steps the rank, support and stable rank of every weight are recorded against α·I*; the
    activation spans of the hidden layers over up to 10,000 training images at the first and last step.

    Args:
        case: what is trained.
        training: how.
        path: the run file.
        overwrite: whether an existing file is replaced.
        progress: called with the steps done and their number.

    Returns:
        The path.

    Raises:
        InputError: if the data are not at hand or not what they should be.
        RunFileError: if the run file is there already and may not be replaced, or cannot be written.
    """
    model = _initialized(case, training)
    dtype = next(model.parameters()).dtype
    images = training.data.train_images.flatten(1).to(training.device, dtype)
    labels = training.data.train_labels.to(training.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.StepLR(optimizer, DECAY_EVERY, DECAY)
    tracker = RankTracker(
        model,
        optimizer,
        path,
        schedule=every(RECORD_EVERY),
        reference="identity",
        metrics=("rank", "support", "stable_rank"),
        tolerance=("default", ABSOLUTE_TOLERANCE, "rounding"),
        mode="w" if overwrite else "x",
        attributes=settings(case, training),
    )
    with tracker:
        progress(0, training.steps)
        tracker.log(**_spans(model, images))
        for done, batch in enumerate(_batches(training.data, training.seed, training.steps), 1):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if done % RECORD_EVERY == 0:
                tracker.log(loss=loss)
            if done % training.steps_per_epoch == 0:
                decay.step()
            progress(done, training.steps)
        tracker.log(**_spans(model, images))
    return Path(path)


def _spans(model: nn.Sequential, images: Tensor) -> dict[str, float]:
    hidden = [name for name, _ in model.named_children() if name.startswith("phi")]
    spans = activation_span(model, images[:_SPAN_SAMPLES], hidden)
    return {SPAN + name: float(span.dimension()) for name, span in spans.items()}
