"""The command that follows a run as it trains: `watch`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zanalysis import terminal
from zanalysis.errors import InputError

if TYPE_CHECKING:
    from zanalysis.watching.follower import Follower

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line.

    Args:
        app: the command line.
    """
    app.command(epilog="Example: zanalysis watch run.h5 --web")(watch)


def watch(
    run: Annotated[Path, typer.Argument(help="a run file; it need not be there yet")],
    web: Annotated[bool, typer.Option("--web", help="as a page on this machine, rather than here")] = False,
    port: Annotated[int, typer.Option(help="of the page; 0 for any that is free", min=0, max=65535)] = 0,
    once: Annotated[bool, typer.Option("--once", help="print one table, and leave")] = False,
    every: Annotated[
        float, typer.Option(help="seconds between lines, where there is no terminal", min=1.0)
    ] = 10.0,
) -> None:
    """Show a run as it trains: its state, a table of layers and metrics, and curves. q leaves.

    The run may not have begun, or its training may end or be killed meanwhile. Without a terminal, a line is printed
    now and then until the run has finished.

    Raises:
        InputError: if options contradict each other, a package that draws is missing, or the port is taken.
    """
    from zanalysis.runfile.opening import check_regular
    from zanalysis.runfile.reader import open_run
    from zanalysis.watching.follower import Follower

    if once and web:
        raise InputError("--once prints a table here, --web makes a page; choose one of them.")
    if run.exists() or once:
        check_regular(run)
        open_run(run)  # what is there, and is no run file, is a mistake; what becomes of it later is not
    follower = Follower(run)
    if once:
        _show(follower)
    elif web:
        _serve(follower, port)
    elif sys.stdin.isatty() and sys.stdout.isatty():
        _draw(follower)
    else:
        from zanalysis.watching.lines import follow_in_lines

        follow_in_lines(follower, _line, every)


def _line(words: str) -> None:
    typer.echo(words)
    sys.stdout.flush()


def _show(follower: "Follower") -> None:
    from zanalysis.watching.lines import head, table_of

    look = follower.look()
    _line(head(look))
    console = terminal.out
    tables = (table_of(look, parts) for parts in (3, 2, 1))
    for table in tables:
        fits = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        if not console.is_terminal or fits <= console.width:
            break
    terminal.shown(table)


def _draw(follower: "Follower") -> None:
    try:
        from zanalysis.watching.terminal import Screen
    except ModuleNotFoundError as error:
        raise InputError(
            f"drawing in the terminal needs {error.name}, which is not installed; pip install 'zanalysis[watch]', or "
            "use --once."
        ) from None
    Screen(follower).run()


def _serve(follower: "Follower", port: int) -> None:
    try:
        from zanalysis.watching.web import serve
    except ModuleNotFoundError as error:
        raise InputError(
            f"the page needs {error.name}, which is not installed; pip install 'zanalysis[watch-web]'."
        ) from None
    serve(
        follower, port, lambda address: _line(f"{follower.path.name} is shown at {address} (Ctrl-C ends it)")
    )
