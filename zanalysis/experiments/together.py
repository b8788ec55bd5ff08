"""Several replicas of one architecture, trained as one batched computation.

The replicas' parameters are stacked, `[replicas, *shape]`, the forward pass is `torch.func.vmap` over that first
dimension, and the backward pass goes through the sum of the replicas' losses. No loss depends on
another replica's parameters, so the gradient of the sum holds each replica's own gradient, and an
optimizer that works element by element makes of it what it would make of each alone. The outcome is
that of separate trainings, up to the order in which floating-point sums are formed.

It pays where a step is mostly overhead that the replicas can share. On one CPU thread, five replicas against
five separate steps: 10 against 48 ms for the all-zero CNN (single-channel convolutions, 28×28, batch 100), as
much for perceptrons of width 32, and more for wide ones (15 against 8 ms at 784-512-10) or for convolutions of
many channels (15 against 13 ms at 16), whose kernels fill a core by themselves.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from zanalysis.errors import InputError
from zanalysis.experiments.replicas import MakeOptimizer, check_alike, check_elementwise, check_own, explained

__all__ = ["Together", "channels_last"]

Randomness = Literal["error", "different", "same"]
Loss = Callable[[Tensor, Tensor], Tensor]


class Together:
    """Replicas of one architecture under one optimizer, each with data of its own.

    The replicas given are read at construction and written by `write_back`; in between they stay as
    they are. A tracker on a replica follows its weights and gradients: call `write_back` on the steps that are
    due, and `tracker.step()` on all. The replica's own forward never runs, so activations are ``unused``.

    What is right: layers that treat every sample by itself, normalization by batch statistics included
    (each replica keeps its own running statistics). Dropout draws for all replicas from one generator
    (`randomness`), which is a fair sample of each but not the sequence a separate training would draw.
    What is not: an optimizer that mixes elements, such as one that scales by the norm of a tensor
    (Adafactor, LARS, Muon, L-BFGS); it is recognized by trying it. Nor clipping by the norm of all
    gradients, which a caller would apply to the sum of the replicas. Recurrent layers and forward passes that
    branch on values are refused at the first step.

    Attributes:
        replicas: the modules, as given.
        parameters: by name, `[replicas, *shape]`; `.grad` holds the gradients of the last step.
        buffers: by name, `[replicas, *shape]`.
        optimizer: over the parameters that require a gradient; a scheduler may be attached to it.
        steps: how many were made.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> replicas = [nn.Linear(2, 2) for _ in range(3)]
        >>> for replica in replicas:
        ...     for parameter in replica.parameters():
        ...         _ = nn.init.zeros_(parameter)
        >>> both = Together(replicas, lambda parameters: torch.optim.SGD(parameters, lr=1.0))
        >>> inputs, labels = torch.ones(3, 1, 2), torch.tensor([[0], [1], [1]])
        >>> both.step(inputs, labels)
        tensor([0.6931, 0.6931, 0.6931])
        >>> both.write_back()
        >>> replicas[0].bias.tolist(), replicas[2].bias.tolist()
        ([0.5, -0.5], [-0.5, 0.5])
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        optimizer: MakeOptimizer,
        loss: Loss = nn.functional.cross_entropy,
        *,
        randomness: Randomness = "error",
    ) -> None:
        """Stack the replicas.

        Args:
            models: at least one module, all of one architecture, dtype, device and mode.
            optimizer: makes the optimizer from the list of stacked parameters, in the modules' order; called
                a few times with small ones first, to try it. Each has one dimension more than in the
                module, so a rule that sorts by dimensions (no decay for biases) must count it.
            loss: the mean over the samples of one replica's batch, from outputs and labels; a scalar.
            randomness: of layers that draw numbers: ``"error"`` refuses them, ``"different"`` draws for
                each replica, ``"same"`` draws once for all.

        Raises:
            InputError: if there is no module, they differ in architecture, nothing in them is to be trained,
                or the optimizer mixes elements.
        """
        self.replicas = tuple(models)
        check_alike(self.replicas)
        parameters, buffers = stack_module_state(list(self.replicas))
        self.parameters: dict[str, Tensor] = dict(parameters)
        self.buffers: dict[str, Tensor] = dict(buffers)
        self._trained = [stacked for stacked in self.parameters.values() if stacked.requires_grad]
        if not self._trained:
            raise InputError(
                "no parameter of these modules requires a gradient; leave at least one to train."
            )
        check_elementwise(optimizer, self._trained)
        self.optimizer = optimizer(self._trained)
        check_own(self.optimizer, self._trained)
        self.steps = 0
        # A copy: whatever hooks a tracker puts on a replica later must not fire within vmap.
        self._base = deepcopy(self.replicas[0])
        # The fused attention of a CPU has no rule for vmap, and would run replica by replica.
        self._on_cpu = self._trained[0].device.type == "cpu"
        self._loss = loss
        self._randomness: Randomness = randomness

    def __len__(self) -> int:
        """Return the number of replicas."""
        return len(self.replicas)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Train every replica on a batch of its own.

        Args:
            inputs: `[replicas, batch, *sample]`; `channels_last` makes convolutions on a CPU faster.
            labels: `[replicas, batch, ...]`.

        Returns:
            The losses before the step, `[replicas]`.

        Raises:
            InputError: if the first dimensions are not the number of replicas, the loss is no scalar, a layer
                draws random numbers and `randomness` was left at ``"error"``, or one cannot be batched.
        """
        self._check_leading(inputs, "inputs")
        self._check_leading(labels, "labels")
        self.optimizer.zero_grad()
        losses = self._mapped(self._one_loss, (0, 0, 0, 0))(self.parameters, self.buffers, inputs, labels)
        if losses.ndim != 1:
            raise InputError(
                f"the loss of one replica has shape {tuple(losses.shape[1:])}, expected a scalar; take its mean."
            )
        torch.autograd.backward(losses.sum())
        self.optimizer.step()
        self.steps += 1
        return losses.detach()

    @torch.no_grad()
    def predict(self, inputs: Tensor, *, shared: bool = False) -> Tensor:
        """Return the outputs of every replica in eval mode, without gradients.

        Args:
            inputs: `[replicas, batch, *sample]`, or `[batch, *sample]` if shared.
            shared: whether all replicas get the same inputs.

        Returns:
            Outputs, `[replicas, batch, ...]`.

        Raises:
            InputError: if inputs are not shared and their first dimension is not the number of replicas.
        """
        if not shared:
            self._check_leading(inputs, "inputs")
        modes = [(module, module.training) for module in self._base.modules()]
        self._base.eval()
        try:
            mapped = self._mapped(self._one_output, (0, 0, None if shared else 0))
            return mapped(self.parameters, self.buffers, inputs)
        finally:
            for module, mode in modes:
                module.training = mode

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy parameters, buffers and gradients into the replicas.

        Parameters keep their identity, so that a tracker or anything else that holds them sees the values.
        """
        for index, replica in enumerate(self.replicas):
            for name, parameter in replica.named_parameters():
                stacked = self.parameters[name]
                parameter.copy_(stacked[index])
                if stacked.grad is None:
                    parameter.grad = None
                elif parameter.grad is None:
                    parameter.grad = stacked.grad[index].clone()
                else:
                    parameter.grad.copy_(stacked.grad[index])
            for name, buffer in replica.named_buffers():
                buffer.copy_(self.buffers[name][index])

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on: copies, safe to keep while training goes on.

        Returns:
            Parameters and buffers by name, the optimizer's state, and the number of steps.
        """
        return {
            "parameters": {name: stacked.detach().clone() for name, stacked in self.parameters.items()},
            "buffers": {name: stacked.clone() for name, stacked in self.buffers.items()},
            "optimizer": deepcopy(self.optimizer.state_dict()),
            "steps": self.steps,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: of `state_dict`, from replicas of the same number and architecture.

        Raises:
            InputError: if its tensors are not those of these replicas; nothing is changed then.
        """
        if missing := {"parameters", "buffers", "optimizer", "steps"} - set(state):
            raise InputError(
                f"the state lacks {', '.join(sorted(missing))}; give what state_dict() returned."
            )
        for kind, own in (("parameters", self.parameters), ("buffers", self.buffers)):
            there = {name: tuple(tensor.shape) for name, tensor in state[kind].items()}
            here = {name: tuple(tensor.shape) for name, tensor in own.items()}
            if there != here:
                name = next(name for name in {**here, **there} if here.get(name) != there.get(name))
                raise InputError(
                    f"the state has {kind[:-1]} {name!r} of shape {there.get(name)}, these replicas have "
                    f"{here.get(name)}; give a state of as many replicas of the same architecture."
                )
        for kind, own in (("parameters", self.parameters), ("buffers", self.buffers)):
            for name, tensor in own.items():
                tensor.copy_(state[kind][name])
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.steps = int(state["steps"])

    def _one_output(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor
    ) -> Tensor:
        output: Tensor = functional_call(self._base, (parameters, buffers), (inputs,))
        return output

    def _one_loss(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, labels: Tensor
    ) -> Tensor:
        return self._loss(self._one_output(parameters, buffers, inputs), labels)

    def _mapped(
        self, function: Callable[..., Tensor], in_dims: tuple[int | None, ...]
    ) -> Callable[..., Tensor]:
        mapped = vmap(function, in_dims=in_dims, randomness=self._randomness)

        def call(*arguments: Any) -> Tensor:
            try:
                with sdpa_kernel(SDPBackend.MATH) if self._on_cpu else nullcontext():
                    return mapped(*arguments)
            except RuntimeError as error:
                raise explained(error) from error

        return call

    def _check_leading(self, tensor: Tensor, what: str) -> None:
        if tensor.ndim < 2 or tensor.shape[0] != len(self):
            raise InputError(
                f"{what} have shape {tuple(tensor.shape)}, expected [{len(self)}, batch, ...]: "
                "the first dimension is the replica."
            )


def channels_last(inputs: Tensor) -> Tensor:
    """Lay a batch of images out so that replicas and channels lie side by side in memory.

    Under vmap a convolution of single channels becomes a depthwise one over `replicas` channels. Its CPU
    kernel takes about half the time when these are innermost, and the layers after it keep the layout. With
    three channels it still helps, with sixteen it no longer does.

    Args:
        inputs: `[replicas, batch, channels, *spatial]`.

    Returns:
        The same values in the same shape, with strides of `[batch, *spatial, replicas, channels]`; the
        tensor itself if it has them.

    Raises:
        InputError: if there are fewer than four dimensions.

    Example:
        >>> channels_last(torch.zeros(2, 8, 1, 5, 4)).stride()
        (1, 40, 1, 8, 2)
    """
    if inputs.ndim < 4:
        raise InputError(
            f"inputs have shape {tuple(inputs.shape)}, expected [replicas, batch, channels, *spatial]; "
            "only images have channels."
        )
    return inputs.movedim((0, 2), (-2, -1)).contiguous().movedim((-2, -1), (0, 2))
