"""The command line: each subcommand calls one function of the library.

Results go to standard output, messages to standard error. Exit codes: 0 for success, 1 where the reader of
a pipe went away (`zanalysis info run.h5 | head -1`), 2 for bad input, 3 where a verdict is `violated`, 130
after Ctrl-C. What the terminal's encoding cannot show is printed as a question mark.
"""

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from zanalysis import cli_experiment, cli_figure, cli_init, cli_offline, cli_verify, cli_watch
from zanalysis._version import __version__
from zanalysis.analyzers.naming import inert
from zanalysis.errors import RunFileError, ZAnalysisError
from zanalysis.terminal import text

if TYPE_CHECKING:
    from zanalysis.experiments.theorem1 import Case, Training
    from zanalysis.runfile.reader import Run
    from zanalysis.verify.verdict import Verdict

__all__ = ["app", "main"]

app = typer.Typer(
    help="See the rank of a neural network while it trains, and trust the number.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
verify = typer.Typer(help="Judge a claim of the ZerO paper on real trainings.", no_args_is_help=True)
app.add_typer(verify, name="verify")
cli_offline.register(app)
cli_init.register(app)
cli_experiment.register(app)
cli_watch.register(app)
cli_figure.register(app)
cli_verify.register(verify)

_out = Console()
_err = Console(stderr=True)

_COLORS = {"holds": "green", "violated": "red", "inconclusive": "yellow"}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zanalysis {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """See the rank of a neural network while it trains, and trust the number."""


@verify.command(
    epilog="Example: zanalysis verify theorem1 --data mnist --data-dir ~/data --width 1024 --scale small"
)
def theorem1(
    data: Annotated[str, typer.Option(help="digits (bundled), mnist or fashion-mnist")] = "digits",
    width: Annotated[list[int] | None, typer.Option(help="hidden dimension; may repeat")] = None,
    network: Annotated[
        str, typer.Option(help="paper (L = 3) or notebook (a square layer in front)")
    ] = "paper",
    scale: Annotated[str, typer.Option(help="smoke (100 steps), small (300) or paper (20 epochs)")] = "small",
    out: Annotated[Path, typer.Option(help="folder for run files, figure and verdicts")] = Path(
        "runs/theorem1"
    ),
    data_dir: Annotated[
        Path | None, typer.Option(help="where the data lie; else ZANALYSIS_DATA, else fetched")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    seed: Annotated[int, typer.Option(help="order of the samples and random weights")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="train anew what the folder has")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the verdicts as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars")] = False,
) -> None:
    """Train the networks of Figure 3 with the tracker attached, and judge Theorem 1 claim by claim.

    Networks that an earlier call with the same settings has finished in the folder are not trained again.

    Raises:
        Exit: with code 3 if a claim is violated, 130 after Ctrl-C.
    """
    from zanalysis.experiments.verification import verify_and_draw
    from zanalysis.verify.verdict import plain

    def reused(paths: Sequence[Path]) -> None:
        _err.print(f"reusing {len(paths)} finished run{'s' * (len(paths) > 1)}", highlight=False)

    with Progress(
        TextColumn("{task.description}", justify="left"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=_err,
        disable=quiet,
    ) as bars:

        def watch(case: "Case", training: "Training") -> Callable[[int, int], None]:
            bar = bars.add_task(f"{case.initialization} {case.width}", total=training.steps)
            return lambda done, of: bars.update(bar, completed=done)

        try:
            done = verify_and_draw(
                data,
                width,
                out,
                network=network,
                scale=scale,
                seed=seed,
                device=device,
                data_dir=data_dir,
                overwrite=overwrite,
                watch=watch,
                reused=reused,
            )
        except KeyboardInterrupt:
            bars.stop()
            _say(f"interrupted; the run files in {out} stay readable, as far as they got.")
            raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(plain(done.verdicts), indent=2, ensure_ascii=False))
    else:
        _show_verdicts(done.verdicts, f"Theorem 1 on {data}, {network} network, scale {scale}, seed {seed}")
        _out.print(
            f"{len(done.runs)} run files, {done.figure.name} and {done.record.name} are in {escape(str(out))}",
            highlight=False,
        )
    if any(verdict.verdict == "violated" for verdict in done.verdicts):
        raise typer.Exit(3)


def _show_verdicts(verdicts: "list[Verdict]", title: str) -> None:
    from zanalysis.verify.verdict import PREDICTIONS, RELATIONS

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("claim", "prediction", "measured", "verdict"):
        table.add_column(column, no_wrap=column in ("claim", "verdict"))
    for verdict in verdicts:
        relation = RELATIONS.get(verdict.claim, "≤")
        measured = "–" if verdict.measured is None else f"{verdict.measured:g}"
        bound = "" if verdict.bound is None else f" ({relation} {verdict.bound:g})"
        color = _COLORS[verdict.verdict]
        table.add_row(
            verdict.claim,
            PREDICTIONS[verdict.claim],
            measured + bound,
            f"[{color}]{verdict.verdict}[/{color}]",
        )
    _out.print(table)
    for verdict in verdicts:
        _out.print(f"[bold]{verdict.claim}[/bold] {escape(verdict.why)}", highlight=False, soft_wrap=True)
    _out.print()


@app.command()
def info(run: Annotated[Path, typer.Argument(help="a run file")]) -> None:
    """Say what a run file holds.

    Raises:
        RunFileError: if it cannot be read, or what it says of itself is damaged.
    """
    from zanalysis.runfile.reader import open_run

    opened = open_run(run)
    try:
        facts, layers = _facts(opened), _layers(opened)
    except (AttributeError, KeyError, TypeError) as error:
        raise RunFileError(
            f"{run} is damaged: what it says of its model or layers is not what a writer leaves; restore it from "
            "a copy. zanalysis export can still read its numbers."
        ) from error
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in facts.items():
        table.add_row(text(name), text(value))
    _out.print(table)
    _out.print(layers)
    for _, event in opened.events.iterrows():
        _err.print(text(f"event at step {event['step']}: {event['kind']}: {event['text']}"), soft_wrap=True)


def _facts(opened: "Run") -> dict[str, str]:
    steps, attributes = opened.steps, opened.attributes
    span = f"{len(steps)} steps, {steps[0]} to {steps[-1]}" if len(steps) else "no step yet"
    optimizers = ", ".join(optimizer["type"] for optimizer in attributes.get("optimizers", [])) or "none"
    return {
        "model": attributes.get("model", {}).get("type", "?"),
        "optimizer": optimizers,
        "recorded": f"{span} ({attributes.get('schedule', '?')})",
        "metrics": ", ".join(dict.fromkeys(series.metric for series in opened.series)),
        "references": ", ".join(dict.fromkeys(series.reference for series in opened.series)),
        "logged": ", ".join(map(str, opened.logged().columns[1:])) or "nothing",
        **_raw_tensors(opened),
        "events": str(len(opened.events)),
        **{key: str(value) for key, value in attributes.get("user", {}).items()},
        "versions": ", ".join(
            f"{name} {version}" for name, version in attributes.get("versions", {}).items()
        ),
    }


def _layers(opened: "Run") -> Table:
    layers = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "shape", "dtype", "started as"):
        layers.add_column(column)
    for layer in opened.attributes.get("layers", []):
        shape = "×".join(map(str, layer["shape"]))
        layers.add_row(*map(text, (layer["name"], shape, layer["dtype"], layer["start"])))
    return layers


def _raw_tensors(opened: "Run") -> dict[str, str]:
    """Say which raw tensors a run holds.

    Args:
        opened: the run.

    Returns:
        A line for each kind; nothing where there are none.
    """
    recorded = opened.tensors
    facts = {}
    for kind in dict.fromkeys(one.tensor for one in recorded):
        those = [one for one in recorded if one.tensor == kind]
        steps = sorted({int(step) for one in those for step in one.steps})
        when = f"{len(steps)} steps, {steps[0]} to {steps[-1]}" if steps else "no step yet"
        kept = ", ".join(dict.fromkeys(one.dtype for one in those if one.dtype)) or "no dtype yet"
        facts[f"raw tensors: {kind}"] = f"{len(those)} layers, {kept}, {when}"
    if recorded and opened.dropped:
        facts["raw steps dropped"] = str(opened.dropped)
    return facts


@app.command(epilog="Example: zanalysis repair run.h5")
def repair(run: Annotated[Path, typer.Argument(help="the run file of a training that was killed")]) -> None:
    """Make a killed run openable by plain HDF5 tools, in place. zanalysis reads it without that."""
    from zanalysis.runfile.repair import repair as mend

    if mend(run):
        sentence = f"{run}: mended; its writer was killed, and plain HDF5 tools open it now."
    else:
        sentence = f"{run}: nothing to mend; its writer had closed it."
    _out.print(escape(sentence), highlight=False, soft_wrap=True)


@app.command(epilog="Example: zanalysis report run.h5 --out report.html")
def report(
    run: Annotated[Path, typer.Argument(help="a run file, or a table saved as .csv or .parquet")],
    out: Annotated[Path, typer.Option(help="the page")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a page that is there")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """Write one self-contained HTML page of a run: trajectories, spectra, verdicts, warnings, settings."""
    from zanalysis.reporting import report as write_report

    with _bar_if_slow("report", quiet) as watch:
        path = write_report(run, out, overwrite=overwrite, watch=watch)
    typer.echo(path)


@contextmanager
def _bar_if_slow(what: str, quiet: bool, after: float = 2.0) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error once something has taken a while.

    Args:
        what: stands before the bar.
        quiet: never show it.
        after: seconds.

    Yields:
        A function to be told how many of how many parts are done.
    """
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=_err, disable=quiet
    )
    bar = bars.add_task(what, total=None)
    timer = threading.Timer(after, bars.start)
    timer.start()
    try:
        yield lambda done, of: bars.update(bar, completed=done, total=of)
    finally:
        timer.cancel()
        timer.join()
        if bars.live.is_started:
            bars.stop()


def _say(sentence: str) -> None:
    _err.print(f"[red]zanalysis:[/red] {escape(inert(sentence))}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; errors of the user's making are one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except ZAnalysisError as error:
        _say(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _say("interrupted.")
        sys.exit(130)
    except BrokenPipeError:
        # As Python's documentation of SIGPIPE has it: nothing is left to fail when the interpreter flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
