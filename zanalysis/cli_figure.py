"""The command that draws: `zanalysis figure`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from zanalysis.errors import InputError, ZAnalysisError, did_you_mean

__all__ = ["FIGURES", "register"]

FIGURES = (
    "2", "3", "4", "5", "6", "table-2", "table-3", "table-4", "spectrum", "staircase", "jacobian",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: to what.
    """
    app.command(
        epilog="Examples: zanalysis figure 5 runs/figure-6-small --out figure-5.pdf | zanalysis figure table-2 "
        "runs/table-2-small --out table-2.svg | zanalysis figure spectrum run.h5 --layer fc1 --out spectrum.png"
    )(figure)


def _completed(incomplete: str) -> list[str]:
    return [name for name in FIGURES if name.startswith(incomplete)]


def figure(
    which: Annotated[
        str,
        typer.Argument(
            help="2, 3, 4, 5, 6, table-2, table-3, table-4 of the ZerO paper; spectrum, staircase or jacobian",
            autocompletion=_completed,
        ),
    ],
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="run files, or the folder of an experiment; for 2 a Recorder's file or two checkpoints"
        ),
    ],
    out: Annotated[Path, typer.Option(help="where it is to lie: .pdf, .svg or .png")],
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="name or glob of a layer; may repeat (2, 5)")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", help="what is subtracted: init, identity or none; may repeat (5)"),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="stable_rank, rank or effective_rank, of 5 and 6")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is there")] = False,
) -> None:
    """Draw a figure of run files or of an experiment into a file; the same input gives the same bytes.

    Raises:
        InputError: if there is no such figure, an option does not go with it, or there is nothing to draw.
    """
    if which not in FIGURES:
        raise InputError(f"there is no figure {which!r}; {did_you_mean(which, FIGURES)}")
    # Loaded only here, because it brings the plotting library.
    from zanalysis import figures
    from zanalysis.figures.files import checked_target

    checked_target(out, overwrite)
    given = {"--layer": layer, "--reference": reference, "--metric": metric}
    for option, value in given.items():
        if value and which not in _TAKES[option]:
            raise InputError(
                f"{option} does not go with figure {which}; it goes with {', '.join(_TAKES[option])}."
            )
    options: dict[str, Any] = {"metric": metric} if metric else {}
    axes = _DRAW[which](figures, sources, layer or None, reference or None, options)
    typer.echo(figures.save_figure(axes, out, overwrite))


_TAKES = {
    "--layer": ("2", "5", "6", "spectrum", "staircase"),
    "--reference": ("2", "5", "6", "spectrum", "staircase"),
    "--metric": ("5", "6"),
}
Layers = list[str] | None
Drawing = Callable[[Any, list[Path], Layers, Layers, dict[str, Any]], Any]


def _one(sources: list[Path], what: str) -> Path:
    if len(sources) != 1:
        raise InputError(f"got {len(sources)} paths, expected one: {what}.")
    return sources[0]


def _single(values: Layers, option: str) -> dict[str, Any]:
    """Return what an option that may stand once was given.

    Args:
        values: of the option.
        option: its name.

    Returns:
        The argument of the figure; none if the option was not given.

    Raises:
        InputError: if it was given more often.
    """
    if values is None:
        return {}
    if len(values) > 1:
        raise InputError(f"{option} was given {len(values)} times; this figure takes one.")
    return {option.removeprefix("--"): values[0]}


def _figure_2(
    figures: Any, sources: list[Path], layers: Layers, references: Layers, options: dict[str, Any]
) -> Any:
    if len(sources) > 2:
        raise InputError(f"got {len(sources)} paths, expected a Recorder's file, or the start and the end.")
    return figures.figure_2(*sources, layers=layers, **_single(references, "--reference"))


def _figure_3(
    figures: Any, sources: list[Path], layers: Layers, references: Layers, options: dict[str, Any]
) -> Any:
    return figures.figure_3(*figures.panels_of_figure_3(sources))


def _figure_5(
    figures: Any, sources: list[Path], layers: Layers, references: Layers, options: dict[str, Any]
) -> Any:
    chosen = (
        {} if references is None else {"reference": references[0] if len(references) == 1 else references}
    )
    return figures.figure_5(sources, layers, **chosen, **options)


def _figure_6(
    figures: Any, sources: list[Path], layers: Layers, references: Layers, options: dict[str, Any]
) -> Any:
    source = _one(sources, "the folder of the experiment figure-6")
    return figures.figure_6(source, layers=layers, **_single(references, "--reference"), **options)


def _of_results(name: str) -> Drawing:
    def draw(
        figures: Any, sources: list[Path], layers: Layers, references: Layers, options: dict[str, Any]
    ) -> Any:
        return getattr(figures, name)(_one(sources, "the folder of an experiment, or its results.json"))

    return draw


def _spectrum(
    figures: Any, sources: list[Path], layers: Layers, references: Layers, options: dict[str, Any]
) -> Any:
    run = _one(sources, "a run file")
    return figures.spectrum_heatmap(run, **_single(layers, "--layer"), **_single(references, "--reference"))


def _staircase(
    figures: Any, sources: list[Path], layers: Layers, references: Layers, options: dict[str, Any]
) -> Any:
    run = _one(sources, "a run file")
    chosen = {**_single(layers, "--layer"), **_single(references, "--reference")}
    return figures.staircase(run, **chosen, emergence=_emergence(run))


def _emergence(run: Path) -> Any:
    """Return when singular values emerge, where the record is long enough to tell."""
    from zanalysis.verify.glrl import verify_glrl

    try:
        found = verify_glrl(run)
    except ZAnalysisError:
        return None
    return found if len(found.evidence) else None


def _jacobian(
    figures: Any, sources: list[Path], layers: Layers, references: Layers, options: dict[str, Any]
) -> Any:
    return figures.jacobian_over_training(_one(sources, "a run file"))


_DRAW: dict[str, Drawing] = {
    "2": _figure_2,
    "3": _figure_3,
    "4": _of_results("figure_4"),
    "5": _figure_5,
    "6": _figure_6,
    "table-2": _of_results("table_2"),
    "table-3": _of_results("table_3"),
    "table-4": _of_results("table_4"),
    "spectrum": _spectrum,
    "staircase": _staircase,
    "jacobian": _jacobian,
}
