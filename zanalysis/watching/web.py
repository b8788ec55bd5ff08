"""A run on a page of this machine, as it trains: drawn and kept up to date by bokeh's server.

The server listens on 127.0.0.1 only, refuses requests that name another host (a page elsewhere whose name was
made to point here would be one), and serves all that the page needs itself.
"""

import contextlib
import html
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.document import Document
from bokeh.events import ClientReconnected, ConnectionLost
from bokeh.layouts import column, row
from bokeh.models import AllIndices, CDSView, ColumnDataSource, PlainText
from bokeh.models.annotations import Title
from bokeh.models.callbacks import SetValue
from bokeh.models.widgets import DataTable, Div, Select, StringFormatter, TableColumn
from bokeh.plotting import figure
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.util import bind_sockets
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.web import ErrorHandler, OutputTransform

from zanalysis.errors import InputError
from zanalysis.watching.follower import Follower, Look
from zanalysis.watching.picture import (
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
)

__all__ = ["ADDRESS", "serve"]

ADDRESS = "127.0.0.1"

_COLORS = {"training": "#1a7f37", "finished": "#0b6bcb", "writer gone": "#c62828", "unreadable": "#c62828"}
_OTHER_COLOR = "#8a5a00"
_LINE = "#0b6bcb"
_LOST = (
    "<b style='color:#c62828'>zanalysis watch has ended, or cannot be reached:</b> "
    "what stands here is what was seen last."
)
_TREND = 16  # characters


class _Headers(OutputTransform):
    """What every answer says of itself: that it asks nothing of anybody else, and is for this page only."""

    def __init__(self, request: HTTPServerRequest) -> None:
        """Take the request.

        Args:
            request: the request.
        """
        self._host = request.host

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Add the headers.

        Args:
            status_code: of the answer.
            headers: of the answer.
            chunk: its first part.
            finishing: whether that is all of it.

        Returns:
            The same, with more headers.
        """
        headers["Content-Security-Policy"] = (
            "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
            f"connect-src 'self' ws://{self._host}; img-src 'self' data: blob:; font-src 'self' data:; "
            "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return status_code, headers, chunk


class _Local(BokehTornado):
    """A server that answers only those who call it by a name of this machine."""

    def __init__(self, applications: Mapping[str, Application], hosts: list[str]) -> None:
        """Prepare the server.

        Args:
            applications: by path.
            hosts: the names it may be called by, with the port.
        """
        self._hosts = frozenset(hosts)
        super().__init__(applications, extra_websocket_origins=hosts, transforms=[_Headers])

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Find what answers a request.

        Args:
            request: the request.
            **kwargs: as tornado gives them.

        Returns:
            What answers it; a refusal where it names another host.
        """
        if request.host.lower() not in self._hosts:
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        return super().find_handler(request, **kwargs)


class _Shared:
    """One follower for all pages, that looks no more often than it should."""

    def __init__(self, follower: Follower, poll: float) -> None:
        self._follower, self._poll = follower, poll
        self._look: Look | None = None
        self._at = -float("inf")

    def look(self) -> Look:
        if self._look is None or time.monotonic() - self._at >= self._poll:
            self._look, self._at = self._follower.look(), time.monotonic()
        return self._look


def serve(follower: Follower, port: int, say: Callable[[str], None], poll: float = 1.0) -> None:
    """Serve the page until Ctrl-C.

    Args:
        follower: of the run.
        port: of the page; 0 for any that is free.
        say: is told the address, once the page is there.
        poll: seconds between looks.

    Raises:
        InputError: if the port is taken, or may not be used.
    """
    try:
        sockets, bound = bind_sockets(ADDRESS, port)
    except OSError as error:
        raise InputError(
            f"port {port} cannot be used ({error.strerror or error}); choose another with --port, or leave it out."
        ) from error
    shared = _Shared(follower, poll * 0.9)  # a page asks once in `poll`, by another clock
    application = Application(FunctionHandler(lambda document: _Page(document, shared).begin(poll)))
    tornado = _Local({"/": application}, [f"{name}:{bound}" for name in (ADDRESS, "localhost")])
    http = HTTPServer(tornado)
    http.add_sockets(sockets)
    server = BaseServer(IOLoop.current(), tornado, http)
    server.start()
    say(f"http://{ADDRESS}:{bound}/")
    with contextlib.suppress(KeyboardInterrupt):
        server.io_loop.start()
    http.stop()
    server.stop(wait=False)


