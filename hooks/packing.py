"""A span as numbers, to be sent to another process of the same program."""

import io

import torch
from torch import Tensor

from zanalysis.analyzers.span import ActivationSpan

__all__ = ["packed", "unpacked"]


def packed(span: ActivationSpan) -> Tensor:
    """Return a span as bytes, to be sent to another process of the same program.

    Args:
        span: any span.

    Returns:
        float64: how many bytes there are, then a whole number for each two of them.
    """
    buffer = io.BytesIO()
    torch.save(span, buffer)
    data = buffer.getvalue()
    padded = torch.frombuffer(bytearray(data + bytes(-len(data) % 2)), dtype=torch.int16)
    # Whole numbers of 16 bits: every backend adds them exactly.
    return torch.cat([torch.tensor([float(len(data))], dtype=torch.float64), padded.double()])


def unpacked(numbers: Tensor) -> ActivationSpan:
    """Return the span that was packed.

    Args:
        numbers: what `packed` gave.

    Returns:
        The span, on the CPU.
    """
    data = numbers[1:].to(torch.int16).cpu().numpy().tobytes()[: int(numbers[0])]
    span: ActivationSpan = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    return span
