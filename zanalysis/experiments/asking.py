"""What is asked of an experiment, checked: its scale, seeds, systems, length, data, device and threads."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from zanalysis.errors import InputError, ZAnalysisError, did_you_mean
from zanalysis.experiments.data import DATASETS, Dataset, TextDataset, load
from zanalysis.experiments.jobs import Variant, variants
from zanalysis.experiments.recipes.schema import SCALES, Protocol, Recipe, Scale

__all__ = [
    "check_device",
    "checked_scale",
    "checked_seeds",
    "chosen_variants",
    "loaded_data",
    "on_data",
    "stretched",
    "using_threads",
]

_SEEDS = 2**63


def checked_scale(scale: str) -> Scale:
    """Return a scale.

    Args:
        scale: its name.

    Returns:
        It.

    Raises:
        InputError: if there is none of that name.
    """
    for known in SCALES:
        if scale == known:
            return known
    raise InputError(f"unknown scale {scale!r}; {did_you_mean(scale, SCALES)}")


def checked_seeds(seeds: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Return which seeds are meant.

    Args:
        seeds: how many, or which, or None.

    Returns:
        Each once, in their order; None for None.

    Raises:
        InputError: if one is no seed, or there is none.
    """
    if seeds is None:
        return None
    whole = isinstance(seeds, int) and not isinstance(seeds, bool)
    if whole and not 1 <= seeds <= 10_000:  # type: ignore[operator]
        raise InputError(f"got seeds = {seeds!r}, expected how many, from 1 to 10000, or a list of them.")
    listed = tuple(range(seeds)) if whole else tuple(seeds)  # type: ignore[arg-type]
    if not listed:
        raise InputError("got no seed, expected at least one.")
    for seed in listed:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEEDS:
            raise InputError(f"got seed {seed!r}, expected a whole number from 0 to {_SEEDS - 1}.")
    return tuple(dict.fromkeys(listed))


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Args:
        device: its name.

    Raises:
        InputError: if nothing can be computed on it.
    """
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise InputError(f"device {device!r} cannot be used here: {reason}.") from error


def chosen_variants(recipe: Recipe, protocol: Protocol, only: Sequence[str]) -> list[Variant]:
    """Choose systems by label, with or without the value of what is swept.

    Args:
        recipe: the experiment.
        protocol: of the scale.
        only: labels; all systems if empty.

    Returns:
        Those that are to be trained.

    Raises:
        InputError: if a label is unknown.
    """
    compared = variants(recipe, protocol)
    known = list(dict.fromkeys(name for v in compared for name in (v.system.label, v.label)))
    for label in only:
        if label not in known:
            raise InputError(f"{recipe.name} has no system {label!r}; {did_you_mean(label, known)}")
    return [v for v in compared if not only or v.label in only or v.system.label in only]


def stretched(protocol: Protocol, epochs: int) -> Protocol:
    """Change the length of the trainings, and with it when their learning rate moves.

    Args:
        protocol: of the scale.
        epochs: how many there are to be.

    Returns:
        The protocol.

    Raises:
        InputError: if it is not a whole number of 1 or more.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"got epochs = {epochs!r}, expected a whole number of 1 or more.")
    ratio, decay = epochs / protocol.epochs, protocol.decay
    return replace(
        protocol,
        epochs=epochs,
        decay=replace(
            decay,
            warmup=decay.warmup * ratio,
            milestones=tuple(milestone * ratio for milestone in decay.milestones),
            period=max(1, round(decay.period * ratio)),
        ),
    )


def loaded_data(
    protocol: Protocol, data_dir: str | os.PathLike[str] | None
) -> tuple[Dataset | TextDataset, Protocol, list[str]]:
    """Load the data of a protocol, or those that stand in for them where they are not at hand.

    Args:
        protocol: the protocol.
        data_dir: where the data lie.

    Returns:
        The data, the protocol with their name in it, and what is to be said of them.

    Raises:
        ZAnalysisError: if they cannot be had.
    """
    notes = []
    folder = data_dir or os.environ.get("ZANALYSIS_DATA")
    try:
        if protocol.fallback is not None and folder is None:
            raise ZAnalysisError(f"no folder was given for {protocol.data}")
        data = load(protocol.data, data_dir)
    except ZAnalysisError as error:
        if protocol.fallback is None:
            raise
        notes.append(
            f"{protocol.data} is not at hand ({str(error).rstrip('.')}); trained on {protocol.fallback} instead."
        )
        data, protocol = load(protocol.fallback), replace(protocol, data=protocol.fallback)
    if isinstance(data, Dataset):
        wanted = [_at_most(count, len(split)) for count, split in
                  ((protocol.train, data.train), (protocol.test, data.test))]  # fmt: skip
        protocol = replace(protocol, train=wanted[0], test=wanted[1])
        return data.subset(train=wanted[0], test=wanted[1]), protocol, notes
    wanted = [_at_most(count, len(part)) for count, part in
              ((protocol.train, data.train), (protocol.test, data.valid), (protocol.test, data.test))]  # fmt: skip
    protocol = replace(protocol, train=wanted[0], test=wanted[2])
    return data.subset(train=wanted[0], valid=wanted[1], test=wanted[2]), protocol, notes


def _at_most(count: int | None, there: int) -> int | None:
    return count if count is not None and count < there else None


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Use so many threads of the processor, for the length of a `with` block.

    Args:
        count: how many; None leaves it as it is.

    Yields:
        Nothing.

    Raises:
        InputError: if it is not a whole number of 1 or more.
    """
    before = torch.get_num_threads()
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"got threads = {count!r}, expected a whole number of 1 or more.")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_data(protocol: Protocol, data: str) -> Protocol:
    """Change the data set of a protocol.

    Args:
        protocol: of the scale.
        data: the name of another data set.

    Returns:
        The protocol.

    Raises:
        InputError: if there is none of that name.
    """
    if data not in DATASETS:
        raise InputError(f"unknown data set {data!r}; {did_you_mean(data, DATASETS)}")
    return replace(protocol, data=data, fallback=None)
