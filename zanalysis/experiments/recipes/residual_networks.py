"""Tables 2 and 3 of the ZerO paper, and its section on reproducibility."""

from dataclasses import replace

from zanalysis.experiments.recipes.schema import (
    Augmentation,
    Decay,
    Optimizer,
    Paper,
    Protocol,
    Recipe,
    System,
    Tracking,
)

__all__ = ["RECIPES", "SGD", "SMALL"]

_PAPER = "ZerO (arXiv 2110.12661)"
_R50 = {"block": "bottleneck", "layers": (3, 4, 6, 3)}

# Section 4: learning rate 0.1, momentum 0.9, weight decay 1e-4 for every method.
SGD = Optimizer("sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
_SYMMETRY = ("rank", "stable_rank", "frobenius_norm", "distinct_rows")

_OURS = (
    "the paper gives no epochs, batch, decay or augmentation for CIFAR-10: 200 epochs, batch 128, cosine, "
    "pad-4 crop and flip, standardized channels are our choice",
)
CIFAR = Protocol(
    data="cifar-10",
    model="resnet",
    epochs=200,
    batch=128,
    optimizer=SGD,
    arguments={"layers": (2, 2, 2, 2), "width": 64},
    decay=Decay(warmup=10, kind="cosine"),
    augmentation=Augmentation(crop=4, flip=True, standardize=True),
    tracking=Tracking(per_decade=5, epochs=5, metrics=_SYMMETRY, budget=0.05),
    seeds=10,
    ours=_OURS,
)
SMALL = replace(
    CIFAR,
    data="fashion-mnist",
    fallback="digits",
    epochs=5,
    train=8_000,
    test=2_000,
    arguments={"layers": (2, 2, 2, 2), "width": 8},
    decay=Decay(warmup=1, kind="cosine"),
    augmentation=Augmentation(standardize=True),
    tracking=Tracking(per_decade=5, metrics=_SYMMETRY),
    seeds=3,
    ours=("at this scale 5 epochs with one of warm-up, and no augmentation",),
)
SMOKE = replace(
    SMALL,
    data="digits",
    fallback=None,
    epochs=2,
    batch=32,
    train=160,
    test=100,
    arguments={"layers": (1, 1, 1, 1), "width": 4},
    seeds=2,
    ours=("at this scale only whether everything runs",),
)

IMAGENET = replace(
    CIFAR,
    data="imagenet",
    epochs=90,
    batch=256,
    arguments={**_R50, "width": 64, "stem": "imagenet"},
    decay=Decay(warmup=5, kind="milestones", milestones=(30, 60, 80), factor=0.1),
    augmentation=Augmentation(resized=True, flip=True, standardize=True),
    ours=(
        "the paper gives no epochs, batch or decay for ImageNet: 90 epochs, batch 256, a tenth at epochs 30, 60 "
        "and 80, random resized crops and flips are our choice",
    ),
)

_ZERO = System("zero", "ZerO", "zero")
_KAIMING = System("kaiming", "Kaiming", "kaiming")
_XAVIER = System("xavier", "Xavier", "xavier")


def _reporting(system: System, mean: float, std: float | None = None) -> System:
    return replace(system, paper={None: Paper(mean, std)})


_TABLE_2 = Recipe(
    name="table-2",
    title="ResNet-18: ZerO against Kaiming and Xavier",
    source=f"{_PAPER}, Table 2, CIFAR-10",
    metric="error",
    systems=(
        _reporting(_ZERO, 5.13, 0.08),
        _reporting(_KAIMING, 5.15, 0.13),
        _reporting(_XAVIER, 5.23, 0.16),
    ),
    scales={"smoke": SMOKE, "small": SMALL, "paper": CIFAR},
)

_TABLE_2_IMAGENET = Recipe(
    name="table-2-imagenet",
    title="ResNet-50: ZerO against Kaiming and Xavier",
    source=f"{_PAPER}, Table 2, ImageNet",
    metric="error",
    systems=(
        _reporting(_ZERO, 23.43, 0.04),
        _reporting(_KAIMING, 23.46, 0.07),
        _reporting(_XAVIER, 23.65, 0.11),
    ),
    scales={
        "smoke": replace(SMOKE, arguments={"block": "bottleneck", "layers": (1, 1, 1, 1), "width": 4}),
        "small": replace(
            SMALL,
            train=4_000,
            arguments={**_R50, "width": 4},
            ours=(*SMALL.ours, "with the stem for small images"),
        ),
        "paper": IMAGENET,
    },
)

# Without BatchNorm, stated where it is so: Fixup and SkipInit are methods for that; ReZero's own network keeps it.
_FIXUP = System(
    "fixup",
    "Fixup",
    "fixup",
    arguments={"norm": False, "scalars": "fixup"},
    optimizer={"scalars": 0.1},
    ours=("biases and multipliers at a tenth of the learning rate, as in its code; without its MixUp",),
)
_SKIPINIT = System(
    "skipinit",
    "SkipInit",
    "skipinit",
    arguments={"norm": False, "scalars": "skipinit"},
    ours=("kernels by Kaiming, scalars at the common learning rate; no code of its authors was found",),
)
_REZERO = System(
    "rezero",
    "ReZero",
    "rezero",
    arguments={"scalars": "rezero"},
    ours=("BatchNorm kept, as in its authors' ResNet",),
)


def _constnet(label: str, title: str, initialization: str, layers: tuple[int, ...]) -> System:
    # Two zero convolutions in one branch never move: each has a skip connection of its own.
    return System(
        label,
        title,
        initialization,
        arguments={"block": "single", "layers": layers},
        tracking={"tensors": ("weight", "gradient"), "metrics": (*_SYMMETRY, "zero_gradient")},
        ours=("every convolution has a skip connection of its own, as in its code, with as many of them",),
    )


def _line_up(values: tuple[float, ...], layers: tuple[int, ...]) -> tuple[System, ...]:
    systems = (
        _ZERO,
        _REZERO,
        _FIXUP,
        _SKIPINIT,
        _constnet("constnet", "ConstNet", "constnet", layers),
        replace(
            _constnet("constnet-noise", "ConstNet*", "constnet-noise", layers),
            ours=(
                "the noise is dropout of 0.01 after the convolutions of the blocks (its README's other choice), "
                "the paper's was non-deterministic GPU arithmetic",
            ),
        ),
    )
    reported = [_reporting(system, value) for system, value in zip(systems, values, strict=True)]
    return (*reported, replace(_KAIMING, ours=("not in the paper's Table 3; the baseline of Table 2",)))


_TABLE_3 = Recipe(
    name="table-3",
    title="ResNet-18: ZerO against methods that start near the identity",
    source=f"{_PAPER}, Table 3, ResNet-18",
    metric="error",
    systems=_line_up((5.13, 5.20, 5.17, 5.26, 72.39, 5.41), (4, 4, 4, 4)),
    scales={"smoke": SMOKE, "small": SMALL, "paper": CIFAR},
)

_TABLE_3_RESNET_50 = Recipe(
    name="table-3-resnet-50",
    title="ResNet-50: ZerO against methods that start near the identity",
    source=f"{_PAPER}, Table 3, ResNet-50",
    metric="error",
    systems=_line_up((4.53, 4.72, 4.51, 4.63, 71.58, 4.88), (9, 12, 18, 9)),
    scales={
        "smoke": replace(SMOKE, arguments={"block": "bottleneck", "layers": (1, 1, 1, 1), "width": 4}),
        "small": replace(SMALL, train=4_000, arguments={**_R50, "width": 4}),
        "paper": replace(CIFAR, arguments={**_R50, "width": 64}),
    },
)

_REPRODUCIBILITY = Recipe(
    name="reproducibility",
    title="Deviation over seeds: ZerO against Kaiming",
    source=f"{_PAPER}, section 4, on Table 2's runs",
    metric="error",
    systems=(_reporting(_ZERO, 5.13, 0.08), _reporting(_KAIMING, 5.15, 0.13)),
    scales={
        "smoke": replace(SMOKE, seeds=3),
        "small": replace(SMALL, seeds=10),
        "paper": CIFAR,
    },
    picture="spread",
    trainings="table-2",
)

RECIPES = (_TABLE_2, _TABLE_2_IMAGENET, _TABLE_3, _TABLE_3_RESNET_50, _REPRODUCIBILITY)
