"""The account of the time that recording takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Account"]


class Account:
    """The seconds spent since it was opened, by what they were spent on.

    Attributes:
        seconds: by part.
    """

    def __init__(self) -> None:
        self.seconds = {"metrics": 0.0, "writing": 0.0}
        self._opened = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the account was opened."""
        return time.perf_counter() - self._opened

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time that the block takes, also when it fails.

        Args:
            part: of the account.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began
