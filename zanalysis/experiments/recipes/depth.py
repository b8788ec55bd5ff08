"""Figure 4 and Table 4 of the ZerO paper: networks of growing depth."""

from dataclasses import replace

from zanalysis.experiments.recipes.residual_networks import SGD
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

__all__ = ["RECIPES"]

_PAPER = "ZerO (arXiv 2110.12661)"
_TENTH = {"scalars": 0.1}

_DEEP = Protocol(
    data="cifar-10",
    model="deep-resnet",
    epochs=15,
    batch=128,
    optimizer=SGD,
    arguments={"width": 16},
    decay=Decay(warmup=1, kind="cosine"),
    augmentation=Augmentation(crop=4, flip=True, standardize=True),
    tracking=Tracking(per_decade=3, layers=("conv1", "layer*.0.conv*", "fc"), budget=0.05),
    seeds=3,
    values=(20, 56, 110, 254, 500),
    ours=(
        "the paper gives 15 epochs and depths up to about 500: the depths, batch 128, learning rate 0.1 with one "
        "epoch of warm-up and a cosine, width 16, crop and flip are our choice",
    ),
)
# On images of 8×8 the paper's 15 epochs are a matter of seconds, also of 110 layers.
_DEEP_SMALL = replace(
    _DEEP,
    data="digits",
    batch=32,
    optimizer=replace(SGD, lr=0.025),
    arguments={"width": 4},
    augmentation=Augmentation(standardize=True),
    tracking=Tracking(per_decade=3, layers=("conv1", "layer*.0.conv*", "fc")),
    seeds=3,
    values=(8, 20, 56, 110),
    ours=("at this scale the learning rate is 0.025 for batches of 32, and there is no augmentation",),
)

_FIGURE_4 = Recipe(
    name="figure-4",
    title="Depth without BatchNorm: ZerO, Fixup, ReZero, SkipInit, and a baseline with BatchNorm",
    source=f"{_PAPER}, Figure 4",
    metric="accuracy",
    systems=(
        System(
            "zero",
            "ZerO",
            "zero",
            arguments={"scalars": "fixup"},
            optimizer=_TENTH,
            ours=("with Fixup's scalars at a tenth of the learning rate, as Fixup has them",),
        ),
        System("fixup", "Fixup", "fixup", arguments={"scalars": "fixup"}, optimizer=_TENTH),
        System("rezero", "ReZero", "rezero", arguments={"scalars": "rezero"}),
        System("skipinit", "SkipInit", "skipinit", arguments={"scalars": "skipinit"}),
        System("batchnorm", "Kaiming with BatchNorm", "kaiming", arguments={"norm": True}),
    ),
    scales={
        "smoke": replace(
            _DEEP_SMALL,
            epochs=2,
            seeds=1,
            train=96,
            test=60,
            arguments={"width": 2},
            values=(8, 14),
            ours=("at this scale only whether everything runs",),
        ),
        "small": _DEEP_SMALL,
        "paper": _DEEP,
    },
    sweep="depth",
    picture="sweep",
    note="The paper shows its values only as a picture.",
)

_STANDARD = (200.44, 168.69, 154.67, 146.43, None, None)
_ZERO = (192.34, 169.73, 151.91, 149.27, 145.62, 141.81)
_LAYERS = (2, 4, 6, 8, 10, 20)

_TEXT = Protocol(
    data="wikitext-2",
    model="transformer-lm",
    epochs=20,
    batch=20,
    # PyTorch's word-language-model example: batch 20, 35 tokens, clipping at 0.25, learning rate 5 for Transformers.
    optimizer=Optimizer("sgd", lr=5.0, clip=0.25),
    arguments={"d_model": 200, "heads": 2, "d_ff": 200, "dropout": 0.2},
    decay=Decay(kind="milestones", milestones=(10,), factor=0.1),
    tracking=Tracking(per_decade=5, layers=("layers.*",), budget=0.05),
    seeds=1,
    length=35,
    values=_LAYERS,
    ours=(
        "the paper gives 20 epochs, one decay at epoch 10 and PyTorch's example as its model: learning rate 5, "
        "clipping at 0.25, batch 20, 35 tokens are the example's, the decay to a tenth is our choice",
    ),
)
_TEXT_SMALL = replace(
    _TEXT,
    data="pydoc",
    epochs=6,
    arguments={"d_model": 64, "heads": 2, "d_ff": 64, "dropout": 0.1},
    decay=Decay(kind="milestones", milestones=(3,), factor=0.1),
    tracking=Tracking(per_decade=4, layers=("layers.*",)),
    values=(2, 6, 12),
    ours=("at this scale 6 epochs, with the decay after the third",),
)

_TABLE_4 = Recipe(
    name="table-4",
    title="Transformers of growing depth: ZerO against the standard initialization",
    source=f"{_PAPER}, Table 4",
    metric="perplexity",
    systems=(
        System(
            "standard",
            "standard",
            paper={layers: Paper(value) for layers, value in zip(_LAYERS, _STANDARD, strict=True)},
            ours=("as PyTorch's example initializes it",),
        ),
        System(
            "zero",
            "ZerO",
            "zero",
            paper={layers: Paper(value) for layers, value in zip(_LAYERS, _ZERO, strict=True)},
            ours=(
                "the paper has rules for the layers of the Transformer only: embedding and decoder by Algorithm 1 are "
                "our choice",
            ),
        ),
    ),
    scales={
        "smoke": replace(
            _TEXT_SMALL,
            epochs=2,
            batch=4,
            train=600,
            test=400,
            length=12,
            arguments={"d_model": 8, "heads": 2, "d_ff": 8, "dropout": 0.1},
            decay=Decay(kind="milestones", milestones=(1,), factor=0.1),
            values=(1, 2),
            ours=("at this scale only whether everything runs",),
        ),
        "small": _TEXT_SMALL,
        "paper": _TEXT,
    },
    sweep="layers",
    picture="sweep",
)

RECIPES = (_FIGURE_4, _TABLE_4)
