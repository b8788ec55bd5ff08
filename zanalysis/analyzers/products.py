"""A network as a map between two of its layers, and the products with its Jacobian at one sample.

Vectors are flattened; a block of them is `[length, columns]`, float64, whatever the network's dtype.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from zanalysis.analyzers.modes import first_tensor
from zanalysis.errors import InputError

__all__ = ["NetworkMap", "PlainProducts", "TracedProducts"]


class NetworkMap:
    """The map from a network's input, or a layer's output, to its output, or that of another layer.

    Args:
        model: the network, in eval mode whenever the map is used.
        modules: the named layers.
        source: name of the layer whose output is the variable; None for the input.
        target: name of the layer whose output is the value; None for the network's.
    """

    def __init__(
        self, model: nn.Module, modules: Mapping[str, nn.Module], source: str | None, target: str | None
    ) -> None:
        self.model = model
        self.source, self.target = source, target
        self.modules = modules

    def point(self, sample: Tensor) -> Tensor:
        """Evaluate the variable at a sample.

        Args:
            sample: one input, without a batch dimension.

        Returns:
            The sample with a batch dimension of one, or the output of the source.
        """
        if self.source is None:
            return sample[None].clone()
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: object, output: object) -> None:
            kept.append(first_tensor(output, self.source or "").clone())

        with ExitStack() as stack:
            stack.callback(self.modules[self.source].register_forward_hook(keep).remove)
            self.model(sample[None].clone())
        self._once(self.source, len(kept))
        return kept[0]

    def __call__(self, variable: Tensor, sample: Tensor) -> Tensor:
        """Evaluate the value.

        Args:
            variable: in place of what `point` returns.
            sample: the input behind it.

        Returns:
            The value, flattened.
        """
        seen: list[str] = []
        kept: list[Tensor] = []

        def replace(module: nn.Module, args: object, output: object) -> object:
            seen.append("source")
            return _with_first(output, variable.clone())

        def keep(module: nn.Module, args: object, output: object) -> None:
            if self.source is not None and "source" not in seen:
                raise InputError(f"layer {self.target!r} runs before {self.source!r}: swap the two.")
            # A copy, as the next layer may work in place.
            kept.append(first_tensor(output, self.target or "").clone())

        with ExitStack() as stack:
            if self.source is not None:
                stack.callback(self.modules[self.source].register_forward_hook(replace).remove)
            if self.target is not None:
                stack.callback(self.modules[self.target].register_forward_hook(keep).remove)
            # A clone, as the first layer may work in place.
            output = self.model((variable if self.source is None else sample[None]).clone())
        if self.target is None:
            return first_tensor(output, "").flatten()
        self._once(self.target, len(kept))
        return kept[0].flatten()

    @staticmethod
    def _once(name: str, times: int) -> None:
        if times != 1:
            raise InputError(f"layer {name!r} is called {times} times in a forward pass, not once.")


def _with_first(output: object, value: Tensor) -> object:
    if isinstance(output, list | tuple):
        items = [_with_first(output[0], value), *output[1:]]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return value


class TracedProducts:
    """Products by `torch.func`, vectorized over the columns of a block.

    J·v is the derivative of w ↦ Jᵀw, which is linear, in direction v: reverse mode twice.

    Args:
        network: the map.
        sample: one input.
    """

    def __init__(self, network: NetworkMap, sample: Tensor) -> None:
        self.variable = network.point(sample)
        value, self._pull = _traced(lambda v: network(v, sample), self.variable)
        # Traced inside the second trace: a derivative of a finished one would see constants.
        self._push = _traced(lambda w: _traced(lambda v: network(v, sample), self.variable)[1](w), value)[1]
        self.dtype = value.dtype

    def times(self, block: Tensor) -> Tensor:
        """Multiply J by a block.

        Args:
            block: `[inputs, columns]` float64.

        Returns:
            `[outputs, columns]` float64.
        """
        vectors = block.T.to(self.variable.dtype).reshape(-1, *self.variable.shape)
        return _columns(vmap(self._push)(vectors))

    def adjoint(self, block: Tensor) -> Tensor:
        """Multiply Jᵀ by a block.

        Args:
            block: `[outputs, columns]` float64.

        Returns:
            `[inputs, columns]` float64.
        """
        return _columns(vmap(self._pull)(block.T.to(self.dtype)))

    @staticmethod
    def jacobians(network: NetworkMap, samples: Tensor, outputs: int, rows: int) -> Tensor:
        """Form the Jacobians of many samples at once.

        Args:
            network: the map.
            samples: `[samples, ...]`.
            outputs: the length of the value.
            rows: rows of each to form at a time.

        Returns:
            `[samples, outputs, inputs]` in the network's dtype.
        """

        def some(sample: Tensor, first: int) -> Tensor:
            value, pull = _traced(lambda v: network(v, sample), network.point(sample))
            indices = torch.arange(first, min(first + rows, outputs), device=value.device)
            basis = torch.nn.functional.one_hot(indices, outputs).to(value.dtype)
            rows_of_one: Tensor = vmap(pull)(basis)
            return rows_of_one.flatten(1)

        # The samples of a noisy network are independent, as they would be one by one.
        parts = [
            vmap(some, in_dims=(0, None), randomness="different")(samples, first)
            for first in range(0, outputs, rows)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class PlainProducts:
    """The same products by `torch.autograd`, column by column: slower, but a backward pass is all it needs.

    Args:
        network: the map.
        sample: one input.
    """

    def __init__(self, network: NetworkMap, sample: Tensor) -> None:
        with torch.enable_grad():
            self.variable = network.point(sample).detach().requires_grad_()
            self.value = network(self.variable, sample)
        self._cotangent = torch.zeros_like(self.value).requires_grad_()
        self._pulled: Tensor | None = None

    def times(self, block: Tensor) -> Tensor:
        """Multiply J by a block.

        Args:
            block: `[inputs, columns]` float64.

        Returns:
            `[outputs, columns]` float64.
        """
        if self._pulled is None:
            with torch.enable_grad():
                self._pulled = _gradient(self.value, self.variable, self._cotangent, create_graph=True)
        pulled = self._pulled
        vectors = block.T.to(self.variable.dtype).reshape(-1, *self.variable.shape)
        return _columns(torch.stack([_gradient(pulled, self._cotangent, vector) for vector in vectors]))

    def adjoint(self, block: Tensor) -> Tensor:
        """Multiply Jᵀ by a block.

        Args:
            block: `[outputs, columns]` float64.

        Returns:
            `[inputs, columns]` float64.
        """
        vectors = block.T.to(self.value.dtype)
        return _columns(torch.stack([_gradient(self.value, self.variable, vector) for vector in vectors]))

    def jacobian(self) -> Tensor:
        """Form the Jacobian, row by row.

        Returns:
            `[outputs, inputs]` float64.
        """
        return self.adjoint(torch.eye(self.value.numel(), device=self.value.device)).T


def _traced(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    traced: Any = vjp(function, at)
    return traced[0], lambda cotangent: traced[1](cotangent)[0]


def _gradient(output: Tensor, by: Tensor, cotangent: Tensor, create_graph: bool = False) -> Tensor:
    if not output.requires_grad:
        return torch.zeros_like(by)
    found = torch.autograd.grad(
        output, by, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True
    )[0]
    return torch.zeros_like(by) if found is None else found


def _columns(vectors: Tensor) -> Tensor:
    return vectors.flatten(1).T.to(torch.float64)
