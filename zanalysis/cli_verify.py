"""The command that judges a recorded trajectory: `zanalysis verify glrl`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from zanalysis import terminal
from zanalysis.analyzers.naming import inert
from zanalysis.errors import InputError

if TYPE_CHECKING:
    from zanalysis.verify.verdict import Verdict

__all__ = ["COLORS", "register"]

COLORS = {"holds": "green", "violated": "red", "inconclusive": "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: to what.
    """
    app.command(epilog="Example: zanalysis verify glrl run.h5 --layer 'layer3.*' --reference init")(glrl)


def glrl(
    run: Annotated[Path, typer.Argument(help="a run file with recorded singular_values")],
    layer: Annotated[list[str] | None, typer.Option(help="name or glob of a layer; may repeat")] = None,
    reference: Annotated[
        str | None, typer.Option(help="init, identity, …; none for the weights as they are; else every one")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="write the verdict and those on the layers here, as .json")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(help="write every criterion's number here: .csv, .parquet or .json")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is there")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the verdicts as JSON")] = False,
) -> None:
    """Judge whether a run shows greedy low-rank learning, layer by layer.

    Raises:
        InputError: if OUT cannot be written.
        Exit: with code 3 if the run violates the claim.
    """
    from zanalysis.sweep.saving import checked_target, save
    from zanalysis.verify.glrl import verify_glrl
    from zanalysis.verify.verdict import plain

    targets = [checked_target(path, overwrite) for path in (out, evidence) if path is not None]
    if out is not None and out.suffix.lower() != ".json":
        raise InputError(f"cannot write {out}: verdicts are written as .json; --evidence takes tables.")
    if len(set(targets)) < len(targets):
        raise InputError(f"--out and --evidence both name {out}; give them two files.")
    verdict = verify_glrl(run, layers=layer or None, reference=reference)
    text = json.dumps(plain([verdict, *verdict.parts]), indent=2, ensure_ascii=False)
    if out is not None:
        try:
            out.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror or error}.") from error
    if evidence is not None:
        save(verdict.evidence, evidence)
    if as_json:
        typer.echo(text)
    else:
        _show(verdict)
    if verdict.verdict == "violated":
        raise typer.Exit(3)


def _show(verdict: "Verdict") -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer")
    for column in ("emerge", "stages"):
        table.add_column(column, justify="right")
    table.add_column("verdict", no_wrap=True)
    for part in verdict.parts:
        numbers = ("–" if number is None else f"{number:g}" for number in (part.bound, part.measured))
        table.add_row(terminal.text(part.claim), *numbers, _colored(part.verdict))
    if verdict.parts:
        terminal.shown(table)
    for part in verdict.parts:
        terminal.out.print(escape(inert(part.why)), highlight=False, soft_wrap=True, emoji=False)
    terminal.out.print()
    why = "" if len(verdict.parts) == 1 else f" {escape(inert(verdict.why))}"
    terminal.out.print(
        f"{verdict.claim}: {_colored(verdict.verdict)}.{why}", highlight=False, soft_wrap=True, emoji=False
    )


def _colored(word: str) -> str:
    return f"[{COLORS[word]}]{word}[/{COLORS[word]}]"
