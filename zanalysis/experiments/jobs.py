"""One training of an experiment: a system at one value of what is swept, and a seed."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from hooks.structure import versions
from zanalysis.experiments.data import Dataset, TextDataset
from zanalysis.experiments.recipes.schema import Metric, Protocol, Recipe, Scale, System

__all__ = ["Job", "Variant", "mixed", "protocol_of", "variants"]

# What says how many trainings there are, or is a sentence, decides nothing about one of them.
_NOT_SETTINGS = ("seeds", "values", "fallback", "ours")


@dataclass(frozen=True)
class Variant:
    """A system at one value of what is swept.

    Attributes:
        system: which.
        at: the value of the swept argument; None where nothing is swept.
    """

    system: System
    at: int | None = None

    @property
    def label(self) -> str:
        """Its name in files."""
        return self.system.label if self.at is None else f"{self.system.label}-{self.at}"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        experiment: the recipe whose training it is.
        scale: of it.
        variant: what is trained.
        protocol: how, with the system's own changes in it.
        data: on what.
        seed: of the order of the samples, of augmentation and dropout, and of random weights.
        metric: what it is judged by, after each epoch.
        device: where.
        after: what is measured on the trained network: `pruning`, `tucker`.
        together: whether it is one of several replicas trained as one computation.
    """

    experiment: str
    scale: Scale
    variant: Variant
    protocol: Protocol
    data: Dataset | TextDataset
    seed: int
    metric: Metric
    device: str = "cpu"
    after: tuple[str, ...] = ()
    together: bool = False

    @property
    def name(self) -> str:
        """What its files are called, less their suffix."""
        return f"{self.variant.label}-{self.seed}"

    @property
    def precision(self) -> str:
        """In what numbers it computes: autocast to bfloat16 on a GPU, float32 elsewhere."""
        return "bfloat16 autocast" if self.device.startswith("cuda") else "float32"

    def settings(self) -> dict[str, Any]:
        """Return what decides its outcome, as it is stored with the run and the results.

        Returns:
            Names and values that JSON can hold.
        """
        protocol = dataclasses.asdict(self.protocol)
        system = self.variant.system
        facts = {
            "experiment": self.experiment,
            "scale": self.scale,
            "system": system.label,
            "at": self.variant.at,
            "seed": self.seed,
            "initialization": system.initialization,
            "options": dict(system.options),
            **{name: value for name, value in protocol.items() if name not in _NOT_SETTINGS},
            "data": self.data.name,
            "data_fingerprint": self.data.fingerprint,
            "metric": self.metric,
            "after": self.after,
            "together": self.together,
            "device": self.device,
            "precision": self.precision,
            "versions": versions(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(facts))
        return plain


def variants(recipe: Recipe, protocol: Protocol) -> list[Variant]:
    """Return what a recipe compares at one scale.

    Args:
        recipe: the recipe.
        protocol: of the scale.

    Returns:
        Every system, at every value of what is swept.
    """
    values: tuple[int | None, ...] = protocol.values or (None,)
    return [Variant(system, at) for system in recipe.systems for at in values]


def protocol_of(recipe: Recipe, protocol: Protocol, variant: Variant) -> Protocol:
    """Return a protocol with a system's own changes in it.

    Args:
        recipe: the recipe.
        protocol: of the scale.
        variant: the system, and the value of what is swept.

    Returns:
        The protocol of its trainings.
    """
    system = variant.system
    swept = {} if recipe.sweep is None else {recipe.sweep: variant.at}
    return replace(
        protocol,
        arguments={**protocol.arguments, **system.arguments, **swept},
        optimizer=replace(protocol.optimizer, **system.optimizer),
        decay=replace(protocol.decay, **system.decay),
        tracking=replace(protocol.tracking, **system.tracking),
    )


def mixed(*parts: int | str) -> int:
    """Make a seed of several numbers and words, the same on every machine.

    Args:
        *parts: what it depends on.

    Returns:
        A whole number below 2^63.

    Example:
        >>> mixed(0, "order", 1) == mixed(0, "order", 1) != mixed(0, "order", 2)
        True
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
