"""From the training loop to the file: a queue, and a thread that writes and flushes."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, Full, Queue
from typing import Any, Literal

from zanalysis.runfile import RunWriter

__all__ = ["OnFull", "StagedWriter"]

OnFull = Literal["block", "drop"]
_log = logging.getLogger("hooks")

_FLUSH_BYTES = 4 << 20
_LATE_BYTES = 1 << 12
_PATIENCE = 3600.0  # seconds; `flush_seconds` may be infinite, a timeout may not
_Task = Callable[[RunWriter], None]


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
        self._queue: Queue[tuple[_Task, int] | None] = Queue(capacity)
        self._failed = False
        self._closed = False
        self._dropped = 0
        self._account: tuple[dict[str, float], float] | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._work, name="zanalysis-writer", daemon=True)
        self._thread.start()

    def append(self, step: int, value: Any, tolerance: Any, status: Any, spectra: Any) -> None:
        """Pass the numbers of one recorded step on."""
        size = value.nbytes + tolerance.nbytes + status.nbytes + spectra.nbytes
        self._put(lambda writer: writer.append(step, value, tolerance, status, spectra), size, droppable=True)

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

        self._put(write, _LATE_BYTES, droppable=True)

    def log(self, step: int, name: str, value: float) -> None:
        """Pass a scalar of the user's own on."""
        self._put(lambda writer: writer.log(step, name, value), 24, droppable=True)

    def event(self, step: int, kind: str, text: str, layer: str = "") -> None:
        """Pass an event on."""
        self._put(lambda writer: writer.event(step, kind, text, layer), 512, droppable=True)

    def overhead(self, seconds: Mapping[str, float], elapsed: float) -> None:
        """Replace the account of the time spent; it reaches the file with what is written next."""
        self._account = (dict(seconds), elapsed)

    def flush(self) -> None:
        """Wait until everything passed on so far is in the file."""
        done = threading.Event()

        def flush(writer: RunWriter) -> None:
            try:
                self._write_account()
                writer.flush()
            finally:
                done.set()

        self._put(flush, 0)
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

    def _put(self, task: _Task, size: int, droppable: bool = False) -> None:
        if self._closed or self._failed or not self._alive():
            return
        if droppable and self._on_full == "drop":
            try:
                self._queue.put_nowait((task, size))
            except Full:
                self._dropped += 1
        else:
            self._wait_for_room((task, size))

    def _wait_for_room(self, item: tuple[_Task, int] | None) -> None:
        # A thread that is gone takes nothing from a full queue, and must not stop the training.
        while self._alive():
            with contextlib.suppress(Full):
                self._queue.put(item, timeout=1.0)
                return

    def _work(self) -> None:
        waiting, due, dropped = 0, -1.0, 0
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
                item = (RunWriter.flush, 0)
            if item is None:
                break
            if self._failed:
                continue
            task, size = item
            try:
                dropped = self._account_for_drops(dropped)
                task(self._writer)
                waiting += size
                if task is not RunWriter.flush and not pending:
                    pending, due = True, max(due, time.monotonic())
                if waiting >= _FLUSH_BYTES or task is RunWriter.flush or time.monotonic() >= due:
                    self._write_account()
                    self._writer.flush()
                    waiting, pending, due = 0, False, time.monotonic() + self._flush_seconds
            except Exception as error:
                self._give_up(error)
        try:
            if not self._failed:
                self._account_for_drops(dropped)
                self._write_account()
                self._writer.close()
        except Exception as error:
            self._give_up(error)

    def _account_for_drops(self, told: int) -> int:
        dropped = self._dropped
        if dropped > told:
            text = f"{dropped - told} records, scalars or events were dropped: the queue was full"
            self._writer.event(self._writer.last_step, "dropped", text)
        return dropped

    def _write_account(self) -> None:
        if self._account is not None:
            self._writer.overhead(*self._account)

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        _log.warning(
            "recording into %s has stopped, the training goes on: %s. What was flushed is safe.",
            self._writer.path,
            error,
        )
        with contextlib.suppress(Exception):
            self._writer.abandon()
