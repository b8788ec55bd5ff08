"""Which parameters of a model are recorded, and under which names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from zanalysis.analyzers.matrices import View, matricize
from zanalysis.analyzers.naming import Selection, layer_name, plain, selected, written_out
from zanalysis.errors import InputError

__all__ = ["Layer", "Root", "Selection", "as_parameter", "layer_name", "select_layers", "tapped_layers"]


class Root:
    """The model that layers are read from. Another may take its place: all of its layers follow.

    Attributes:
        model: the model.
        moved: the paths of modules that are elsewhere in this model than in the first one.
    """

    def __init__(self, model: nn.Module) -> None:
        """Begin with a model.

        Args:
            model: the model.
        """
        self.model = model
        self.moved: dict[str, str] = {}


@dataclass(frozen=True)
class Layer:
    """One recorded parameter.

    Attributes:
        name: its qualified name less a final ``.weight`` and the prefixes that wrappers add.
        root: the model that it is read from.
        path: where in the model the module is that it belongs to.
        attribute: its name there.
        matrices: the names of its matrices: its own, or `name[i]` where it holds several.
        shape: its shape.
        dtype: the dtype it is stored in.
        sharded: the parameter as the optimizer knows it, where several processes hold it in parts.
    """

    name: str
    root: Root = field(repr=False)
    path: str
    attribute: str
    matrices: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    sharded: Tensor | None = field(default=None, kw_only=True, compare=False, repr=False)

    @property
    def owner(self) -> nn.Module:
        """The module it belongs to: the one that is in that place now."""
        return self.root.model.get_submodule(self.root.moved.get(self.path, self.path))

    @property
    def parameter(self) -> Tensor:
        """The parameter itself; where it is parametrized, the weight that acts."""
        if is_parametrized(self.owner, self.attribute):
            return self.read()
        value: Tensor = getattr(self.owner, self.attribute)
        return self._in_parts(value)

    def read(self) -> Tensor:
        """Return the weight that counts, as it is now: detached, a Conv1d kernel as `[out, in, taps, 1]`."""
        weight = self._in_parts(_effective(self.owner, self.attribute)).detach()
        return as_parameter(weight, self.owner)

    def _in_parts(self, found: Tensor) -> Tensor:
        # FSDP2 puts another in the place of what the optimizer trains while it is whole.
        return found if self.sharded is None or is_distributed(found) else self.sharded

    @property
    def parametrized(self) -> bool:
        """Whether what acts is made of what is trained."""
        return is_parametrized(self.owner, self.attribute)

    @property
    def trained(self) -> Tensor | None:
        """What an optimizer trains: the parameter; where it is parametrized, the original of its shape, if any."""
        owner = self.owner
        if not is_parametrized(owner, self.attribute):
            value: Tensor = getattr(owner, self.attribute)
            # Pruning and older parametrizations keep the original under another name.
            return self._in_parts(value) if value.is_leaf else getattr(owner, f"{self.attribute}_orig", None)
        originals = owner.parametrizations[self.attribute].parameters(recurse=False)  # type: ignore[index, union-attr]
        return next((p for p in originals if tuple(p.shape) == self.shape), None)


def is_distributed(tensor: object) -> bool:
    """Say whether a tensor is a `DTensor`, without importing what that is.

    Args:
        tensor: anything.

    Returns:
        Whether it is.
    """
    return any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__)


def select_layers(model: nn.Module, selection: Selection = None, view: View = "out") -> list[Layer]:
    """Choose the parameters to record.

    Candidates are the floating parameters with two or more dimensions whose matrix, in the given
    view, has at least two rows and two columns, tied ones once; those of one row or column only where
    they are named word for word.

    Args:
        model: the model.
        selection: None for all; else names, globs, compiled regular expressions, predicates
            `name -> bool` or `(name, parameter) -> bool`, or several of these.
        view: how a kernel becomes a matrix.

    Returns:
        The layers, in the order of the model.

    Raises:
        InputError: if the model is no module, has no such parameter or an uninitialized one, or
            nothing matches.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"got {type(model).__name__} as the model, expected a torch.nn.Module.")
    candidates = list(_candidates(model, view, written_out(selection)))
    if not candidates:
        raise InputError(
            f"{type(model).__name__} has no weight to follow: no floating parameter with at least two "
            "rows and two columns; pass the model that holds the layers."
        )
    by_name = {layer.name: layer for layer in candidates}
    names = selected(
        selection, {name: partial(getattr, layer, "parameter") for name, layer in by_name.items()}
    )
    return [by_name[name] for name in names]


