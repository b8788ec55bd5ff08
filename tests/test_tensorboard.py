"""TensorBoard: what its own reader finds is what was recorded."""

import numpy as np
import pandas as pd
import pytest
import torch
from snippets import run as execute
from snippets import snippets_of
from torch import nn
from typer.testing import CliRunner

from hooks import RankTracker, every
from zanalysis.cli import app
from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile.export import export_tables
from zanalysis.runfile.reader import open_run

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hooks.integrations import tensorboard
from hooks.integrations.tensorboard import TensorBoard

METRICS = ("rank", "stable_rank", "singular_values")


def read(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    return found.Reload()


def scalars(board, tag):
    return {event.step: event.value for event in board.Scalars(tag)}


def series(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    return dict(zip(table["step"], table["value"], strict=True))


@pytest.fixture
def recorded(tmp_path, mlp):
    """A run that was written for TensorBoard too."""
    model, optimizer, train = mlp
    with (
        TensorBoard(tmp_path / "live") as board,
        RankTracker(
            model, optimizer, tmp_path / "run.h5", schedule=every(2), metrics=METRICS, tensors=("weight", "gradient"),
            reference=[None, "init"], tolerance=["default", 1e-2], on_record=board,
        ) as tracker,
    ):  # fmt: skip
        for step in range(6):
            train(1)
            tracker.log(loss=step / 2)
        tracker.log(loss=float("nan"))
    return tmp_path


@pytest.mark.parametrize("folder", ["live", "run-tensorboard"])
def test_its_own_reader_finds_what_was_recorded(recorded, folder):
    run = open_run(recorded / "run.h5")
    if folder != "live":
        assert export_tables(run, "tensorboard") == [recorded / folder]
    board, table = read(recorded / folder), run.table()
    tags = {
        "stable_rank/0": {"metric": "stable_rank", "layer": "0", "tensor": "weight", "reference": "none"},
        "stable_rank/gradient/2": {"metric": "stable_rank", "layer": "2", "tensor": "gradient"},
        "rank/2/minus_init/0.01": {
            "metric": "rank", "layer": "2", "tensor": "weight", "reference": "init", "tolerance_rule": "0.01",
        },
        "rank/0": {
            "metric": "rank", "layer": "0", "tensor": "weight", "reference": "none", "tolerance_rule": "default",
        },
    }  # fmt: skip
    for tag, wanted in tags.items():
        expected = {step: value for step, value in series(table, **wanted).items() if np.isfinite(value)}
        # TensorBoard keeps float32.
        assert scalars(board, tag) == {
            step: pytest.approx(value, rel=1e-6) for step, value in expected.items()
        }
    assert set(scalars(board, "stable_rank/gradient/2")) == {2, 4, 6}  # none at step 0: it is NaN there
    keys = table[table["value"].notna()].groupby(["layer", "tensor", "reference", "tolerance_rule", "metric"])
    numbers = [tag for tag in board.Tags()["scalars"] if not tag.startswith("logged/")]
    assert len(numbers) == len(keys)


@pytest.mark.parametrize("folder", ["live", "run-tensorboard"])
def test_spectra_are_histograms(recorded, folder):
    export_tables(recorded / "run.h5", "tensorboard")
    board = read(recorded / folder)
    kept = open_run(recorded / "run.h5").spectra("0")
    found = board.Histograms("singular_values/0")
    assert [event.step for event in found] == kept.steps.tolist() == [0, 2, 4, 6]
    for event, values in zip(found, kept.values, strict=True):
        values = values[np.isfinite(values)]
        assert event.histogram_value.num == len(values) == 5
        assert event.histogram_value.max == pytest.approx(values.max(), rel=1e-6)
        assert event.histogram_value.min == pytest.approx(values.min(), rel=1e-6)
        assert event.histogram_value.sum == pytest.approx(values.sum(), rel=1e-6)
    assert "singular_values/gradient/2" in board.Tags()["histograms"]
    assert "singular_values/2/minus_init" in board.Tags()["histograms"]


def test_the_command_line_writes_what_was_logged_and_the_events_too(recorded, tmp_path):
    with RankTracker(
        nn.Linear(3, 3), path=tmp_path / "odd.h5", metrics="rank", alerts=lambda table: "look"
    ) as tracker:
        tracker.log(loss=1.5)
    for name in ("run", "odd"):
        result = CliRunner().invoke(
            app,
            [
                "export",
                str(tmp_path / f"{name}.h5"),
                "--to",
                "tensorboard",
                "--out",
                str(tmp_path / "boards"),
            ],
        )
        assert result.exit_code == 0, result.output
        assert result.stdout.strip().replace("\n", "").endswith(f"{name}-tensorboard")
    board = read(tmp_path / "boards" / "run-tensorboard")
    assert scalars(board, "logged/loss") == {step + 1: step / 2 for step in range(5)}
    odd = read(tmp_path / "boards" / "odd-tensorboard")
    (text,) = odd.Tensors("events/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "alert: <lambda>: look"
    assert [path.name for path in (tmp_path / "boards").iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_there_is_replaced_only_when_asked(recorded):
    export_tables(recorded / "run.h5", "tensorboard")
    with pytest.raises(InputError, match="run-tensorboard exists already"):
        export_tables(recorded / "run.h5", "tensorboard")
    (recorded / "run-tensorboard" / "notes.txt").write_text("mine")
    export_tables(recorded / "run.h5", "tensorboard", overwrite=True)
    names = sorted(path.name for path in (recorded / "run-tensorboard").iterdir())
    assert [name.split(".")[0] for name in names] == ["events", "notes"]
    assert len(scalars(read(recorded / "run-tensorboard"), "rank/0")) == 4
    (recorded / "file").write_text("no folder")
    with pytest.raises(RunFileError, match="cannot write into"):
        export_tables(recorded / "run.h5", "tensorboard", out=recorded / "file")


def test_without_tensorboard_it_says_what_to_install(recorded, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for call in (
        lambda: export_tables(recorded / "run.h5", "tensorboard", out=recorded / "new"),
        lambda: TensorBoard(recorded / "new"),
    ):
        with pytest.raises(InputError, match=r"pip install 'zanalysis\[tensorboard\]'"):
            call()


def test_a_writer_of_the_users_own_is_not_closed(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    with TensorBoard(writer=writer) as board, RankTracker(nn.Linear(3, 3), metrics="rank", on_record=board):
        pass
    assert scalars(read(tmp_path), "rank/weight") == {0: 3.0}
    writer.add_scalar("mine", 1.0, 0)
    writer.close()
    assert "mine" in read(tmp_path).Tags()["scalars"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "one of them"), ({"log_dir": "a", "writer": 3}, "one of them"), ({"writer": 3}, "got writer = 3")],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TensorBoard(**options)


def test_the_snippet_gives_the_table_of_the_plain_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = snippets_of(tensorboard).values()
    execute(code)
    torch.manual_seed(0)
    model = nn.Linear(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with RankTracker(model, optimizer, schedule=every(5), metrics=METRICS) as tracker:
        for x in torch.randn(20, 4, 16):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    pd.testing.assert_frame_equal(open_run("run.h5").table(), tracker.table())
    board = read("logs/first")
    expected = series(tracker.table(), metric="stable_rank")
    assert scalars(board, "stable_rank/weight") == {
        s: pytest.approx(v, rel=1e-6) for s, v in expected.items()
    }
