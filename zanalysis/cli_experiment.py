"""The commands that run the experiments of the seeds: `experiment list` and `experiment NAME`."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from zanalysis import terminal
from zanalysis.errors import InputError
from zanalysis.terminal import text

if TYPE_CHECKING:
    from zanalysis.experiments.results import Outcome, Row

__all__ = ["register"]

_LIST = "list"


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: to what.
    """
    app.command(
        epilog="Examples: zanalysis experiment list | zanalysis experiment table-3 --scale small | "
        "zanalysis experiment zero-weights/cnn-mnist --seeds 5"
    )(experiment)


def _completed(incomplete: str) -> list[str]:
    from zanalysis.experiments.recipes import RECIPES

    return [name for name in (_LIST, *RECIPES) if name.startswith(incomplete)]


def experiment(
    name: Annotated[
        str, typer.Argument(help="which experiment, or list to see them all", autocompletion=_completed)
    ],
    scale: Annotated[
        str,
        typer.Option(
            help="smoke (seconds), small (minutes on two cores) or paper (the authors' own settings)"
        ),
    ] = "small",
    seeds: Annotated[
        str | None,
        typer.Option(help="how many trainings of each system: 5; or which seeds: 0,1,7 (or '3,' for one)"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="how long, with warm-up and decays stretched; else the experiment's own"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="another data set than the experiment's")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="where the data lie; else ZANALYSIS_DATA, else fetched")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    out: Annotated[Path, typer.Option(help="the folder that NAME-SCALE/ is made in")] = Path("runs"),
    only: Annotated[
        list[str] | None, typer.Option(help="label of a system to train, such as zero; may repeat")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="of the processor")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="train anew what the folder has")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the results as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")] = False,
) -> None:
    """Train the systems of an experiment with the tracker attached, and compare them.

    What has finished with the same settings is not trained again, and what was interrupted goes on where it
    stopped.

    Raises:
        Exit: with code 3 if a claim is violated, 130 after Ctrl-C.
    """
    if name == _LIST:
        _show_list(as_json)
        return
    from zanalysis.experiments.runner import run_experiment

    try:
        with terminal.logging_to_stderr(quiet), _bars(quiet) as watch:
            outcome = run_experiment(
                name,
                scale,
                seeds=_numbers(seeds),
                epochs=epochs,
                data=data,
                data_dir=data_dir,
                device=device,
                out=out,
                only=only or (),
                overwrite=overwrite,
                threads=threads,
                watch=watch,
            )
    except KeyboardInterrupt:
        terminal.say(f"interrupted; the same command goes on with what is in {out}.")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(outcome.results.read_text(encoding="utf-8"), nl=False)
    else:
        _show(outcome)
    if any(verdict.verdict == "violated" for verdict in outcome.verdicts):
        raise typer.Exit(3)


def _numbers(seeds: str | None) -> int | list[int] | None:
    if seeds is None:
        return None
    try:
        numbers = [int(word) for word in seeds.removesuffix(",").split(",")]
    except ValueError:
        raise InputError(
            f"got --seeds {seeds!r}, expected how many, or a list such as 0,1,7, or '3,' for one alone."
        ) from None
    return numbers if "," in seeds else numbers[0]


@contextmanager
def _bars(quiet: bool) -> Iterator[Callable[[str, int, int], Callable[[int, int], None]]]:
    """Show a bar over trainings, and one over the steps of the training that runs.

    Args:
        quiet: show none; nor are they shown where standard error is no terminal.

    Yields:
        What is told of each training, and returns what is told of its progress.
    """
    with Progress(
        TextColumn("{task.description}", justify="left", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=terminal.err,
        transient=True,
        disable=quiet or not terminal.err.is_terminal,
    ) as bars:
        whole = bars.add_task("trainings", total=None)
        one = bars.add_task("", total=None)

        def watch(name: str, number: int, count: int) -> Callable[[int, int], None]:
            bars.update(whole, completed=number - 1, total=count or None)
            bars.reset(one, description=name, total=None)
            return lambda done, of: bars.update(one, completed=done, total=of)

        yield watch


def _show_list(as_json: bool) -> None:
    from zanalysis.experiments.recipes import METRICS, RECIPES

    if as_json:
        listed = [
            {
                "name": recipe.name,
                "title": recipe.title,
                "source": recipe.source,
                "metric": METRICS[recipe.metric],
                "systems": [system.label for system in recipe.systems],
                "scales": {
                    scale: {"data": protocol.data, "epochs": protocol.epochs, "seeds": protocol.seeds}
                    for scale, protocol in recipe.scales.items()
                },
            }
            for recipe in RECIPES.values()
        ]
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for column in ("compares", "systems", "source"):
        table.add_column(column)
    for recipe in RECIPES.values():
        systems = ", ".join(system.label for system in recipe.systems) or "as verify theorem1"
        table.add_row(*map(text, (recipe.name, recipe.title, systems, recipe.source)))
    terminal.shown(table)


def _show(outcome: "Outcome") -> None:
    recipe = outcome.recipe
    if outcome.verdicts:
        for verdict in outcome.verdicts:
            terminal.out.print(text(f"{verdict.claim}: {verdict.verdict}. {verdict.why}"), soft_wrap=True)
    else:
        table = Table(
            title=text(f"{recipe.title}, scale {outcome.scale}"),
            box=box.SIMPLE_HEAD,
            title_justify="left",
            pad_edge=False,
        )
        for column in _columns(outcome):
            table.add_column(column, no_wrap=True)
        for row in outcome.rows:
            table.add_row(*map(text, _cells(row, outcome)))
        terminal.shown(table)
        if outcome.incomparable and any(row.paper for row in outcome.rows):
            _say(f"Not the setting of the source: {'; '.join(outcome.incomparable)}.")
        for note in outcome.notes:
            _say(f"{note[0].upper()}{note[1:]}{'' if note.endswith('.') else '.'}")
    if recipe.note:
        _say(recipe.note)
    _say(f"{outcome.results.name} and {outcome.picture.name} are in {outcome.folder}.")


def _say(sentence: str) -> None:
    terminal.out.print(text(sentence), soft_wrap=True)


def _columns(outcome: "Outcome") -> list[str]:
    from zanalysis.experiments.recipes import METRICS

    swept = [outcome.recipe.sweep] if outcome.recipe.sweep else []
    source = "source" if not outcome.incomparable else "source, another setting"
    reported = [source] if any(row.paper for row in outcome.rows) else []
    return ["system", *swept, METRICS[outcome.recipe.metric], "seeds", *reported]


def _cells(row: "Row", outcome: "Outcome") -> list[str]:
    swept = [str(row.at)] if outcome.recipe.sweep else []
    seeds = f"{len(row.values)}" + (f" + {len(row.diverged)} diverged" if row.diverged else "")
    reported = []
    if any(other.paper for other in outcome.rows):
        reported = ["" if row.paper is None else _value(row.paper.mean, row.paper.std)]
    return [row.title, *swept, _value(row.mean, row.std), seeds, *reported]


def _value(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "diverged"
    return f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")
