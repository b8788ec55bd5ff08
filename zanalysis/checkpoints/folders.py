"""Folders that are one checkpoint: shards with an index, as Hugging Face and others lay them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from zanalysis.checkpoints.contents import Checkpoint
from zanalysis.checkpoints.faults import FaultError, naming, quoted
from zanalysis.checkpoints.files import describe_file
from zanalysis.checkpoints.names import step_in_name, valid_step
from zanalysis.checkpoints.safetensors_files import unique_pairs
from zanalysis.errors import CheckpointError

__all__ = ["INDEX_SUFFIX", "describe_folder", "describe_index", "is_one_checkpoint", "member"]

INDEX_SUFFIX = ".index.json"
_MOST_JSON = 32 << 20
_CONFIGS = ("config.json", "adapter_config.json", "model_index.json")
_WHOLE = (
    *("model.safetensors", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors"),
    *("pytorch_model.bin", "diffusion_pytorch_model.bin", "adapter_model.bin"),
)


def is_one_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is one checkpoint, and not a folder of them.

    Args:
        folder: its path.

    Returns:
        Whether it is a distributed checkpoint, shards with an index, or a Hugging Face folder.
    """
    return (folder / ".metadata").is_file() or _weights_in(folder) is not None


def _weights_in(folder: Path) -> Path | None:
    indexes = sorted(
        folder.glob(f"*{INDEX_SUFFIX}"), key=lambda path: (".safetensors." not in path.name, path.name)
    )
    indexes = [path for path in indexes if ".safetensors." in path.name or ".bin." in path.name]
    if any((folder / config).is_file() for config in _CONFIGS):
        wholes = [folder / name for name in _WHOLE if (folder / name).is_file()]
        safe = [path for path in wholes if path.suffix == ".safetensors"]
        return next(iter([*safe, *indexes, *wholes]), None)
    return next(iter(indexes), None)


def describe_folder(folder: Path) -> Checkpoint:
    """Describe a folder of shards, or a Hugging Face folder.

    Args:
        folder: its path, for which `is_one_checkpoint` holds.

    Returns:
        Its weights, and its step where a `trainer_state.json` tells it.

    Raises:
        FaultError: if there are no weights in it.
    """
    weights = _weights_in(folder)
    if weights is None:
        raise FaultError("is a folder, but not one checkpoint; pass a file in it.")
    name = member(folder, weights.name)
    found = describe_index(weights) if weights.name.endswith(INDEX_SUFFIX) else describe_file(name)
    step = None
    if (folder / "trainer_state.json").is_file():
        step = valid_step(_json(folder / "trainer_state.json").get("global_step"))
    named = any((folder / config).is_file() for config in _CONFIGS)
    return replace(
        found,
        path=folder,
        kind="huggingface" if named else "sharded",
        step=step_in_name(folder) if step is None else step,
        notes=(*found.notes, *_quantization(folder)),
    )


def _quantization(folder: Path) -> list[str]:
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        return []
    method = settings.get("quant_method")
    what = f" by {quoted(method)}" if isinstance(method, str) else ""
    return [
        f"Its config says that the weights are quantized{what}: what can be read are scales and the rest."
    ]


def _json(path: Path) -> dict[str, Any]:
    with naming(path):
        if path.stat().st_size > _MOST_JSON:
            raise FaultError(f"has {path.stat().st_size} bytes of JSON; at most {_MOST_JSON} are read.")
        found = json.loads(path.read_bytes(), object_pairs_hook=unique_pairs)
        if not isinstance(found, dict):
            raise FaultError("is damaged: its JSON is no mapping; restore it from a copy.")
        return found


def describe_index(path: Path) -> Checkpoint:
    """Describe the checkpoint of an index, `*.safetensors.index.json` or `*.bin.index.json`.

    Args:
        path: the index.

    Returns:
        The tensors that it lists, shard after shard.

    Raises:
        CheckpointError: if the index or a shard is damaged, a shard lies outside the folder, or a tensor
            is not in its shard.
    """
    weights = _json(path).get("weight_map")
    with naming(path):
        if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
            raise CheckpointError(
                f"{path} is no index of shards: it has no weight_map from tensors to files."
            )
        shards = {name: describe_file(member(path.parent, name)) for name in dict.fromkeys(weights.values())}
        held = {(name, tensor.name): tensor for name, shard in shards.items() for tensor in shard.tensors}
        missing = [name for name, shard in weights.items() if (shard, name) not in held]
        if missing:
            raise CheckpointError(
                f"{path} lists {quoted(missing[0])}, but {quoted(weights[missing[0]])} does not have it; restore the "
                "folder from a copy."
            )
    return Checkpoint(
        path=path,
        kind="sharded",
        step=step_in_name(path.parent),
        tensors=tuple(tensor for (shard, name), tensor in held.items() if weights.get(name) == shard),
        placeholders=tuple(dict.fromkeys(name for shard in shards.values() for name in shard.placeholders)),
        notes=tuple(dict.fromkeys(note for shard in shards.values() for note in shard.notes)),
    )


def member(folder: Path, name: str) -> Path:
    """Find a file that a checkpoint's folder names, and only there.

    Args:
        folder: the checkpoint's.
        name: relative to it, as a file in it gives it.

    Returns:
        The path.

    Raises:
        FaultError: if it leaves the folder, by its name or through a symbolic link. (The links of a Hugging
            Face cache, from `snapshots/REVISION/` to `blobs/`, stay within the model's own folder.)
    """
    home = folder.resolve()
    cached = home.parent.name == "snapshots" and home.parent.parent / "blobs"
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name or not name:
        raise FaultError(
            f"refers to {quoted(name)}, which is no file in its folder; nothing outside is read."
        )
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise FaultError(f"refers to {quoted(name)}, which cannot be found ({error}).") from error
    if not (real.is_relative_to(home) or (cached and real.is_relative_to(cached))):
        raise FaultError(
            f"refers to {quoted(name)}, a link that leads out of its folder; nothing outside is read: copy the "
            "file into the folder."
        )
    return path
