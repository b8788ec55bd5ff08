"""The processes that hold one model together, and how they talk: few, small collectives.

The processes of a team are the points of a grid: one axis for each process group, such as data parallel
by tensor parallel. What is summed is summed along one axis after the other, so that no group is needed
which the model does not have already. The process at the origin leads.

One process decides and the others do as it says: `Team.lead` tells them what to add up, `Team.follow`
does so until it is told that there is nothing more. So nobody can wait for an answer that another does
not know it owes. What fails in one of them travels with its answer, and the others hear of it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from zanalysis.errors import InputError, RunFileError, ZAnalysisError

__all__ = ["Answer", "Message", "PeerError", "Task", "Team"]

_log = logging.getLogger("hooks")
_T = TypeVar("_T")

_ERRORS: tuple[type[Exception], ...] = (ZAnalysisError, InputError, RunFileError)


class PeerError(ZAnalysisError):
    """Another process could not do its part."""


class Task(IntEnum):
    """What the leader can tell the others to do."""

    END = 0
    """Go on with the training."""
    SUM = 1
    """Answer, and add the answers up."""
    MAXIMUM = 2
    """Answer, and take the largest."""
    TOGETHER = 3
    """Prepare something, and where nobody fails run what is itself a collective of the whole team."""
    BEGIN = 4
    """A moment begins; what follows until `END` is about it."""


class Message(NamedTuple):
    """What is to be answered.

    Attributes:
        task: how answers come together.
        size: how many numbers an answer has.
        what: numbers that say what is asked for.
        vector: numbers to answer it with, or None.
    """

    task: Task
    size: int
    what: tuple[float, ...]
    vector: Tensor | None


Answer = Callable[[Message], Any]
"""Gives float64 numbers to a `SUM` or `MAXIMUM`, and to a `TOGETHER` the collective to run."""

_WORDS = 8
PATIENCE = 20.0
"""Seconds after which a process that waits says for whom."""


class Team:
    """The processes along one or several process groups, as one of them sees it.

    Attributes:
        leader: whether this process is the one that decides and writes.
        device: where what is sent must lie.
    """

    def __init__(self, groups: Sequence[dist.ProcessGroup]) -> None:
        """Take the groups as they are; nothing is sent.

        Args:
            groups: the axes of the grid, each of which this process is in.
        """
        self._groups = list(groups)
        self.coordinates = tuple(dist.get_rank(group) for group in self._groups)
        self.sizes = tuple(dist.get_world_size(group) for group in self._groups)
        self.leader = not any(self.coordinates)
        self.device = _device_of(self._groups[0])
        self._ahead: Message | None = None

    @property
    def members(self) -> int:
        """How many processes there are."""
        return int(torch.Size(self.sizes).numel())

    @property
    def number(self) -> int:
        """Which of them this is; 0 leads."""
        number = 0
        for coordinate, size in zip(self.coordinates, self.sizes, strict=True):
            number = number * size + coordinate
        return number

    def axes(self, groups: Sequence[dist.ProcessGroup]) -> list[int | None]:
        """Say which axis each of some groups is.

        Args:
            groups: of a device mesh.

        Returns:
            The index of the axis; None where it is none.
        """
        own = [dist.get_process_group_ranks(group) for group in self._groups]
        ranks = [dist.get_process_group_ranks(group) for group in groups]
        return [own.index(one) if one in own else None for one in ranks]

    # What every process calls at the same moment.

    def everyone(self, numbers: Tensor) -> Tensor:
        """Add up what all processes have, for all of them.

        Args:
            numbers: of one shape and dtype in each; the sum replaces it.

        Returns:
            The sum, on `device`.
        """
        numbers = numbers.to(self.device)
        for group in self._groups:
            dist.all_reduce(numbers, group=group)
        return numbers

    def agreed(self, value: float) -> float:
        """Return the leader's number to everyone: the others' is not looked at.

        Args:
            value: a number or a truth value.

        Returns:
            The leader's.
        """
        numbers = torch.tensor([float(value)], dtype=torch.float64, device=self.device)
        return float(self._broadcast(numbers))

    def sent(self, numbers: Tensor) -> Tensor:
        """Return the leader's tensor to everyone.

        Args:
            numbers: of one shape and dtype in each; replaced in all but the leader.

        Returns:
            The leader's, on `device`.
        """
        return self._broadcast(numbers.to(self.device))

    def raise_together(self, error: Exception | None) -> None:
        """Raise in every process what was raised in one.

        Args:
            error: what was raised in this one, or None.

        Raises:
            Exception: this process's own, or one of the same kind with the words of the first that failed.
        """
        words = b"" if error is None else (str(error) or repr(error)).encode()
        kind = (
            0 if error is None else 1 + max(i for i, k in enumerate(_ERRORS) if isinstance(error, k) or not i)
        )
        failures = torch.zeros(self.members, 2, dtype=torch.int64)
        failures[self.number] = torch.tensor([kind, len(words)])
        failures = self._patiently(failures).cpu()
        failed = failures[:, 0].nonzero()[:, 0].tolist()
        if not failed:
            return
        first = failed[0]
        kind, length = failures[first].tolist()
        text = torch.zeros(max(length, 1), dtype=torch.int32)
        if self.number == first:
            text[:length] = torch.tensor(list(words), dtype=torch.int32)
        text = self.everyone(text).cpu()
        if error is not None:
            raise error
        said = bytes(text[:length].tolist()).decode(errors="replace")
        raise _ERRORS[kind - 1](said)

    def _patiently(self, numbers: Tensor) -> Tensor:
        # As `everyone`; who waits for long is told for whom.
        numbers = numbers.to(self.device)
        for group in self._groups:
            work = dist.all_reduce(numbers, group=group, async_op=True)
            told, began = False, time.monotonic()
            while not told and not work.is_completed():
                time.sleep(0.001)
                told = time.monotonic() - began > PATIENCE
            if told:
                _log.warning(
                    "waiting for the other processes of a distributed model: each of them must attach a tracker; "
                    "for one on rank 0 alone, pass what DistributedDataParallel wraps (model.module)."
                )
            work.wait()
        return numbers

    # The leader's side and the others'.

    def lead(self, moment: int, work: Callable[[], _T]) -> _T:
        """Do what only the leader does, while the others follow.

        Args:
            moment: a number that grows with each moment; two may have the same.
            work: may call `ask` and `together`.

        Returns:
            What it returns.
        """
        self._tell(Message(Task.BEGIN, 0, (moment,), None))
        try:
            return work()
        finally:
            self._tell(Message(Task.END, 0, (), None))

    def ask(self, message: Message, answer: Answer) -> Tensor:
        """Bring the answers of all together.

        Args:
            message: what is asked for.
            answer: the leader's own way to answer.

        Returns:
            float64 `[size]`.

        Raises:
            PeerError: if another process could not answer.
        """
        self._tell(message)
        own, error = _answered(message, answer, self.device)
        if error is not None:
            own[-1] = 0
        total = self._collect(own, message.task)
        if error is not None:
            raise error
        if float(total[-1]) > 0:
            raise PeerError("another process could not do its part; its own log says why")
        return total[:-1]

    def together(self, message: Message, answer: Answer) -> Any:
        """Run a collective in which every process of the team takes part, if each of them can.

        Args:
            message: what is to be done.
            answer: gives the collective to run here.

        Returns:
            What it returns here.

        Raises:
            PeerError: if another process could not prepare it.
        """
        self._tell(message)
        run, error = _prepared(message, answer)
        failures = self._count_failures(error)
        if error is not None:
            raise error
        if failures:
            raise PeerError("another process could not do its part; its own log says why")
        return run()

    def follow(self, moment: int, answer: Answer) -> None:
        """Do what the leader says until it says that there is nothing more.

        A moment that only the leader has reached is answered with failures, and one that it has left out
        is passed over: so processes in which something failed find together again.

        Args:
            moment: the moment that this process has reached.
            answer: this process's way to answer; what it raises is logged here and told to the leader.
        """
        while True:
            begun = self._ahead or self._heard()
            self._ahead = None
            at = int(begun.what[0])
            if at > moment:
                self._ahead = begun
                return
            self._serve(answer if at == moment else _unprepared)
            if at == moment:
                return

    def _serve(self, answer: Answer) -> None:
        while (message := self._heard()).task != Task.END:
            if message.task == Task.TOGETHER:
                run, error = _prepared(message, answer)
                if not self._count_failures(error):
                    run()
            else:
                own, error = _answered(message, answer, self.device)
                self._collect(own, message.task)
            if error is not None:
                _log.warning("a number that several processes measure together is missing: %s", error)

    def _tell(self, message: Message) -> None:
        vector = message.vector
        header = torch.zeros(3 + _WORDS, dtype=torch.float64)
        header[0], header[1] = float(message.task), float(message.size)
        header[2] = -1 if vector is None else vector.numel()
        header[3 : 3 + len(message.what)] = torch.tensor(message.what, dtype=torch.float64)
        self._broadcast(header.to(self.device))
        if vector is not None:
            self._broadcast(vector.to(self.device, torch.float64).contiguous())

    def _heard(self) -> Message:
        header = torch.zeros(3 + _WORDS, dtype=torch.float64, device=self.device)
        task, size, sent, *what = self._broadcast(header).tolist()
        vector = None
        if sent >= 0:
            vector = self._broadcast(torch.zeros(int(sent), dtype=torch.float64, device=self.device))
        return Message(Task(int(task)), int(size), tuple(what), vector)

    def _count_failures(self, error: Exception | None) -> int:
        return int(self.everyone(torch.tensor([int(error is not None)])))

    def _broadcast(self, numbers: Tensor) -> Tensor:
        for axis, group in enumerate(self._groups):
            if not any(self.coordinates[axis + 1 :]):
                dist.broadcast(numbers, dist.get_global_rank(group, 0), group=group)
        return numbers

    def _collect(self, numbers: Tensor, task: Task) -> Tensor:
        # At the leader; elsewhere what is left is of no use.
        how = dist.ReduceOp.MAX if task == Task.MAXIMUM else dist.ReduceOp.SUM
        for axis in range(len(self._groups) - 1, -1, -1):
            if not any(self.coordinates[axis + 1 :]):
                group = self._groups[axis]
                dist.reduce(numbers, dist.get_global_rank(group, 0), how, group=group)
        return numbers


def _unprepared(message: Message) -> Any:
    raise RuntimeError("this process had nothing ready for it")


def _answered(message: Message, answer: Answer, device: torch.device) -> tuple[Tensor, Exception | None]:
    # One number more than asked for: whether it failed.
    own = torch.zeros(message.size + 1, dtype=torch.float64, device=device)
    try:
        own[:-1] = answer(message)
    except Exception as error:
        own.zero_()[-1] = 1
        return own, error
    return own, None


def _prepared(message: Message, answer: Answer) -> tuple[Callable[[], Any], Exception | None]:
    try:
        run: Callable[[], Any] = answer(message)
    except Exception as error:
        return lambda: None, error
    return run, None


def _device_of(group: dist.ProcessGroup) -> torch.device:
    backend = str(dist.get_backend(group))
    if "nccl" in backend or "cuda" in backend:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
