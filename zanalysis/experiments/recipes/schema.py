"""What an experiment is: plain data, read by one runner.

A `Recipe` compares `System`s under a `Protocol`, of which it has one for each scale. Where a recipe sweeps
a model argument (depth, say), each system stands once for each of the protocol's `values`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "METRICS",
    "SCALES",
    "Augmentation",
    "Decay",
    "Metric",
    "Optimizer",
    "Paper",
    "Protocol",
    "Recipe",
    "Scale",
    "System",
    "Tracking",
]

Scale = Literal["smoke", "small", "paper"]
Metric = Literal["error", "accuracy", "perplexity", "verdict"]

SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")
METRICS: dict[Metric, str] = {
    "error": "test error [%]",
    "accuracy": "test accuracy [%]",
    "perplexity": "test perplexity",
    "verdict": "claims",
}
"""What each metric is called in tables and pictures."""


@dataclass(frozen=True)
class Optimizer:
    """How weights are updated.

    Attributes:
        kind: plain SGD, with momentum if it is not 0, or Adam.
        lr: the largest learning rate.
        momentum: of SGD.
        weight_decay: on every parameter, scalars included, as in Fixup's code.
        scalars: factor on the learning rate of every parameter whose name contains `bias` or `scale`
            (Fixup: 0.1, `cifar/cifar_train.py` of hongyi-zhang/Fixup).
        clip: largest norm of the whole gradient; None for none.
    """

    kind: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    scalars: float = 1.0
    clip: float | None = None


@dataclass(frozen=True)
class Decay:
    """How the learning rate moves: linear warm-up, then one of four ways down.

    Attributes:
        warmup: epochs over which it rises linearly to its largest.
        kind: `constant`; `cosine` to 0 at the end; `milestones`; or `every` so many epochs.
        factor: what each milestone, or each period, multiplies it by.
        milestones: epochs.
        period: epochs.
    """

    warmup: float = 0.0
    kind: Literal["constant", "cosine", "milestones", "every"] = "constant"
    factor: float = 0.1
    milestones: tuple[float, ...] = ()
    period: int = 1


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images.

    Attributes:
        crop: pixels of zero padding, of which a crop of the old size is taken at random.
        flip: whether half of them are mirrored.
        resized: whether a crop of random size and shape is scaled to the whole (Szegedy et al. 2015).
        mixup: the parameter α of MixUp; 0 for none.
        standardize: whether each channel gets mean 0 and deviation 1 over the training images, in
            training and test; of ImageNet by the published numbers.
    """

    crop: int = 0
    flip: bool = False
    resized: bool = False
    mixup: float = 0.0
    standardize: bool = False


@dataclass(frozen=True)
class Tracking:
    """What the tracker records.

    Attributes:
        per_decade: records between 10^d and 10^(d+1) steps.
        epochs: besides, a record after every so many epochs, and after the last.
        metrics: of each layer.
        references: what is subtracted from the weights.
        tensors: whose matrices.
        layers: names or globs; None for all.
        view: how a kernel becomes a matrix.
        spectrum_size: singular values kept, where spectra are among the metrics.
        budget: largest share of the time; None for no limit.
    """

    per_decade: int = 5
    epochs: int = 1
    metrics: tuple[str, ...] = ("rank", "stable_rank", "frobenius_norm")
    references: tuple[str | None, ...] = (None, "init")
    tensors: tuple[str, ...] = ("weight",)
    layers: tuple[str, ...] | None = None
    view: Literal["out", "in", "taps"] = "out"
    spectrum_size: int = 16
    budget: float | None = None


@dataclass(frozen=True)
class Protocol:
    """How every system of an experiment is trained at one scale.

    Attributes:
        data: name of the data set.
        model: name of the model.
        epochs: passes over the training data.
        batch: samples, or parallel streams of text, of a step.
        optimizer: how weights are updated.
        arguments: of the model.
        decay: how the learning rate moves.
        augmentation: what is done to images.
        tracking: what is recorded.
        seeds: how many trainings of each system, unless the user says otherwise.
        train: how many training samples, or tokens, are used; None for all.
        test: how many test samples, or tokens; None for all.
        length: tokens of text between a step's input and its last target.
        values: of the swept argument.
        fallback: the data set taken where `data` is not at hand; None to say what is missing.
        ours: sentences on what the source does not give and was chosen here.
    """

    data: str
    model: str
    epochs: int
    batch: int
    optimizer: Optimizer
    arguments: Mapping[str, Any] = field(default_factory=dict)
    decay: Decay = Decay()
    augmentation: Augmentation = Augmentation()
    tracking: Tracking = Tracking()
    seeds: int = 1
    train: int | None = None
    test: int | None = None
    length: int = 35
    values: tuple[int, ...] = ()
    fallback: str | None = None
    ours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """A number that the source reports.

    Attributes:
        mean: the number; None where the source says that training diverged.
        std: over its seeds; None where it gives none.
    """

    mean: float | None
    std: float | None = None


@dataclass(frozen=True)
class System:
    """One thing that is compared.

    Attributes:
        label: its name in files and on the command line.
        title: its name in tables and pictures.
        initialization: one of `zanalysis.initializers.INITIALIZATIONS`; None keeps the model's own.
        options: of the initialization.
        arguments: of the model, besides the protocol's or in their place.
        optimizer: fields of the optimizer, in place of the protocol's.
        decay: fields of the decay, in place of the protocol's.
        tracking: fields of the tracking, in place of the protocol's.
        paper: what the source reports: by value of the swept argument, under None where nothing is swept.
        ours: sentences on what the source does not give and was chosen here.
    """

    label: str
    title: str
    initialization: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    decay: Mapping[str, Any] = field(default_factory=dict)
    tracking: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[int | None, Paper] = field(default_factory=dict)
    ours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: on the command line; its results lie in a folder of this name and the scale.
        title: what it compares, in one line.
        source: where it comes from.
        metric: what is compared.
        systems: what is compared.
        scales: the protocol of each scale.
        sweep: the model argument that is varied; None for none.
        best: whether a training counts with its best epoch instead of its last, as the second seed reports.
        picture: how the outcome is drawn.
        trainings: the recipe whose trainings are used, where they are the same; None for its own.
        after: what is measured on each trained network: `pruning`, `tucker`.
        together: whether the seeds of a system are trained as one batched computation.
        note: a sentence for the end of the table.
    """

    name: str
    title: str
    source: str
    metric: Metric
    systems: tuple[System, ...] = ()
    scales: Mapping[Scale, Protocol] = field(default_factory=dict)
    sweep: str | None = None
    best: bool = False
    picture: Literal["bars", "sweep", "trajectories", "complexity", "spread", "theorem"] = "bars"
    trainings: str | None = None
    after: tuple[str, ...] = ()
    together: bool = False
    note: str = ""
