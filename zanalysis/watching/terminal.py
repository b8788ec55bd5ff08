"""A run in the terminal, as it trains: drawn by textual, the curves by textual-plot."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.coordinate import Coordinate
from textual.events import Resize
from textual.widgets import DataTable, Footer, Static
from textual_plot import HiResMode, NumericAxisFormatter, PlotWidget

from zanalysis.reporting.text import number
from zanalysis.watching.follower import FINISHED, GONE, SILENT, TRAINING, UNREADABLE, WAITING, Follower, Look
from zanalysis.watching.picture import (
    NOW,
    Cell,
    Curve,
    Grid,
    cell_of,
    curve_of,
    events_of,
    facts_of,
    grid_of,
    logged_curve,
    logged_facts,
    shortened,
)

__all__ = ["Arrangement", "Screen", "arranged"]

_STYLES = {
    WAITING: "bold yellow",
    TRAINING: "bold green",
    FINISHED: "bold cyan",
    GONE: "bold red",
    SILENT: "bold yellow",
    UNREADABLE: "bold red",
}
_LATEST, _CHANGE, _TREND = 9, 11, 12  # characters


class Arrangement(NamedTuple):
    """What a terminal of some size has room for.

    Attributes:
        parts: how much of each metric the table shows: 1 the latest number, 2 its change too, 3 its trend too.
        name: characters of a layer's name.
        curves: how many charts stand side by side.
        events: how many lines of events.
        facts: how many lines of facts stand below the state.
    """

    parts: int
    name: int
    curves: int
    events: int
    facts: int


def arranged(width: int, height: int, metrics: int, longest: int) -> Arrangement:
    """Say what a terminal has room for.

    Args:
        width: columns of the terminal.
        height: its lines.
        metrics: how many columns the table has, without the layer.
        longest: characters of the longest name of a layer.

    Returns:
        The arrangement.
    """
    name = max(8, min(longest, width // 3))
    room = (width - name - 4) / max(1, metrics)
    widths = (_LATEST + 2, _LATEST + _CHANGE + 3, _LATEST + _CHANGE + _TREND + 4)
    parts = 3 if room >= widths[2] else 2 if room >= widths[1] else 1
    if parts == 1 and metrics > 1 and width >= name + widths[2] + 4:
        parts = 3  # not all metrics have room whatever is left out: the table is moved sideways
    curves = 0 if height < 22 or width < 40 else 1 if width < 100 else 2
    facts = 1 if height < 16 else 2 if height < 24 else 3
    return Arrangement(parts, name, curves, 0 if height < 16 else 1 if height < 30 else 3, facts)


class Screen(App[None]):
    """The run, drawn anew once a second."""

    CSS = """
    #head { height: auto; padding: 0 1; }
    #table { height: 1fr; min-height: 4; }
    #charts { height: 45%; min-height: 9; }
    #charts PlotWidget { width: 1fr; border: round $secondary; border-title-color: $text;
        border-subtitle-color: $text-muted; }
    #charts PlotWidget > .plot--tick { color: $text-muted; text-style: none; }
    #charts PlotWidget > .plot--axis { color: $text-muted; }
    #charts PlotWidget > .plot--label { color: $text-muted; text-style: none; }
    #events { height: auto; padding: 0 1; color: $warning; }
    """
    TITLE = "zanalysis watch"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Leave"),
        Binding("l", "next_logged", "Next scalar"),
        Binding("c", "toggle_curves", "Curves"),
    ]

    def __init__(self, follower: Follower, poll: float = 1.0) -> None:
        """Prepare the screen.

        Args:
            follower: of the run.
            poll: seconds between looks.
        """
        super().__init__()
        self.follower = follower
        self.shown: Look | None = None
        self._poll = poll
        self._grid = Grid((), (), {})
        self._drawn: tuple[Any, ...] = ()
        self._laid_out: tuple[Any, ...] = ()
        self._logged = 0
        self._curves_wanted = True

    def compose(self) -> ComposeResult:
        """Lay the parts of the screen out.

        Yields:
            The parts, from top to bottom.
        """
        yield Static(id="head", markup=False)
        yield DataTable(id="table", cursor_type="cell", fixed_columns=1, zebra_stripes=True)
        with Horizontal(id="charts"):
            for name in ("curve", "logged"):
                plot = PlotWidget(id=name, allow_pan_and_zoom=False)
                plot.can_focus = False
                yield plot
        yield Static(id="events", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to follow."""
        self.theme = "textual-dark"
        self.query_one(DataTable).focus()
        for plot in self.query(PlotWidget):
            plot.margin_top, plot.margin_bottom = 1, 2
        self.look()
        self.set_interval(self._poll, self.look)

    @work(thread=True, exclusive=True, exit_on_error=True)
    def look(self) -> None:
        """Look at the run, beside the screen: a large file takes a moment."""
        found = self.follower.look()
        self.call_from_thread(self.show, found)

    def on_resize(self, _: Resize) -> None:
        """Arrange the screen anew."""
        self._draw()

    def on_data_table_cell_highlighted(self, _: DataTable.CellHighlighted) -> None:
        """Draw the curve of the number under the cursor."""
        self._draw()

    def action_next_logged(self) -> None:
        """Draw the next of the logged scalars."""
        self._logged += 1
        self._draw()

    def action_toggle_curves(self) -> None:
        """Show the curves, or leave their room to the table."""
        self._curves_wanted = not self._curves_wanted
        self._draw()

    def show(self, look: Look) -> None:
        """Show what a look found.

        Args:
            look: what was found.
        """
        self.shown = look
        self._draw()

    def _draw(self) -> None:
        look = self.shown
        if look is None:
            return
        grid = self._grid if look.history is None else grid_of(look.history.series)
        longest = max(map(len, grid.rows), default=5)
        arrangement = arranged(self.size.width, self.size.height, len(grid.columns), longest)
        if (look.era, arrangement.parts, arrangement.name) != self._laid_out:
            self._lay_out(grid, arrangement)
            self._laid_out = (look.era, arrangement.parts, arrangement.name)
        self.query_one("#head", Static).update(_head(look, arrangement.facts, self.size.width - 2))
        cursor = self.query_one(DataTable).cursor_coordinate
        drawn = (look.change, cursor, arrangement, self._curves_wanted, self._logged, self.size)
        if drawn == self._drawn:
            return
        self._drawn = drawn
        self._fill(look, arrangement)
        self._draw_events(look, arrangement)
        self._draw_curves(look, arrangement, cursor)

    def _lay_out(self, grid: Grid, arrangement: Arrangement) -> None:
        table = self.query_one(DataTable)
        at = table.cursor_coordinate
        table.clear(columns=True)
        table.add_column(Text("layer"), width=arrangement.name)
        for name in grid.columns:
            table.add_column(_heading(name, arrangement.parts))
        for row in grid.rows:
            table.add_row(Text(shortened(row, arrangement.name)), *[""] * len(grid.columns))
        self._grid = grid
        if grid.rows and grid.columns:
            column = min(max(1, at.column), len(grid.columns))
            table.move_cursor(row=min(at.row, len(grid.rows) - 1), column=column)

    def _fill(self, look: Look, arrangement: Arrangement) -> None:
        table = self.query_one(DataTable)
        if look.history is None:
            return
        for (i, j), s in self._grid.series.items():
            width = max(_LATEST, len(self._grid.columns[j]))
            text = _shown(cell_of(look.history, s, _TREND), arrangement.parts, width)
            at = Coordinate(i, j + 1)
            if table.get_cell_at(at) != text:
                table.update_cell_at(at, text, update_width=True)

    def _draw_events(self, look: Look, arrangement: Arrangement) -> None:
        panel = self.query_one("#events", Static)
        lines = events_of(look.history, arrangement.events) if look.history and arrangement.events else []
        panel.display = bool(lines)
        panel.update(Text("\n".join(lines), overflow="ellipsis", no_wrap=True))

    def _draw_curves(self, look: Look, arrangement: Arrangement, cursor: Coordinate) -> None:
        first, second = self.query_one("#curve", PlotWidget), self.query_one("#logged", PlotWidget)
        curves: list[tuple[PlotWidget, Curve]] = []
        history = look.history
        if history is not None:
            s = self._grid.series.get((cursor.row, cursor.column - 1))
            if s is not None and len(history.steps):
                curves.append((first, curve_of(history, s)))
            names = list(history.logged)
            if names:
                curves.append((second, logged_curve(history, names[self._logged % len(names)])))
        room = arrangement.curves if self._curves_wanted else 0
        if room == 1 and len(curves) == 2:
            # Asked for by its key, a scalar takes the place of the curve.
            curves = curves[1:] if self._logged % 2 else curves[:1]
        curves = curves[:room]
        self.query_one("#charts").display = bool(curves)
        for plot in (first, second):
            plot.display = any(one is plot for one, _ in curves)
        for plot, curve in curves:
            _plot(plot, curve)


