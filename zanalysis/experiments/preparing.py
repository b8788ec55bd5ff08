"""The network of a training, as it is before the first step."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, nn

from zanalysis import initializers
from zanalysis.errors import InputError
from zanalysis.experiments import models
from zanalysis.experiments.data import Dataset
from zanalysis.experiments.jobs import Job, mixed

__all__ = ["Prepared", "isolated", "prepared"]


@dataclass(frozen=True)
class Prepared:
    """A network before its first step.

    Attributes:
        model: the network, where it is trained.
        generator: what its initialization draws from, then and later.
        notes: what the initialization assumed, and which parameters it left as they were.
    """

    model: nn.Module
    generator: Generator
    notes: tuple[str, ...]


@contextmanager
def isolated(job: Job) -> Iterator[None]:
    """Keep the global random number generators for oneself, seeded; afterwards they are what they were.

    Args:
        job: whose seed.

    Yields:
        Nothing.
    """
    device = torch.device(job.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(mixed(job.seed, "global"))
        yield


def prepared(job: Job) -> Prepared:
    """Build and initialize the network of a training.

    Random weights depend on the seed; a deterministic initialization gives every seed the same ones.

    Args:
        job: the training; call it within `isolated`, because PyTorch's own initialization draws from the
            global generator.

    Returns:
        The network.

    Raises:
        InputError: if the model or its initialization cannot be had.
    """
    data, system = job.data, job.variant.system
    given = (
        {"image": data.image, "classes": data.classes}
        if isinstance(data, Dataset)
        else {"vocabulary": data.vocabulary}
    )
    try:
        model = models.build(job.protocol.model, **given, **job.protocol.arguments)
    except InputError as error:
        raise InputError(f"{job.variant.label} cannot be built: {error}") from error
    generator = Generator().manual_seed(mixed(job.seed, "weights"))
    notes: tuple[str, ...] = ()
    if system.initialization is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = initializers.initialize(
                model, system.initialization, generator=generator, **system.options
            )
        unknown = [f"left as the model made it: {name}" for name in report.unknown]
        notes = (*report.assumed, *unknown)
        for warning in caught:
            if not issubclass(warning.category, UserWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        model = report.model
    return Prepared(model.to(job.device), generator, notes)
