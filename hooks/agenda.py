"""Which of the steps to come are recorded, and which are watched for the sake of one that will be."""

from collections import deque
from collections.abc import Callable

__all__ = ["Agenda"]


class Agenda:
    """Looks ahead over a schedule, as far as a window reaches back.

    A window of `window` steps ends at each recorded step; windows overlap where records are closer together.

    Attributes:
        window: its steps.
        start: steps completed before the first that is asked about.

    Example:
        >>> agenda = Agenda(lambda step: step % 4 == 0, window=2)
        >>> [step for step in range(1, 10) if agenda.windows(step)]
        [3, 4, 7, 8]
    """

    def __init__(self, due: Callable[[int], bool], window: int = 1, start: int = 0) -> None:
        """Begin behind a step.

        Args:
            due: whether a step is to be recorded; asked once for each, in order, `window` - 1 steps before
                it begins. It must not raise.
            window: steps, 1 or more.
            start: steps completed before.
        """
        self.window, self.start = window, start
        self._due, self._decided = due, start
        self._coming: deque[int] = deque()

    def windows(self, step: int) -> tuple[int, ...]:
        """Return the recorded steps in whose windows a step lies: of a step that is neither behind nor to come.

        Args:
            step: the step about to be taken.

        Returns:
            The steps, the step itself or later, increasing.
        """
        while self._decided < step + self.window - 1:
            self._decided += 1
            if self._due(self._decided):
                self._coming.append(self._decided)
        while self._coming and self._coming[0] < step:
            self._coming.popleft()
        return tuple(self._coming)

    def recorded(self, step: int) -> bool:
        """Say whether a step about to be taken, or just completed, is recorded.

        Args:
            step: the step.

        Returns:
            Whether it is.
        """
        return step in self.windows(step)