def _head(look: Look, lines: int, width: int) -> Text:
    """Say in which state a run is.

    Args:
        look: what was found.
        lines: of facts at most; what was trained is left out first, then the logged scalars.
        width: characters of a line; facts that it has no room for are left out.

    Returns:
        The text.
    """
    text = Text()
    text.append(shortened(look.path.name, max(8, width - len(look.state) - 2)) + "  ", "bold")
    text.append(look.state, _STYLES[look.state])
    if look.detail:
        text.append(f" ({look.detail})")
    facts = facts_of(look)
    now = [fact for fact in facts if fact[0] in NOW]
    logged = logged_facts(look.history) if look.history else []
    shown = [now, [fact for fact in facts if fact not in now], logged] if lines > 2 else [now, logged][:lines]
    for line in filter(None, shown):
        text.append("\n")
        left = width
        for i, (name, fact) in enumerate(line):
            words = ("   " if i else "") + name + " "
            left -= len(words) + len(fact)
            if left < 0 and i:
                break
            text.append(words, "dim")
            text.append(fact)
    return text


class _Ticks(NumericAxisFormatter):
    """Ticks that read as numbers do elsewhere on the screen; whole ones where something is counted."""

    def __init__(self, whole: bool, most: int) -> None:
        """Say what the axis shows.

        Args:
            whole: whether it counts something.
            most: ticks that there is room for.
        """
        self.whole, self.most = whole, most

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        """Choose the ticks.

        Args:
            min_: where the axis begins.
            max_: where it ends.
            max_ticks: how many at most.

        Returns:
            The ticks, increasing.
        """
        ticks = super().get_ticks(min_, max_, max_ticks)
        if self.whole:
            ticks = sorted({float(round(tick)) for tick in ticks if min_ <= round(tick) <= max_})
        return ticks[:: max(1, -(-len(ticks) // self.most))]

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        """Write the ticks.

        Args:
            ticks: the ticks.

        Returns:
            One label each.
        """
        return [number(float(f"{tick:.9g}")) for tick in ticks]


def _heading(name: str, parts: int) -> Text:
    text = Text(name.rjust(_LATEST))
    if parts > 1:
        text.append(" " + "since start".rjust(_CHANGE), "dim")
    if parts > 2:
        text.append(" trend".ljust(1 + _TREND), "dim")
    return text


def _shown(cell: Cell, parts: int, width: int) -> Text:
    if parts == 1:
        return Text(cell.latest.rjust(width))
    # A status stands in the place of both numbers.
    if cell.change or len(cell.latest) <= width:
        text = Text(cell.latest.rjust(width) + " ")
        text.append(cell.change.rjust(_CHANGE), "dim")
    else:
        text = Text(cell.latest.rjust(width + 1 + _CHANGE))
    if parts > 2:
        text.append(" " + cell.trend.ljust(_TREND), "cyan")
    return text


def _plot(plot: PlotWidget, curve: Curve) -> None:
    plot.border_title = Content(curve.title)
    plot.border_subtitle = Content(f"{curve.unit}, over optimizer steps")
    plot.clear()
    plot.set_y_formatter(_Ticks(curve.whole, max(2, (plot.size.height - 5) // 2)))
    plot.set_x_formatter(_Ticks(True, max(2, plot.size.width // 12)))
    finite = curve.y[np.isfinite(curve.y)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    plot.set_ylimits(low - margin, high + margin)
    start, end = (float(curve.x[0]), float(curve.x[-1])) if len(curve.x) else (0.0, 1.0)
    plot.set_xlimits(start, end if end > start else start + 1)
    for x, y in curve.drawn:
        if len(x) == 1:
            plot.scatter(x, y, marker_style="cyan", hires_mode=HiResMode.BRAILLE)
        else:
            plot.plot(x, y, line_style="cyan", hires_mode=HiResMode.BRAILLE)
