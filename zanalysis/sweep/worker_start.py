"""What a Dask worker that we start does first; Dask imports this module there by name."""

import signal
from typing import Any

__all__ = ["dask_setup"]


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the process that started the worker: a terminal sends it to both.

    Args:
        worker: the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
