"""Find the residual branches of a model, the layer that ends each, and its classification layer.

In this order: a layer that the caller names; a block that says what it is (children `branch` and `skip`, PyTorch's
Transformer layers); a module whose own forward adds what its children return to what they started from; and, where
that forward cannot be followed, a module with a child of a name such as `downsample` or `shortcut`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import fx, nn

from zanalysis.initializers.choosing import Layers, chosen_layers, layered, named_layers
from zanalysis.initializers.parts import ATTENTION, WEIGHTED, clean, unwrapped
from zanalysis.initializers.report import named
from zanalysis.initializers.tracing import Addition, Flow, follow

__all__ = [
    "Branch",
    "Branches",
    "Layers",
    "chosen_layers",
    "find_branches",
    "find_classifier",
    "named_layers",
]

_SKIPS = re.compile(
    r"(down_?sample|short_?cut|skip|skip_connection|skip_conv|identity|residual|res_conv|conv_res|conv_?short_?cut|"
    r"proj_shortcut|id_path)\d*"
)
_TRANSFORMER = {
    nn.TransformerEncoderLayer: (("self_attn",), ("linear1", "linear2")),
    nn.TransformerDecoderLayer: (("self_attn",), ("multihead_attn",), ("linear1", "linear2")),
}


@dataclass(frozen=True)
class Branch:
    """One residual branch.

    Attributes:
        block: name of the module that adds it.
        layers: names of its linear and convolution layers, in order.
        last: which of them are taken as its last.
        shortcut: names of the layers on its skip path.
        kind: class of the block.
        how: how it was found, in words.
    """

    block: str
    layers: tuple[str, ...]
    last: tuple[str, ...]
    shortcut: tuple[str, ...]
    kind: str
    how: str


@dataclass
class Branches:
    """What was found.

    Attributes:
        found: the branches.
        order: every linear, convolution and attention layer, in the order of the forward as far as it can be followed.
        assumed: what was taken for what, in sentences.
    """

    found: list[Branch]
    order: list[str]
    assumed: list[str] = field(default_factory=list)

    @property
    def last(self) -> set[str]:
        """Names of the layers that end a branch."""
        return {name for branch in self.found for name in branch.last}

    @property
    def shortcuts(self) -> set[str]:
        """Names of the layers on skip paths, and in no branch."""
        return {name for branch in self.found for name in branch.shortcut} - set(self.inside)

    @property
    def inside(self) -> dict[str, Branch]:
        """The innermost branch of each layer that is in one."""
        inner = sorted(self.found, key=lambda branch: -len(branch.layers))
        return {name: branch for branch in inner for name in branch.layers}


def find_branches(model: nn.Module, last: Layers = None) -> Branches:
    """Find the residual branches.

    Args:
        model: any model; it is left as it was.
        last: the layers that end a branch, where the caller knows better; an empty sequence for none.

    Returns:
        The branches.
    """
    search = _Search(model)
    order = search.weighted("")
    found = Branches(list(search.all()), order)
    if last is None:
        found.assumed += _sentences(found.found) or [
            "no residual branch was found; where there are some, name the layers that end them with last=…"
        ]
        found.assumed += [
            f"the forward of {name} could not be followed ({why}); where it has a residual branch, name the layers "
            "that end it with last=…"
            for name, why in search.failed.items()
        ]
        return found
    if isinstance(last, Sequence) and not isinstance(last, str) and not last:
        return Branches([], found.order)
    given = chosen_layers(model, last, "last")
    inside = found.inside
    found.found = [_given(search, name, inside.get(name)) for name in given]
    found.assumed.append(f"taken as last in their residual branches, as given: {named(given)}.")
    return found


def find_classifier(
    model: nn.Module, branches: Branches, classifier: Layers = None
) -> tuple[list[str], list[str]]:
    """Find the classification layer.

    Args:
        model: any model.
        branches: its residual branches.
        classifier: the layers, where the caller knows better; an empty sequence for none.

    Returns:
        Its name in a list, empty where there is none, and what was assumed.
    """
    if isinstance(classifier, Sequence) and not isinstance(classifier, str) and not classifier:
        return [], []
    if classifier is not None:
        given = chosen_layers(model, classifier, "classifier")
        return given, [f"taken as the classification layer, as given: {named(given)}."]
    apart = set(branches.inside) | branches.shortcuts
    modules = named_layers(model)
    linear = [name for name in branches.order if isinstance(modules[name], nn.Linear) and name not in apart]
    if not linear:
        return [], [
            "no linear layer outside the residual branches; none was taken as the classification layer."
        ]
    return linear[-1:], [
        f"{linear[-1] or 'the model itself'} was taken as the classification layer: the last linear layer outside the "
        "residual branches."
    ]


class _Search:
    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(unwrapped(model).named_modules(remove_duplicate=False))
        self.failed: dict[str, str] = {}
        self._gates: set[str] = set()
        self._flows: dict[int, Flow | str] = {}

    def all(self) -> Iterator[Branch]:
        for name, module in self.modules.items():
            yield from self._of(name, module)

    def weighted(self, name: str) -> list[str]:
        # The weighted layers of a module, in the order of its forward where that can be followed.
        module = self.modules.get(name)
        if module is None:
            return []
        if isinstance(module, WEIGHTED):
            return [clean(name)]
        if isinstance(module, ATTENTION):
            return [clean(name), clean(_join(name, "out_proj"))]
        flow = self._flow(module)
        children = [child for child, _ in module.named_children()]
        called: list[str] = []
        if isinstance(flow, Flow):
            called = list(dict.fromkeys(c.split(".")[0] for c in flow.calls))
            self._gates.update(layer for c in flow.gates for layer in self.weighted(_join(name, c)))
        order = [child for child in children if child not in called] + called
        return [layer for child in order for layer in self.weighted(_join(name, child))]

    def direct(self, name: str) -> tuple[list[str], list[str]]:
        # Weighted layers of a module, and those of its children with a skip's name.
        children = [child for child, _ in self.modules[name].named_children()]
        skips = [child for child in children if _SKIPS.fullmatch(child)]
        branch = [layer for c in children if c not in skips for layer in self.weighted(_join(name, c))]
        return branch, [layer for c in skips for layer in self.weighted(_join(name, c))]

    def _of(self, name: str, module: nn.Module) -> Iterator[Branch]:
        for known, parts in _TRANSFORMER.items():
            if isinstance(module, known):
                for part in parts:
                    layers = [layer for child in part for layer in self.weighted(_join(name, child))]
                    yield self._branch(name, layers, (), "PyTorch's own Transformer layer")
                return
        if _has(module, "branch") and _has(module, "skip"):
            layers, skip = self.weighted(_join(name, "branch")), self.weighted(_join(name, "skip"))
            if layers:
                yield self._branch(name, layers, skip, "its child is named branch, beside skip")
            return
        if _built_in(module) or not self._holds_weights(module):
            return
        flow = self._flow(module)
        if isinstance(flow, Flow):
            for addition in flow.additions:
                yield from self._from_addition(name, addition)
        elif any(_SKIPS.fullmatch(attribute) for attribute in [*module._modules, *vars(module)]):
            layers, skip = self.direct(name)
            if layers:
                yield self._branch(
                    name, layers, skip, "it has a skip by name; its forward could not be followed"
                )
        else:
            self.failed[clean(name) or type(module).__name__] = flow

    def _from_addition(self, name: str, addition: Addition) -> Iterator[Branch]:
        paths = [
            [x for child in path for x in self.weighted(_join(name, child))] for path in addition.operands
        ]
        if not addition.shared or not any(paths):
            return
        if all(paths):
            # No summand is without weights: the shortest may be a projection, such as a 1×1 convolution. Where
            # something in between is used elsewhere, too, this is no block but a sum of features.
            if not addition.closed:
                return
            shortcut = min(paths, key=lambda path: (not _skip_named(path), len(path), self._taps(path)))
            if len(shortcut) > 1 or (all(len(p) == 1 for p in paths) and not self._smaller(shortcut, paths)):
                return
        else:
            shortcut = next(path for path in paths if not path)
        for path in reversed(paths):
            if path and path is not shortcut:
                yield self._branch(name, path, shortcut, "its forward adds it to what it started from")

    def _smaller(self, shortcut: list[str], paths: list[list[str]]) -> bool:
        return _skip_named(shortcut) or all(
            path is shortcut or self._taps(shortcut) < self._taps(path) for path in paths
        )

    def _taps(self, path: list[str]) -> int:
        kernels = [m for n, m in self.modules.items() if clean(n) in path and isinstance(m, WEIGHTED)]
        return max((m.weight[0, 0].numel() for m in kernels if m.weight.numel()), default=1)

    def _branch(self, name: str, layers: Sequence[str], shortcut: Sequence[str], how: str) -> Branch:
        kind = type(self.modules[name]).__name__
        # A gate, as of squeeze-and-excitation, makes a factor: with its last layer 0 the branch is still there.
        ends = [layer for layer in layers if layer not in self._gates] or layers
        return Branch(clean(name), tuple(layers), tuple(ends[-1:]), tuple(shortcut), kind, how)

    def _holds_weights(self, module: nn.Module) -> bool:
        return any(m is not module and layered(m) for m in module.modules())

    def _flow(self, module: nn.Module) -> Flow | str:
        if _built_in(module):
            return "PyTorch's own"
        if id(module) not in self._flows:
            self._flows[id(module)] = follow(module)
        return self._flows[id(module)]


def _given(search: _Search, layer: str, known: Branch | None) -> Branch:
    if known is not None:
        return replace(known, last=(layer,), how="given")
    parent = layer.rpartition(".")[0]
    raw = next((name for name in search.modules if clean(name) == parent), "")
    layers, shortcut = search.direct(raw)
    return Branch(
        parent, tuple(layers), (layer,), tuple(shortcut), type(search.modules[raw]).__name__, "given"
    )


def _sentences(found: list[Branch]) -> list[str]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for branch in found:
        for last in branch.last:
            end = last.removeprefix(f"{branch.block}.")
            groups.setdefault((end, branch.kind, branch.how), []).append(branch.block or "the model")
    return [
        f"{end} was taken as the last layer of a residual branch of {kind} ({how}): {named(blocks)}."
        for (end, kind, how), blocks in groups.items()
    ]


def _skip_named(path: list[str]) -> bool:
    return bool(path) and all(any(_SKIPS.fullmatch(step) for step in layer.split(".")) for layer in path)


def _built_in(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.") and not isinstance(module, fx.GraphModule)


def _has(module: nn.Module, child: str) -> bool:
    return isinstance(module._modules.get(child), nn.Module)


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child
