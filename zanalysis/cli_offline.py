"""The commands that look at checkpoints, and take a run apart: `analyze`, `compare`, `export`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zanalysis import terminal
from zanalysis.cli_tables import show_layers, show_rows, show_sides
from zanalysis.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METRICS", "register"]

METRICS = (
    "rank", "rank_margin", "stable_rank", "effective_rank", "spectral_norm", "frobenius_norm", "nuclear_norm",
    "support_rows", "support_columns", "distinct_rows", "condition_number", "identity_scale", "support",
    "singular_values",
)  # fmt: skip
_VIEWS = ("out", "in", "taps")
_TOLERANCES = ("default", "numpy", "rounding")


def _completing(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        head, comma, last = incomplete.rpartition(",")
        return [head + comma + word for word in words if word.startswith(last)]

    return complete


Metrics = Annotated[
    str,
    typer.Option(
        help="comma-separated: rank, stable_rank, effective_rank, support, singular_values, …",
        autocompletion=_completing(METRICS),
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        help="what is subtracted: init (the first checkpoint), identity, a checkpoint, or none; may repeat",
        autocompletion=_completing(("init", "identity", "none")),
    ),
]
Tolerances = Annotated[
    list[str] | None,
    typer.Option(
        "--tolerance",
        help="default, numpy, rounding or an absolute number; may repeat",
        autocompletion=_completing(_TOLERANCES),
    ),
]
Views = Annotated[
    str,
    typer.Option(help="how a kernel becomes a matrix: out, in or taps", autocompletion=_completing(_VIEWS)),
]
Layers = Annotated[list[str] | None, typer.Option("--layers", help="names or globs of layers; may repeat")]
Splits = Annotated[
    list[str] | None,
    typer.Option(
        "--split",
        help="GLOB=HOW for parameters that hold several matrices: '*.in_proj_weight=qkv', '*.experts=8', "
        "'*.c_attn=qkv,heads=12,dim=1', 'encoder.*=kernel'; may repeat",
    ),
]
Out = Annotated[Path | None, typer.Option(help="write the table here: .csv, .parquet or .json")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]
AsJson = Annotated[bool, typer.Option("--json", help="print the rows as JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no bar, and no notes on standard error")]


def register(app: typer.Typer) -> None:
    """Add the commands.

    Args:
        app: to what.
    """
    app.command(epilog=_EXAMPLES)(analyze)
    app.command(epilog="Example: zanalysis compare kaiming.pt zero.pt --metrics rank,effective_rank")(compare)
    app.command(epilog="Example: zanalysis export run.h5 --to parquet --out tables")(export)


_EXAMPLES = (
    "Examples: zanalysis analyze model.safetensors | zanalysis analyze checkpoints/ --metrics rank,support "
    "--reference init --out trajectory.parquet | zanalysis analyze checkpoints/ --workers 8 | "
    "zanalysis analyze model.pt --model package.module:build --curves pruning,tucker"
)


def analyze(
    checkpoints: Annotated[list[Path], typer.Argument(help="files, folders of checkpoints, sharded folders")],
    metrics: Metrics = "rank,stable_rank",
    reference: References = None,
    tolerance: Tolerances = None,
    view: Views = "out",
    layers: Layers = None,
    split: Splits = None,
    workers: Annotated[int | None, typer.Option(help="start so many Dask workers here")] = None,
    scheduler: Annotated[str | None, typer.Option(help="a Dask scheduler, such as tcp://host:8786")] = None,
    model: Annotated[
        str | None, typer.Option(help="package.module:function that returns (model, evaluate), for --curves")
    ] = None,
    curves: Annotated[
        str | None,
        typer.Option(
            help="pruning, tucker or both: the model's score, instead of the metrics of its layers",
            autocompletion=_completing(("pruning", "tucker")),
        ),
    ] = None,
    sparsities: Annotated[
        str | None, typer.Option(help="fractions that pruning removes, such as 0,0.5,0.9")
    ] = None,
    scope: Annotated[
        str, typer.Option(help="whether pruning ranks each layer by itself, or all: layer, global")
    ] = "layer",
    fractions: Annotated[str | None, typer.Option(help="Tucker ranks as fractions of the channels")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the weights of checkpoints: rank, stable rank and more, layer by layer.

    Interrupted, a sweep with --out keeps what it has in OUT.part; the same command goes on from there. Nothing
    that a checkpoint brings is run; --model runs code of yours.

    Raises:
        InputError: if options do not go together.
        Exit: with code 2 if one of several checkpoints could not be read, 130 after Ctrl-C.
    """
    if (model is None) != (curves is None):
        raise InputError(
            "--model and --curves go together: package.module:function, and pruning, tucker or both."
        )
    shared: dict[str, Any] = {
        "layers": layers or None,
        "workers": workers,
        "scheduler": scheduler,
        "out": out,
        "overwrite": overwrite,
    }
    sweep: Any
    with terminal.logging_to_stderr(quiet):
        if model is not None and curves is not None:
            from zanalysis.sweep.model_curves import FRACTIONS, SPARSITIES, Curves

            sweep = Curves(
                checkpoints,
                model,
                curves=_words(curves),
                sparsities=_numbers(sparsities, "--sparsities") or SPARSITIES,
                scope=scope,
                fractions=_numbers(fractions, "--fractions") or FRACTIONS,
                **shared,
            )
            _carried_out(sweep, "curves", out, quiet, as_json, show_rows)
            return
        from zanalysis.sweep.analysis import Analysis

        sweep = Analysis(checkpoints, **_settings(metrics, reference, tolerance, view, split), **shared)
        _carried_out(sweep, "layers", out, quiet, as_json, show_layers)
        if sweep.unread:
            count = len(sweep.unread)
            terminal.say(f"{count} checkpoint{'s' * (count > 1)} could not be read: {sweep.unread[0]}")
            raise typer.Exit(2)


