"""What recording costs, measured by itself: the time spent inside the training loop, by part.

Parts nest, and time is booked to the innermost: the parts add up to the whole, and nothing counts twice.
Of what several metrics share, such as the largest singular value of a weight, the first that needs it pays
for all; the order is that in which the metrics were asked for.

On a GPU the host only starts the work, so its clock alone would say too little. A pair of events around each
outermost part measures it there, read once both have passed, without waiting for them. What the GPU took
longer than the host is booked to the part ``device``.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

import torch

__all__ = ["DEVICE", "HOOKS", "PROBE", "SHARED", "WRITING", "Account", "account_of"]

SHARED = "shared"
"""What no single metric pays for: reading the weights, bringing the numbers to the host."""

WRITING = "writing"
"""Handing the numbers over, to `on_record` and to the thread that writes them: also waiting for room in its queue."""

HOOKS = "hooks"
"""What the hooks in the forward, the backward and the optimizer's step do before a metric takes over."""

PROBE = "probe"
"""The forward pass of the probe."""

DEVICE = "device"
"""What a GPU still worked on after the host had gone on."""

Clock = Callable[[], float]


class Event(Protocol):
    """What is needed of `torch.cuda.Event`."""

    def record(self) -> None:
        """Let the event pass when the stream gets there."""

    def query(self) -> bool:
        """Say whether it has passed."""

    def elapsed_time(self, end: Any) -> float:
        """Return the milliseconds until another event, which has passed too."""


class Account:
    """Seconds spent, by part.

    Attributes:
        parts: their names, in the order of the file.

    Example:
        >>> now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
        >>> account = Account(["rank"], clock=lambda: next(now))
        >>> with account.timed("shared"), account.timed("rank"):
        ...     pass
        >>> account.seconds["rank"], account.seconds["shared"]
        (3.0, 6.0)
    """

    def __init__(
        self,
        metrics: Iterable[str] = (),
        clock: Clock = time.perf_counter,
        events: Callable[[], Event] | None = None,
    ) -> None:
        """Begin with nothing spent.

        Args:
            metrics: the metrics that pay for themselves, by name.
            clock: seconds, from any zero on.
            events: makes an event of the device that the work is done on, where that is not the host.
        """
        common = (SHARED, HOOKS, PROBE, WRITING, *((DEVICE,) if events else ()))
        self.parts = tuple(dict.fromkeys((*metrics, *common)))
        self._seconds = dict.fromkeys(self.parts, 0.0)
        self._clock, self._events = clock, events
        self._began = clock()
        self._pending: deque[tuple[Event, Event, float]] = deque()
        # The backward of a GPU runs in a thread of its own, and so do the hooks in it.
        self._lock, self._running = threading.Lock(), threading.local()

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds spent so far, by part; those of a GPU as far as they are known."""
        with self._lock:
            self._settle()
            return dict(self._seconds)

    @property
    def total(self) -> float:
        """The seconds spent so far."""
        return sum(self.seconds.values())

    @property
    def elapsed(self) -> float:
        """The seconds since the account was opened."""
        return self._clock() - self._began

    def timed(self, name: str) -> "_Timed":
        """Book the time spent within a `with` block, less that of the parts within it.

        Args:
            name: the part; one that is not among `parts` counts as `SHARED`.

        Returns:
            A context manager.
        """
        return _Timed(self, name if name in self._seconds else SHARED)

    def _enter(self, name: str) -> None:
        stack = self._stack()
        now = self._clock()
        if stack:
            self._book(stack, now)
        running = _Running(name, now, now, None if stack else self._event())
        stack.append(running)

    def _exit(self) -> None:
        stack = self._stack()
        now = self._clock()
        self._book(stack, now)
        ended = stack.pop()
        if stack:
            stack[-1].since = now
        elif ended.event is not None and (end := self._event()) is not None:
            with self._lock:
                self._pending.append((ended.event, end, now - ended.entered))

    def _stack(self) -> "list[_Running]":
        stack: list[_Running] | None = getattr(self._running, "stack", None)
        if stack is None:
            stack = self._running.stack = []
        return stack

    def _book(self, stack: "list[_Running]", now: float) -> None:
        with self._lock:
            self._seconds[stack[-1].name] += now - stack[-1].since

    def _event(self) -> Event | None:
        # Recorded into a graph that is being captured, an event would belong to it.
        if self._events is None or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            return None
        event = self._events()
        event.record()
        return event

    def _settle(self) -> None:
        while self._pending and self._pending[0][1].query():
            start, end, host = self._pending.popleft()
            self._seconds[DEVICE] += max(0.0, start.elapsed_time(end) / 1000 - host)


class _Running:
    """A part that was entered and not yet left."""

    __slots__ = ("entered", "event", "name", "since")

    def __init__(self, name: str, entered: float, since: float, event: Event | None) -> None:
        self.name, self.entered, self.since, self.event = name, entered, since, event


class _Timed:
    """The `with` block of one part; a class, as it is entered hundreds of times in a record."""

    __slots__ = ("_account", "_name")

    def __init__(self, account: Account, name: str) -> None:
        self._account, self._name = account, name

    def __enter__(self) -> None:
        self._account._enter(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._account._exit()


def account_of(metrics: Iterable[str], device: torch.device, clock: Clock = time.perf_counter) -> Account:
    """Open the account of a tracker.

    Args:
        metrics: by name.
        device: where the model is.
        clock: seconds, from any zero on.

    Returns:
        The account, with events where the device is a GPU.
    """
    if device.type != "cuda":
        return Account(metrics, clock)
    return Account(metrics, clock, lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
