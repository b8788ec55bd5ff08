"""`Recorder`: keeps the tensors themselves."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from hooks.account import Account
from hooks.arguments import check_settings, checked_path, checked_tensors
from hooks.attachment import Attachment, described, staged
from hooks.collector import Collector, keys_of
from hooks.distributed import NoWriter, check_supported, check_whole, team_of
from hooks.guards import cpu_by_default
from hooks.journal import Journal
from hooks.layers import Selection, select_layers
from hooks.observer import Observer
from hooks.pool import BufferPool
from hooks.schedules import Schedule
from hooks.staging import OnFull
from hooks.taps import Taps, unwrapped
from hooks.transfer import Transfer
from zanalysis.errors import InputError
from zanalysis.runfile import MemoryWriter, RunWriter
from zanalysis.runfile.bits import DTYPES, word_of
from zanalysis.runfile.tensor_layout import COMPRESSIONS, Compression

if TYPE_CHECKING:
    from hooks.team import Team
    from zanalysis.runfile.tensor_reader import RecordedTensor

__all__ = ["Recorder"]

HELD_BYTES = 256 << 20
"""How much may be on its way to the file; two steps where that is more."""


class Recorder(Attachment):
    """Record weights, gradients or activations whole, into a run file.

    Weights are those after the optimizer's step; gradients as the optimizer used them: accumulated, unscaled,
    clipped. Of activations, and of their gradients, those of the last micro-batch are kept, and where a module is
    used several times in it, of the last use; they are copied inside the forward, so that nothing that is done to
    them in place afterwards shows. The training is disturbed as little as by `RankTracker`: not at all.

    A step counts once all its tensors are in the file. At most 256 MiB, or two steps, wait for the file; then the
    loop waits too, or whole steps are dropped and counted.

    Under DDP attach in every process: the first writes, the others hold nothing. Sharded weights are refused.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with Recorder(model, optimizer, schedule=lambda step: step % 2 == 0) as recorder:
        ...     for _ in range(4):
        ...         model(torch.ones(4)).sum().backward()
        ...         optimizer.step()
        >>> recorder.tensors[0].steps.tolist()
        [0, 2, 4]
        >>> bool((recorder.tensor("weight", step=4) == model.weight).all())
        True
    """

    @cpu_by_default()
    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        path: str | os.PathLike[str] | None = None,
        *,
        schedule: Schedule,
        layers: Selection = None,
        tensors: Sequence[str] | str = ("weight",),
        dtype: torch.dtype | None = None,
        rows: int | None = None,
        compression: Compression | None = None,
        mode: Literal["x", "w", "a"] = "x",
        start: int = 0,
        flush_seconds: float = 0.5,
        on_full: OnFull = "block",
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Attach to a model.

        Args:
            model: the model.
            optimizer: one, a list (the first counts the steps), a wrapper with an ``optimizer``
                attribute, or None: then call `step` after each step.
            path: the run file; None keeps the tensors in memory, all of them.
            schedule: `step -> bool`. Step 0 is always recorded: of it there are weights only.
            layers: names, globs, compiled regular expressions or predicates; None for every weight. One of a
                single row or column is followed only where its name is written out.
            tensors: which tensors of a layer: ``"weight"``, ``"gradient"``, ``"activation"``,
                ``"activation_gradient"``.
            dtype: to store them in, such as `torch.bfloat16`; their own if None.
            rows: how many rows of an activation to keep, the first ones of its first dimension: a loader that
                shuffles has drawn them at random already, and they belong to the same inputs in every layer.
                All if None.
            compression: None, ``"lzf"`` or ``"gzip"``. Both slow the writing down several times, and gain little on
                weights; sparse activations gain.
            mode: ``"x"`` refuses an existing file, ``"w"`` replaces it, ``"a"`` goes on in it.
            start: steps completed before; with ``"a"``, steps at and after it are cut.
            flush_seconds: how long a step may wait before it is safe from a kill.
            on_full: whether a full queue makes the loop wait (``"block"``) or loses whole steps and counts
                them (``"drop"``).
            attributes: facts of the user's own, stored with the run as JSON.

        Raises:
            InputError: if an argument is not what was expected.
            RunFileError: if the file cannot be written.
        """
        followed = checked_tensors(tensors)
        check_settings(schedule, start, 1, on_full, flush_seconds)
        _check_storage(schedule, dtype, rows, compression)
        chosen = select_layers(model, layers)
        optimizers = unwrapped(optimizer)
        keys = keys_of(chosen, followed, dtype)
        facts = described(
            model, chosen, optimizers, schedule, start, attributes,
            tensors=list(followed), dtype=word_of(dtype) if dtype else None, rows=rows, compression=compression,
        )  # fmt: skip
        self._account = Account()
        self._path: str | None = None
        self._memory: MemoryWriter | None = None
        check_supported(model, followed)
        check_whole(chosen)
        team = team_of(model, chosen)

        def open_file(undo: ExitStack) -> Transfer:
            known = sum(prod(key.shape) * DTYPES[key.dtype].itemsize for key in keys if key.shape is not None)
            pool = BufferPool(max(HELD_BYTES, 2 * known), pinned=any(p.is_cuda for p in model.parameters()))
            if path is None:
                self._memory = MemoryWriter((), (), facts, keys)
                self._journal = Journal(self._memory)
                return Transfer(pool, wait=False, served=lambda: False)
            self._journal, thread = staged(
                undo,
                path,
                lambda name: RunWriter(
                    name, (), (), facts, mode=mode, start=start, tensors=keys, compression=compression
                ),
                lambda _: None,
                facts,
                flush_seconds,
                on_full,
            )
            self._path = checked_path(path)
            return Transfer(pool, wait=on_full == "block", served=lambda: thread.working)

        def attach(undo: ExitStack) -> Taps:
            transfer = open_file(undo)
            collector = Collector(chosen, keys, schedule, transfer, self._journal, self._account, dtype, rows)
            if start == 0 or collector.due(start):
                collector.record(start)
            taps = Taps(model, optimizers, chosen, collector, collector.wanted, start)
            undo.callback(taps.remove)
            collector.taps = taps
            return taps

        def stand_by(_: ExitStack) -> Taps:
            # Of a model that several processes hold, the first writes.
            self._memory = MemoryWriter((), (), facts, keys)
            self._journal = Journal(NoWriter())
            return Taps(model, optimizers, (), Observer(), frozenset(), start)

        with ExitStack() as undo:
            if team is None:
                taps = attach(undo)
            else:
                taps = _together(team, attach if team.leader else stand_by, undo)
            undo.pop_all()
        self._live(taps, chosen, team is not None)

    @property
    def tensors(self) -> "list[RecordedTensor]":
        """What was recorded so far: layer, tensor, shape, dtype, and the steps at which it is there."""
        return self._record().tensors  # type: ignore[no-any-return]

    def tensor(self, layer: str, tensor: str = "weight", step: int = 0) -> Tensor:
        """Return one recorded tensor.

        Args:
            layer: the name of the parameter.
            tensor: one of those recorded.
            step: a recorded step.

        Returns:
            It, of its own shape and in the dtype it was stored in, as `zanalysis.open_run(path).tensor` gives it.

        Raises:
            InputError: if no such tensor was recorded, or not at that step.
            RunFileError: if the file cannot be read.
        """
        return self._record().tensor(layer, tensor, step)  # type: ignore[no-any-return]

    def _record(self) -> Any:
        if self._path is None:
            return self._memory
        from zanalysis.runfile.reader import open_run

        self._journal.flush()
        return open_run(self._path)


