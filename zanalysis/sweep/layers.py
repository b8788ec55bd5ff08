"""Which tensors of a checkpoint are measured, and under which names: the rule of `hooks.layers`, on a file.

Candidates are the floating tensors with two or more dimensions whose matrix, in the given view, has at least
two rows and two columns, and narrower ones that `layers` names word for word; tied ones once, under their
first name. What cannot be read as such a matrix, such as
quantized weights, is there with the status ``skipped``; indices and masks (int64, int16, bool) are not. A file
does not say which of its tensors are parameters and which are buffers: a buffer of that kind is measured too,
unless `layers` leaves it out.

Three dimensions are a batch of matrices or a Conv1d kernel. Where the file does not say which, a tensor is
taken for a kernel if its name ends in `weight` and either the rest of the name has `conv` in it, or its last
dimension is at most 31 and its module has no bias, or a bias of as many entries as it has output channels:
`shape[0]`, and `shape[1]` for a transposed convolution. Else, and for every other name, it is a batch of
matrices. `split={"encoder.*": "kernel"}` (or `"matrices"`) says otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from zanalysis.analyzers.matrices import View, matricize
from zanalysis.analyzers.naming import Selection, layer_name, plain, selected, written_out
from zanalysis.checkpoints import Checkpoint, StoredTensor
from zanalysis.sweep.splitting import Block, blocks_of, how_to_split

__all__ = ["StoredLayer", "is_kernel", "layers_of", "tensors_by_layer"]

MOST_TAPS = 31
MOST_MATRICES = 1 << 20
_NEVER_WEIGHTS = (torch.bool, torch.int16, torch.int64)


@dataclass(frozen=True)
class StoredLayer:
    """One tensor of a checkpoint that is to be measured.

    Attributes:
        name: its layer name.
        tensor: where it is stored.
        kernel: whether its three dimensions are a Conv1d kernel.
        blocks: the parts it is measured in.
        names: the name of each matrix, block by block.
    """

    name: str
    tensor: StoredTensor
    kernel: bool
    blocks: tuple[Block, ...]
    names: tuple[str, ...]


def is_kernel(tensor: StoredTensor, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Say whether a tensor of three dimensions is a Conv1d kernel.

    Args:
        tensor: the tensor.
        shapes: the shapes of all tensors beside it, by name.

    Returns:
        What the file says of it, else what the rule above does.
    """
    if tensor.kernel is not None or len(tensor.shape) != 3:
        return bool(tensor.kernel)
    module, _, last = tensor.name.rpartition(".")
    if last != "weight":
        return False
    bias = shapes.get(f"{module}.bias" if module else "bias")
    fits = bias is None or (len(bias) == 1 and bias[0] in tensor.shape[:2])
    return "conv" in module.lower() or (tensor.shape[2] <= MOST_TAPS and fits)


def tensors_by_layer(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint by the name that their layer has in a table.

    Args:
        checkpoint: the checkpoint.

    Returns:
        Layer name -> tensor, in the checkpoint's order.
    """
    named: dict[str, StoredTensor] = {}
    for tensor in checkpoint.tensors:
        name = layer_name(tensor.name)
        named[plain(tensor.name) if name in named else name] = tensor
    return named


def layers_of(
    checkpoint: Checkpoint, selection: Selection, view: View, split: Mapping[str, Any], strict: bool = True
) -> list[StoredLayer]:
    """Return the layers of a checkpoint that are to be measured.

    Args:
        checkpoint: the checkpoint.
        selection: as for `zanalysis.analyzers.naming.selected`.
        view: how a kernel becomes a matrix.
        split: as `checked_split` returns it.
        strict: whether every pattern of the selection must match something.

    Returns:
        The layers, in the checkpoint's order; skipped tensors among them.
    """
    shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
    candidates = {}
    named = written_out(selection)
    for name, tensor in tensors_by_layer(checkpoint).items():
        layer = _layer(name, tensor, shapes, view, split, narrow=name in named)
        if layer is not None:
            candidates[name] = layer
    readers = {name: partial(_loaded, layer.tensor) for name, layer in candidates.items()}
    chosen = selected(selection, readers, strict) if candidates else []
    return [candidates[name] for name in chosen]


def _loaded(tensor: StoredTensor) -> torch.Tensor:
    return tensor.load()


def _layer(
    name: str,
    tensor: StoredTensor,
    shapes: Mapping[str, Sequence[int]],
    view: View,
    split: Mapping[str, Any],
    narrow: bool,
) -> StoredLayer | None:
    if tensor.tied or len(tensor.shape) < 2 or 0 in tensor.shape or tensor.dtype in _NEVER_WEIGHTS:
        return None
    if tensor.status != "ok":
        wide = narrow or min(tensor.shape[0], math.prod(tensor.shape[1:])) > 1
        return StoredLayer(name, tensor, False, (Block(),), (name,)) if wide else None
    how = how_to_split(split, name, tensor.name)
    kernel = how == "kernel" if isinstance(how, str) else is_kernel(tensor, shapes)
    shape = (*tensor.shape, 1) if kernel and len(tensor.shape) == 3 else tuple(tensor.shape)
    blocks = blocks_of(how, name, shape)
    names: list[str] = []
    for block in blocks:
        # Only the shapes matter here; a meta tensor costs nothing.
        matrices = matricize(block.of(torch.empty(shape, dtype=tensor.dtype, device="meta")), view)
        count = matrices.shape[:-2].numel()
        if min(matrices.shape[-2:]) < (1 if narrow else 2) or not 0 < count <= MOST_MATRICES:
            return None
        base = name + block.suffix
        names += [base] if matrices.ndim == 2 else [f"{base}[{i}]" for i in range(count)]
    return StoredLayer(name, tensor, kernel, blocks, tuple(names))
