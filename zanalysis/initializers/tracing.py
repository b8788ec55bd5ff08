"""Follow one module's own forward, its children taken as they are: which child comes before which, and what is added.

A residual branch ends where its module adds it to what it started from. Tracing only the module's own code, with
`torch.fx` and no data, needs nothing of the children but their names, and works where tracing a whole model fails.
"""

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

__all__ = ["Addition", "Flow", "follow"]

_ADD = (operator.add, operator.iadd, torch.add)
_MULTIPLY = (operator.mul, operator.imul, torch.mul, torch.multiply)
# What only asks for a size or a type carries no signal from one tensor to another.
_NO_SIGNAL = frozenset(
    (
        "size",
        "dim",
        "numel",
        "shape",
        "device",
        "dtype",
        "ndim",
        "new_zeros",
        "new_ones",
        "new_empty",
        "new_full",
    )
)
_SHAPE_ONLY = (len, torch.zeros_like, torch.ones_like, torch.empty_like, torch.numel)


@dataclass(frozen=True)
class Addition:
    """A sum of tensors in a forward.

    Attributes:
        operands: for each, the names of the children that only it has passed through since they parted, in order.
        shared: whether the operands come from one tensor.
        closed: whether nothing in between is used elsewhere, too.
    """

    operands: tuple[tuple[str, ...], ...]
    shared: bool
    closed: bool


@dataclass(frozen=True)
class Flow:
    """What a forward does.

    Attributes:
        calls: the children that are called, in order of their first call.
        additions: the sums of tensors.
        gates: the children that make only a factor, which is multiplied with what they made it of.
    """

    calls: tuple[str, ...]
    additions: tuple[Addition, ...]
    gates: tuple[str, ...] = ()


class _Own(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def follow(module: nn.Module) -> Flow | str:
    """Follow a module's forward.

    Args:
        module: any module; it is left as it was.

    Returns:
        The flow, or, where the forward cannot be followed without data, the reason.
    """
    try:
        with _untouched(module):
            defaults = {
                name: parameter.default
                for name, parameter in inspect.signature(type(module).forward).parameters.items()
                if parameter.default is not inspect.Parameter.empty
            }
            graph: Any = getattr(module, "graph", None)
            if not isinstance(module, fx.GraphModule):
                graph = _Own().trace(module, concrete_args=defaults or None)
    except Exception as error:  # the forward is the user's code: anything may come out of it
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no text'}"
    calls = tuple(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module"))
    return Flow(calls, tuple(_additions(graph))[::-1], tuple(dict.fromkeys(_gates(graph))))


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    # A forward may count its calls or keep its input: what it sets on the module, and random numbers, are put back.
    homes: tuple[dict[str, Any], ...] = (
        module.__dict__,
        module._buffers,
        module._parameters,
        module._modules,
    )
    kept = [dict(home) for home in homes]
    buffers = [(b, b.detach().clone(), b._version) for b in module._buffers.values() if b is not None]
    devices = sorted({p.get_device() for p in module.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for home, before in zip(homes, kept, strict=True):
                home.clear()
                home.update(before)
            for buffer, value, version in buffers:
                if buffer._version != version:
                    with torch.no_grad():
                        buffer.copy_(value)


def _additions(graph: fx.Graph) -> Iterator[Addition]:
    # From the last to the first: a sum of three is seen whole before the sum of two within it.
    place = {node: i for i, node in enumerate(graph.nodes)}
    inner: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node in inner or not _is_addition(node):
            continue
        sums = {node}
        reached = [_ancestors(operand) for operand in _operands(node, sums)]
        inner |= sums
        reached = [own for own in reached if any(n.op != "get_attr" for n in own)]  # not biases, positions
        if len(reached) < 2:
            continue
        origin = reached[0].intersection(*reached[1:])
        signal = [n for n in origin if n.op != "get_attr"]
        paths, closed = [], True
        for i, own in enumerate(reached):
            others: set[fx.Node] = set().union(*(other for j, other in enumerate(reached) if j != i))
            between = own - others
            closed = closed and all(
                user in between or user in sums or _asks_only(user) for n in between for user in n.users
            )
            path = sorted((n for n in between if n.op == "call_module"), key=place.__getitem__)
            paths.append(tuple(dict.fromkeys(str(n.target) for n in path)))
        yield Addition(tuple(paths), bool(signal), closed)


def _gates(graph: fx.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if not _joins(node, _MULTIPLY, ("mul", "mul_", "multiply")):
            continue
        for signal, factor in (node.args[:2], node.args[1::-1]):
            before = _ancestors(factor)
            if signal in before:
                yield from (str(n.target) for n in before - _ancestors(signal) if n.op == "call_module")


def _is_addition(node: fx.Node) -> bool:
    return _joins(node, _ADD, ("add", "add_"))


def _joins(node: fx.Node, functions: tuple[Callable[..., Any], ...], methods: tuple[str, ...]) -> bool:
    if node.op == "call_function":
        called = node.target in functions
    else:
        called = node.op == "call_method" and node.target in methods
    return called and sum(isinstance(argument, fx.Node) for argument in node.args) == 2


def _operands(node: fx.Node, inner: set[fx.Node]) -> list[fx.Node]:
    # `x + a(x) + b(x)` is one sum of three; in `y = x + a(x); y + b(y)` the inner sum is used twice, and ends a block.
    operands: list[fx.Node] = []
    for argument in node.args[:2]:
        assert isinstance(argument, fx.Node)
        if _is_addition(argument) and len(argument.users) == 1:
            inner.add(argument)
            operands += _operands(argument, inner)
        else:
            operands.append(argument)
    return operands


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if not _asks_only(current):
            stack += current.all_input_nodes
    return seen


def _asks_only(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _NO_SIGNAL
    if node.op != "call_function":
        return False
    asked: Callable[..., Any] | str = node.target
    return asked in _SHAPE_ONLY or (asked is getattr and node.args[1] in _NO_SIGNAL)
