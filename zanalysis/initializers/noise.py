"""The noise that breaks a symmetry: hooks that live with a model, through copies, pickles and moves.

A hook is an object of its own, so that `copy.deepcopy` gives the copy its own and `pickle` and `torch.save(model)`
carry it; a state dict has the same keys with and without. Noise is drawn in training mode only, so that looking at a
model in evaluation mode neither sees it nor moves its generator.
"""

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from zanalysis.initializers.parts import NORMS, TRANSPOSED, WEIGHTED

__all__ = ["OutputDropout", "Source", "ZeroNoise", "remove"]


class Source:
    """Random numbers on any device, from one seeded generator."""

    def __init__(self, generator: Generator | None = None) -> None:
        """Keep the generator.

        Args:
            generator: where numbers come from; PyTorch's global one of the device if None.
        """
        self._given = generator
        self._on: dict[str, Generator] = {}

    def uniform(self, shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
        """Draw from [0, 1).

        On another device than the generator's a second one is seeded from it, so that no number travels.

        Args:
            shape: of the result.
            like: gives dtype and device.

        Returns:
            The numbers.
        """
        generator = self._given
        if generator is not None and generator.device != like.device:
            key = str(like.device)
            if key not in self._on:
                seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
                self._on[key] = Generator(like.device).manual_seed(seed)
            generator = self._on[key]
        return torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)


class ZeroNoise:
    """Noise on the output of a layer for as long as its weight is still entirely zero; then it takes itself off.

    One value for each output feature, the same for all samples and positions as a bias would be, uniform in
    ±1/√fan_in, drawn anew at each forward in training mode. Once the weight has moved, the hook is gone.
    """

    def __init__(self, module: nn.Module, source: Source) -> None:
        """Take the layer's measures.

        Args:
            module: a linear, convolution or normalization layer.
            source: of the noise.
        """
        self.bound = 1.0 / math.sqrt(_fan_in(module))
        self.source = source

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Add the noise, or take the hook off.

        Args:
            module: the layer.
            args: its inputs.
            output: its output.

        Returns:
            The output, with noise.
        """
        if bool(module.weight.detach().any()):  # type: ignore[operator]
            for key in [key for key, hook in module._forward_hooks.items() if hook is self]:
                del module._forward_hooks[key]
            return output
        if not module.training:
            return output
        return output + (2 * self.source.uniform(_bias_shape(module, output), output) - 1) * self.bound


class OutputDropout:
    """Dropout on a layer's output in training mode (ConstNet's noise)."""

    def __init__(self, p: float, source: Source) -> None:
        """Keep the probability.

        Args:
            p: of dropping an entry.
            source: of the noise.
        """
        self.p = p
        self.source = source

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Drop entries, and scale the others by 1/(1 − p).

        Args:
            module: the layer.
            args: its inputs.
            output: its output.

        Returns:
            The output; itself in evaluation mode.
        """
        if not module.training:
            return output
        kept = self.source.uniform(output.shape, output) >= self.p
        return output * kept / (1 - self.p)


def remove(model: nn.Module) -> int:
    """Take every noise of this module off a model.

    Args:
        model: any model.

    Returns:
        How many there were.
    """
    count = 0
    for module in model.modules():
        ours = [
            key for key, hook in module._forward_hooks.items() if isinstance(hook, ZeroNoise | OutputDropout)
        ]
        for key in ours:
            del module._forward_hooks[key]
        count += len(ours)
    return count


def _fan_in(module: nn.Module) -> int:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if isinstance(module, TRANSPOSED):
        return max(1, weight.shape[0] // module.groups * weight[0, 0].numel())
    return max(1, weight[0].numel() if isinstance(module, WEIGHTED) else weight.numel())


def _bias_shape(module: nn.Module, output: Tensor) -> tuple[int, ...]:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if isinstance(module, nn.Linear):
        return (module.out_features,)
    if isinstance(module, NORMS) and not isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return (weight.shape[0], *([1] * (output.ndim - 2)))
    if isinstance(module, WEIGHTED):
        return (module.out_channels, *([1] * (weight.ndim - 2)))  # type: ignore[arg-type]
    return tuple(weight.shape)
