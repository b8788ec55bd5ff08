"""What commands say, and how: results to standard output, messages and bars to standard error.

Whatever comes from a file is shown as text: no markup is read in it, and no control character gets through.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from zanalysis.analyzers.naming import inert

__all__ = ["bar", "err", "logging_to_stderr", "out", "say", "shown", "text"]

out = Console()
err = Console(stderr=True)


def say(sentence: str) -> None:
    """Say a sentence on standard error.

    Args:
        sentence: it may quote a file.
    """
    err.print(
        f"[red]zanalysis:[/red] {escape(inert(sentence))}", highlight=False, soft_wrap=True, emoji=False
    )


def text(words: object) -> Text:
    """Return what a table's cell shows of something from a file.

    Args:
        words: anything.

    Returns:
        Its text, inert.
    """
    return Text(inert(str(words)), overflow="fold")


def shown(table: Table) -> None:
    """Print a table; where no terminal limits the width, as wide as it is.

    Args:
        table: the table.
    """
    if out.is_terminal:
        out.print(table)
    else:
        wide = Console(
            file=out.file,
            width=max(out.width, out.measure(table, options=out.options.update(max_width=10_000)).maximum),
        )
        wide.print(table)


@contextlib.contextmanager
def bar(description: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error while something takes long.

    Args:
        description: what takes long.
        quiet: show none; nor is one shown where standard error is no terminal.

    Yields:
        What is to be told how much is done, and of how much.
    """
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", justify="left", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=quiet or not err.is_terminal,
    ) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        err.print(escape(inert(record.getMessage())), highlight=False, soft_wrap=True, emoji=False)


@contextlib.contextmanager
def logging_to_stderr(quiet: bool = False) -> Iterator[None]:
    """Show what the library logs.

    Args:
        quiet: warnings only.

    Yields:
        Nothing.
    """
    logger = logging.getLogger("zanalysis")
    handler, level, passed_on = _Handler(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = passed_on
