"""Where in a whole tensor the part lies that this process has of it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hooks.layers import is_distributed
from hooks.team import Team
from zanalysis.analyzers.matrices import View, matricize
from zanalysis.analyzers.parts import Part, Split

__all__ = ["How", "counts", "how_to", "indices", "local", "part_of", "sliced"]


class How(NamedTuple):
    """How a parameter is measured that several processes hold.

    Attributes:
        way: ``"local"`` (every process has all of it), ``"parts"`` (one matrix, by sums), ``"batch"``
            (every process has some of its matrices), ``"whole"`` (it is brought together).
        split: how its matrix is split, where it goes by sums.
        shape: of that matrix.
    """

    way: str
    split: Split = "rows"
    shape: tuple[int, int] = (0, 0)


def how_to(tensor: Tensor, view: View, identity: bool) -> How:
    """Choose how a tensor is measured, by what is the same in every process.

    Args:
        tensor: a parameter or its gradient, in the layout of `Layer.read`.
        view: how it becomes matrices.
        identity: whether an identity is subtracted or looked for.

    Returns:
        The way.
    """
    if not is_distributed(tensor):
        return How("local")
    placements: Any = tensor.placements  # type: ignore[attr-defined]
    if any(placement.is_partial() for placement in placements):
        return How("whole")
    dims = {placement.dim % tensor.ndim for placement in placements if not placement.is_replicate()}
    if not dims:
        return How("local")
    if callable(view) or indices(tensor) is None:
        return How("whole")
    if tensor.ndim == 3:
        return How("batch" if dims == {0} else "whole")
    if tensor.ndim > 3 and (view == "taps" or identity):
        return How("whole")
    row = _row_dimension(view)
    split: Split = "both" if row in dims and len(dims) > 1 else "rows" if row in dims else "columns"
    return How("parts", split, (tensor.shape[row], tensor.numel() // tensor.shape[row]))


def _row_dimension(view: View) -> int:
    return 1 if view == "in" else 0


def indices(tensor: Any) -> list[Tensor] | None:
    """Return which indices of each dimension this process has.

    Args:
        tensor: a `DTensor`.

    Returns:
        For each dimension an ascending int64 `[indices]`, on the local part's device; None where the
        layout is one that is not known here.
    """
    held = tensor.to_local()
    mesh, place = tensor.device_mesh, tensor.device_mesh.get_coordinate()
    found = [torch.arange(size, device=held.device) for size in tensor.shape]
    for axis, placement in enumerate(tensor.placements):
        if placement.is_replicate() or placement.is_partial():
            continue
        dim, count = placement.dim % tensor.ndim, mesh.size(axis)
        # Sharded over an inner axis first, as where FSDP shards what tensor parallelism has sharded.
        strides = getattr(placement, "split_factor", 1)
        if strides > 1 and len(found[dim]) % (strides * count):
            return None
        blocks = found[dim].chunk(strides) if strides > 1 else (found[dim],)
        found[dim] = torch.cat([_piece(block, count, place[axis]) for block in blocks])
    return found if tuple(map(len, found)) == tuple(held.shape) else None


def _piece(block: Tensor, count: int, place: int) -> Tensor:
    pieces = block.chunk(count)
    return pieces[place] if place < len(pieces) else block[:0]


def counts(tensor: Any, team: Team) -> bool:
    """Say whether this process's part is in the sums: of several equal ones, the first is.

    Args:
        tensor: a `DTensor`.
        team: all that hold the model.

    Returns:
        Whether it is.
    """
    mesh = tensor.device_mesh
    axes = team.axes(mesh.get_all_groups())
    outside = any(team.coordinates[axis] for axis in range(len(team.sizes)) if axis not in axes)
    repeated = any(
        placement.is_replicate() and coordinate
        for placement, coordinate in zip(tensor.placements, mesh.get_coordinate(), strict=True)
    )
    return not outside and not repeated


def local(tensor: Any, device: torch.device | None = None) -> Tensor:
    """Return what this process has of a tensor.

    Args:
        tensor: a `DTensor`, or all of a tensor.
        device: where it is wanted; offloaded parts are brought there.

    Returns:
        The part, detached.
    """
    held: Tensor = (tensor.to_local() if is_distributed(tensor) else tensor).detach()
    return held if device is None else held.to(device)


def sliced(whole: Tensor, like: Any) -> Tensor:
    """Return of a whole tensor the part that this process has of another.

    Args:
        whole: the same in every process.
        like: a `DTensor` of its shape.

    Returns:
        The part.

    Raises:
        RuntimeError: if the layout is not known here.
    """
    found = indices(like)
    if found is None:
        raise RuntimeError(f"the layout {like.placements} of a sharded tensor is not known")
    for dim, index in enumerate(found):
        whole = whole.index_select(dim, index.to(whole.device))
    return whole


def part_of(tensor: Any, reference: Tensor | None, view: View, how: How, team: Team) -> Part:
    """Return this process's part of the matrix of a tensor.

    Args:
        tensor: a `DTensor`.
        reference: what is subtracted: in the same parts, or whole; or None.
        view: how it becomes a matrix.
        how: as `how_to` says.
        team: all that hold the model.

    Returns:
        The part, on the device that the team talks on.
    """
    device = team.device
    found = indices(tensor)
    assert found is not None
    row = _row_dimension(view)
    columns = torch.zeros(1, dtype=torch.int64, device=found[0].device)
    for dim, index in enumerate(found):
        if dim != row:
            columns = (columns[:, None] * tensor.shape[dim] + index).flatten()
    start = None
    if reference is not None:
        start = local(reference) if is_distributed(reference) else sliced(reference, tensor)
        start = matricize(start.to(device), view)
    weight = matricize(local(tensor, device), view)
    rows, columns = found[row].to(device), columns.to(device)
    return Part(weight, rows, columns, how.shape, how.split, start, counts(tensor, team))
