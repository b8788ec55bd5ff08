"""Copies of tensors in host memory: made at once on a CPU, and without waiting for it on a GPU."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hooks.pool import BufferPool

__all__ = ["HostCopy", "Transfer"]


class HostCopy(NamedTuple):
    """A copy of a tensor.

    Attributes:
        buffer: the memory it lies in, uint8 `[bytes]`.
        host: the copy; on a GPU it arrives there only after `Transfer.send`.
        staged: on a GPU, the copy it is made from.
    """

    buffer: Tensor
    host: Tensor
    staged: Tensor | None


class Transfer:
    """Copies the tensors of one step to host memory.

    On a GPU a tensor is first copied where it is, in the order of the training's own stream: whatever the
    training does to it next, the copy is of now. From there it crosses over to pinned memory on a stream of
    its own, while the training goes on; nothing in the loop waits for it.
    """

    def __init__(self, pool: BufferPool, wait: bool, served: Callable[[], bool]) -> None:
        """Prepare to copy.

        Args:
            pool: the host memory.
            wait: whether to wait where there is no room.
            served: whether somebody makes room.
        """
        self._pool = pool
        self._wait = wait
        self._served = served
        self._streams: dict[torch.device, Any] = {}

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> HostCopy | None:
        """Copy a tensor as it is now.

        Args:
            tensor: on any device.
            dtype: of the copy.

        Returns:
            The copy; None where there is no room for it.
        """
        buffer = self._pool.take(tensor.numel() * dtype.itemsize, self._wait, self._served)
        if buffer is None:
            return None
        host = buffer.view(dtype).view(tensor.shape)
        if tensor.device.type != "cuda":
            host.copy_(tensor)
            return HostCopy(buffer, host, None)
        staged = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
        return HostCopy(buffer, host, staged.copy_(tensor))

    def forget(self, copies: Iterable[HostCopy]) -> None:
        """Give up copies that were not sent.

        Args:
            copies: the copies.
        """
        self._pool.give_back([copy.buffer for copy in copies], passed_on=False)

    def send(self, copies: Iterable[HostCopy]) -> tuple[Callable[[], None], Callable[[], None]]:
        """Send the copies of a step on their way.

        Args:
            copies: all of the step.

        Returns:
            A function that returns when all have arrived; and one that gives their memory back, to be called when
            they are not needed any more. Either may be called by another thread.
        """
        copies = list(copies)
        buffers = [copy.buffer for copy in copies]
        crossing = [(copy.host, copy.staged) for copy in copies if copy.staged is not None]
        self._pool.pass_on()
        events = [
            self._cross(device, crossing) for device in dict.fromkeys(one.device for _, one in crossing)
        ]

        def arrived() -> None:
            for event in events:
                event.synchronize()
            crossing.clear()  # the memory on the device is free from here on, and not before

        def done() -> None:
            if crossing:  # they were never waited for: what is still crossing must not be overwritten
                arrived()
            self._pool.give_back(buffers)
            buffers.clear()

        return arrived, done

    def _cross(self, device: torch.device, crossing: Iterable[tuple[Tensor, Tensor]]) -> Any:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side = self._streams[device]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for host, staged in crossing:
                if staged.device == device:
                    host.copy_(staged, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(side)
        return event
