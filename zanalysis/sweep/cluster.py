"""Units of work on `dask.distributed`: processes of this machine, or a scheduler's workers anywhere.

Dask is an extra (`pip install 'zanalysis[dask]'`) and imported only here. A worker that dies is replaced, and
what it was doing is done again elsewhere. What several workers died of is tried once more by itself, because
Dask blames all that such a worker had waiting, and then becomes a row with the status ``error``. Workers read
the checkpoints themselves, so that their paths must mean the same there as here.
"""

import contextlib
import importlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from zanalysis.errors import InputError
from zanalysis.sweep.running import Runner, T

__all__ = ["connected"]

_BLAS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_AHEAD = 64
_POLL, _LOOK = 0.005, 2.0
REVIVE, PATIENCE = 20.0, 120.0
"""Seconds without any worker until ours are started anew, and until a sweep gives up."""

_SECONDS = 10


@contextlib.contextmanager
def connected(workers: int | None, scheduler: Any) -> Iterator[Runner[Any]]:
    """Start workers, or find those of a scheduler, for the length of a `with` block.

    Args:
        workers: how many processes to start, with one thread each.
        scheduler: instead of that, the address of a running scheduler, or a `distributed.Client`.

    Yields:
        What carries tasks out there.

    Raises:
        InputError: if Dask is not installed, or no scheduler answers.
    """
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise InputError(
            "workers and schedulers need Dask, which is not installed; pip install 'zanalysis[dask]', or leave them "
            "out to use the cores of this machine."
        ) from None
    with contextlib.ExitStack() as stack:
        if isinstance(scheduler, distributed.Client):
            client, revive = scheduler, None
        else:
            stack.enter_context(_quiet_logs())
            address, revive = scheduler, None
            try:
                if scheduler is None:
                    cluster = stack.enter_context(_local(workers or 1))
                    address, revive = cluster, partial(cluster.scale, workers or 1)
            except (RuntimeError, OSError) as error:
                raise InputError(
                    f"the Dask workers did not start ({error}); a script that starts some needs "
                    'if __name__ == "__main__": around what it does.'
                ) from error
            try:
                if isinstance(address, str):
                    # A client that fails on the address itself ends the process with a traceback.
                    distributed.comm.resolve_address(distributed.comm.normalize_address(address))
                client = stack.enter_context(
                    distributed.Client(address, timeout=_SECONDS, set_as_default=False)
                )
            except (OSError, ValueError, TypeError, ImportError) as error:
                raise InputError(
                    f"no Dask scheduler answers at {scheduler!r} ({error}); expected its address, such as "
                    "tcp://host:8786."
                ) from error
        yield lambda tasks: _results(client, tasks, revive)


def _local(workers: int) -> Any:
    distributed: Any = importlib.import_module("distributed")
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=":0",
        memory_limit=0,
        silence_logs=logging.CRITICAL,
        env=dict.fromkeys(_BLAS, "1"),
        preload=["zanalysis.sweep.worker_start"],
    )


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    # What Dask says of workers that come and go belongs to a dashboard, not between the rows of a table.
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _results(client: Any, tasks: Iterable[T], revive: Callable[[], None] | None) -> Iterator[tuple[T, Any]]:
    distributed: Any = importlib.import_module("distributed")
    room = _AHEAD * max(1, sum(client.nthreads().values()))
    pending: dict[Any, T] = {}
    blamed: list[T] = []
    waiting = iter(tasks)
    ready = distributed.as_completed(loop=client.loop, with_results=True, raise_errors=False)

    def fill() -> None:
        # Many at once: a call for each task costs as much as measuring a small layer.
        if len(pending) <= room // 2 and (tasks := list(islice(waiting, room - len(pending)))):
            futures = client.map(_run, tasks, pure=False, retries=2)
            pending.update(zip(futures, tasks, strict=True))
            ready.update(futures)

    try:
        fill()
        while pending:
            future, result = _next(ready, client, revive)
            task = pending.pop(future)
            if future.status == "error" and isinstance(future.exception(), distributed.KilledWorker):
                blamed.append(task)
            else:
                yield task, _outcome(future, result, task)
            future.release()
            fill()
        for task in blamed:
            future = client.submit(_run, task, pure=False, retries=2)
            ready.add(future)
            _, result = _next(ready, client, revive)
            yield task, _outcome(future, result, task)
    finally:
        with contextlib.suppress(Exception):
            client.cancel(list(pending), force=True)


def _next(ready: Any, client: Any, revive: Callable[[], None] | None) -> Any:
    # Dask waits for ever where no worker is left, also where its nanny gave up on one that died at its start.
    alone_since, looked, revived = 0.0, time.monotonic(), False
    while not ready.has_ready():
        time.sleep(_POLL)
        now = time.monotonic()
        if now - looked < _LOOK:
            continue
        looked = now
        if client.nthreads():
            alone_since, revived = 0.0, False
        elif not alone_since:
            alone_since = now
        elif now - alone_since > PATIENCE:
            raise InputError(
                f"no Dask worker has been there for {PATIENCE:.0f} seconds; start some, and the sweep again."
            )
        elif revive is not None and not revived and now - alone_since > REVIVE:
            revive()
            revived = True
    return next(ready)


def _run(task: Any) -> Any:
    return task.run()


def _outcome(future: Any, result: Any, task: T) -> Any:
    if future.status == "finished":
        return result
    if future.status == "error":
        return task.failed(future.exception())
    raise InputError(
        f"the Dask scheduler gave up on {task} ({future.status}); see whether it still runs, and start again."
    )
