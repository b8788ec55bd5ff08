"""Figures 5 and 6 of the ZerO paper: how rank grows in training, and how little of it is needed."""

from dataclasses import replace

from zanalysis.experiments.recipes.residual_networks import CIFAR, IMAGENET, SMALL, SMOKE
from zanalysis.experiments.recipes.schema import Protocol, Recipe, Scale, System, Tracking

__all__ = ["RECIPES"]

_PAPER = "ZerO (arXiv 2110.12661)"

# Every trajectory states its reference: it decides whether rank rises or falls.
_TRACKING = Tracking(
    per_decade=12,
    metrics=("rank", "stable_rank", "frobenius_norm", "singular_values"),
    references=(None, "init", "identity"),
    spectrum_size=32,
)
_SYSTEMS = (System("zero", "ZerO", "zero"), System("kaiming", "Kaiming", "kaiming"))
_OURS = (
    "the paper does not say which matrix of a kernel it measures: here [c_out, c_in · k · k], as it is, less its "
    "initialization, and less the identity",
)
_SCALES: dict[Scale, Protocol] = {
    "smoke": replace(SMOKE, tracking=_TRACKING, seeds=1, ours=(*SMOKE.ours, *_OURS)),
    "small": replace(
        SMALL,
        epochs=6,
        train=12_000,
        arguments={"layers": (2, 2, 2, 2), "width": 16},
        tracking=_TRACKING,
        seeds=1,
        ours=("at this scale 6 epochs with one of warm-up, and no augmentation", *_OURS),
    ),
    "paper": replace(
        CIFAR, tracking=replace(_TRACKING, budget=0.1, spectrum_size=64), seeds=1, ours=(*CIFAR.ours, *_OURS)
    ),
}

_FIGURE_5 = Recipe(
    name="figure-5",
    title="Stable rank over training: ZerO against Kaiming",
    source=f"{_PAPER}, Figure 5, ResNet-18 on CIFAR-10",
    metric="accuracy",
    systems=_SYSTEMS,
    scales=_SCALES,
    picture="trajectories",
    trainings="figure-6",
)
_FIGURE_5_IMAGENET = replace(
    _FIGURE_5,
    name="figure-5-imagenet",
    source=f"{_PAPER}, Figure 5, ResNet-50 on ImageNet",
    scales={
        "smoke": replace(
            _SCALES["smoke"], arguments={"block": "bottleneck", "layers": (1, 1, 1, 1), "width": 4}
        ),
        "small": replace(
            _SCALES["small"],
            epochs=4,
            train=4_000,
            arguments={"block": "bottleneck", "layers": (3, 4, 6, 3), "width": 4},
        ),
        "paper": replace(
            IMAGENET,
            tracking=replace(_TRACKING, budget=0.05, spectrum_size=64),
            seeds=1,
            ours=(*IMAGENET.ours, *_OURS),
        ),
    },
    trainings=None,
)
_FIGURE_6 = Recipe(
    name="figure-6",
    title="Kernel rank, pruning and Tucker-2 after training: ZerO against Kaiming",
    source=f"{_PAPER}, Figure 6",
    metric="accuracy",
    systems=_SYSTEMS,
    scales=_SCALES,
    picture="complexity",
    after=("pruning", "tucker"),
)

RECIPES = (_FIGURE_5, _FIGURE_5_IMAGENET, _FIGURE_6)
