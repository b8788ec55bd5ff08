"""The command line: each subcommand calls one function of the library.

Results go to standard output, messages to standard error. Exit codes: 0 for success, 2 for bad input,
3 where a verdict is `violated`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from zanalysis.errors import ZAnalysisError

if TYPE_CHECKING:
    from zanalysis.experiments.theorem1 import Case
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

_out = Console()
_err = Console(stderr=True)

PREDICTIONS = {
    "(i)": "a random perturbation has full rank N_h",
    "(ii)": "under the partial identity rank(W_l − I) ≤ N_x at every step",
    "(iii)": "Hadamard's activations span more than N_x",
    "Lemma 1": "rank Σ a⊗b ≤ min(dim span a, dim span b)",
    "Lemma 2": "N_h = 4, N_x = 3: the span has dimension 4",
    "linear control": "a linear network spans at most N_x",
    "second cap": "Hadamard's rank(W_l − I) ≤ p + N_y, p = 2^⌈log₂ N_x⌉",
}
_RELATIONS = {"(i)": "=", "(iii)": ">", "Lemma 2": "="}
_SMALL = 512
_COLORS = {"holds": "green", "violated": "red", "inconclusive": "yellow"}


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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace run files in the folder")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the verdicts as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars")] = False,
) -> None:
    """Train the networks of Figure 3 with the tracker attached, and judge Theorem 1 claim by claim.

    Raises:
        Exit: with code 3 if a claim is violated.
    """
    from zanalysis.experiments.data import load
    from zanalysis.experiments.theorem1 import PAPER_WIDTHS, WIDTHS, Training, train_all
    from zanalysis.verify.theorem1 import verify_theorem1
    from zanalysis.verify.verdict import plain

    training = Training(load(data, data_dir), network, scale, seed, device)  # type: ignore[arg-type]
    widths = tuple(width or (PAPER_WIDTHS if scale == "paper" and data != "digits" else WIDTHS[data]))
    if max(widths) <= _SMALL:
        import torch

        # Nothing gained by threads at this size, and much lost where they wait for each other.
        torch.set_num_threads(1)
    with Progress(
        TextColumn("{task.description}", justify="left"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=_err,
        disable=quiet,
    ) as bars:

        def watch(case: "Case") -> Callable[[int, int], None]:
            bar = bars.add_task(f"{case.initialization} {case.width}", total=training.steps)
            return lambda done, of: bars.update(bar, completed=done)

        paths = train_all(training, widths, out, overwrite=overwrite, watch=watch)
    verdicts = verify_theorem1(list(paths.values()))
    (out / "verdict.json").write_text(json.dumps(plain(verdicts), indent=2, ensure_ascii=False) + "\n")
    _draw_figure_3(paths, out / "figure_3.png")
    if as_json:
        typer.echo(json.dumps(plain(verdicts), indent=2, ensure_ascii=False))
    else:
        _show_verdicts(verdicts, f"Theorem 1 on {data}, {network} network, scale {scale}, seed {seed}")
        _out.print(
            f"{len(paths)} run files, figure_3.png and verdict.json are in {escape(str(out))}",
            highlight=False,
        )
    if any(verdict.verdict == "violated" for verdict in verdicts):
        raise typer.Exit(3)


def _draw_figure_3(paths: "dict[Case, Path]", target: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from zanalysis.figures import figure_3

    largest = max(case.width for case in paths)
    left = [path for case, path in paths.items() if case.initialization == "identity"]
    right = [
        path
        for case, path in paths.items()
        if case.width == largest and case.initialization in ("random", "identity", "hadamard")
    ]
    figure_3(left, right)[0].get_figure(root=True).savefig(target, dpi=160)  # type: ignore[union-attr]


def _show_verdicts(verdicts: "list[Verdict]", title: str) -> None:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("claim", "prediction", "measured", "verdict"):
        table.add_column(column, no_wrap=column in ("claim", "verdict"))
    for verdict in verdicts:
        relation = _RELATIONS.get(verdict.claim, "≤")
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
    """Say what a run file holds."""
    from zanalysis.runfile.reader import open_run

    opened = open_run(run)
    steps, attributes = opened.steps, opened.attributes
    span = f"{len(steps)} steps, {steps[0]} to {steps[-1]}" if len(steps) else "no step yet"
    optimizers = ", ".join(optimizer["type"] for optimizer in attributes.get("optimizers", [])) or "none"
    facts = {
        "model": attributes.get("model", {}).get("type", "?"),
        "optimizer": optimizers,
        "recorded": f"{span} ({attributes.get('schedule', '?')})",
        "metrics": ", ".join(dict.fromkeys(series.metric for series in opened.series)),
        "references": ", ".join(dict.fromkeys(series.reference for series in opened.series)),
        "logged": ", ".join(map(str, opened.logged().columns[1:])) or "nothing",
        "events": str(len(opened.events)),
        **{key: str(value) for key, value in attributes.get("user", {}).items()},
        "versions": ", ".join(
            f"{name} {version}" for name, version in attributes.get("versions", {}).items()
        ),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in facts.items():
        table.add_row(escape(name), escape(value))
    _out.print(table)
    layers = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "shape", "dtype", "started as"):
        layers.add_column(column)
    for layer in attributes.get("layers", []):
        shape = "×".join(map(str, layer["shape"]))
        layers.add_row(escape(layer["name"]), shape, layer["dtype"], layer["start"])
    _out.print(layers)
    for _, event in opened.events.iterrows():
        _err.print(
            escape(f"event at step {event['step']}: {event['kind']}: {event['text']}"), highlight=False
        )


def main() -> None:
    """Run the command line; errors of the user's making are one sentence and exit code 2."""
    try:
        app()
    except ZAnalysisError as error:
        _err.print(f"[red]zanalysis:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
