"""How often recording may happen, so that it takes no more than a share of the time.

A step is recorded if, with what it is expected to cost, the time spent stays within the share of the time
elapsed. It is expected to cost twice as much as the dearest of the last few records: where costs vary or rise
by less than that, the share is kept at every moment; where a record costs more than was to be expected, it
is exceeded for a while, and nothing is recorded until it is kept again. The
decision falls ahead of the step, with the time elapsed by then. Where due steps are four or more apart and a
record costs less than a quarter of what the share allows between two of them, none is left out; a schedule
that is due at every step loses the first, before which no time has passed.
"""

from collections import deque
from collections.abc import Callable
from numbers import Real
from typing import Any, Protocol

from hooks.journal import Journal
from hooks.schedules import Schedule
from zanalysis.errors import InputError

__all__ = ["Budget", "Due", "Spending", "checked_budget", "own_answer"]

_MARGIN = 2.0
_REMEMBERED = 8


class Spending(Protocol):
    """What a budget asks of an account."""

    @property
    def total(self) -> float:
        """Seconds spent so far."""

    @property
    def elapsed(self) -> float:
        """Seconds since the account was opened."""


def checked_budget(budget: Any) -> float | None:
    """Return the share of the time that recording may take.

    Args:
        budget: a share, or None.

    Returns:
        The share, None where there is no limit.

    Raises:
        InputError: if it is no number above 0 and at most 1.
    """
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, Real) or not 0 < float(budget) <= 1:
        raise InputError(
            f"got budget = {budget!r}, expected the share of the time that recording may take, above 0 and "
            "at most 1, such as 0.02."
        )
    return float(budget)


def own_answer(allowed: bool) -> bool:
    """Return this process's answer: the one that counts where it trains alone.

    Args:
        allowed: the answer.

    Returns:
        The same.
    """
    return allowed


class Budget:
    """Thins a schedule, so that recording stays within a share of the time.

    Attributes:
        share: the share.
        step: the last that was decided on.
        kept: how many due steps were allowed.
        skipped: how many were not.
    """

    def __init__(self, share: float, account: Spending, agree: Callable[[bool], bool] = own_answer) -> None:
        """Begin with nothing recorded.

        Args:
            share: above 0 and at most 1.
            account: the time spent and elapsed.
            agree: is given this process's answer and returns the one that counts. Where several processes
                train together each measures other times, and all have to record the same steps: one's
                answer is passed on to all. It is called once for each due step, in order, in each of them.
        """
        self.share = share
        self.step = self.kept = self.skipped = 0
        self._account, self._agree = account, agree
        self._costs: deque[float] = deque(maxlen=_REMEMBERED)
        self._spent, self._open, self._recorded = account.total, 0, 0

    def allows(self, step: int) -> bool:
        """Decide on a step that is due. To be asked once for each, in order, ahead of it.

        Args:
            step: the step.

        Returns:
            Whether it is to be recorded.
        """
        self.step = step
        self._learn()
        allowed = self._agree(self._affords())
        if allowed:
            self.kept += 1
            self._open += 1
        else:
            self.skipped += 1
        return allowed

    def recorded(self) -> None:
        """Take note that a step was recorded: one that was allowed, or one that nobody asked about."""
        self._open = max(0, self._open - 1)
        self._recorded += 1

    @property
    def summary(self) -> str:
        """What became of the schedule, in a sentence; empty where nothing was skipped."""
        if not self.skipped:
            return ""
        elapsed = self._account.elapsed
        share = self._account.total / elapsed if elapsed > 0 else 0.0
        return (
            f"{self.skipped} of {self.kept + self.skipped} due steps were not recorded, to stay within "
            f"budget={self.share:g}; recording took a share of {share:.2g}"
        )

    def reason(self, step: int) -> str:
        """Say why a step is not recorded.

        Args:
            step: the step.

        Returns:
            A sentence.
        """
        return (
            f"step {step} is due and not recorded: recording has taken {self._account.total:.3g} s of "
            f"{self._account.elapsed:.3g} s, one more record would exceed budget={self.share:g}; from here on "
            "the schedule is thinned"
        )

    def _learn(self) -> None:
        # Only now, as a GPU may only now have finished what it was given.
        if self._recorded:
            spent = self._account.total
            self._costs.extend([(spent - self._spent) / self._recorded])
            self._spent, self._recorded = spent, 0

    def _affords(self) -> bool:
        # Those that were allowed and are still to come count as spent.
        expected = _MARGIN * max(self._costs, default=0.0) * (1 + self._open)
        return self._account.total + expected <= self.share * (self._account.elapsed + expected)


class Due:
    """Which steps are recorded: those of the schedule, as far as the budget allows.

    Attributes:
        budget: thins the schedule; None where there is no limit.
        journal: told of failures and of the first step left out; to be set before a step is asked about.
    """

    journal: Journal

    def __init__(self, schedule: Schedule, budget: Budget | None = None) -> None:
        """Combine the two.

        Args:
            schedule: `step -> bool`, the user's own.
            budget: thins it.
        """
        self._schedule, self.budget = schedule, budget

    def scheduled(self, step: int) -> bool:
        """Ask the schedule alone.

        Args:
            step: the step.

        Returns:
            What it says; False where it fails.
        """
        try:
            return bool(self._schedule(step))
        except Exception as error:
            text = f"the schedule failed at step {step}: {error!r}; not recorded"
            self.journal.note(step, "schedule", "schedule", text)
            return False

    def __call__(self, step: int) -> bool:
        """Decide on a step, once and ahead of it.

        Args:
            step: the step.

        Returns:
            Whether it is recorded.
        """
        if not self.scheduled(step):
            return False
        if self.budget is None or self.budget.allows(step):
            return True
        if self.budget.skipped == 1:
            self.journal.event(step, "budget", self.budget.reason(step))
        return False