class _Chart:
    """One curve, in a figure of its own."""

    def __init__(self) -> None:
        self._line = ColumnDataSource({"x": [], "y": []})
        self._points = ColumnDataSource({"x": [], "y": []})
        settings: dict[str, Any] = {
            "tools": "pan,box_zoom,wheel_zoom,reset,hover",
            "tooltips": [("step", "@x{0}"), ("value", "@y{0.[000000]}")],
            "x_axis_label": "optimizer steps",
        }
        self.figure = figure(height=300, min_width=320, sizing_mode="stretch_width", **settings)
        self.figure.toolbar.logo = None
        self._title = Title(text="")
        self.figure.title = self._title
        self.figure.line("x", "y", source=self._line, line_color=_LINE, line_width=2)
        self.figure.scatter("x", "y", source=self._points, color=_LINE, size=6)

    def draw(self, curve: Curve | None) -> None:
        self.figure.visible = curve is not None
        if curve is None:
            return
        self._title.text = PlainText(text=curve.title)
        self.figure.yaxis.axis_label = PlainText(text=curve.unit)
        gap = np.array([np.nan])
        drawn = [part for part in curve.drawn if len(part[0]) > 1]
        alone = [part for part in curve.pieces if len(part[0]) == 1]
        self._line.data = {
            axis: np.concatenate([np.concatenate([part[i], gap]) for part in drawn] or [gap])
            for i, axis in enumerate("xy")
        }
        self._points.data = {
            axis: np.concatenate([part[i] for part in alone] or [np.empty(0)]) for i, axis in enumerate("xy")
        }


