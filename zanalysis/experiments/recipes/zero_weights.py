"""The second seed: networks that learn from weights and biases of exactly zero."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zanalysis.experiments.models.mixer import FIRST_LINEARS as MIXER_FIRST
from zanalysis.experiments.models.mixer import HEAD as MIXER_HEAD
from zanalysis.experiments.models.mixer import SECOND_LINEARS as MIXER_SECOND
from zanalysis.experiments.models.vit import FIRST_LINEARS as VIT_FIRST
from zanalysis.experiments.models.vit import HEAD as VIT_HEAD
from zanalysis.experiments.models.vit import SECOND_LINEARS as VIT_SECOND
from zanalysis.experiments.recipes.schema import (
    Augmentation,
    Decay,
    Optimizer,
    Protocol,
    Recipe,
    Scale,
    System,
    Tracking,
)

__all__ = ["RECIPES"]

_SOURCE = "Deep Learning with Zero Initialization (Seo), published code"
_TRACKING = Tracking(
    per_decade=6,
    metrics=("rank", "stable_rank", "frobenius_norm", "distinct_rows", "zero_gradient"),
    tensors=("weight", "gradient"),
)
_PAPER_TRACKING = replace(_TRACKING, epochs=10, budget=0.05)
_IN_UNIT = "images in [0, 1], not standardized: the table of the protocol does not say"
_BF16 = "bfloat16 autocast on a GPU, as in the source; float32 on a CPU"
_SMOKE = ("at this scale only whether everything runs",)


def _adam(lr: float) -> Optimizer:
    return Optimizer("adam", lr=lr)


# The CNN: everything is zero. A kernel of a single channel has one row, and is followed where it is named.
_CNN_LAYERS = ("block1.conv", "block2.conv", "block3.conv", "fc")
_CNN = Protocol(
    data="mnist",
    model="cnn",
    epochs=500,
    batch=100,
    optimizer=_adam(1e-4),
    decay=Decay(kind="every", period=20, factor=0.95),
    tracking=replace(_PAPER_TRACKING, layers=_CNN_LAYERS),
    seeds=20,
    ours=(_IN_UNIT, _BF16),
)
_CNN_SMALL = replace(
    _CNN,
    fallback="digits",
    epochs=10,
    train=10_000,
    test=2_000,
    optimizer=_adam(1e-3),
    tracking=replace(_TRACKING, layers=_CNN_LAYERS),
    seeds=3,
    ours=(_IN_UNIT, "at this scale 10 epochs at learning rate 1e-3"),
)
_CNN_SMOKE = replace(
    _CNN_SMALL, data="digits", fallback=None, epochs=2, batch=20, train=200, test=100, seeds=2, ours=_SMOKE
)
_ALL_ZERO = System(
    "all-zero",
    "all zero",
    "zeros",
    options={},
)
_STANDARD = System("standard", "standard", ours=("PyTorch's own initialization; not in the source",))


def _cnn(name: str, data: str, epochs: int, small: str) -> Recipe:
    return Recipe(
        name=f"zero-weights/{name}",
        title=f"Three-convolution CNN from all-zero weights and biases, {data}",
        source=_SOURCE,
        metric="accuracy",
        systems=(_ALL_ZERO,),
        scales={
            "smoke": _CNN_SMOKE,
            "small": replace(_CNN_SMALL, data=small),
            "paper": replace(_CNN, data=data, epochs=epochs),
        },
        best=True,
        together=True,
        note="The source reports the best test accuracy of each run.",
    )


def _recipe(
    name: str, title: str, systems: tuple[System, ...], scales: Mapping[Scale, Protocol], note: str = ""
) -> Recipe:
    return Recipe(
        name=f"zero-weights/{name}",
        title=title,
        source=_SOURCE,
        metric="accuracy",
        systems=systems,
        scales=scales,
        best=True,
        note=note,
    )


_RESNET = Protocol(
    data="cifar-10",
    model="resnet",
    epochs=500,
    batch=100,
    optimizer=_adam(1e-3),
    arguments={"block": "bottleneck", "layers": (4, 4, 4, 4), "width": 64},
    decay=Decay(kind="every", period=5, factor=0.95),
    augmentation=Augmentation(crop=4, flip=True),
    tracking=_PAPER_TRACKING,
    seeds=1,
    ours=(_IN_UNIT, _BF16),
)
_RESNET_SMALL = replace(
    _RESNET,
    data="fashion-mnist",
    fallback="digits",
    epochs=3,
    train=4_000,
    test=2_000,
    arguments={**_RESNET.arguments, "width": 4},
    augmentation=Augmentation(),
    tracking=_TRACKING,
    ours=(_IN_UNIT, "at this scale 3 epochs, and no augmentation"),
)
_RESNET_SMOKE = replace(
    _RESNET_SMALL,
    data="digits",
    fallback=None,
    epochs=1,
    batch=20,
    train=100,
    test=60,
    arguments={"block": "bottleneck", "layers": (1, 1, 1, 1), "width": 4},
    ours=_SMOKE,
)


def _transformer(
    data: str,
    model: str,
    batch: int,
    epochs: int,
    arguments: Mapping[str, Any],
    small: Mapping[str, Any],
    smoke: Mapping[str, Any],
    mixup: float = 0.0,
) -> dict[Scale, Protocol]:
    """Return the three scales of a ViT or Mixer.

    Args:
        data: at the paper's scale.
        model: its name.
        batch: at the paper's scale.
        epochs: at the paper's scale.
        arguments: of the model at the paper's scale.
        small: of the model at the small scale.
        smoke: of the model at the smallest.
        mixup: the α of MixUp.

    Returns:
        The protocols.
    """
    unsaid = ["no dropout and a constant learning rate are our choice"]
    if model == "mixer":
        unsaid.append("the hidden dimensions, 256 of tokens and 2,048 of channels, are Mixer-S's, our choice")
    if data != "tiny-imagenet":
        unsaid.append(f"batch {batch} and {epochs} epochs are our choice")
    augmentation = Augmentation(mixup=mixup)
    paper = Protocol(
        data=data,
        model=model,
        epochs=epochs,
        batch=batch,
        optimizer=_adam(1e-4),
        arguments=arguments,
        augmentation=augmentation,
        tracking=_PAPER_TRACKING,
        seeds=1,
        ours=(_IN_UNIT, _BF16, *unsaid),
    )
    fewer = replace(
        paper,
        data="fashion-mnist",
        fallback="digits",
        epochs=3,
        batch=100,
        train=4_000,
        test=2_000,
        optimizer=_adam(1e-3),
        arguments=small,
        tracking=_TRACKING,
        ours=(_IN_UNIT, "at this scale 3 epochs at learning rate 1e-3"),
    )
    return {
        "smoke": replace(
            fewer,
            data="digits",
            fallback=None,
            epochs=2,
            batch=20,
            train=100,
            test=60,
            arguments=smoke,
            ours=_SMOKE,
        ),
        "small": fewer,
        "paper": paper,
    }


_VIT_SMALL = {"patch": 4, "dim": 48, "depth": 3, "heads": 3, "head_dim": 16, "mlp": 96}
_VIT_SMOKE = {"patch": 4, "dim": 16, "depth": 2, "heads": 2, "head_dim": 8, "mlp": 16}
_MIXER_SMALL = {"patch": 4, "dim": 64, "depth": 3, "token_mlp": 32, "channel_mlp": 128}
_MIXER_SMOKE = {"patch": 4, "dim": 16, "depth": 2, "token_mlp": 8, "channel_mlp": 16}
_MIXER = {"dim": 512, "depth": 8}
_VIT = {"dim": 500, "depth": 6, "heads": 10, "head_dim": 64, "mlp": 2000}

_CIFAR_MIXER = _transformer("cifar-10", "mixer", 100, 200, {"patch": 4, **_MIXER}, _MIXER_SMALL, _MIXER_SMOKE)
_TINY_MIXER = _transformer(
    "tiny-imagenet", "mixer", 500, 100, {"patch": 8, **_MIXER}, _MIXER_SMALL, _MIXER_SMOKE, mixup=0.5
)
_CIFAR_VIT = _transformer("cifar-10", "vit", 100, 200, {"patch": 4, **_VIT}, _VIT_SMALL, _VIT_SMOKE)
_TINY_VIT = _transformer(
    "tiny-imagenet", "vit", 500, 100, {"patch": 8, **_VIT}, _VIT_SMALL, _VIT_SMOKE, mixup=0.5
)


def _zeroed(title: str, layers: tuple[str, ...], **options: Any) -> tuple[System, ...]:
    return (System("zeroed", title, "zeros", options={"layers": layers, **options}), _STANDARD)


RECIPES = (
    _cnn("cnn-mnist", "mnist", 500, "mnist"),
    _cnn("cnn-cifar-10", "cifar-10", 200, "fashion-mnist"),
    _cnn("cnn-cifar-100", "cifar-100", 200, "fashion-mnist"),
    _recipe(
        "resnet-cifar-10",
        "Bottleneck ResNet [4, 4, 4, 4] with a final layer of zeros",
        _zeroed("zero head", ("fc",)),
        {"smoke": _RESNET_SMOKE, "small": _RESNET_SMALL, "paper": _RESNET},
    ),
    _recipe(
        "vit-cifar-10",
        "ViT with zero first layers of its feed-forwards, and a zero head",
        _zeroed("zero first linears and head", (*VIT_FIRST, VIT_HEAD)),
        _CIFAR_VIT,
    ),
    _recipe(
        "mixer-cifar-10",
        "MLP-Mixer with zero first layers of its feed-forwards, and a zero head",
        _zeroed("zero first linears and head", (*MIXER_FIRST, MIXER_HEAD)),
        _CIFAR_MIXER,
    ),
    _recipe(
        "mixer-tiny-imagenet",
        "MLP-Mixer with zero weights in the second layers of its feed-forwards and in the head",
        _zeroed("zero second linears and head (weights)", (*MIXER_SECOND, MIXER_HEAD), weights_only=True),
        _TINY_MIXER,
    ),
    _recipe(
        "vit-tiny-imagenet",
        "ViT with zero second layers of its feed-forwards",
        _zeroed("zero second linears", VIT_SECOND),
        _TINY_VIT,
    ),
    _recipe(
        "mixer-all-constant",
        "MLP-Mixer with every linear layer zero, and noise while a weight is zero",
        (System("all-constant", "all constant", "all-constant"), _STANDARD),
        _TINY_MIXER,
    ),
    _recipe(
        "mixer-all-zero",
        "MLP-Mixer with everything zero, normalization included, and noise while a weight is zero",
        (System("all-zero", "all zero", "all-zero"), _STANDARD),
        _TINY_MIXER,
        note="The author reports about 20 % on Tiny ImageNet, and does not recommend it.",
    ),
)
