"""How tables look in a terminal."""

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from zanalysis import terminal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["show_layers", "show_rows", "show_sides"]

_WORDS = ("checkpoint", "curve", "scope", "layer", "status")


def _number(value: Any, status: str = "ok") -> str:
    if value is None or value != value:
        return "" if status == "" else "–" if status == "ok" else status
    short = f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return short if status == "ok" else f"{short} ({status})"


def _heading(reference: str, rule: str, metric: str, rules: int) -> str:
    parts = [
        metric,
        *([rule] if rules > 1 and rule != "none" else []),
        *([f"− {reference}"] * (reference != "none")),
    ]
    return " ".join(parts)


def show_layers(table: "pd.DataFrame") -> None:
    """Print one row for each layer, and a column for each number.

    Args:
        table: as `zanalysis.analyze` returns it.
    """
    several = table["checkpoint"].nunique() > 1 or table["step"].nunique() > 1
    rules = table.loc[table["tolerance_rule"] != "none", "tolerance_rule"].nunique()
    headings: dict[str, None] = {}
    rows: dict[tuple[str, int, str], dict[str, str]] = {}
    for row in table.to_dict("records"):
        heading = _heading(row["reference"], row["tolerance_rule"], row["metric"], rules)
        headings[heading] = None
        cells = rows.setdefault((row["checkpoint"], row["step"], row["layer"]), {})
        cells[heading] = _number(row["value"], row["status"])
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ["checkpoint", "step"] * several:
        grid.add_column(name)
    grid.add_column("layer")
    for heading in headings:
        grid.add_column(terminal.text(heading), justify="right")
    for (checkpoint, step, layer), cells in rows.items():
        front = [terminal.text(checkpoint), terminal.text(step)] if several else []
        grid.add_row(*front, terminal.text(layer), *(terminal.text(cells.get(h, "")) for h in headings))
    terminal.shown(grid)


def show_rows(table: "pd.DataFrame") -> None:
    """Print a table of curves as it is.

    Args:
        table: as `zanalysis.curves` returns it.
    """
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in table.columns:
        grid.add_column(str(name), justify="right" if name not in _WORDS else "left")
    for row in table.to_dict("records"):
        grid.add_row(*(terminal.text(_number(v, "") if isinstance(v, float) else v) for v in row.values()))
    terminal.shown(grid)


def show_sides(sides: "pd.DataFrame", a: str, b: str) -> None:
    """Print two checkpoints side by side.

    Args:
        sides: as `zanalysis.sweep.side_by_side` returns it.
        a: the name of the one.
        b: the name of the other.
    """
    rules = sides.loc[sides["tolerance_rule"] != "none", "tolerance_rule"].nunique()
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("layer")
    grid.add_column("metric")
    for name in (a, b, "b − a"):
        grid.add_column(terminal.text(name), justify="right")
    layer = None
    for row in sides.to_dict("records"):
        if layer not in (None, row["layer"]):
            grid.add_section()
        heading = _heading(row["reference"], row["tolerance_rule"], row["metric"], rules)
        values = (
            (row["a"], row["status_a"]),
            (row["b"], row["status_b"]),
            (row["change"], row["status_change"]),
        )
        grid.add_row(
            terminal.text("" if layer == row["layer"] else row["layer"]),
            terminal.text(heading),
            *(terminal.text(_number(value, status)) for value, status in values),
        )
        layer = row["layer"]
    terminal.shown(grid)
