"""Hooks on modules: their outputs in the forward, and the gradients of these in the backward."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hooks.layers import Layer, tapped_layers

__all__ = ["ActivationTap", "first_tensor"]

Deliver = Callable[[Layer, Tensor], None]
Note = Callable[[str, str, str, str], None]


def first_tensor(output: Any) -> Tensor | None:
    """Return the tensor that an output is about.

    Args:
        output: what a module returned.

    Returns:
        It, if it is a floating tensor; else the first such one in a tuple, list or mapping, however
        nested; None where there is none.
    """
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((z for z in map(first_tensor, output) if z is not None), None)
    return None


class _Token:
    """What lies in a module's hooks. A copy of the module holds an inert one, which needs no zanalysis."""

    __slots__ = ("layer", "tap")

    def __init__(self, tap: "ActivationTap", layer: Layer) -> None:
        self.tap = tap
        self.layer = layer

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.tap.listening:
            self.tap.saw(self.layer, output)

    def __reduce__(self) -> tuple[Any, ...]:
        # Takes any arguments and returns None.
        return getattr, (nullcontext(), "__exit__")


class ActivationTap:
    """Tells what the modules of some layers put out, and its gradients, while it is listening.

    What counts is a forward with gradients enabled, outside `torch.func` and tracing; a forward that
    gradient checkpointing repeats inside the backward counts once.

    Attributes:
        listening: whether anything is told.
    """

    def __init__(
        self, layers: Sequence[Layer], activation: Deliver, activation_gradient: Deliver, note: Note
    ) -> None:
        """Install a hook on the module of each layer.

        Args:
            layers: the layers; of several of one module the first is told.
            activation: told of an output, detached; it must not raise.
            activation_gradient: told of its gradient, detached; it must not raise.
            note: told, by kind, what, text and layer, what is to be said; it must not raise.
        """
        self.listening = False
        self._layers = tapped_layers(layers)
        self._activation = activation
        self._activation_gradient = activation_gradient
        self._note = note
        self._tensors: frozenset[str] = frozenset()
        self._attempt = 0
        self._called: set[str] = set()
        self._repeated: set[str] = set()
        self._on_modules: dict[str, tuple[nn.Module, Any]] = {}
        self._on_outputs: list[Any] = []
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _install(self) -> None:
        for layer in self._layers:
            owner = layer.owner
            installed = self._on_modules.get(layer.name)
            if installed is None or installed[0] is not owner:
                if installed is not None:
                    installed[1].remove()
                self._on_modules[layer.name] = owner, owner.register_forward_hook(_Token(self, layer))

    def begin(self, tensors: frozenset[str]) -> None:
        """Listen for the outputs of the step that begins.

        Args:
            tensors: which of ``activation`` and ``activation_gradient`` are told.
        """
        self.end()
        self._tensors = tensors & {"activation", "activation_gradient"}
        if self._tensors:
            self._install()
            self.listening = True

    def end(self) -> None:
        """Stop listening, and forget the step."""
        self.listening = False
        self._attempt += 1
        self._called.clear()
        self._repeated.clear()
        while self._on_outputs:
            self._on_outputs.pop().remove()

    def called(self, layer: Layer) -> bool:
        """Return whether an output of the layer's module counted since `begin`.

        Args:
            layer: the layer.

        Returns:
            Whether.
        """
        return layer.name in self._called or layer.name in self._repeated

    def saw(self, layer: Layer, output: Any) -> None:
        """Take a module's output.

        Args:
            layer: whose.
            output: what it returned.
        """
        if not torch.is_grad_enabled() or _traced():
            return
        # Only checkpointing calls a module inside a backward. Where the first forward was seen, this one is
        # its repetition; the reentrant kind runs the first one without gradients, and this one counts.
        if torch._C._current_graph_task_id() == -1:
            self._called.add(layer.name)
        elif layer.name in self._called:
            return
        else:
            self._repeated.add(layer.name)
        z = first_tensor(output)
        if z is None:
            self._note(
                "activation",
                f"output/{layer.name}",
                f"the output of {layer.name} holds no floating tensor; its activations are not recorded",
                layer.name,
            )
            return
        if isinstance(z, FakeTensor):
            return
        if "activation" in self._tensors:
            self._activation(layer, z.detach())
        if "activation_gradient" in self._tensors and z.requires_grad:
            arrived = partial(self._arrived, layer, self._attempt)
            self._on_outputs.append(z.register_hook(arrived))  # type: ignore[no-untyped-call]

    def _arrived(self, layer: Layer, attempt: int, g: Tensor) -> None:
        if (
            attempt == self._attempt
            and self.listening
            and not torch._C._functorch.is_functorch_wrapped_tensor(g)
        ):
            self._activation_gradient(layer, g.detach())

    def remove(self) -> None:
        """Remove every hook; twice is harmless."""
        self.end()
        while self._on_modules:
            self._on_modules.popitem()[1][1].remove()


def _traced() -> bool:
    # A transform of the model, or a recording of its operations.
    return (
        torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None
    )