class _Page:
    """What one browser shows."""

    def __init__(self, document: Document, shared: _Shared) -> None:
        self._document, self._shared = document, shared
        self._head = Div(text="", disable_math=True, sizing_mode="stretch_width")
        self._lost = Div(text=_LOST, visible=False, sizing_mode="stretch_width")
        self._source, self._view = ColumnDataSource({}), CDSView()
        self._table = column(Div(text=""), sizing_mode="stretch_width")  # until the layers are known
        self._metric = Select(title="metric of the chosen layer", options=[], min_width=160, visible=False)
        self._scalar = Select(title="logged scalar", options=[], min_width=160, visible=False)
        self._events = Div(text="", disable_math=True, sizing_mode="stretch_width")
        self._curve, self._logged = _Chart(), _Chart()
        self._grid = Grid((), (), {})
        self._row = 0
        self._laid_out, self._drawn = -1, (-1, -1)

    def begin(self, poll: float) -> None:
        self._document.title = f"{self._shared.look().path.name} · zanalysis watch"
        wrapped = {"flex-wrap": "wrap"}
        half = {"flex": "1 1 320px"}
        left = column(self._metric, self._curve.figure, sizing_mode="stretch_width", styles=half)
        right = column(self._scalar, self._logged.figure, sizing_mode="stretch_width", styles=half)
        charts = row(left, right, sizing_mode="stretch_width", styles=wrapped)
        self._document.config.notify_connection_status = False  # the line above the page says it
        # Without scripts of its own, which the page's policy refuses.
        self._document.js_on_event(ConnectionLost, SetValue(obj=self._lost, attr="visible", value=True))
        self._document.js_on_event(ClientReconnected, SetValue(obj=self._lost, attr="visible", value=False))
        parts = (self._lost, self._head, self._table, charts, self._events)
        self._document.add_root(column(*parts, sizing_mode="stretch_width"))
        for choice in (self._metric, self._scalar):
            choice.on_change("value", self._chosen)
        self._update()
        self._document.add_periodic_callback(self._update, int(1000 * poll))

    def _chosen(self, attr: str, old: Any, new: Any) -> None:
        self._draw(self._shared.look())

    def _update(self) -> None:
        look = self._shared.look()
        self._head.text = _head(look)
        if look.history is not None and look.era != self._laid_out:
            self._lay_out(look)
        if (look.era, look.change) != self._drawn:
            self._fill(look)
            self._draw(look)
            self._drawn = (look.era, look.change)

    def _lay_out(self, look: Look) -> None:
        assert look.history is not None
        self._laid_out = look.era
        self._grid = grid = grid_of(look.history.series)
        plain, right = StringFormatter(), StringFormatter(text_align="right")
        longest = max(map(len, grid.rows), default=5)
        columns = [
            TableColumn(field="layer", title="layer", width=min(400, 30 + 8 * longest), formatter=plain)
        ]
        for j, name in enumerate(grid.columns):
            # The grid takes a title for HTML.
            title = html.escape(name)
            columns += [
                TableColumn(
                    field=f"latest{j}", title=title, width=max(80, 30 + 8 * len(name)), formatter=right
                ),
                TableColumn(field=f"change{j}", title="since start", width=100, formatter=right),
                TableColumn(field=f"trend{j}", title="trend", width=170, formatter=plain),
            ]
        self._source = ColumnDataSource(self._cells(look))
        if grid.rows:
            self._source.selected.indices = [min(self._row, len(grid.rows) - 1)]
        self._source.selected.on_change("indices", self._chosen)
        self._view = CDSView()
        table = DataTable(
            source=self._source,
            view=self._view,
            columns=columns,
            height=min(420, 30 + 25 * max(1, len(grid.rows))),
            index_position=None,
            sortable=False,
            reorderable=False,
            sizing_mode="stretch_width",
            autosize_mode="none",
        )
        self._table.children = [table] if grid.rows else [Div(text="")]
        _offer(self._metric, list(grid.columns))
        if self._metric.value not in grid.columns:
            self._metric.value = grid.columns[0] if grid.columns else ""
        self._metric.visible = bool(grid.columns)

    def _cells(self, look: Look) -> Any:
        history = look.history
        assert history is not None
        data: Any = {"layer": list(self._grid.rows)}
        for j in range(len(self._grid.columns)):
            cells = []
            for i in range(len(self._grid.rows)):
                s = self._grid.series.get((i, j))
                cells.append(Cell("", "", "") if s is None else cell_of(history, s, _TREND))
            data[f"latest{j}"] = [cell.latest for cell in cells]
            data[f"change{j}"] = [cell.change for cell in cells]
            data[f"trend{j}"] = [cell.trend for cell in cells]
        return data

    def _fill(self, look: Look) -> None:
        history = look.history
        if history is None:
            return
        self._source.data = self._cells(look)
        # The table draws anew where its view changes, not where numbers do and their count stays (bokeh 3.9).
        self._view.filter = AllIndices()
        names = list(history.logged)
        if self._scalar.options != names:
            _offer(self._scalar, names)
            if self._scalar.value not in names:
                self._scalar.value = names[0] if names else ""
        self._scalar.visible = bool(names)
        lines = "".join(f"<li>{html.escape(event)}</li>" for event in events_of(history, 5))
        self._events.text = f"<b>events</b><ul style='margin:0'>{lines}</ul>" if lines else ""

    def _draw(self, look: Look) -> None:
        history = look.history
        if history is None or look.era != self._laid_out:
            self._curve.draw(None)
            self._logged.draw(None)
            return
        chosen = self._source.selected.indices
        self._row = i = chosen[0] if chosen else self._row
        j = self._grid.columns.index(self._metric.value) if self._metric.value in self._grid.columns else -1
        s = self._grid.series.get((i, j))
        self._curve.draw(None if s is None or not len(history.steps) else curve_of(history, s))
        name = self._scalar.value
        self._logged.draw(logged_curve(history, name) if name in history.logged else None)


def _offer(choice: Select, names: Any) -> None:
    choice.options = names


def _head(look: Look) -> str:
    color = _COLORS.get(look.state, _OTHER_COLOR)
    said = html.escape(look.path.name)
    detail = f" ({html.escape(look.detail)})" if look.detail else ""
    facts = [*facts_of(look), *(logged_facts(look.history) if look.history else [])]
    listed = "".join(
        f"<span style='margin-right:1.5em;display:inline-block'>{html.escape(name)} <b>{html.escape(fact)}</b></span> "
        for name, fact in facts
    )
    return (
        f"<div style='font-size:1.3em'><b>{said}</b> "
        f"<b id='state' style='color:{color}'>{look.state}</b>{detail}</div><div>{listed}</div>"
    )
