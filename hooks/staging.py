"""From the training loop to the file: a queue, and a thread that writes and flushes."""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, Full, Queue
from typing import Any, Literal, NamedTuple

from zanalysis.runfile import Kept, RunWriter

__all__ = ["OnFull", "StagedWriter"]

OnFull = Literal["block", "drop"]
_log = logging.getLogger("hooks")

_FLUSH_BYTES = 4 << 20
_LATE_BYTES = 1 << 12
_PATIENCE = 3600.0  # seconds; `flush_seconds` may be infinite, a timeout may not
_Task = Callable[[RunWriter], None]


def _nothing() -> None:
    pass


class _Item(NamedTuple):
    """What is to be done with the writer, how many bytes that is, and what is to be done in any case after it."""

    task: _Task
    size: int
    done: Callable[[], None] = _nothing


class StagedWriter:
    """A run writer whose work is done by a thread of its own.

    The first record is flushed at once, then what has come in is flushed at least every
    `flush_seconds`, and when 4 MiB are waiting. An error of the file is said once; the rest of the
    record is then lost, and the training goes on.
    """

    def __init__(
        self, writer: RunWriter, flush_seconds: float = 0.5, on_full: OnFull = "block", capacity: int = 1024
    ) -> None:
        """Start the thread.

        Args:
            writer: an open run file, from now on used by the thread alone.
            flush_seconds: how long something may wait to be flushed.
            on_full: whether a full queue makes the loop wait, or loses what would not fit and counts it.
            capacity: how many records the queue holds.
        """
        self._writer = writer
        self._flush_seconds = flush_seconds
        self._on_full = on_full
        self._queue: Queue[_Item | None] = Queue(capacity)
        self._failed = False
        self._closed = False
        # Counted by the loop alone, and how much of it was told by the thread alone: none is lost between them.
        self._dropped = self._dropped_told = 0
        self._dropped_tensors = self._dropped_tensors_told = 0
        self._account: tuple[dict[str, float], float] | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._work, name="zanalysis-writer", daemon=True)
        self._thread.start()
        if writer.network is not None:
            self._warn_of_network(writer)

    def _warn_of_network(self, writer: RunWriter) -> None:
        text = (
            f"{writer.path} lies on a network file system ({writer.network}), which may not keep the order of "
            "writes: readers elsewhere, and a kill, may find it unreadable until it is closed. Record to a local "
            "disk, and copy the file when it is closed"
        )
        _log.warning("%s", text)
        self.event(writer.reached, "network", text)

    @property
    def working(self) -> bool:
        """Whether what is passed on still reaches the file."""
        return not self._closed and not self._failed and self._alive()

    def append(self, step: int, value: Any, tolerance: Any, status: Any, spectra: Any) -> None:
        """Pass the numbers of one recorded step on."""
        size = value.nbytes + tolerance.nbytes + status.nbytes + spectra.nbytes
        item = _Item(lambda writer: writer.append(step, value, tolerance, status, spectra), size)
        self._dropped += not self._put(item, droppable=True)

    def append_tensors(
        self,
        step: int,
        kept: Sequence[Kept],
        ready: Callable[[], None] = _nothing,
        done: Callable[[], None] = _nothing,
    ) -> None:
        """Pass the raw tensors of one step on; they must stay as they are until they are written.

        Args:
            step: completed optimizer steps.
            kept: one for each tensor that is followed.
            ready: returns when they are all there; called by the thread.
            done: called when they are not needed any more, written or not; by the thread, or at once.
        """

        def write(writer: RunWriter) -> None:
            ready()
            writer.append_tensors(step, kept)

        size = sum(one.values.nbytes for one in kept if one.values is not None)
        if not self._put(_Item(write, size, done), droppable=True):
            self.drop_tensors()
            done()

    def drop_tensors(self, steps: int = 1) -> None:
        """Count steps whose raw tensors were dropped; the count reaches the file with what is written next."""
        self._dropped_tensors += steps

    def append_later(self, step: int, numbers: Callable[[], Any]) -> None:
        """Pass the numbers of one recorded step on that are still to come.

        Args:
            step: completed optimizer steps.
            numbers: gives value, tolerance, status and spectra, as `append` takes them; called by the thread.
                Where it fails, the file goes on without the step, and says so.
        """

        def write(writer: RunWriter) -> None:
            try:
                found = numbers()
            except Exception as error:
                # Said here: the thread must not wait for room in its own queue.
                text = f"step {step} could not be recorded: {error!r}"
                _log.warning("%s", text)
                writer.event(step, "record", text)
            else:
                writer.append(step, *found)

        self._dropped += not self._put(_Item(write, _LATE_BYTES), droppable=True)

    def log(self, step: int, name: str, value: float) -> None:
        """Pass a scalar of the user's own on."""
        self._dropped += not self._put(
            _Item(lambda writer: writer.log(step, name, value), 24), droppable=True
        )

    def event(self, step: int, kind: str, text: str, layer: str = "") -> None:
        """Pass an event on."""
        item = _Item(lambda writer: writer.event(step, kind, text, layer), 512)
        self._dropped += not self._put(item, droppable=True)

    def overhead(self, seconds: Mapping[str, float], elapsed: float) -> None:
        """Replace the account of the time spent; it reaches the file with what is written next."""
        self._account = (dict(seconds), elapsed)

    def flush(self) -> None:
        """Wait until everything passed on so far is in the file."""
        done = threading.Event()

        def flush(writer: RunWriter) -> None:
            self._write_account()
            writer.flush()

        self._put(_Item(flush, 0, done.set))
        while self._alive() and not self._failed and not done.wait(0.05):
            pass

    def close(self) -> None:
        """Write what is left, close the file and end the thread. Twice is harmless."""
        if not self._alive():
            return
        if not self._closed:
            self._closed = True
            self._wait_for_room(None)
        self._thread.join()

    def _alive(self) -> bool:
        # A forked child has the queue, but not the thread: nothing there may wait for it.
        return os.getpid() == self._pid and self._thread.is_alive()

    def _put(self, item: _Item, droppable: bool = False) -> bool:
        """Pass something on; what will never be written is done with at once.

        Args:
            item: what is to be done.
            droppable: whether it may be lost where the queue is full.

        Returns:
            False where it was dropped.
        """
        if not self.working:
            item.done()
        elif droppable and self._on_full == "drop":
            try:
                self._queue.put_nowait(item)
            except Full:
                return False
        elif not self._wait_for_room(item):
            item.done()
        return True

    def _wait_for_room(self, item: _Item | None) -> bool:
        # A thread that is gone takes nothing from a full queue, and must not stop the training.
        while self._alive():
            with contextlib.suppress(Full):
                self._queue.put(item, timeout=1.0)
                return True
        return False

    def _work(self) -> None:
        waiting, due = 0, -1.0
        pending = False
        while True:
            try:
                # After a failure nothing is due any more: a thread that kept looking would slow the loop down.
                waits = pending and not self._failed
                patience = min(max(0.0, due - time.monotonic()), _PATIENCE) if waits else None
                item = self._queue.get(timeout=patience)
            except Empty:
                if time.monotonic() < due:
                    continue
                item = _Item(RunWriter.flush, 0)
            if item is None:
                break
            try:
                if not self._failed:
                    self._account_for_drops()
                    item.task(self._writer)
                    waiting += item.size
                    flushes = item.task is RunWriter.flush
                    if not flushes and not pending:
                        pending, due = True, max(due, time.monotonic())
                    if waiting >= _FLUSH_BYTES or flushes or time.monotonic() >= due:
                        self._write_account()
                        self._writer.flush()
                        waiting, pending, due = 0, False, time.monotonic() + self._flush_seconds
            except Exception as error:
                self._give_up(error)
            finally:
                item.done()
            del item  # or what it holds would be held until the next one comes
        try:
            if not self._failed:
                self._account_for_drops()
                self._write_account()
                self._writer.close()
        except Exception as error:
            self._give_up(error)

    def _account_for_drops(self) -> None:
        records, steps = (
            self._dropped - self._dropped_told,
            self._dropped_tensors - self._dropped_tensors_told,
        )
        reached = self._writer.reached
        if records:
            self._dropped_told += records
            text = f"{records} records, scalars or events were dropped: the queue was full"
            self._writer.event(reached, "dropped", text)
        if steps:
            self._dropped_tensors_told += steps
            self._writer.drop_tensors(steps)
            text = f"{steps} steps of raw tensors were dropped: the queue was full"
            self._writer.event(reached, "dropped", text)

    def _write_account(self) -> None:
        if self._account is not None:
            self._writer.overhead(*self._account)

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        _log.warning(
            "recording into %s has stopped, the training goes on: %s. What was flushed is safe.",
            self._writer.path,
            _in_short(error),
        )
        with contextlib.suppress(Exception):
            self._writer.abandon()


def _in_short(error: Exception) -> str:
    # HDF5 tells of addresses and of times; what the operating system said is in the middle of it.
    said = re.search(r"error message = '([^']*)'", str(error))
    return said[1] if said else " ".join(str(error).split())
