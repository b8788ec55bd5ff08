"""Hooks on modules: their outputs in the forward, and the gradients of these in the backward."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hooks.guards import is_quiet
from hooks.layers import Layer, tapped_layers

__all__ = ["ActivationTap", "capturing", "first_tensor"]

_TRACERS = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
Deliver = Callable[[Layer, Tensor], None]
Note = Callable[[str, str, str, str], None]


def capturing() -> bool:
    """Return whether what runs is only captured in a CUDA graph.

    Returns:
        Whether.
    """
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()


def first_tensor(output: Any) -> Tensor | None:
    """Return the tensor that an output is about.

    Args:
        output: what a module returned.

    Returns:
        It, if it is a floating tensor; else the first such one in a tuple, list or mapping, however
        nested; None where there is none.

    Example:
        >>> first_tensor({"index": torch.tensor([1]), "pair": (torch.ones(2), torch.zeros(3))})
        tensor([1., 1.])
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
        # A compiler that may not leave its graph is left alone.
        if self.tap.listening and not (torch.compiler.is_compiling() and self.tap.fixed()) and not is_quiet():
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
        used: whether there may be something to forget.
        layers: one for each module.
        ever: the layers of which an output has counted in any step.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        activation: Deliver,
        activation_gradient: Deliver,
        note: Note,
        guarded: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        """Install a hook on the module of each layer.

        Args:
            layers: the layers; of several of one module the first is told.
            activation: told of an output, detached.
            activation_gradient: told of its gradient, detached.
            note: told, by kind, what, text and layer, what is to be said; it must not raise.
            guarded: makes a call one that does not raise.
        """
        self.listening = self.used = False
        self.layers = tapped_layers(layers)
        self._activation = activation
        self._activation_gradient = activation_gradient
        self._note = note
        self._tensors: frozenset[str] = frozenset()
        self.ever: set[str] = set()
        self._called: set[str] = set()
        self._repeated: set[str] = set()
        self._on_modules: dict[str, tuple[nn.Module, Any]] = {}
        self._on_outputs: list[tuple[Tensor | None, Any]] = []
        # What a compiled model calls is not compiled, at the price of a break in its graph.
        self.saw = torch.compiler.disable(guarded(self._saw))  # type: ignore[no-untyped-call]
        self._on_gradient = guarded(self._arrived)
        self.fixed = torch.compiler.assume_constant_result(_graph_is_fixed)  # type: ignore[no-untyped-call]
        try:
            for layer in self.layers:
                self._install(layer, layer.owner)
        except BaseException:
            self.remove()
            raise

    def _install(self, layer: Layer, owner: nn.Module) -> None:
        self._on_modules[layer.name] = owner, owner.register_forward_hook(_Token(self, layer))

    def follow(self) -> None:
        """Move the hooks to the modules that have taken the place of others."""
        for layer in self.layers:
            with suppress(AttributeError):  # there is none in its place now
                owner, (before, handle) = layer.owner, self._on_modules[layer.name]
                if owner is not before:
                    handle.remove()
                    self._install(layer, owner)

    def begin(self, tensors: frozenset[str]) -> None:
        """Listen for the outputs of the step that begins.

        Args:
            tensors: which of ``activation`` and ``activation_gradient`` are told.
        """
        self.end()
        self.used = bool(tensors)
        self._tensors = tensors & {"activation", "activation_gradient"}
        if self._tensors:
            self.follow()
            self.listening = True

    def end(self) -> None:
        """Stop listening, and forget the step."""
        self.listening = False
        self._called.clear()
        self._repeated.clear()
        while self._on_outputs:
            leaf, handle = self._on_outputs.pop()
            handle.remove()
            if leaf is not None and not leaf._backward_hooks:
                # A module may put out its own parameter, which outlives the step.
                leaf._backward_hooks = None

    def called(self, layer: Layer) -> bool:
        """Return whether an output of the layer's module counted since `begin`.

        Args:
            layer: the layer.

        Returns:
            Whether.
        """
        return layer.name in self._called or layer.name in self._repeated

    def _saw(self, layer: Layer, output: Any) -> None:
        z = first_tensor(output)
        if not torch.is_grad_enabled() or isinstance(z, FakeTensor) or _traced():
            return
        # Only checkpointing calls a module inside a backward. Where the first forward was seen, this one is
        # its repetition; the reentrant kind runs the first one without gradients, and this one counts.
        if torch._C._current_graph_task_id() == -1:
            self._called.add(layer.name)
            self.ever.add(layer.name)
        elif layer.name in self._called:
            return
        else:
            self._repeated.add(layer.name)
            self.ever.add(layer.name)
        if z is None:
            text = f"the output of {layer.name} holds no floating tensor; its activations are not recorded"
            self._note("activation", f"output/{layer.name}", text, layer.name)
            return
        if "activation" in self._tensors:
            self._activation(layer, z.detach())
        if "activation_gradient" in self._tensors and z.requires_grad:
            bare = z._backward_hooks is None
            handle = z.register_hook(partial(self._on_gradient, layer))  # type: ignore[no-untyped-call]
            self._on_outputs.append((z if bare and z.is_leaf else None, handle))

    def _arrived(self, layer: Layer, g: Tensor) -> None:
        # A vectorized Jacobian goes backward for several outputs at once.
        inside = torch._C._functorch.is_functorch_wrapped_tensor(
            g
        ) or torch._C._functorch.is_legacy_batchedtensor(g)
        if not inside:
            self._activation_gradient(layer, g.detach())

    def remove(self) -> None:
        """Remove every hook; twice is harmless."""
        self.end()
        while self._on_modules:
            self._on_modules.popitem()[1][1].remove()


def _traced() -> bool:
    # A transform of the model, a recording of its operations, or one of its kernels.
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACERS)
        or capturing()
    )


def _graph_is_fixed() -> bool:
    # Asked by the compiler of itself: `fullgraph=True` would make a break in the graph an error of the loop.
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        return bool(InstructionTranslator.current_tx().one_graph)
    except Exception:
        return True  # some other compiler
