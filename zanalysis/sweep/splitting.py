"""Parameters that hold several matrices: fused projections, attention heads, gates, banks.

A split is `{pattern: how}`; the pattern is a glob over layer names or over the names in the file, and the
first that matches counts. `how` is one of

- a number `n`: n equal blocks of rows, `name[0]` … `name[n-1]`;
- a word or a list of names: equal blocks by letter or by name, `"qkv"` -> `name[q]`, `name[k]`, `name[v]`
  (torch's LSTM is `"ifgo"`, its GRU `"rzn"`);
- a mapping with some of `parts` (either of the above, or `{name: rows}` where they are unequal, as in grouped
  query attention), `heads` (each part again in so many equal blocks, `name[q][3]`) and `dim` (1 for columns, as
  in GPT-2's Conv1D, which stores `[in, out]`);
- `"kernel"` or `"matrices"`: a tensor of three dimensions *is* a Conv1d kernel, or a batch of matrices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from zanalysis.errors import InputError, did_you_mean

__all__ = ["KINDS", "Block", "Split", "blocks_of", "checked_split", "how_to_split"]

Split = Mapping[str, Any]
KINDS = ("kernel", "matrices")
_KEYS = ("parts", "heads", "dim")


@dataclass(frozen=True)
class Block:
    """One part of a parameter.

    Attributes:
        suffix: what its name has behind the layer's, `""` for the whole.
        start: its first row or column.
        length: how many it has; None for the whole.
        dim: 0 for rows, 1 for columns, of each matrix.
    """

    suffix: str = ""
    start: int = 0
    length: int | None = None
    dim: int = 0

    def of(self, W: Tensor) -> Tensor:
        """Return the block of a parameter.

        Args:
            W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.

        Returns:
            A view of it.
        """
        if self.length is None:
            return W
        return W.narrow(self.dim + (W.ndim == 3), self.start, self.length)


def checked_split(split: Any) -> dict[str, Any]:
    """Return a split if it is one.

    Args:
        split: None, or `{pattern: how}`.

    Returns:
        Pattern -> `"kernel"`, `"matrices"` or a mapping with `parts`, `heads` and `dim`.

    Raises:
        InputError: if it is of another kind.

    Example:
        >>> checked_split({"*.in_proj_weight": "qkv"})
        {'*.in_proj_weight': {'parts': {'q': None, 'k': None, 'v': None}, 'heads': 1, 'dim': 0}}
    """
    if split is None:
        return {}
    if not isinstance(split, Mapping) or not all(isinstance(pattern, str) for pattern in split):
        raise InputError(
            f"got split = {split!r}, expected {{glob: how}} such as {{'*.in_proj_weight': 'qkv'}}."
        )
    return {pattern: _checked(pattern, how) for pattern, how in split.items()}


def _checked(pattern: str, how: Any) -> Any:
    if how in KINDS:
        return how
    given = dict(how) if isinstance(how, Mapping) else {"parts": how}
    for key in given:
        if key not in _KEYS:
            raise InputError(
                f"unknown key {key!r} in the split of {pattern!r}; {did_you_mean(str(key), _KEYS)}"
            )
    heads, dim = given.get("heads", 1), given.get("dim", 0)
    if not _is_count(heads):
        raise InputError(
            f"got heads = {heads!r} in the split of {pattern!r}, expected a whole number, 1 or more."
        )
    if dim not in (0, 1) or isinstance(dim, bool):
        raise InputError(f"got dim = {dim!r} in the split of {pattern!r}, expected 0 (rows) or 1 (columns).")
    return {"parts": _checked_parts(pattern, given.get("parts", "")), "heads": heads, "dim": dim}


def _checked_parts(pattern: str, parts: Any) -> dict[str, int | None]:
    if _is_count(parts):
        return {str(i): None for i in range(parts)}
    if isinstance(parts, Mapping) and parts and all(_is_count(size) for size in parts.values()):
        return {str(name): size for name, size in parts.items()}
    if isinstance(parts, str | Sequence) and all(isinstance(name, str) for name in parts):
        names: dict[str, int | None] = dict.fromkeys(parts)
        if len(names) == len(parts):
            return names
    raise InputError(
        f"got {parts!r} in the split of {pattern!r}, expected a number of parts, different names such as 'qkv' "
        "or ['query', 'key'], or {name: rows}."
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 16


def how_to_split(split: Mapping[str, Any], *names: str) -> Any:
    """Return how a tensor is to be split.

    Args:
        split: as `checked_split` returns it.
        *names: the tensor's names.

    Returns:
        What stands there for the first pattern that matches one of the names; None where none does.
    """
    for pattern, how in split.items():
        if any(name == pattern or fnmatchcase(name, pattern) for name in names):
            return how
    return None


def blocks_of(how: Any, layer: str, shape: Sequence[int]) -> tuple[Block, ...]:
    """Return the blocks of one parameter.

    Args:
        how: as `how_to_split` returns it.
        layer: its name, for the error.
        shape: as the parameter is measured: three dimensions are a batch of matrices.

    Returns:
        One block for each part, in order.

    Raises:
        InputError: if the sizes do not come out even.

    Example:
        >>> [block.suffix for block in blocks_of({"parts": {"q": 4, "k": 2}, "heads": 2, "dim": 0}, "x", (6, 5))]
        ['[q][0]', '[q][1]', '[k][0]', '[k][1]']
    """
    if how is None or isinstance(how, str):
        return (Block(),)
    parts, heads, dim = how["parts"] or {"": None}, how["heads"], how["dim"]
    total = shape[dim + (len(shape) == 3)]
    equal, rest = divmod(total, len(parts))
    sizes = [equal if size is None else size for size in parts.values()]
    if sum(sizes) != total or (rest and None in parts.values()) or any(size % heads for size in sizes):
        each = f"{heads} heads each" if heads > 1 else "no heads"
        raise InputError(
            f"{layer} of shape {list(shape)} does not split into {len(parts)} parts of {sizes} "
            f"{'columns' if dim else 'rows'}, {each}; check split=…"
        )
    blocks, start = [], 0
    for name, size in zip(parts, sizes, strict=True):
        for head in range(heads):
            suffix = (f"[{name}]" if name else "") + (f"[{head}]" if heads > 1 else "")
            blocks.append(Block(suffix, start, size // heads, dim))
            start += size // heads
    return tuple(blocks)
