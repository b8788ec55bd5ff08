"""A run followed without a terminal: a line now and then, or one table."""

import time
from collections.abc import Callable

from rich import box
from rich.table import Table
from rich.text import Text

from zanalysis.watching.follower import FINISHED, Follower, Look
from zanalysis.watching.picture import Cell, cell_of, events_of, facts_of, grid_of, logged_facts

__all__ = ["follow_in_lines", "head", "line_of", "table_of"]

_LAYERS = 4


def head(look: Look) -> str:
    """Say in one line in which state a run is.

    Args:
        look: what was found.

    Returns:
        The name of the file, its state, and the facts.
    """
    state = look.state + (f" ({look.detail})" if look.detail else "")
    facts = "; ".join(f"{name} {fact}" for name, fact in facts_of(look))
    return f"{look.path.name}: {state}" + (f"; {facts}" if facts else "")


def line_of(look: Look) -> str:
    """Say in one line how a run stands: its state, the logged scalars, and the first metric of a few layers.

    Args:
        look: what was found.

    Returns:
        The line.
    """
    history = look.history
    parts = [f"{look.path.name}: {look.state}" + (f" ({look.detail})" if look.detail else "")]
    if history is None:
        return parts[0]
    parts += [f"{name} {fact}" for name, fact in facts_of(look) if name in ("step", "rate", "last record")]
    parts += [f"{name} {value}" for name, value in logged_facts(history)]
    grid = grid_of(history.series)
    if grid.columns and len(history.steps):
        cells = [
            (row, cell_of(history, grid.series[i, 0]).latest)
            for i, row in enumerate(grid.rows)
            if (i, 0) in grid.series
        ]
        shown = ", ".join(f"{row}: {latest}" for row, latest in cells[:_LAYERS])
        more = f", and {len(cells) - _LAYERS} more" if len(cells) > _LAYERS else ""
        parts.append(f"{grid.columns[0]} {shown}{more}")
    return "; ".join(parts)


def table_of(look: Look, parts: int = 3) -> Table:
    """Lay a run out as a table, a row for each layer and a group of columns for each metric.

    Args:
        look: what was found.
        parts: how much of each metric is shown: 1 for the latest number, 2 with its change, 3 with its trend.

    Returns:
        The table.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    history = look.history
    if history is None:
        return table
    grid = grid_of(history.series)
    for name in grid.columns:
        table.add_column(Text(name), justify="right")
        for other, justify in (("since start", "right"), ("trend", "left"))[: parts - 1]:
            table.add_column(other, justify=justify, style="dim", no_wrap=True)  # type: ignore[arg-type]
    for i, row in enumerate(grid.rows):
        texts = [Text(row)]
        for j in range(len(grid.columns)):
            s = grid.series.get((i, j))
            cell = Cell("", "", "") if s is None else cell_of(history, s)
            texts += [Text(word) for word in (cell.latest, cell.change, cell.trend)[:parts]]
        table.add_row(*texts)
    return table


def follow_in_lines(
    follower: Follower,
    say: Callable[[str], None],
    every: float = 10.0,
    poll: float = 1.0,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Say a line now and then, and at each change of state and each event, until the run has finished.

    Args:
        follower: of the run.
        say: is given each line.
        every: seconds between lines, while there is something new.
        poll: seconds between looks.
        pause: waits.
        clock: tells seconds.
    """
    said_state, said_change, said_at, told = "", -1, -float("inf"), 0
    era = 0
    while True:
        look = follower.look()
        if look.era != era:
            era, told = look.era, 0
        history = look.history
        count = 0 if history is None else history.happened
        if history is not None and count > told:
            for event in reversed(events_of(history, count - told)):
                say(f"{look.path.name}: {event}")
            told = count
        new = look.change != said_change and clock() - said_at >= every
        if new or look.state != said_state:
            say(line_of(look))
            said_state, said_change, said_at = look.state, look.change, clock()
        if look.state == FINISHED:
            return
        pause(poll)
