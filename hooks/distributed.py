"""Outgrowing one machine: whose model is held by several processes, and what a tracker does then.

What is recognized, by the model alone and without a word to another process:

- `DistributedDataParallel`: every process has all weights, so the one of rank 0 in its process group
  measures and writes; gradients are the averaged ones. `ZeroRedundancyOptimizer` changes nothing.
- FSDP2 (`fully_shard`, with replicas, offloading and mixed precision; what counts is the dtype that the
  optimizer trains) and tensor parallelism: parameters are `DTensor`s. All processes of their mesh
  measure together (see `shards`), weights and gradients; the one at its origin writes.
- A model that is neither belongs to this process alone, whatever process group there is: nothing waits
  for anybody, each process that attaches a tracker writes its own file. So each stage of a pipeline
  (`torch.distributed.pipelining`), being a module of its own, is attached to with a path of its own.

Every process of such a model attaches a tracker with the same arguments, and steps as often as the others,
as its training does anyhow. One opens the file, which is where rank 0 is; the others open none, their
`log` and `close` do nothing and their `table` is empty. An error of the one that opens it is raised in all.
To follow a `DistributedDataParallel` model from rank 0 alone, attach to its `module`.

Activations are those of the writing process's own samples, whatever is measured of them, but for spans:
these are of all samples. Where a layer puts out a `DTensor`, a batch or a sequence that is sharded is each
process's own, features that are sharded are brought together.

FSDP1 and DeepSpeed keep weights in a way that has no rows; they are refused by name, and so are the
activations of `DataParallel`, whose replicas run in threads of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hooks.layers import Layer, is_distributed
from zanalysis.errors import InputError

if TYPE_CHECKING:
    from hooks.team import Team

__all__ = [
    "NoWriter",
    "agree_on_zeros",
    "check_supported",
    "initial_weights",
    "local_samples",
    "reshard",
    "runnable",
    "team_of",
    "whole_of",
]


def whole_of(tensor: Tensor) -> Tensor:
    """Return all of a tensor; of a `DTensor` in all processes that hold it, at the same time.

    Args:
        tensor: any tensor.

    Returns:
        It, or what its parts are together; parts that are offloaded are brought to the mesh's device.
    """
    if not is_distributed(tensor):
        return tensor
    parts: Any = tensor
    whole: Tensor = parts.to(parts.device_mesh.device_type).full_tensor()
    return whole


def agree_on_zeros(model: nn.Module, described: list[dict[str, Any]], team: "Team") -> None:
    """Say of a sharded parameter that it is zero where all its parts are.

    Args:
        model: the model.
        described: its parameters as each process sees its own parts, in their order; changed.
        team: the processes.
    """
    filled = torch.tensor([not parameter["zero"] for parameter in described], dtype=torch.float64)
    together = team.everyone(filled).tolist()
    for parameter, (_, tensor), filled_anywhere in zip(
        described, model.named_parameters(), together, strict=True
    ):
        if is_distributed(tensor):
            parameter["zero"] = not filled_anywhere


def reshard(model: Any) -> None:
    """Let FSDP2 put its parameters back in parts, which it leaves whole behind some forwards.

    Args:
        model: the model; of another kind nothing is done.
    """
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            sharded: Any = module
            sharded.reshard()


def check_supported(model: Any, tensors: Iterable[str]) -> None:
    """Refuse by name what keeps its weights, or runs its layers, in a way that cannot be followed.

    Args:
        model: the model.
        tensors: what is to be followed.

    Raises:
        InputError: if the model is a DeepSpeed engine, has FSDP1 or ZeRO-3 parameters, or is replicated in
            threads and activations are asked for.
    """
    if any(kind.__module__.split(".")[0] == "deepspeed" for kind in type(model).__mro__):
        raise InputError(
            "a DeepSpeed engine updates flat partitions of the weights, which have no matrices; attach to "
            "engine.module on rank 0 with optimizer=None, and call tracker.step() after engine.step(), for ZeRO "
            "stages 0 to 2, or train with FSDP2 (torch.distributed.fsdp.fully_shard)."
        )
    if not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__name__ == "FullyShardedDataParallel" and kind.__module__.startswith(
            "torch.distributed.fsdp"
        ):
            raise InputError(
                f"{name or 'the model'} is wrapped in FSDP1 (FullyShardedDataParallel), whose flat parameters have "
                "no rows to follow; use FSDP2 (torch.distributed.fsdp.fully_shard)."
            )
        devices = getattr(module, "device_ids", None) or ()
        replicated = kind.__name__ == "DataParallel" and len(devices) > 1
        if replicated and not {"activation", "activation_gradient"}.isdisjoint(tensors):
            raise InputError(
                "DataParallel runs copies of the layers in threads of their own, whose activations cannot be "
                "followed; follow weights and gradients, or use DistributedDataParallel."
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise InputError(
                f"{name} is partitioned by DeepSpeed ZeRO-3, which leaves no rows to follow; use ZeRO stages 0 to 2, "
                "or FSDP2 (torch.distributed.fsdp.fully_shard)."
            )


def runnable(model: nn.Module, team: "Team | None", probe: object) -> nn.Module:
    """Return what a probe can be run through by one process alone.

    Args:
        model: the model.
        team: the processes that hold it, if any.
        probe: the probe, or None.

    Returns:
        The model; what `DistributedDataParallel` wraps.

    Raises:
        InputError: if there is a probe, and layers that no process has whole.
    """
    if team is None or probe is None:
        return model
    if any(map(is_distributed, model.parameters())):
        raise InputError(
            "probe=… runs the model in one process, and no process has all of a sharded model; leave it out, or "
            "run the probe on a checkpoint."
        )
    while type(model).__name__ in ("DistributedDataParallel", "OptimizedModule"):
        inner = getattr(model, "_orig_mod", None) or model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def team_of(model: nn.Module, layers: Sequence[Layer]) -> "Team | None":
    """Find the processes that hold a model together. Nothing is sent.

    Args:
        model: the model.
        layers: the recorded layers.

    Returns:
        The team; None where the model is this process's own.

    Raises:
        InputError: if its layers are sharded over meshes that are not part of one another.
    """
    meshes: list[Any] = []
    for layer in layers:
        mesh = getattr(layer.parameter, "device_mesh", None)
        if mesh is not None and mesh not in meshes:
            meshes.append(mesh)
    meshes.sort(key=lambda mesh: -mesh.ndim)
    groups = list(meshes[0].get_all_groups()) if meshes else []
    groups += _data_parallel_groups(model)
    if not groups:
        return None
    from hooks.team import Team

    team = Team(groups)
    for mesh in meshes[1:]:
        if None in team.axes(mesh.get_all_groups()):
            raise InputError(
                "the layers are sharded over device meshes that are not part of one another; pass layers=… of "
                "one mesh, or shard over slices of one mesh (torch.distributed.device_mesh.init_device_mesh)."
            )
    return team


def check_whole(layers: Sequence[Layer]) -> None:
    """Refuse layers of which a process has only a part.

    Args:
        layers: the recorded layers.

    Raises:
        InputError: if one is sharded.
    """
    for layer in layers:
        if is_distributed(layer.parameter):
            raise InputError(
                f"{layer.name} is sharded over several processes, and a Recorder keeps whole tensors; save a "
                "distributed checkpoint (torch.distributed.checkpoint), which zanalysis reads, or use RankTracker."
            )


def _data_parallel_groups(model: nn.Module) -> list[Any]:
    # DDP may be inside what torch.compile returns.
    found = [module for module in model.modules() if type(module).__name__ == "DistributedDataParallel"]
    return [module.process_group for module in found[:1]]


def local_samples(z: Tensor, layer: Layer, team: "Team") -> Tensor | None:
    """Return the samples of a layer that this process has, and no other has too.

    Samples that are sharded over the batch or the sequence are each process's own. Features that are
    sharded, as behind a column-wise parallel layer, are brought together first, in which every process of
    the mesh takes part. Samples that several processes have alike count once.

    Args:
        z: the output of a layer, or its gradient: a `DTensor` or this process's part.
        layer: whose output it is.
        team: the processes.

    Returns:
        The samples, all features; None where another process has the same.
    """
    if not is_distributed(z):
        parameter: Any = layer.parameter
        features = layer.shape[1 if isinstance(layer.owner, nn.Embedding) else 0]
        known = isinstance(layer.owner, nn.Linear | nn.Embedding) and is_distributed(parameter)
        if not known or z.shape[-1] == features:
            return z
        z = _with_sharded_features(z, features, parameter)
    from torch.distributed.tensor import Replicate

    tensor: Any = z
    last = tensor.ndim - 1
    wanted = [
        Replicate() if p.is_partial() or (p.is_shard() and p.dim % tensor.ndim == last) else p
        for p in tensor.placements
    ]
    tensor = tensor.redistribute(placements=wanted)
    repeated = any(
        p.is_replicate() and place
        for p, place in zip(wanted, tensor.device_mesh.get_coordinate(), strict=True)
    )
    held: Tensor = tensor.to_local().detach()
    return None if repeated else held


def _with_sharded_features(z: Tensor, features: int, parameter: Any) -> Any:
    # Over which axis of the mesh: the one that leaves this process as many features as it has.
    from torch.distributed.tensor import DTensor, Shard

    mesh = parameter.device_mesh
    for axis in range(mesh.ndim - 1, -1, -1):
        pieces = [len(piece) for piece in z.new_empty(features).chunk(mesh.size(axis))]
        place = mesh.get_coordinate()[axis]
        if place < len(pieces) and pieces[place] == z.shape[-1]:
            part = mesh if mesh.ndim == 1 else mesh[mesh.mesh_dim_names[axis]]
            like = z.new_empty((*z.shape[:-1], features), device="meta")
            placements = [Shard(z.ndim - 1)]
            return DTensor.from_local(z, part, placements, shape=like.shape, stride=like.stride())
    raise RuntimeError(f"its output has {z.shape[-1]} features, not {features}, for no reason that is known")


def initial_weights(
    wholes: Mapping[str, Tensor] | None, layers: Sequence[Layer], team: "Team"
) -> dict[str, Tensor]:
    """Give every process its part of the weights that a resumed run began with.

    Args:
        wholes: them, by layer, in the layout of `Layer.read`; None in all processes but the leader.
        layers: the layers.
        team: the processes.

    Returns:
        Each process's part, as its layers are sharded.
    """
    from hooks.slices import sliced

    parts: dict[str, Tensor] = {}
    for layer in layers:
        like: Any = layer.read()
        whole = None if wholes is None else wholes[layer.name].reshape(like.shape)
        if is_distributed(like):
            held = like.to_local()
            here = held.new_empty(like.shape, device=team.device)
            here = here if whole is None else here.copy_(whole)
            parts[layer.name] = _like(sliced(team.sent(here), like).to(held.device), like)
        else:
            parts[layer.name] = like if whole is None else whole.to(like.device)
    return parts


def _like(held: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    made: Tensor = DTensor.from_local(
        held.contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return made


class NoWriter:
    """What a process has in the place of a file that does not write: it takes everything and keeps nothing."""

    def append(self, step: int, value: Any, tolerance: Any, status: Any, spectra: Any) -> None:
        """Keep nothing."""

    def append_tensors(self, step: int, kept: Sequence[Any]) -> None:
        """Keep nothing."""

    def drop_tensors(self, steps: int = 1) -> None:
        """Keep nothing."""

    def log(self, step: int, name: str, value: float) -> None:
        """Keep nothing."""

    def event(self, step: int, kind: str, text: str, layer: str = "") -> None:
        """Keep nothing."""

    def overhead(self, seconds: Mapping[str, float], elapsed: float) -> None:
        """Keep nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
