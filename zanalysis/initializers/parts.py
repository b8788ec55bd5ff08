"""The parameters of a model, each with the part it plays: the layout that every initialization works on.

A weight is seen as one or several blocks `[P, Q, *taps]`, outputs first: one for each group of a convolution, the
query, key and value blocks of an attention layer that holds them in one parameter, and the transposed weight of a
transposed convolution, whose parameter has the inputs first.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zanalysis.analyzers.naming import plain
from zanalysis.errors import InputError

__all__ = [
    "ATTENTION",
    "CONVOLUTIONS",
    "NORMS",
    "TRANSPOSED",
    "WEIGHTED",
    "Part",
    "clean",
    "parts_of",
    "unwrapped",
]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
WEIGHTED = (nn.Linear, *CONVOLUTIONS)
ATTENTION = nn.MultiheadAttention
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
_CONTAINERS = (nn.ParameterList, nn.ParameterDict)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_MULTIPLIER = re.compile(
    r"(res_?|residual_?|skip_?|branch_?)?(scale|scalar|mult|multiplier|alpha|gain|gamma|weight)\d*[a-z]?"
)
_SCALAR_BIAS = re.compile(r"(bias|shift|beta)_?\d*[a-z]?")
_BUILT_IN = "torch.nn."


@dataclass
class Part:
    """One parameter.

    Attributes:
        name: its qualified name, without the prefixes of wrappers.
        parameter: the parameter itself.
        layer: the qualified name of its module.
        module: the module.
        kind: ``linear``, ``conv``, ``embedding``, ``bias``, ``scale`` and ``shift`` (of a normalization layer),
            ``multiplier`` and ``scalar-bias`` (of one entry), ``prelu`` or ``unknown``.
        roles: of the blocks of an attention weight, ``q``, ``k`` or ``v``; empty for other weights.
        also: the other names of the same parameter.
    """

    name: str
    parameter: nn.Parameter
    layer: str
    module: nn.Module
    kind: str
    roles: tuple[str, ...] = ()
    also: list[str] = field(default_factory=list)

    @property
    def layers(self) -> set[str]:
        """Names of the modules that hold it."""
        return {self.layer, *(name.rpartition(".")[0] for name in self.also)}

    @property
    def weight(self) -> bool:
        """Whether it is the weight of a linear or convolution layer, or of an embedding."""
        return self.kind in ("linear", "conv", "embedding")

    def blocks(self) -> list[Tensor]:
        """Return its blocks `[P, Q, *taps]`, outputs first: views to fill in place."""
        tensor = self.parameter.detach()
        if self.kind == "conv":
            groups = tensor.chunk(self.module.groups) if tensor.numel() else (tensor,)  # type: ignore[arg-type]
            return [g.transpose(0, 1) if isinstance(self.module, TRANSPOSED) else g for g in groups]
        return list(tensor.chunk(len(self.roles))) if len(self.roles) > 1 else [tensor]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that is inside wrappers: of data parallelism and of compilation.

    Args:
        model: any module.

    Returns:
        The module inside, or itself.

    Raises:
        InputError: if it is no module, or a scripted one.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"got {type(model).__name__}, expected an nn.Module to initialize.")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "got a scripted model; initialize the model that it is made of, and script it afterwards."
        )
    while True:
        children = list(model._modules)
        wraps = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or children == [
            "_orig_mod"
        ]
        inside = model._modules[children[0]] if wraps else None
        if inside is None:
            return model
        model = inside


def clean(name: str) -> str:
    """Return a name without what wrappers put into it.

    Args:
        name: as `named_parameters` gives it.

    Returns:
        The name less ``module.`` at the front and ``_orig_mod.`` anywhere.

    Example:
        >>> clean("module._orig_mod.fc.weight")
        'fc.weight'
    """
    steps = [step for step in name.split(".") if step != "_orig_mod"]
    while len(steps) > 1 and steps[0] == "module":
        steps = steps[1:]
    return plain(".".join(steps))


def parts_of(model: nn.Module, roles: Mapping[str, tuple[str, ...]]) -> list[Part]:
    """List the parameters of a model, tied ones once.

    Args:
        model: any module.
        roles: of attention layers, by the layer's name.

    Returns:
        The parts, in the model's order.

    Raises:
        InputError: if this is no module, has no parameters, or has some that cannot be filled: lazy or meta ones,
            sharded ones, or weights computed from other parameters.
    """
    model = unwrapped(model)
    found: dict[int, Part] = {}
    for prefix, module in model.named_modules():
        layer = clean(prefix)
        _refuse_computed(layer, module)
        for own, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = clean(f"{prefix}.{own}" if prefix else own)
            _refuse_unfilled(name, parameter)
            part = Part(name, parameter, layer, module, *_kind(layer, module, own, parameter, roles))
            known = found.setdefault(id(parameter), part)
            if known is not part and known.kind == "embedding" and part.kind == "linear":
                # An output layer that shares the embedding's weight sets its scale.
                known.layer, known.module, known.kind = part.layer, part.module, part.kind
    if not found:
        raise InputError(f"{type(model).__name__} has no parameters; there is nothing to initialize.")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if clean(name) != found[id(parameter)].name:
            found[id(parameter)].also.append(clean(name))
    return list(found.values())


def _kind(
    layer: str, module: nn.Module, own: str, parameter: nn.Parameter, roles: Mapping[str, tuple[str, ...]]
) -> tuple[str, tuple[str, ...]]:
    if isinstance(module, ATTENTION):
        block = {
            "in_proj_weight": "qkv",
            "q_proj_weight": "q",
            "k_proj_weight": "k",
            "v_proj_weight": "v",
        }.get(own)
        return ("linear", tuple(block)) if block else ("bias" if own == "in_proj_bias" else "unknown", ())
    if isinstance(module, WEIGHTED) and own in ("weight", "bias"):
        weight = "linear" if isinstance(module, nn.Linear) else "conv"
        return ("bias", ()) if own == "bias" else (weight, roles.get(layer, ()))
    if isinstance(module, _EMBEDDINGS) and own == "weight":
        return "embedding", ()
    if isinstance(module, NORMS) and own in ("weight", "bias"):
        return "scale" if own == "weight" else "shift", ()
    if isinstance(module, nn.PReLU):
        return "prelu", ()
    return (
        "unknown"
        if type(module).__module__.startswith(_BUILT_IN) and not isinstance(module, _CONTAINERS)
        else _own_kind(layer, module, own, parameter)
    ), ()


def _own_kind(layer: str, module: nn.Module, own: str, parameter: nn.Parameter) -> str:
    # A module of the user's own, or a parameter in a container: by its name.
    if own.isdigit():
        own = layer.rpartition(".")[2]
    if parameter.ndim == 1 and "norm" in type(module).__name__.lower():
        if own in ("weight", "scale", "gamma", "g"):
            return "scale"
        if own in ("bias", "shift", "beta", "b"):
            return "shift"
    if parameter.numel() == 1 and _SCALAR_BIAS.fullmatch(own):
        return "scalar-bias"
    if parameter.numel() == 1 and _MULTIPLIER.fullmatch(own):
        return "multiplier"
    return "unknown"


def _refuse_computed(layer: str, module: nn.Module) -> None:
    name = layer or type(module).__name__
    if torch.nn.utils.parametrize.is_parametrized(module):
        tensors = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        raise InputError(
            f"{tensors} of {name} is parametrized: it is computed from other parameters at each use; initialize "
            "before parametrizing, or remove it first by torch.nn.utils.parametrize.remove_parametrizations."
        )
    computed = [
        own for own in ("weight", "bias") if isinstance(module, WEIGHTED) and own not in module._parameters
    ]
    if computed:
        others = ", ".join(module._parameters) or "nothing"
        raise InputError(
            f"{computed[0]} of {name} is no parameter but computed from {others} (weight_norm, spectral_norm, "
            "pruning, quantization); initialize before that, or undo it first."
        )


def _refuse_unfilled(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise InputError(f"{name} is lazy and has no shape yet; call the model once on a sample batch first.")
    if parameter.is_meta:
        raise InputError(
            f"{name} is on the meta device and has no memory; call model.to_empty(device='cpu') first."
        )
    if hasattr(parameter, "full_tensor") or getattr(parameter, "_is_flat_param", False):
        raise InputError(f"{name} is sharded over processes; initialize the model before it is sharded.")
