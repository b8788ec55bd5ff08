"""Finding the weights in whatever a training program saved, by structure.

A mapping with matrices in it is a state dict; a pickled module is walked as `state_dict` would; what looks
like an optimizer is left out. Where several parts hold matrices, the one under a usual name is taken if it is
not much smaller than the largest; without such a name all are taken, each named by its key.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeGuard

from zanalysis.checkpoints.faults import FaultError, quoted
from zanalysis.checkpoints.globals import Built
from zanalysis.checkpoints.rebuilders import Described

__all__ = ["Entry", "Found", "children", "find_weights"]

_MOST_DEPTH = 60
_MOST_LOOKS = 4 << 20
_MOST_TENSORS = 500_000
_USUAL = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights"),
    *("params", "parameters", "model_ema", "ema_model", "ema_state_dict", "ema", "state_dict_ema"),
)
# What torch's optimizers, and the usual others, keep for a parameter.
_SLOTS = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "exp_inf"),
    *("grad_avg", "mu_product", "prev_grad", "param_groups", "fp32_flat_groups", "loss_scaler"),
}
_ASIDE = ("optim", "scheduler", "scaler", "rng_state", "random_state")


@dataclass(frozen=True)
class Entry:
    """A tensor and its name.

    Attributes:
        name: its key.
        tensor: its description.
        kernel: whether it is a convolution's kernel, where a pickled module tells.
    """

    name: str
    tensor: Described
    kernel: bool | None = None

    @property
    def elements(self) -> int:
        """How many numbers a matrix has; 0 for what is none."""
        shape = self.tensor.shape
        return math.prod(shape) if len(shape) > 1 and not self.tensor.why else 0


@dataclass(eq=False)
class Found:
    """The tensors under one object.

    Attributes:
        entries: in order.
        path: the keys that lead to them.
        notes: what was chosen, and what was left.
    """

    entries: list[Entry]
    path: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @cached_property
    def elements(self) -> int:
        """The numbers in all matrices."""
        return sum(entry.elements for entry in self.entries)

    def reached_by(self, key: str) -> "Found":
        """Put a key in front of the path.

        Args:
            key: of the level above.

        Returns:
            Itself.
        """
        self.path = (key, *self.path)
        return self

    def spelled_out(self) -> list[Entry]:
        """Return the entries with the keys that lead to them in their names."""
        prefix = "".join(f"{key}." for key in self.path)
        return [Entry(prefix + e.name, e.tensor, e.kernel) for e in self.entries]


_NOTHING = Found([])


def find_weights(root: Any) -> Found:
    """Find the weights.

    Args:
        root: what was saved, as `Unpickler` describes it.

    Returns:
        Them; no entries where there is no tensor.

    Raises:
        FaultError: if there are more objects or tensors than any checkpoint has.
    """
    if isinstance(root, Described):
        return Found([Entry("tensor", root)])
    return _Search().under(root, 0)


class _Search:
    """One walk. Each object is looked into once, so that shared and cyclic ones cost nothing."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._looks = 0

    def _inside(self, node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, list | tuple):
            self._look(len(node))
            yield from ((str(i), child) for i, child in enumerate(node) if _holds_something(child))
        else:
            for key, child in children(node):
                self._look(1)
                if key in _SLOTS or _holds_something(child):
                    yield key, child

    def _look(self, count: int) -> None:
        self._looks += count
        if self._looks > _MOST_LOOKS:
            raise FaultError(
                "holds millions of Python objects beside its tensors; save its state_dict alone."
            )

    def under(self, node: Any, depth: int) -> Found:
        if id(node) in self._seen or depth > _MOST_DEPTH or not isinstance(node, Built | list | tuple):
            return _NOTHING
        self._seen.add(id(node))
        if is_module(node):
            return Found(_capped(list(self._module(node, "", depth))))
        inside = list(self._inside(node))
        if any(key in _SLOTS for key, _ in inside):
            return _NOTHING
        kernel = _kernel(node.kind) if isinstance(node, Built) else None
        direct = [
            Entry(key, child, kernel if key == "weight" else None)
            for key, child in inside
            if isinstance(child, Described)
        ]
        parts = [
            part.reached_by(key)
            for key, child in inside
            if not any(word in key.lower() for word in _ASIDE) and isinstance(child, Built | list | tuple)
            for part in (self.under(child, depth + 1),)
            if part.entries
        ]
        scripted = isinstance(node, Built) and node.kind.startswith("__torch__.")
        return _joined(direct, parts) if scripted else _chosen(direct, parts)

    def _module(self, node: Built, prefix: str, depth: int) -> Iterator[Entry]:
        state = dict(entry for entry in self._inside(node) if entry[0].startswith("_"))
        kernel = _kernel(node.kind)
        fleeting = _texts(state.get("_non_persistent_buffers_set"))
        for attribute in ("_parameters", "_buffers"):
            for key, child in self._inside(state.get(attribute)):
                if isinstance(child, Described) and not (attribute == "_buffers" and key in fleeting):
                    yield Entry(prefix + key, child, kernel if key == "weight" else None)
        for key, child in self._inside(state.get("_modules")):
            if is_module(child) and id(child) not in self._seen and depth < _MOST_DEPTH:
                self._seen.add(id(child))
                yield from self._module(child, f"{prefix}{key}.", depth + 1)