def tapped_layers(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers that activations are recorded under: of a module with several weights, the first.

    Args:
        layers: the recorded layers.

    Returns:
        One for each module.
    """
    first: dict[str, Layer] = {}
    for layer in layers:
        first.setdefault(layer.path, layer)
    return list(first.values())


def _candidates(model: nn.Module, view: View, named: frozenset[str]) -> Iterator[Layer]:
    root = Root(model)
    seen: set[int] = set()
    taken: set[str] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, ParametrizationList) or ".parametrizations." in f".{prefix}.":
            continue
        for attribute, parameter, identity in _parameters(module):
            qualified = f"{prefix}.{attribute}" if prefix else attribute
            _check_parameter(qualified, parameter)
            if identity in seen or parameter.ndim < 2 or not parameter.dtype.is_floating_point:
                continue
            seen.add(identity)
            # Only the shapes matter here; a meta tensor costs nothing.
            outline = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            matrices = matricize(as_parameter(outline, module), view)
            name = layer_name(qualified)
            if matrices.numel() == 0 or (min(matrices.shape[-2:]) < 2 and name not in named):
                continue
            name = plain(qualified) if name in taken else name
            taken.add(name)
            count = matrices.shape[:-2].numel()
            names = (name,) if matrices.ndim == 2 else tuple(f"{name}[{i}]" for i in range(count))
            in_parts = is_distributed(parameter) and isinstance(parameter, nn.Parameter)
            yield Layer(
                name, root, prefix, attribute, names, tuple(parameter.shape), parameter.dtype,
                sharded=parameter if in_parts else None,
            )  # fmt: skip


def _parameters(module: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Yield a module's own parameters with what identifies them, a parametrized one as it acts."""
    for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        yield attribute, parameter, id(parameter)
    if is_parametrized(module):
        for attribute, parametrization in module.parametrizations.items():  # type: ignore[union-attr, operator]
            yield attribute, _effective(module, attribute), id(parametrization)


def _check_parameter(name: str, parameter: Tensor) -> None:
    if is_lazy(parameter):
        raise InputError(f"{name} is lazy and has no shape yet; run one forward pass before attaching.")
    if parameter.is_meta:
        raise InputError(
            f"{name} is on the meta device and holds no numbers; load the weights before attaching."
        )


def as_parameter(parameter: Tensor, owner: nn.Module) -> Tensor:
    """Return a parameter, or what has its shape, as it is read: a Conv1d kernel as `[out, in, taps, 1]`.

    Args:
        parameter: the tensor.
        owner: the module it belongs to.

    Returns:
        A view of it: three dimensions are a batch of matrices, unless they are a kernel.
    """
    return parameter.unsqueeze(-1) if parameter.ndim == 3 and isinstance(owner, _ConvNd) else parameter


@torch.no_grad()
def _effective(owner: nn.Module, attribute: str) -> Tensor:
    """Return the weight that acts, without moving the state of a parametrization.

    Args:
        owner: the module.
        attribute: the parameter's name there.

    Returns:
        The parameter, or the outcome of its parametrization in eval mode; detached.
    """
    if not is_parametrized(owner, attribute):
        value: Tensor = getattr(owner, attribute)
        return value.detach()
    parametrization: Any = owner.parametrizations[attribute]  # type: ignore[index]
    modes = [(module, module.training) for module in parametrization.modules()]
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in parametrization.buffers()]
    try:
        for module, _ in modes:
            module.training = False
        result: Tensor = parametrization()
        return result.detach()
    finally:
        for module, training in modes:
            module.training = training
        # An untouched buffer stays so: writing to it would invalidate what a pending backward saved.
        for buffer, before, version in buffers:
            if buffer._version != version:
                buffer.copy_(before)
