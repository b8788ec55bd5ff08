"""From a record to the page: one file that asks nothing of any other, and forbids itself to."""

import base64
import gzip
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from zanalysis._version import __version__
from zanalysis.errors import InputError
from zanalysis.reporting.facts import layer_rows, summary
from zanalysis.reporting.gathering import Record
from zanalysis.reporting.latest import latest
from zanalysis.reporting.meanings import shapes_of
from zanalysis.reporting.notices import notices
from zanalysis.reporting.payload import Watch, bounds, combo_name, payload
from zanalysis.reporting.text import number, settings, visible
from zanalysis.reporting.verdicts import judge
from zanalysis.verify.verdict import PREDICTIONS, RELATIONS

__all__ = ["page"]

_SCRIPTS = ("basics.js", "charts.js", "sections.js")  # one script, in this order
_MISSING = "a report is drawn with plotly and jinja2; install them with: pip install 'zanalysis[report]'."


def page(record: Record, watch: Watch = lambda done, of: None) -> str:
    """Make the page.

    Args:
        record: what it shows.
        watch: told how many of how many parts are done.

    Returns:
        The whole of an HTML file.

    Raises:
        InputError: if the packages that draw are not installed.
    """
    template, (key, drawing) = _template(), _plotly()
    shapes = shapes_of(record.attributes)
    judged = judge(record)
    limits = bounds(record, shapes, judged.bounds)
    data = payload(record, limits, watch)
    style, script = _asset("report.css"), "\n".join(map(_asset, _SCRIPTS))
    text: str = template.render(
        title=record.name,
        version=__version__,
        facts=summary(record),
        notices=notices(record, shapes),
        judged=judged,
        rows=latest(record, limits),
        data=data,
        thinned=[one for one in (*data["series"], *data["logged"]) if not one["exact"]],
        layers=layer_rows(record.attributes),
        settings=settings(record.attributes) if record.attributes else "",
        events=record.events,
        style=style,
        script=script,
        drawing=drawing if data["series"] or data["logged"] or data["spectra"] else "",
        packed=_packed(json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)),
        policy=f"script-src '{_hash(script)}' '{key}'",
        predictions=PREDICTIONS,
        relations=RELATIONS,
        combo_name=combo_name,
        number=number,
    )
    return text


@cache
def _template() -> Any:
    """Compile the template.

    Returns:
        The template.

    Raises:
        InputError: if jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise InputError(_MISSING) from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        # Whatever a template prints goes through here; strings of our own assets are marked safe, and pass.
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _asset(name: str) -> str:
    return (files("zanalysis.reporting") / "templates" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> tuple[str, str]:
    """Return the drawing library: its hash for the policy, and itself, packed.

    Returns:
        The hash, and gzip in base64.

    Raises:
        InputError: if it is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError(_MISSING) from error
    text = str(get_plotlyjs())
    return _hash(text), _packed(text)


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 9, mtime=0)).decode()