def _chosen(direct: list[Entry], parts: list[Found]) -> Found:
    here = Found(direct)
    nets = [part for part in parts if part.elements]
    if not nets or (direct and here.elements >= max(net.elements for net in nets)):
        return _joined(direct, parts)
    largest = max(net.elements for net in nets)
    # A lone small matrix beside a network is a mean, a statistic, a hyper-parameter.
    large = [net for net in nets if 10 * net.elements > largest or len(net.entries) > 1]
    usual = [net for net in large if net.path[0] in _USUAL and 2 * net.elements >= largest]
    if len(large) == 1 or usual:
        taken = [min(usual, key=lambda net: _USUAL.index(net.path[0])) if usual else large[0]]
        found = taken[0]
    else:
        taken = large
        found = _joined([], large)
        found.notes.append(f"Several parts hold weights ({_keys(large)}); each is named by its key.")
    left = [net for net in nets if net not in taken] + [
        Found([entry], (entry.name,)) for entry in direct if entry.elements
    ]
    if left:
        found.notes.append(
            f"The weights under {_keys(taken)} are taken; {_keys(left)} {'is' if len(left) == 1 else 'are'} left out."
        )
    return found


def _keys(parts: list[Found]) -> str:
    shown = ", ".join(f"{quoted('.'.join(part.path))} ({len(part.entries)} tensors)" for part in parts[:5])
    return shown.replace("(1 tensors)", "(1 tensor)") + (
        f" and {len(parts) - 5} more" if len(parts) > 5 else ""
    )


def _holds_something(node: Any) -> bool:
    if isinstance(node, Built):
        return bool(node.pairs or node.state or node.args or node.items)
    return isinstance(node, Described) or (isinstance(node, list | tuple) and len(node) > 0)


def _joined(direct: list[Entry], parts: list[Found]) -> Found:
    entries = direct + [entry for part in parts for entry in part.spelled_out()]
    return Found(_capped(entries), notes=[note for part in parts for note in part.notes])


def _capped(entries: list[Entry]) -> list[Entry]:
    if len(entries) > _MOST_TENSORS:
        raise FaultError(
            f"holds more than {_MOST_TENSORS} tensors, as no model does; restore it from a copy."
        )
    return entries


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
    if isinstance(key, bytes) and len(key) < 1000:
        key = key.decode("latin-1")
    if type(key) is int and abs(key) < 1 << 63:
        key = str(key)
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


def _kernel(kind: str) -> bool | None:
    kind = kind.removeprefix("__torch__.")
    if kind.startswith("torch.nn.modules.conv."):
        return True
    return False if kind.startswith("torch.nn.modules.") else None


def _texts(node: Any) -> set[str]:
    if not isinstance(node, Built):
        return set()
    args = node.args if isinstance(node.args, tuple) else ()
    listed = (node.items or []) + (args[0] if args and isinstance(args[0], list) else [])
    return {text for text in listed if isinstance(text, str)}
