"""Who is told of each record as it is made: `on_record`, and the alerts. Nothing that fails there is passed on."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hooks.alerting import Alarm, Alert, OnAlert, Predicate, Recorded
from hooks.columns import Columns, Numbers
from hooks.journal import Journal
from hooks.layers import Layer
from hooks.measuring import matrix_shape
from zanalysis.analyzers.matrices import View
from zanalysis.analyzers.statuses import STATUSES
from zanalysis.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Audience", "OnRecord", "Rows", "checked_alerts", "checked_callback", "recorded_of"]

_log = logging.getLogger("hooks")
_WORDS = np.array(STATUSES, dtype=object)

MANY = 3
"""Of so many layers that an alert tells of at once each has a line in the log; more share one."""


class Rows(list[dict[str, Any]]):
    """The rows of one record, as `on_record` is given them: one for each number, as the table has them.

    Attributes:
        spectra: the recorded singular values: layer, tensor, reference, and `values`, descending, NaN-padded.
    """

    spectra: list[dict[str, Any]]


OnRecord = Callable[[int, Rows], None]


def rows_of(columns: Columns, step: int, numbers: Numbers) -> Rows:
    """Lay the numbers of one record out as rows.

    Args:
        columns: what they are.
        step: the step.
        numbers: the numbers.

    Returns:
        The rows.
    """
    rows = Rows(
        {
            "step": step,
            **series._asdict(),
            "value": float(value),
            "tolerance": float(tolerance),
            "status": STATUSES[code],
        }
        for series, value, tolerance, code in zip(
            columns.series, numbers.value, numbers.tolerance, numbers.status, strict=True
        )
    )
    rows.spectra = [
        {"step": step, **key._asdict(), "values": values}
        for key, values in zip(columns.spectra, numbers.spectra, strict=True)
    ]
    return rows


def checked_alerts(alerts: Any) -> list[Alert]:
    """Return alerts with a name and a beginning each.

    Args:
        alerts: functions of a table, and `Alert`s; one or several.

    Returns:
        `Alert`s.

    Raises:
        InputError: if one of them is neither.
    """
    several = [alerts] if isinstance(alerts, Alert) or callable(alerts) else alerts
    if isinstance(several, str) or not isinstance(several, Iterable):
        raise InputError(f"got alerts = {alerts!r}, expected functions of a table, or those of hooks.alerts.")
    return [_named(alert) for alert in several]


def _named(alert: Any) -> Alert:
    if isinstance(alert, Alert):
        return alert
    if not callable(alert) or isinstance(alert, type):
        raise InputError(f"got {alert!r} in alerts, expected a function of a table, or one of hooks.alerts.")
    if (
        getattr(alert, "__module__", "") == "hooks.alerts"
        and getattr(alert, "__qualname__", "").isidentifier()
    ):
        name = alert.__name__
        raise InputError(f"got the function {name} in alerts, expected what it returns: alerts.{name}(…).")
    predicate: Predicate = alert
    return Alert(getattr(alert, "__name__", type(alert).__name__), lambda _: predicate)


def checked_callback(name: str, callback: Any) -> None:
    """Refuse a callback that cannot be called.

    Args:
        name: of the argument.
        callback: what was given; None for none.

    Raises:
        InputError: if it is neither a function nor None.
    """
    if callback is not None and not callable(callback):
        raise InputError(f"got {name} = {callback!r}, expected a function, or None.")


def recorded_of(columns: Columns, layers: Sequence[Layer], view: View) -> Recorded:
    """Return what alerts may know before the first record.

    Args:
        columns: what is recorded.
        layers: the layers.
        view: how a kernel becomes a matrix.

    Returns:
        The series, the shapes of the matrices, and which weights are frozen.
    """
    return Recorded(
        columns.series,
        {name: matrix_shape(layer, view) for layer in layers for name in layer.matrices},
        frozenset(name for layer in layers if _is_frozen(layer) for name in layer.matrices),
    )


def _is_frozen(layer: Layer) -> bool:
    trained = layer.trained
    return trained is not None and not trained.requires_grad


class Audience:
    """Tells `on_record` and the alerts of each record.

    Attributes:
        listens: whether there is anybody to tell.
    """

    def __init__(
        self,
        columns: Columns,
        on_record: OnRecord | None = None,
        alerts: Sequence[Alert] = (),
        recorded: Recorded | None = None,
        on_alert: OnAlert | None = None,
    ) -> None:
        """Begin: alerts that look at what is not recorded are refused.

        Args:
            columns: what is recorded.
            on_record: called with the step and the rows of each record.
            alerts: as `checked_alerts` returns them.
            recorded: what they may know; needed where there are some.
            on_alert: called with each alarm.
        """
        self._columns = columns
        self._on_record = on_record
        self._on_alert = on_alert
        self._watched = [_Watched(alert, alert.begin(recorded)) for alert in alerts if recorded is not None]
        self._template: tuple[pd.DataFrame, npt.NDArray[np.intp]] | None = None
        self.listens = on_record is not None or bool(self._watched)

    def tell(self, step: int, numbers: Numbers, journal: Journal) -> None:
        """Tell of a record; never raise.

        Args:
            step: the step.
            numbers: what was recorded.
            journal: where alarms and failures are noted.
        """
        if self._on_record is not None:
            try:
                self._on_record(step, rows_of(self._columns, step, numbers))
            except Exception as error:
                journal.note(step, "on_record", "on_record", f"on_record failed: {error!r}")
        if self._watched:
            table = self._table(step, numbers)
            # A copy for each: what one changes in its table is no matter of the others.
            self._watched = [one for one in self._watched if self._look(one, step, table.copy(), journal)]

    def _table(self, step: int, numbers: Numbers) -> "pd.DataFrame":
        if self._template is None:
            from zanalysis.runfile.tables import scalar_table

            # Every record has the same rows; where each number belongs shows with its index in its place.
            places = np.arange(len(numbers.value), dtype=np.float64)[None]
            table = scalar_table(self._columns.series, np.array([step]), places, places, numbers.status[None])
            self._template = table, table["value"].to_numpy().astype(np.intp)
        template, order = self._template
        return template.assign(
            step=step,
            value=numbers.value[order],
            tolerance=numbers.tolerance[order],
            status=_WORDS[numbers.status[order]],
        )

    def _look(self, watched: "_Watched", step: int, table: "pd.DataFrame", journal: Journal) -> bool:
        name = watched.alert.name
        try:
            found = _by_layer(watched.predicate(table))
        except Exception as error:
            text = f"the alert {name} failed at step {step} and stands down: {error!r}"
            _log.warning("%s", text)
            journal.event(step, "alert", text)
            return False
        for layer in [layer for layer in watched.firing if layer not in found]:
            watched.firing.discard(layer)
            journal.event(step, "alert_over", f"{name}: over{f' in {layer}' if layer else ''}", layer)
        alarms = [
            Alarm(step, name, layer, text) for layer, text in found.items() if layer not in watched.firing
        ]
        watched.firing.update(found)
        _say(alarms)
        for alarm in alarms:
            journal.event(step, "alert", _sentence(alarm), alarm.layer)
            self._call(alarm, watched.alert.on_alert, journal)
        return True

    def _call(self, alarm: Alarm, own: OnAlert | None, journal: Journal) -> None:
        for call in (own, self._on_alert):
            try:
                if call is not None:
                    call(alarm)
            except Exception as error:
                what = f"on_alert of {alarm.alert} failed: {error!r}"
                journal.note(alarm.step, "on_alert", f"on_alert/{alarm.alert}", what)


class _Watched:
    """An alert of one tracker, and the layers that it has told of and that are not over yet."""

    def __init__(self, alert: Alert, predicate: Predicate) -> None:
        self.alert, self.predicate = alert, predicate
        self.firing: set[str] = set()


def _sentence(alarm: Alarm) -> str:
    return f"{alarm.alert}: {alarm.text}" if alarm.text else alarm.alert


def _say(alarms: Sequence[Alarm]) -> None:
    for alarm in alarms[:1] if len(alarms) > MANY else alarms:
        others = f" (and {len(alarms) - 1} layers more)" if len(alarms) > MANY else ""
        _log.warning("step %d: %s%s", alarm.step, _sentence(alarm), others)


def _by_layer(said: Any) -> dict[str, str]:
    answers = said if isinstance(said, Mapping) else {"": said}
    return {
        str(layer): answer if isinstance(answer, str) else ""
        for layer, answer in answers.items()
        if answer is not None and bool(answer)
    }
