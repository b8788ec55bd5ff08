"""When to record: plain functions `step -> bool`. Any such function will do.

A schedule must depend on nothing but the step, because it is asked ahead of it. Step 0 is recorded
whatever it says.
"""

from collections.abc import Callable, Iterable

from zanalysis.errors import InputError

__all__ = ["Schedule", "at", "every", "logspaced"]

Schedule = Callable[[int], bool]


def _whole(value: object, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"got {what} = {value!r}, expected a whole number, {least} or more.")
    return value


def _named(schedule: Schedule, name: str) -> Schedule:
    schedule.__name__ = schedule.__qualname__ = name  # the name is what a run file says of it
    return schedule


def every(n: int, offset: int = 0) -> Schedule:
    """Record every n-th step.

    Args:
        n: the distance between two records, 1 or more.
        offset: the first step to record.

    Returns:
        True at offset, offset + n, offset + 2n, …

    Raises:
        InputError: if n or the offset is no whole number of that size.

    Example:
        >>> [step for step in range(10) if every(4, offset=1)(step)]
        [1, 5, 9]
    """
    n, offset = _whole(n, "n", 1), _whole(offset, "offset", 0)

    def schedule(step: int) -> bool:
        return step >= offset and (step - offset) % n == 0

    return _named(schedule, f"every({n}, offset={offset})" if offset else f"every({n})")


def logspaced(per_decade: int) -> Schedule:
    """Record densely at first, then ever more rarely.

    Args:
        per_decade: records between 10^d and 10^(d+1), 1 or more.

    Returns:
        True at the whole numbers nearest to 10^(i / per_decade), i = 0, 1, 2, …

    Raises:
        InputError: if it is no whole number, 1 or more.

    Example:
        >>> [step for step in range(101) if logspaced(3)(step)]
        [1, 2, 5, 10, 22, 46, 100]
    """
    density = _whole(per_decade, "per_decade", 1)

    def schedule(step: int) -> bool:
        if step < 1:
            return False
        # The exponent of a step is found in whole numbers from below: a logarithm may round over.
        i = max(0, density * (len(str(step)) - 1) - 1)
        while round(10 ** (i / density)) < step:
            i += 1
        return round(10 ** (i / density)) == step

    return _named(schedule, f"logspaced({density})")


def at(steps: Iterable[int]) -> Schedule:
    """Record at given steps.

    Args:
        steps: whole numbers, 0 or more.

    Returns:
        True at each of them.

    Raises:
        InputError: if a step is no whole number, 0 or more.

    Example:
        >>> at([1, 10])(10)
        True
    """
    wanted = frozenset(_whole(step, "step", 0) for step in steps)

    def schedule(step: int) -> bool:
        return step in wanted

    listed = ", ".join(map(str, sorted(wanted)[:8])) + (", …" if len(wanted) > 8 else "")
    return _named(schedule, f"at([{listed}])")