def compare(
    a: Annotated[Path, typer.Argument(help="one checkpoint")],
    b: Annotated[Path, typer.Argument(help="the other")],
    metrics: Metrics = "rank,stable_rank",
    tolerance: Tolerances = None,
    view: Views = "out",
    layers: Layers = None,
    split: Splits = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Set two checkpoints side by side, layer by layer, with the rank of what changed."""
    from zanalysis.sweep.comparison import Comparison, side_by_side

    with terminal.logging_to_stderr(quiet):
        settings = _settings(metrics, None, tolerance, view, split)
        sweep = Comparison(a, b, layers=layers or None, out=out, overwrite=overwrite, **settings)
        _carried_out(
            sweep,
            "layers",
            out,
            quiet,
            as_json,
            lambda table: show_sides(side_by_side(table), a.name, b.name),
        )


def export(
    run: Annotated[Path, typer.Argument(help="a run file")],
    to: Annotated[
        str,
        typer.Option(
            help="csv, parquet or tensorboard", autocompletion=_completing(("csv", "parquet", "tensorboard"))
        ),
    ] = "csv",
    out: Annotated[Path | None, typer.Option(help="the folder to write into; else the run's own")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write the tables of a run as files, scalars, logged, events, overhead and spectra; or for TensorBoard."""
    from zanalysis.runfile.export import export_tables

    with terminal.bar("writing tables", quiet):
        written = export_tables(run, to, out, overwrite)
    for path in written:
        typer.echo(terminal.text(path).plain)


def _settings(
    metrics: str, reference: list[str] | None, tolerance: list[str] | None, view: str, split: list[str] | None
) -> dict[str, Any]:
    return {
        "metrics": _words(metrics),
        "reference": [None if word == "none" else word for word in reference] if reference else None,
        "tolerance": [_tolerance(word) for word in tolerance] if tolerance else "default",
        "view": view,
        "split": dict(map(_split, split)) if split else None,
    }


def _words(joined: str) -> list[str]:
    return [word.strip() for word in joined.split(",") if word.strip()]


def _numbers(joined: str | None, option: str) -> list[float] | None:
    try:
        return None if joined is None else [float(word) for word in _words(joined)]
    except ValueError:
        raise InputError(f"got {option} {joined!r}, expected numbers such as 0,0.5,0.9.") from None


def _tolerance(word: str) -> str | float:
    try:
        return word if word in _TOLERANCES else float(word)
    except ValueError:
        return word  # the library names what it knows


def _split(given: str) -> tuple[str, Any]:
    pattern, equals, how = given.rpartition("=") if "," not in given else _at_first_how(given)
    if not equals or not pattern or not how:
        raise InputError(f"got --split {given!r}, expected GLOB=HOW such as '*.in_proj_weight=qkv'.")
    first, *rest = how.split(",")
    spec: dict[str, Any] = {"parts": int(first) if first.isdecimal() else first}
    if not rest and first in ("kernel", "matrices"):
        return pattern, first
    for word in rest:
        key, _, number = word.partition("=")
        if not number.isdecimal():
            raise InputError(f"got {word!r} in --split {given!r}, expected heads=12 or dim=1.")
        spec[key] = int(number)
    return pattern, spec


def _at_first_how(given: str) -> tuple[str, str, str]:
    head, comma, tail = given.partition(",")
    pattern, equals, first = head.rpartition("=")
    return pattern, equals, first + comma + tail


def _carried_out(
    sweep: Any,
    unit: str,
    out: Path | None,
    quiet: bool,
    as_json: bool,
    show: "Callable[[pd.DataFrame], None]",
) -> None:
    try:
        with terminal.bar(f"measuring {unit}" if unit == "layers" else f"drawing {unit}", quiet) as progress:
            table = sweep.run(progress)
    except KeyboardInterrupt:
        if out is not None and not out.with_name(f"{out.name}.part").exists():
            terminal.say("interrupted before anything was measured; the same command starts anew.")
        elif out is not None:
            terminal.say(
                f"interrupted; what is done is in {out}.part, and the same command goes on from there."
            )
        else:
            _say_rows(sweep.table, as_json, show)
            terminal.say(
                "interrupted; these are the rows there were. With --out a sweep can be gone on with."
            )
        raise typer.Exit(130) from None
    if out is None or as_json:
        _say_rows(table, as_json, show)
    if out is not None and not quiet:
        terminal.err.print(terminal.text(f"{len(table)} rows are in {out}"), soft_wrap=True)


def _say_rows(table: "pd.DataFrame", as_json: bool, show: "Callable[[pd.DataFrame], None]") -> None:
    if as_json:
        from zanalysis.sweep.saving import as_records

        typer.echo(json.dumps(as_records(table), indent=1))
    else:
        show(table)