def _together(team: "Team", begin: Callable[[ExitStack], Taps], undo: ExitStack) -> Taps:
    """Begin in every process, or raise in every process what was raised in one.

    Args:
        team: the processes.
        begin: what this one does.
        undo: what is to be done if one of them fails.

    Returns:
        What is installed here.
    """
    taps: Taps | None = None
    error: Exception | None = None
    try:
        taps = begin(undo)
    except Exception as failure:
        error = failure
    team.raise_together(error)
    assert taps is not None
    return taps


def _check_storage(schedule: Any, dtype: Any, rows: Any, compression: Any) -> None:
    if not callable(schedule):
        raise InputError(f"got schedule = {schedule!r}, expected a function step -> bool such as every(50).")
    if dtype is not None and (not isinstance(dtype, torch.dtype) or word_of(dtype) not in DTYPES):
        raise InputError(f"got dtype = {dtype!r}, expected a torch.dtype such as torch.bfloat16, or None.")
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"got dtype = {dtype!r}, which would round the tensors to whole numbers or worse.")
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise InputError(f"got rows = {rows!r}, expected a whole number, 1 or more, or None.")
    if compression is not None and compression not in COMPRESSIONS:
        raise InputError(f"got compression = {compression!r}, expected None, 'lzf' or 'gzip'.")
