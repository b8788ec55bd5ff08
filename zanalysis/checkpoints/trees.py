"""Looking into what `Unpickler` describes: keys and children, whatever an object is."""

from collections.abc import Iterator
from typing import Any, TypeGuard

from zanalysis.checkpoints.faults import FaultError
from zanalysis.checkpoints.globals import Built
from zanalysis.checkpoints.rebuilders import Described

__all__ = ["children", "is_module", "size_of"]

_LONGEST_KEY = 500


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """Go through what an object holds.

    Args:
        node: as `Unpickler` describes it.

    Yields:
        Key and child: of a mapping its items, of a list its places, of another object its attributes.
        Of a key given twice, the place of the first and the value of the last, as a dict would have it.
    """
    if isinstance(node, list | tuple):
        yield from ((str(i), child) for i, child in enumerate(node))
    elif isinstance(node, Built):
        held: dict[str, Any] = {}
        for pairs in (_first_argument(node), node.pairs, *_attributes(node)):
            held.update((key, child) for key, child in map(_pair, pairs or ()) if key is not None)
        yield from held.items()


def size_of(node: Any) -> int:
    """Count what `children` would go through, also what it would leave out.

    One long list can be the content of many objects: what is looked at has to be counted ahead.

    Args:
        node: as `Unpickler` describes it.

    Returns:
        The count.
    """
    if isinstance(node, list | tuple):
        return len(node)
    if not isinstance(node, Built):
        return 0
    return sum(len(pairs or ()) for pairs in (_first_argument(node), node.pairs, *_attributes(node)))


def _first_argument(node: Built) -> Any:
    # Python 2 wrote OrderedDict([[key, value], ...]).
    ordered = node.kind == "collections.OrderedDict" and isinstance(node.args, tuple) and node.args
    return node.args[0] if ordered and isinstance(node.args[0], list) else None


def _attributes(node: Built) -> list[Any]:
    states = node.state if isinstance(node.state, tuple) and len(node.state) == 2 else (node.state,)
    mapping = node.kind in (
        "collections.OrderedDict",
        "builtins.dict",
    )  # a state dict's _metadata is no weight
    return [] if mapping else [state.pairs for state in states if isinstance(state, Built)]


def _pair(pair: Any) -> tuple[str | None, Any]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return None, None
    key, child = pair
    if isinstance(key, bytes) and len(key) <= _LONGEST_KEY:
        key = key.decode("latin-1")
    if type(key) is int and abs(key) < 1 << 63:
        key = str(key)
    if isinstance(key, str) and len(key) > _LONGEST_KEY:
        if isinstance(child, Described):
            raise FaultError(f"has a tensor whose name has {len(key)} letters; restore it from a copy.")
        return None, None
    return (key if isinstance(key, str) else None), child


def is_module(node: Any) -> TypeGuard[Built]:
    """Tell whether an object is a pickled `torch.nn.Module`.

    Args:
        node: as `Unpickler` describes it.

    Returns:
        Whether its attributes are those of a module.
    """
    if not isinstance(node, Built) or not isinstance(node.state, Built):
        return False
    keys = [pair[0] for pair in (node.state.pairs or ())[:200]]
    return "_parameters" in keys and "_modules" in keys
