"""Host memory between the training loop and the writer thread: reused, and bounded."""

import os
import threading
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["BufferPool"]

_LOOK = 0.5  # seconds between two looks whether whoever makes room is still there


class BufferPool:
    """Buffers that are taken in the loop, filled there, and given back by the thread that has written them.

    Memory that is reused costs no page faults, and pinned memory is dear to allocate. What is in use and what is
    kept for reuse is together no more than the limit, or what a single step needs if that is more.

    Attributes:
        limit: bytes.
    """

    def __init__(self, limit: int, pinned: bool = False) -> None:
        """Start without any buffer.

        Args:
            limit: bytes.
            pinned: whether a GPU copies into them by itself.
        """
        self.limit = limit
        self._pinned = pinned
        self._free: dict[int, list[Tensor]] = {}
        self._allocated = 0  # in use or free
        self._taken = 0  # by the step that is being collected
        self._passed_on = 0  # to the thread
        self._changed = threading.Condition()
        self._pid = os.getpid()  # a forked child may have inherited the lock, and nobody who releases it

    def take(self, size: int, wait: bool, served: Callable[[], bool]) -> Tensor | None:
        """Take a buffer.

        Args:
            size: bytes.
            wait: whether to wait for room.
            served: whether somebody is still there who gives buffers back.

        Returns:
            uint8 `[size]`, of any content; None where there is no room, or nobody who makes some.
        """
        if os.getpid() != self._pid:
            return None
        with self._changed:
            while not self._has_room(size):
                if not wait or not served():
                    return None
                self._changed.wait(_LOOK)
            self._taken += size
            kept = self._free.get(size)
            if kept:
                return kept.pop()
            self._make_room(size)
            self._allocated += size
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)

    def _has_room(self, size: int) -> bool:
        # Where nothing is on its way to the file, waiting would be for ever: one step always fits.
        return self._passed_on == 0 or self._taken + self._passed_on + size <= self.limit

    def _make_room(self, size: int) -> None:
        for other in [n for n, kept in self._free.items() if kept]:
            while self._free[other] and self._allocated + size > self.limit:
                self._free[other].pop()
                self._allocated -= other

    def pass_on(self) -> None:
        """Count what was taken as being on its way: the step is collected."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._passed_on, self._taken = self._passed_on + self._taken, 0

    def give_back(self, buffers: Iterable[Tensor], passed_on: bool = True) -> None:
        """Give buffers back, to be used again.

        Args:
            buffers: what `take` returned.
            passed_on: whether they were passed on before; else the step that they belong to is given up.
        """
        if os.getpid() != self._pid:
            return
        with self._changed:
            for buffer in buffers:
                size = buffer.numel()
                if passed_on:
                    self._passed_on -= size
                else:
                    self._taken -= size
                if self._allocated > self.limit:
                    self._allocated -= size
                else:
                    self._free.setdefault(size, []).append(buffer)
            self._changed.notify_all()

    @property
    def allocated(self) -> int:
        """Bytes in use or kept for reuse."""
        return self._allocated
