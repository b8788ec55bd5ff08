"""A run followed while it grows: what is read, which state is seen, what is shown in lines and in the terminal."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from report_runs import hostile_run, many_layers
from rich.console import Console
from typer.testing import CliRunner

from zanalysis.cli import app
from zanalysis.errors import RunFileError
from zanalysis.runfile import RunWriter, Series, TensorKey
from zanalysis.runfile.following import news
from zanalysis.runfile.lock import is_held
from zanalysis.runfile.schema import STATUSES, SpectrumKey
from zanalysis.watching.follower import FINISHED, GONE, SILENT, TRAINING, UNREADABLE, WAITING, Follower
from zanalysis.watching.lines import follow_in_lines, head, line_of, table_of
from zanalysis.watching.picture import (
    cell_of,
    curve_of,
    events_of,
    facts_of,
    grid_of,
    logged_curve,
    sparkline,
)

SERIES = [
    Series("fc1", "weight", "none", "default", "rank"),
    Series("fc1", "weight", "none", "none", "stable_rank"),
    Series("fc2", "weight", "none", "default", "rank"),
    Series("fc2", "weight", "none", "none", "stable_rank"),
]
LAYERS = [{"name": name, "matrices": [name], "shape": [8, 6], "dtype": "float32"} for name in ("fc1", "fc2")]
ATTRIBUTES = {"model": {"type": "Sequential"}, "schedule": "every(1)", "layers": LAYERS}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, now=None):
        self.now = time.time() if now is None else now

    def __call__(self):
        return self.now


def writer(path, mode="x", start=0, attributes=ATTRIBUTES, series=SERIES):
    return RunWriter(path, series, attributes=attributes, mode=mode, start=start)


def record(run, steps, offset=0.0, status=0):
    count = len(SERIES)
    for step in steps:
        value = np.arange(1.0, count + 1) + step / 8 + offset
        run.append(step, value, np.ones(count), np.full(count, status, np.uint8), np.empty((0, 16)))
        run.log(step, "loss", 1 / (1 + step))
    run.flush()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def test_a_look_reads_only_what_is_new(path):
    run = writer(path)
    first = news(path)
    assert first.description.series == tuple(SERIES)
    assert len(first.steps) == 0
    record(run, range(3))
    second = news(path, first.place)
    assert second.description is None
    assert second.steps.tolist() == [0, 1, 2]
    assert [step for step, _, _ in second.logged] == [0, 1, 2]
    record(run, range(3, 5))
    run.event(4, "note", "something")
    run.flush()
    third = news(path, second.place)
    assert third.steps.tolist() == [3, 4]
    assert third.value.tolist() == [[1 + s / 8, 2 + s / 8, 3 + s / 8, 4 + s / 8] for s in (3, 4)]
    assert [event[2] for event in third.events] == ["note"]
    fourth = news(path, third.place)
    assert len(fourth.steps) == len(fourth.logged) == len(fourth.events) == 0
    run.close()


def test_a_run_is_followed_from_before_its_beginning_to_its_end(path):
    follower = Follower(path)
    assert follower.look().state == WAITING
    run = writer(path)
    look = follower.look()
    assert (look.state, look.age) == (TRAINING, None)
    record(run, range(5))
    look = follower.look()
    assert look.state == TRAINING
    assert look.history.steps.tolist() == [0, 1, 2, 3, 4]
    before = look.change
    assert follower.look().change == before  # nothing new
    record(run, [5])
    run.close()
    look = follower.look()
    assert look.state == FINISHED
    assert look.era == 1
    np.testing.assert_array_equal(look.history.value[:, 1], 2 + np.arange(6) / 8)
    assert look.history.logged["loss"][0] == [0, 1, 2, 3, 4, 5]


def test_a_replaced_run_is_read_anew(path):
    follower = Follower(path)
    with_old = writer(path)
    record(with_old, range(4))
    with_old.close()
    assert len(follower.look().history.steps) == 4
    run = writer(path, "w")
    record(run, range(6), offset=50)
    look = follower.look()
    assert (look.era, look.state) == (2, TRAINING)
    assert look.history.value[0, 0] == 51
    assert len(look.history.steps) == 6
    run.close()


@pytest.mark.parametrize("again", [1, 3, 5])
def test_a_run_taken_up_again_is_read_anew(path, again):
    follower = Follower(path)
    run = writer(path)
    record(run, range(4))
    run.close()
    follower.look()
    run = writer(path, "a", start=2)
    record(run, range(2, 2 + again), offset=100)
    look = follower.look()
    assert look.era == 2
    assert look.history.steps.tolist() == [0, 1, *range(2, 2 + again)]
    assert look.history.value[2, 0] == 1 + 2 / 8 + 100
    assert look.history.start == 2
    run.close()


def test_a_file_of_the_same_number_with_other_rows_is_read_anew(path):
    # Between two looks a run may be removed and another begun, which a file system may give the same number.
    run = writer(path)
    record(run, range(4))
    run.close()
    first = news(path)
    path.unlink()
    run = writer(path)
    record(run, range(6), offset=7)
    run.close()
    stat = path.stat()
    place = first.place._replace(identity=(stat.st_dev, stat.st_ino))
    second = news(path, place)
    assert second.description is not None
    assert len(second.steps) == 6


def test_the_states_of_a_writer(path):
    clock, seen = Clock(), [True]
    follower = Follower(path, clock=clock, seen=lambda _: seen[0])
    run = writer(path)
    record(run, range(3))
    assert follower.look().state == TRAINING
    seen[0] = False
    look = follower.look()
    assert look.state == GONE
    assert "without closing the file" in look.detail
    seen[0] = True
    assert follower.look().state == TRAINING
    # Who never saw the writer waits a little before saying that it is gone.
    other = Follower(path, clock=clock, seen=lambda _: seen[0])
    seen[0] = False
    assert other.look().state == TRAINING
    clock.now += 30
    look = other.look()
    assert look.state == GONE
    assert "no process here holds its lock" in look.detail
    assert look.age == pytest.approx(30, abs=5)
    seen[0] = None  # not Linux
    assert other.look().state == SILENT
    run.close()
    assert other.look().state == FINISHED


def test_a_writer_that_closes_between_two_questions_is_not_called_gone(path):
    run = writer(path)
    record(run, range(3))
    seen = iter([True, False, False])

    def closing(_):
        if not next(seen):
            run.close()
            return False
        return True

    follower = Follower(path, seen=closing)
    assert follower.look().state == TRAINING
    assert follower.look().state == FINISHED


def test_a_lock_is_seen_without_being_taken(path):
    assert is_held(path) is False
    run = writer(path)
    if is_held(path) is None:
        pytest.skip("no /proc/locks here")
    assert is_held(path) is True
    run.close()
    assert is_held(path) is False
    lock = Path(f"{path}.lock")
    lock.write_text("")  # as a killed writer leaves it
    assert is_held(path) is False
    look = lock.stat()
    again = writer(path, "w")
    again.close()
    assert look.st_size == 0


def test_looking_takes_no_lock_and_writes_nothing(path, tmp_path):
    run = writer(path)
    record(run, range(3))
    before = path.read_bytes()
    for _ in range(3):
        Follower(path).look()
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5", "run.h5.lock"]
    run.close()
    closed = path.read_bytes()
    Follower(path).look()
    assert path.read_bytes() == closed
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def test_damage_is_a_state_and_what_was_read_stays(path):
    run = writer(path)
    record(run, range(3))
    run.close()
    follower = Follower(path)
    follower.look()
    path.write_bytes(b"no run at all" * 10)
    look = follower.look()
    assert look.state == UNREADABLE
    assert "is not an HDF5 file" in look.detail
    assert len(look.history.steps) == 3
    path.unlink()
    look = follower.look()
    assert (look.state, look.detail) == (WAITING, f"{path} was removed")
    assert Follower(path.parent / "no" / "run.h5").look().detail.startswith("the folder")


def test_the_rate_is_that_of_the_last_minute_and_falls_when_nothing_comes(path):
    clock = Clock(time.time() + 100)
    follower = Follower(path, clock=clock, seen=lambda _: True)
    run = writer(path)
    record(run, [0])
    run.overhead({"metrics": 1.0}, 20.0)
    run.flush()
    assert follower.look().rate is None
    for second in range(1, 91):
        clock.now += 1
        if second % 10 == 0:
            record(run, [second * 4])
        look = follower.look()
    assert look.rate == pytest.approx(4.0, rel=1e-6)
    assert not look.averaged
    clock.now += 3600
    assert follower.look().rate < 0.1
    run.close()
    look = follower.look()
    assert (look.rate, look.averaged) == (360 / 20, True)


def test_raw_tensors_alone_are_followed_too(path):
    from zanalysis.runfile.schema import Kept

    run = RunWriter(path, [], tensors=[TensorKey("fc", "weight", "float32", (2, 2))])
    follower = Follower(path)
    follower.look()
    run.append_tensors(3, [Kept("ok", "float32", np.ones((2, 2), np.float32))])
    run.flush()
    look = follower.look()
    assert look.history.reached == 3
    assert ("step", "3") in facts_of(look)
    assert ("records", "1") in facts_of(look)
    run.close()
    assert "waiting" not in head(follower.look())


def history_of(path, rows, statuses=None, series=SERIES[:1]):
    run = RunWriter(path, series, attributes=ATTRIBUTES, mode="w")
    for step, value in enumerate(rows):
        status = 0 if statuses is None else STATUSES.index(statuses[step])
        value = np.full(len(series), value)
        run.append(
            step, value, np.ones(len(series)), np.full(len(series), status, np.uint8), np.empty((0, 16))
        )
    run.close()
    return Follower(path).look().history


@pytest.mark.parametrize(
    ("rows", "statuses", "latest", "change"),
    [
        ([], None, "", ""),
        ([4.0], None, "4", ""),
        ([4.0, 4.0], None, "4", "0"),
        ([0.0, 12.0], None, "12", "+12"),
        ([2.5, 2.25], None, "2.25", "−0.25"),
        ([np.nan, 3.0, 5.0], ["skipped", "ok", "ok"], "5", "+2"),
        ([3.0, np.nan], ["ok", "no_gradient"], "no_gradient", ""),
        ([3.0, 0.0], ["ok", "zero"], "0", "zero"),
    ],
)
def test_a_cell_says_how_a_number_stands(path, rows, statuses, latest, change):
    cell = cell_of(history_of(path, rows, statuses), 0)
    assert (cell.latest, cell.change) == (latest, change)


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 4, ""),
        ([1, 1, 1], 4, "───"),
        ([1, 2, 3, 4, 5, 6, 7], 7, "▁▂▃▄▅▆▇"),
        ([0, *[1] * 99], 4, "▁▇▇▇"),  # the first number is among those shown
        ([*[1] * 99, 0], 4, "▇▇▇▁"),  # and the last
        ([np.nan, 1, np.inf, 2], 4, " ▁ ▇"),
        ([np.nan, np.nan], 4, "  "),
        ([-1e308, 1e308], 4, "▁▇"),
        ([1, 2], 0, ""),
        ([1, 2], 1, "─"),
    ],
)
def test_a_trend_is_drawn_from_the_smallest_to_the_largest(values, width, drawn):
    assert sparkline(np.array(values, float), width) == drawn


def test_the_table_names_what_differs(path):
    series = [
        Series("a", "weight", "none", "default", "rank"),
        Series("a", "weight", "none", "0.1", "rank"),
        Series("a", "weight", "init", "default", "rank"),
        Series("b", "gradient", "none", "none", "stable_rank"),
    ]
    grid = grid_of(series)
    assert grid.rows == ("a · weight", "a · weight − init", "b · gradient")
    assert grid.columns == ("rank (default)", "rank (0.1)", "stable_rank")
    assert grid.series == {(0, 0): 0, (0, 1): 1, (1, 0): 2, (2, 2): 3}


def test_a_curve_has_a_title_a_bound_and_gaps(path):
    history = history_of(path, [1.0, 2.0, np.nan, 4.0, np.nan, 6.0, 6.0])
    curve = curve_of(history, 0)
    assert curve.title == "rank of fc1, at most 6"
    assert curve.unit == "singular values"
    assert [x.tolist() for x, _ in curve.pieces] == [[0, 1], [3], [5, 6]]
    assert next((x.tolist(), y.tolist()) for x, y in curve.drawn) == ([0, 1, 1], [1, 1, 2])
    long = history_of(path, np.where(np.arange(5000) == 2345, 99.0, np.arange(5000) % 7))
    thin = curve_of(long, 0, limit=200)
    assert len(thin.x) < 400
    assert thin.y.max() == 99  # no extreme is lost


def test_a_scalar_logged_out_of_order_is_drawn_in_order(path):
    run = writer(path)
    for step, value in ((5, 0.5), (3, 0.3), (5, 0.6)):
        run.log(step, "loss", value)
    run.close()
    curve = logged_curve(Follower(path).look().history, "loss")
    assert curve.x.tolist() == [3, 5, 5]


def test_lines_follow_a_run_until_it_has_finished(path):
    said, clock = [], Clock(0.0)
    run = None

    def pause(seconds):
        nonlocal run
        clock.now += seconds
        if clock.now == 2:
            run = writer(path)
        if 3 <= clock.now < 30:
            record(run, [int(clock.now)])
        if clock.now == 20:
            run.event(20, "alert", "rank collapsed", "fc1")
            run.flush()
        if clock.now == 30:
            run.close()

    follow_in_lines(Follower(path), said.append, every=10, pause=pause, clock=clock)
    assert said[0] == f"run.h5: waiting ({path} is not there yet)"
    assert said[-1].startswith("run.h5: finished; step 29;")
    assert "run.h5: step 20: alert (fc1): rank collapsed" in said
    assert [line.split(";")[1] for line in said if "training; step" in line] == [" step 12", " step 22"]
    assert "rank fc1: 4.625, fc2: 6.625" in said[-1]
    assert len(said) == 6


def test_the_table_in_lines_has_room_for_less(path):
    run = writer(path)
    record(run, range(3))
    run.close()
    look = Follower(path).look()
    for parts, columns in ((3, 7), (2, 5), (1, 3)):
        assert len(table_of(look, parts).columns) == columns
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(table_of(look))
    console.file.close()
    assert "fc1" in (text := console.export_text())
    assert "+0.25" in text


def test_names_from_a_file_reach_no_terminal_as_they_are(tmp_path):
    look = Follower(hostile_run(tmp_path / "run.h5")).look()
    shown = line_of(look) + head(look) + "".join(events_of(look.history))
    shown += "".join(grid_of(look.history.series).rows)
    shown += "".join(curve_of(look.history, s).title for s in range(len(look.history.series)))
    assert not set(shown) & set("\x1b\x07\u202e\u200f\u2028")


def test_once_prints_one_table(path):
    run = writer(path)
    record(run, range(3))
    result = CliRunner().invoke(app, ["watch", str(path), "--once"])
    assert result.exit_code == 0
    assert "run.h5: training; step 2; records 3" in result.output
    assert "since start" in result.output
    run.close()
    result = CliRunner().invoke(app, ["watch", str(path)])
    assert result.exit_code == 0
    assert result.output.startswith("run.h5: finished; step 2;")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.h5", "--once"], "does not exist"),
        (["."], "is a folder"),
        (["text.h5"], "is not an HDF5 file"),
        (["no.h5", "--once", "--web"], "choose one of them"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.h5").write_text("text")
    result = CliRunner().invoke(app, ["watch", *arguments])
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("missing", "extra"), [("textual", "zanalysis[watch]"), ("bokeh", "zanalysis[watch-web]")]
)
def test_a_missing_package_is_named(path, missing, extra, monkeypatch):
    from zanalysis import cli_watch

    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("terminal", "web"):
        monkeypatch.delitem(sys.modules, f"zanalysis.watching.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    act = cli_watch._draw if missing == "textual" else lambda follower: cli_watch._serve(follower, 0)
    with pytest.raises(Exception, match="pip install") as raised:
        act(Follower(path))
    assert extra in str(raised.value)


@pytest.mark.slow
def test_following_loads_no_screen():
    code = (
        "import sys, zanalysis.cli, zanalysis.watching.lines; "
        "print(sorted({'textual', 'bokeh', 'plotly', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def on_screen(path, act, size=(120, 40)):
    """Run the screen without a terminal, and act on it."""
    pytest.importorskip("textual", reason="the package textual is not installed")
    from zanalysis.watching.terminal import Screen

    async def run():
        screen = Screen(Follower(path), poll=0.05)
        async with screen.run_test(size=size) as pilot:

            async def until(true):
                for _ in range(400):
                    await pilot.pause(0.02)
                    if true():
                        return
                raise AssertionError("nothing came")

            await act(screen, pilot, until)
        return screen

    return asyncio.run(run())


def cell_text(screen, row, column):
    from textual.coordinate import Coordinate
    from textual.widgets import DataTable

    return str(screen.query_one(DataTable).get_cell_at(Coordinate(row, column)))


def test_the_screen_follows_a_run(path):
    from textual.widgets import DataTable, Static
    from textual_plot import PlotWidget

    async def act(screen, pilot, until):
        head = screen.query_one("#head", Static)
        await until(lambda: "waiting" in str(head.content))
        run = writer(path)
        record(run, range(3))
        await until(lambda: "training" in str(head.content))
        table = screen.query_one(DataTable)
        await until(lambda: table.row_count == 2)
        assert cell_text(screen, 1, 1).split()[:2] == ["3.25", "+0.25"]
        plot = screen.query_one("#curve", PlotWidget)
        await until(lambda: "rank of fc1, at most 6" in str(plot.border_title))
        await pilot.press("down", "right")
        await until(lambda: "stable_rank of fc2" in str(plot.border_title))
        record(run, [3])
        await until(lambda: cell_text(screen, 1, 1).split()[:2] == ["3.375", "+0.375"])
        assert (table.cursor_coordinate.row, table.cursor_coordinate.column) == (1, 2)
        run.event(3, "alert", "[bold]rank[/bold] collapsed")
        run.close()
        await until(lambda: "finished" in str(head.content))
        assert "alert: [bold]rank[/bold] collapsed" in str(screen.query_one("#events", Static).content)
        replaced = writer(path, "w")
        record(replaced, range(2), offset=30)
        await until(lambda: cell_text(screen, 1, 1).split()[0] == "33.12")
        replaced.close()
        await pilot.press("q")

    screen = on_screen(path, act)
    assert screen.return_code == 0


def test_the_screen_has_no_more_than_it_has_room_for(tmp_path):
    from zanalysis.watching.terminal import arranged

    wide, narrow = arranged(160, 50, 2, 20), arranged(80, 24, 2, 20)
    assert (wide.parts, wide.curves, wide.events, wide.facts) == (3, 2, 3, 3)
    assert (narrow.parts, narrow.curves, narrow.events, narrow.facts) == (2, 1, 1, 3)
    assert arranged(50, 15, 1, 200) == (2, 16, 0, 0, 1)
    run = many_layers(tmp_path / "run.h5", layers=60, steps=5)

    async def act(screen, pilot, until):
        from textual.widgets import DataTable

        await until(lambda: screen.query_one(DataTable).row_count == 120)
        for size in ((200, 60), (80, 24), (40, 12), (20, 5), (100, 30)):
            await pilot.resize_terminal(*size)
            await pilot.pause(0.1)
            assert screen.query_one("#charts").display == (size[1] >= 22)
        assert cell_text(screen, 0, 0).startswith("model.layers.0")

    on_screen(run, act)


def test_names_from_a_file_act_on_no_screen(tmp_path):
    async def act(screen, pilot, until):
        from textual.widgets import DataTable

        await until(lambda: screen.query_one(DataTable).row_count == 20)
        for key in ("down", "right", "l", "l", "c", "c", "end"):
            await pilot.press(key)
        await pilot.pause(0.1)
        assert "<script>" in cell_text(screen, 0, 0)

    on_screen(hostile_run(tmp_path / "run.h5"), act)


def test_a_screen_of_a_run_without_numbers(path):
    run = RunWriter(path, [], [SpectrumKey("fc", "weight", "none")])

    async def act(screen, pilot, until):
        await until(lambda: screen.shown is not None and screen.shown.state == TRAINING)
        await pilot.press("right", "l")

    on_screen(path, act)
    run.close()


def test_a_file_that_is_replaced_time_and_again_is_an_error(path, monkeypatch):
    run = writer(path)
    record(run, [0])
    run.close()
    from zanalysis.runfile import following

    real = following.ask

    def replacing(name, question):
        answer = real(name, question)
        other = path.with_name("other")
        other.write_bytes(path.read_bytes())
        other.replace(path)
        return answer

    monkeypatch.setattr(following, "ask", replacing)
    with pytest.raises(RunFileError, match="replaced time and again"):
        news(path)
