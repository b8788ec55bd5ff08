"""TensorBoard: the numbers and the spectra of each record, as they are recorded.

Attach::

    import torch

    from hooks import RankTracker, every
    from hooks.integrations.tensorboard import TensorBoard

    torch.manual_seed(0)
    model = torch.nn.Linear(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(20, 4, 16)

    with (
        TensorBoard("logs/first") as board,
        RankTracker(
            model,
            optimizer,
            "run.h5",
            schedule=every(5),
            metrics=("rank", "stable_rank", "singular_values"),
            mode="w",
            on_record=board,
        ),
    ):
        for x in inputs:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

`tensorboard --logdir logs` shows it. `zanalysis export run.h5 --to tensorboard` makes the same of a run file
afterwards, with what was logged and the events.
"""

import os
import weakref
from types import TracebackType
from typing import Any, Self

from hooks.audience import Rows
from zanalysis.errors import InputError
from zanalysis.runfile.tensorboard import add_record, summary_writer

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes each record for TensorBoard: to be given to `RankTracker` as `on_record`.

    Tags are those of `zanalysis.runfile.tensorboard`: ``metric/layer``. What it costs counts as ``writing`` in
    `run.overhead`.

    Example:
        >>> board = TensorBoard(writer=None, log_dir=None)
        Traceback (most recent call last):
        ...
        zanalysis.errors.InputError: TensorBoard needs a folder, log_dir=…, or a SummaryWriter, writer=…: one of them.
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, *, writer: Any = None) -> None:
        """Open the event file.

        Args:
            log_dir: the folder of this run.
            writer: in its place, a `SummaryWriter` of your own, such as a Lightning logger's `experiment`; it is not
                closed.

        Raises:
            InputError: if neither or both are given, or tensorboard is not installed.
        """
        if (log_dir is None) == (writer is None):
            raise InputError(
                "TensorBoard needs a folder, log_dir=…, or a SummaryWriter, writer=…: one of them."
            )
        if writer is not None and not (hasattr(writer, "add_scalar") and hasattr(writer, "add_histogram")):
            raise InputError(f"got writer = {writer!r}, expected a torch.utils.tensorboard.SummaryWriter.")
        self.writer = writer
        self._finalizer: Any = None
        if log_dir is not None:
            self.writer = summary_writer(log_dir, flush_seconds=5)
            # What waits to be written would be lost with the interpreter.
            self._finalizer = weakref.finalize(self, self.writer.close)

    def __call__(self, step: int, rows: Rows) -> None:
        """Write one record.

        Args:
            step: completed optimizer steps.
            rows: its numbers, and its spectra.
        """
        add_record(self.writer, step, rows, rows.spectra)

    def close(self) -> None:
        """Write what is left, and close what was opened here; twice is harmless."""
        if self._finalizer is None:
            self.writer.flush()
        else:
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
