"""Units of work, carried out on the cores of this machine; outcomes come as they are ready.

Small tensors are measured side by side in threads with one BLAS thread each, since torch and LAPACK release
Python's lock; a large one has the machine, and all BLAS threads, to itself. So the cores are never asked for
more than once, and the memory in use does not grow with the number of cores.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from threadpoolctl import threadpool_limits

from zanalysis.analyzers.naming import inert
from zanalysis.sweep.journal import Journal

__all__ = ["Runner", "Task", "carried_out", "in_turn", "on_every_core"]

_log = logging.getLogger("zanalysis")

LARGE = 1 << 22
"""Entries of a tensor that has the machine to itself: from 2048×2048 on, BLAS threads are worth as much."""

AT_ONCE = 1 << 23
"""Entries that are in memory at a time, as far as they are of small tensors."""


class Task(Protocol):
    """What can be carried out, here or elsewhere.

    Attributes:
        key: what names it in a journal.
        place: which checkpoint it is of.
    """

    @property
    def key(self) -> str: ...  # noqa: D102

    @property
    def weight(self) -> int: ...  # noqa: D102

    def run(self) -> Any: ...  # noqa: D102

    def failed(self, error: BaseException) -> Any: ...  # noqa: D102


T = TypeVar("T", bound=Task)
Runner = Callable[[Iterable[T]], Iterator[tuple[T, Any]]]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    # torch's own, and those of the BLAS that numpy brought, which torch does not know of.
    before = torch.get_num_threads()
    with threadpool_limits(count, user_api="blas"):
        torch.set_num_threads(count)  # a thread of a pool takes it over when it first computes
        try:
            yield
        finally:
            torch.set_num_threads(before)


def in_turn(tasks: Iterable[T], sparing: bool = False) -> Iterator[tuple[T, Any]]:
    """Carry tasks out one after the other, in this thread: for code of a user's own.

    Args:
        tasks: what to do.
        sparing: whether a small tensor gets one BLAS thread: more wait for each other longer than they work.

    Yields:
        Each with its outcome.
    """
    cores = torch.get_num_threads()
    for task in tasks:
        with _threads(1 if sparing and task.weight < LARGE else cores):
            outcome = task.run()
        yield task, outcome


def on_every_core(tasks: Iterable[T]) -> Iterator[tuple[T, Any]]:
    """Carry tasks out on as many cores as torch may use.

    Args:
        tasks: what to do; taken up as there is room for it.

    Yields:
        Each with its outcome, in the order in which they are ready.
    """
    cores = torch.get_num_threads()
    if cores == 1:
        yield from in_turn(tasks, sparing=True)
        return
    pending: dict[Future[Any], T] = {}
    pool = ThreadPoolExecutor(cores, "zanalysis-sweep")
    with _threads(1):
        try:
            for task in tasks:
                if task.weight >= LARGE:
                    while pending:
                        yield from _ready(pending)
                    with _threads(cores):
                        outcome = task.run()
                    yield task, outcome
                    continue
                while len(pending) >= 2 * cores or _in_memory(pending) > AT_ONCE - task.weight:
                    yield from _ready(pending)
                pending[pool.submit(task.run)] = task
            while pending:
                yield from _ready(pending)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_memory(pending: dict[Future[Any], T]) -> int:
    return sum(task.weight for task in pending.values())


def _ready(pending: dict[Future[Any], T]) -> Iterator[tuple[T, Any]]:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        yield pending.pop(future), future.result()


def carried_out(
    tasks: Iterable[T],
    runner: Runner[T],
    journal: Journal | None,
    restored: Callable[[dict[str, Any]], Any],
) -> Iterator[tuple[T, Any]]:
    """Carry tasks out, and keep what came of them; those that a journal has are not done again.

    Args:
        tasks: what to do.
        runner: where.
        journal: what an interruption leaves, if anything.
        restored: makes an outcome of what a journal kept.

    Yields:
        Each task with its outcome.
    """
    known: list[tuple[T, Any]] = []

    def unknown() -> Iterator[T]:
        for task in tasks:
            if journal is not None and task.key in journal.kept:
                known.append((task, restored(journal.kept.pop(task.key))))
            else:
                yield task

    for task, outcome in runner(unknown()):
        if journal is not None and outcome.complete:
            journal.add(task.key, outcome.as_json())
        for error in outcome.errors:
            _log.warning("%s: %s", inert(str(task)), inert(error))
        yield task, outcome
        while known:
            yield known.pop()
    yield from known
