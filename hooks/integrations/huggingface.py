"""Hugging Face: a callback for the `Trainer` of transformers; with accelerate no callback is needed.

Attach to a `Trainer`::

    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

    from hooks import every
    from hooks.integrations.huggingface import RankTrackerCallback

    set_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertForSequenceClassification(config)
    texts, labels = torch.randint(64, (64, 8)), torch.randint(2, (64,))
    data = [{"input_ids": text, "labels": label} for text, label in zip(texts, labels)]
    trainer = Trainer(
        model,
        TrainingArguments("out", max_steps=10, logging_steps=5, save_steps=5, report_to="none", use_cpu=True),
        train_dataset=data,
        callbacks=[RankTrackerCallback("run.h5", schedule=every(5), layers="*.query", mode="w")],
    )
    trainer.train()

With accelerate, give the tracker what `prepare` returns::

    import torch
    from accelerate import Accelerator

    from hooks import RankTracker, every

    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = torch.nn.Linear(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.DataLoader(torch.randn(64, 16), batch_size=4)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)

    with RankTracker(model, optimizer, "run.h5", schedule=every(2), mode="w"):
        for inputs in data:
            with accelerator.accumulate(model):
                accelerator.backward(model(inputs).square().mean())
                optimizer.step()
                optimizer.zero_grad()
"""

import os
from numbers import Real
from types import TracebackType
from typing import Any, Literal, Self

from torch import nn

from hooks.integrations.options import check_options, opening_mode
from hooks.layers import is_distributed
from hooks.tracker import RankTracker

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "hooks.integrations.huggingface needs transformers, which is not installed; "
        "pip install 'zanalysis[huggingface]'."
    ) from error

__all__ = ["RankTrackerCallback"]

_OWN = ("model", "optimizer", "start")


class RankTrackerCallback(TrainerCallback):
    """Records each `train` of a transformers `Trainer` as `RankTracker` records a loop.

    Step k is the trainer's `global_step`: the state after k optimizer steps. What the trainer logs (loss, learning
    rate, gradient norm, evaluations) goes into the same file. `train(resume_from_checkpoint=…)` goes on in the file
    from the checkpoint's step: what was recorded behind it is cut.

    Under `DistributedDataParallel` rank 0 records, and its activations are those of its own samples; sharded models
    (FSDP2) are recorded by all processes together.

    The file is closed when training ends. The trainer tells no callback of an exception: to close it then too, and
    not only when the interpreter ends, use the callback in a `with` block around `train`.

    Attributes:
        tracker: the tracker of the training in progress, or of the last one; None before, and where another process
            records.

    Example:
        >>> from hooks import every
        >>> with RankTrackerCallback("run.h5", schedule=every(100), metrics="stable_rank") as callback:
        ...     pass  # Trainer(…, callbacks=[callback]).train()
        >>> callback.tracker is None
        True
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        log_metrics: bool = True,
        mode: Literal["x", "w", "a"] | None = None,
        **options: Any,
    ) -> None:
        """Keep the arguments; the tracker is made when training begins.

        Args:
            path: the run file; None keeps the record in memory, for `tracker.table()`.
            log_metrics: whether what the trainer logs is recorded too.
            mode: ``"x"`` refuses an existing file, ``"w"`` replaces it, ``"a"`` goes on in it; None for ``"a"`` where
                the training goes on, ``"x"`` where it begins.
            **options: whatever else `RankTracker` takes; an `InputError` says which argument is none of it.
        """
        check_options(path, mode, options, _OWN)
        self.tracker: RankTracker | None = None
        self._path, self._mode, self._options = path, mode, options
        self._log_metrics = log_metrics

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Attach. The model, the optimizer and the count are restored by now where the training goes on."""
        self.close()
        self.tracker = None
        if state.is_world_process_zero or _is_sharded(model):
            self.tracker = RankTracker(
                model,
                optimizer,
                self._path,
                start=state.global_step,
                mode=opening_mode(self._mode, state.global_step),
                **self._options,
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Record what the trainer logs, at the step that it is of."""
        if self.tracker is not None and self._log_metrics:
            numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, Real)}
            self.tracker.log(**{name: value for name, value in numbers.items() if name != "step"})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Detach and close the file; twice is harmless."""
        if self.tracker is not None:
            self.tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tracker is not None:
            self.tracker.__exit__(kind, error, trace)


def _is_sharded(model: nn.Module) -> bool:
    return any(map(is_distributed, model.parameters()))
