"""The command that initializes a model: `init`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from zanalysis import terminal
from zanalysis.errors import InputError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: to what.
    """
    app.command(
        epilog="Examples: zanalysis init list | zanalysis init zero package.module:build --out zero.pt | "
        "zanalysis init fixup nets:build --out fixup.safetensors --seed 3 --option 'last=[\"layer*.conv2\"]'"
    )(init)


def init(
    name: Annotated[
        str, typer.Argument(help="an initialization, such as zero, fixup or kaiming; list to see all")
    ],
    build: Annotated[
        str | None, typer.Argument(help="package.module:function that returns the model; its code is run")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="where the weights are written: .pt, .pth or .safetensors")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE of the initialization, the value as JSON or plain text; may repeat"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of what the builder and the initialization draw at random")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is there")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="do not print the report")] = False,
) -> None:
    """Initialize a model by name, write its weights, and say what each parameter got.

    Raises:
        InputError: if something that is needed was not given.
    """
    if name == "list":
        if build is not None or out is not None:
            raise InputError("zanalysis init list takes nothing else; it lists the initializations.")
        terminal.shown(_listed())
        return
    from zanalysis.initializers.byname import describe
    from zanalysis.initializers.saving import initialize_to_file
    from zanalysis.sweep.curve_work import named_function

    describe(name)
    if build is None or out is None:
        missing = (
            "what builds the model, package.module:function" if build is None else "--out, such as zero.pt"
        )
        raise InputError(f"zanalysis init {name} needs {missing}.")
    options = dict(_option(given) for given in option or ())
    try:
        function = named_function(build)
    except InputError:
        raise
    except Exception as error:  # the module is the user's code
        raise InputError(f"importing {build} raised {type(error).__name__}: {error}") from error
    report = initialize_to_file(name, function, out, seed=seed, overwrite=overwrite, **options)
    if not quiet:
        for line in str(report).splitlines():
            typer.echo(terminal.text(line).plain)
        terminal.err.print(terminal.text(f"the weights are in {out}"), soft_wrap=True)


def _listed() -> Table:
    from zanalysis.initializers.byname import INITIALIZATIONS, describe

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "what it does", "options"):
        table.add_column(column)
    for name in INITIALIZATIONS:
        what, options = describe(name)
        table.add_row(name, what, ", ".join(f"{key} ({default})" for key, default in options.items()))
    return table


_OTHERWISE = {
    "seed": "--seed",
    "generator": "--seed",
    "overwrite": "--overwrite",
    "out": "--out",
    "name": "it as the first word",
    "build": "it as the second word",
}


def _option(given: str) -> tuple[str, Any]:
    key, equals, value = given.partition("=")
    if not equals or not key:
        raise InputError(f"got --option {given!r}, expected KEY=VALUE such as normalization=paper.")
    if key in _OTHERWISE:
        raise InputError(
            f"{key} is no option of an initialization; pass {_OTHERWISE[key]}, if that was meant."
        )
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
