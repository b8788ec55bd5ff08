"""Lightning: a callback that attaches a `RankTracker` when a fit begins, and closes it when it ends.

It is right under what the `Trainer` does: accumulation, clipping, mixed precision, validation within an epoch,
several optimizers, manual optimization, `DistributedDataParallel` and FSDP2 in several processes (each has the
callback; one writes), and going on from a checkpoint, which takes the record up where the checkpoint was made.

Attach::

    import lightning as L
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from hooks import every
    from hooks.integrations.lightning import RankTrackerCallback


    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

        def training_step(self, batch, index):
            inputs, labels = batch
            loss = nn.functional.cross_entropy(self.net(inputs), labels)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)


    L.seed_everything(0)
    model = Classifier()
    data = TensorDataset(torch.randn(256, 16), torch.randint(4, (256,)))
    callback = RankTrackerCallback("run.h5", schedule=every(5), mode="w")
    trainer = L.Trainer(max_epochs=2, callbacks=[callback], accelerator="cpu", logger=False)
    trainer.fit(model, DataLoader(data, batch_size=32))
"""

import os
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from hooks.integrations.options import check_options, opening_mode
from hooks.tracker import RankTracker
from zanalysis.errors import InputError

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError(
            "hooks.integrations.lightning needs Lightning, which is not installed; pip install 'zanalysis[lightning]'."
        ) from error

__all__ = ["RankTrackerCallback"]

_OWN = ("model", "optimizer", "start")


class RankTrackerCallback(Callback):
    """Records each `fit` of a Lightning `Trainer` as `RankTracker` records a loop.

    Step k is the state after k completed steps of the optimizer that counts, the first. The layers are those of the
    `LightningModule`, by its names. What the module logs (`trainer.callback_metrics`) goes into the same file: at
    the recorded steps what was logged since the last of them, and what a validation or an epoch gives at the step
    that it ends at.

    A fit that goes on (`ckpt_path=…`, or a second `fit` of the same trainer) goes on in the file, from the step that
    the checkpoint was made at: what was recorded behind it is cut. The count is kept in the checkpoint; in one
    that was made without this callback it is the trainer's `global_step`, which counts the steps of all
    optimizers.

    Two networks that train each other are two callbacks with two files, told apart by `layers` and `optimizers`.

    Attributes:
        tracker: the tracker of the fit in progress, or of the last one; None before.

    Example:
        >>> from hooks import every
        >>> callback = RankTrackerCallback("generator.h5", schedule=every(50), layers="generator.*", optimizers=0)
        >>> callback.state_dict()
        {'completed': None}
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        optimizers: int | Sequence[int] | None = None,
        log_metrics: bool = True,
        mode: Literal["x", "w", "a"] | None = None,
        **options: Any,
    ) -> None:
        """Keep the arguments; the tracker is made when training begins.

        Args:
            path: the run file; None keeps the record in memory, for `tracker.table()`.
            optimizers: which of the trainer's, by index, the first of which counts the steps; all if None.
            log_metrics: whether the trainer's metrics are recorded too.
            mode: ``"x"`` refuses an existing file, ``"w"`` replaces it, ``"a"`` goes on in it; None for ``"a"`` where
                the training goes on, ``"x"`` where it begins.
            **options: whatever else `RankTracker` takes.

        Raises:
            InputError: if an argument is unknown, or the callback's own to pass: model, optimizer, start.
        """
        check_options(path, mode, options, _OWN)
        indices = [optimizers] if isinstance(optimizers, int) else optimizers
        if indices is not None and not all(isinstance(i, int) and not isinstance(i, bool) for i in indices):
            raise InputError(f"got optimizers = {optimizers!r}, expected indices into trainer.optimizers.")
        self.tracker: RankTracker | None = None
        self._path, self._mode, self._options = path, mode, options
        self._indices = None if indices is None else list(indices)
        self._log_metrics = log_metrics
        self._live = False
        self._completed: int | None = None
        self._logged_at: int | None = None
        self._last: dict[str, Tensor] = {}

    @property
    def state_key(self) -> str:
        """Under which name a checkpoint keeps the count: another one for each file, or each choice without one."""
        told: dict[str, Any] = {"path": os.fspath(self._path) if self._path else None}
        if self._path is None:  # what is only in memory is told apart by what is followed
            layers = self._options.get("layers")
            told |= {"optimizers": self._indices, "layers": None if callable(layers) else layers}
        return f"{type(self).__qualname__}{told!r}"

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps.

        Returns:
            `completed`: the steps of the optimizer that counts; None before there were any.
        """
        self._count()
        return {"completed": self._completed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint kept.

        Args:
            state_dict: as `state_dict` returns it.
        """
        self._completed = state_dict["completed"]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach. Models, optimizers and counts are what training begins with; of a checkpoint, restored."""
        self._close()
        start = 0
        if trainer.global_step:
            start = trainer.global_step if self._completed is None else self._completed
        # What wraps the module is what several processes hold.
        self.tracker = RankTracker(
            trainer.strategy.model or pl_module,
            self._optimizers(list(trainer.optimizers)),
            self._path,
            start=start,
            mode=opening_mode(self._mode, start),
            **self._options,
        )
        self._live, self._logged_at, self._last = True, None, dict(trainer.callback_metrics)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record what was logged, if a step was recorded."""
        tracker = self.tracker
        if not self._live or tracker is None or tracker.recorded != tracker.completed:
            return
        if tracker.completed and tracker.completed != self._logged_at:
            self._logged_at = tracker.completed
            self._log(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record what the validation gave, at the step that it is of."""
        if not trainer.sanity_checking:
            self._log(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Record what the epoch gave."""
        self._log(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the file."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Note what ended the training, and close the file."""
        if self._live and self.tracker is not None:
            self._count()
            self._live = False
            self.tracker.__exit__(type(exception), exception, exception.__traceback__)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close the file, if nothing did."""
        if stage == "fit":
            self._close()

    def _optimizers(self, given: list[Any]) -> list[Any] | None:
        if self._indices is not None:
            beyond = [i for i in self._indices if not -len(given) <= i < len(given)]
            if beyond:
                raise InputError(
                    f"got optimizers = {self._indices}, but the trainer has {len(given)}; pass indices into "
                    "trainer.optimizers."
                )
            return [given[i] for i in self._indices]
        return given or None

    def _log(self, trainer: Any) -> None:
        if not self._live or self.tracker is None or not self._log_metrics:
            return
        for name, value in trainer.callback_metrics.items():
            # A metric stays in there until it is logged anew: what is old is not of this step.
            before = self._last.get(name)
            if before is None or before.data_ptr() != value.data_ptr():
                self.tracker.log(**{name: value})
                self._last[name] = value

    def _count(self) -> None:
        if self._live and self.tracker is not None:
            self._completed = self.tracker.completed

    def _close(self) -> None:
        if self._live and self.tracker is not None:
            self._count()
            self._live = False
            self.tracker.close()
