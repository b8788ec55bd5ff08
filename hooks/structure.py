"""What a run file says of the model, the optimizer and the surroundings: plain facts, as JSON.

A verifier reads its hypotheses from here, so nothing is interpreted: modules in order with their
types, parameters with their shapes, and whether they started at zero.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hooks.distributed import whole_of
from hooks.layers import Layer, is_distributed, layer_name
from zanalysis._version import __version__
from zanalysis.analyzers.symmetry import recognize_start

__all__ = ["describe_layers", "describe_model", "describe_optimizer", "differences", "resumed", "versions"]

# What these do to a model is done around it.
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")
_PACKAGES = ("numpy", "scipy", "h5py")


def _kind(module: nn.Module) -> str:
    # Another's class may be called Identity and be none.
    kind: type = type(module)
    if kind.__name__.startswith("FSDP") and len(kind.__bases__) == 2:
        kind = kind.__bases__[1]  # what `fully_shard` puts in front of a module's own class
    return (
        kind.__name__ if kind.__module__.startswith("torch.nn.") else f"{kind.__module__}.{kind.__qualname__}"
    )


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Describe the modules in their order, and the parameters.

    Args:
        model: the model.

    Returns:
        `type`; `modules`, the leaves, each with name, type and settings; `sequential`, whether the model
        is nothing but nested `nn.Sequential`, so that its leaves are all that happens; `parameters`,
        each with name, shape, dtype, whether it is trained, and whether it is zero now.
    """
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    inner = [m for m in model.modules() if list(m.children()) and type(m).__name__ not in _WRAPPERS]
    return {
        "type": type(model).__qualname__,
        "sequential": all(type(module).forward is nn.Sequential.forward for module in inner),
        "modules": [
            {"name": layer_name(name), "type": _kind(module), "settings": module.extra_repr()}
            for name, module in leaves
        ],
        "parameters": [
            {
                "name": name,
                "shape": list(parameter.shape),
                "dtype": str(parameter.dtype).removeprefix("torch."),
                "trained": parameter.requires_grad,
                "zero": not bool(_held(parameter).any()),
            }
            for name, parameter in model.named_parameters()
        ],
    }


def describe_layers(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Describe the recorded parameters and how they start.

    Args:
        layers: the layers.

    Returns:
        For each: name, the names of its matrices, shape, dtype, `start` (``identity``, ``hadamard``,
        ``zero``, ``constant`` or ``other``, by exact comparison) and `start_scale`, the largest
        magnitude at the start.
    """
    described = []
    for layer in layers:
        weight = whole_of(layer.read())
        if weight.dtype.itemsize == 1:  # torch stores eight bits, and compares none
            weight = weight.float()
        described.append(
            {
                "name": layer.name,
                "matrices": list(layer.matrices),
                "shape": list(layer.shape),
                "dtype": str(layer.dtype).removeprefix("torch."),
                "start": recognize_start(weight),
                "start_scale": float(weight.abs().max()),
            }
        )
    return described


def _held(parameter: torch.Tensor) -> torch.Tensor:
    # Of what several processes hold in parts, this one's.
    parts: Any = parameter.detach()
    held: torch.Tensor = parts.to_local() if is_distributed(parts) else parts
    return held


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.numel() < 16 else f"tensor of shape {list(value.shape)}"
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else repr(value)


def describe_optimizer(optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    """Describe the optimizers and the hyper-parameters of each group.

    Args:
        optimizers: the optimizers.

    Returns:
        For each: `type`, and `groups`, the hyper-parameters without the parameters.
    """
    return [
        {
            "type": type(optimizer).__name__,
            "groups": [
                {key: _plain(value) for key, value in group.items() if key not in ("params", "param_names")}
                for group in optimizer.param_groups
            ],
        }
        for optimizer in optimizers
    ]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the numbers depend on.

    Returns:
        By name; a package that is not installed is left out.
    """
    # torch's own word for its version also says which build it is, which its package's does not always.
    found = {"python": platform.python_version(), "zanalysis": __version__, "torch": str(torch.__version__)}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in which settings two parts of a run differ.

    Args:
        before: the attributes of the earlier part, as JSON gives them back.
        now: those of the later part.

    Returns:
        A phrase for each difference, those of the model first.
    """
    return [
        f"{what} {new}, before {old}"
        for what, old, new in _pairs(before, now)
        if old != new and old is not None
    ]


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield what is compared, as it was (None where that is not known) and as it is."""
    models = before.get("model", {}), now["model"]
    yield "model", models[0].get("type"), models[1]["type"]
    modules = [
        {m["name"]: f"{m['type']}({m['settings']})" for m in model.get("modules", [])} for model in models
    ]
    for name in dict.fromkeys([*modules[0], *modules[1]]):
        yield f"module {name}", modules[0].get(name, "none"), modules[1].get(name, "none")
    for key in ("dtype", "shape"):
        layers = [{layer["name"]: layer[key] for layer in part.get("layers", [])} for part in (before, now)]
        for name, value in layers[1].items():
            yield f"{key} of {name}", layers[0].get(name), value
    trained = [{p["name"]: p["trained"] for p in model.get("parameters", [])} for model in models]
    for name, value in trained[1].items():
        yield f"{name} trained:", trained[0].get(name), value
    optimizers = [part.get("optimizers", []) for part in (before, now)]
    types = [[one["type"] for one in several] for several in optimizers]
    yield "optimizers", types[0], types[1]
    for i, (old, new) in enumerate(zip(*optimizers, strict=False)):
        yield f"groups of optimizer {i}:", len(old["groups"]), len(new["groups"])
        for j, groups in enumerate(zip(old["groups"], new["groups"], strict=False)):
            for key in sorted({*groups[0]} & {*groups[1]}):
                yield f"{key} of optimizer {i}, group {j}:", groups[0][key], groups[1][key]
    yield "schedule", before.get("schedule"), now["schedule"]
    probes = [(part.get("probe") or {}).get("digest") for part in (before, now)]
    yield "probe of digest", probes[0], probes[1]
    for key in ("jacobian", "budget"):
        yield key, before.get(key), now.get(key)
    for package, found in now["versions"].items():
        yield package, before.get("versions", {}).get(package), found


def resumed(step: int, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Say how a run goes on.

    Args:
        step: from where.
        before: the attributes of the earlier part; None where nothing of it is kept.
        now: those of the later part.

    Returns:
        A sentence.
    """
    if before is None:
        return f"nothing recorded before step {step} is kept: the record begins anew"
    other = differences(before, now)
    return f"recording goes on from step {step}" + (f"; now {'; '.join(other)}" if other else "")
