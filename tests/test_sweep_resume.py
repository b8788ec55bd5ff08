"""An interrupted sweep keeps what it has, and the same call goes on from there."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import zanalysis as za
from zanalysis.sweep import work as work_module


@pytest.fixture
def folder(tmp_path):
    for step in range(4):
        state = {f"layer{i}.weight": torch.randn(9, 7) for i in range(3)}
        torch.save(state | {"evil.weight": torch.full((3, 3), torch.nan)}, tmp_path / f"step-{step}.pt")
    return tmp_path


class Counter:
    """Counts the layers that are really measured, and interrupts at one of them."""

    def __init__(self, monkeypatch, interrupt_at=None):
        self.measured = []
        real = work_module.measure

        def measure(work):
            if len(self.measured) == interrupt_at:
                raise KeyboardInterrupt
            self.measured.append(str(work))
            return real(work)

        monkeypatch.setattr(work_module, "measure", measure)


def interrupted(monkeypatch, folder, out, at, **settings):
    with monkeypatch.context() as patch:
        Counter(patch, at)
        with pytest.raises(KeyboardInterrupt):
            za.analyze(folder, out=out, reference="init", **settings)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_interrupted_and_resumed_gives_the_same_table(folder, tmp_path, monkeypatch, suffix):
    out = tmp_path / f"table.{suffix}"
    whole = za.analyze(folder, reference="init")
    interrupted(monkeypatch, folder, out, at=7)
    assert not out.exists()
    counter = Counter(monkeypatch)
    pd.testing.assert_frame_equal(za.analyze(folder, out=out, reference="init"), whole, check_exact=True)
    assert len(counter.measured) == 16 - 7
    assert sorted(path.name for path in tmp_path.iterdir() if "table" in path.name) == [out.name]
    if suffix == "parquet":
        pd.testing.assert_frame_equal(pd.read_parquet(out), whole, check_exact=True)
    elif suffix == "csv":
        back = pd.read_csv(out, keep_default_na=False, na_values=[""])
        pd.testing.assert_frame_equal(back, whole, check_exact=True, check_dtype=False)
    else:
        rows = json.loads(out.read_text())
        assert len(rows) == len(whole)
        assert rows[0]["value"] is None
        pd.testing.assert_series_equal(
            pd.DataFrame(rows)["value"].astype(float), whole["value"], check_exact=True
        )


def test_every_layer_is_on_the_disk_once_it_is_done(folder, tmp_path):
    part, counts = tmp_path / "table.csv.part", []
    za.analyze(
        folder,
        out=tmp_path / "table.csv",
        progress=lambda done, _: counts.append(part.read_bytes().count(b"\n") - done),
    )
    assert counts == [1] * 16  # the settings


def test_a_line_cut_short_is_measured_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "table.csv"
    whole = za.analyze(folder, reference="init")
    interrupted(monkeypatch, folder, out, at=7)
    part = out.with_name("table.csv.part")
    part.write_bytes(part.read_bytes()[:-20])
    counter = Counter(monkeypatch)
    pd.testing.assert_frame_equal(za.analyze(folder, out=out, reference="init"), whole, check_exact=True)
    assert len(counter.measured) == 16 - 6


def test_what_changed_since_is_measured_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "table.csv"
    interrupted(monkeypatch, folder, out, at=9)
    state = torch.load(folder / "step-1.pt", weights_only=True)
    state["layer0.weight"] = torch.ones(9, 7)
    torch.save(state, folder / "step-1.pt")
    counter = Counter(monkeypatch)
    table = za.analyze(folder, out=out, reference="init")
    assert len(counter.measured) == 16 - 9 + 4
    counter.measured.clear()
    pd.testing.assert_frame_equal(table, za.analyze(folder, reference="init"), check_exact=True)


def test_a_reference_that_changed_since_is_not_the_same_setting(folder, tmp_path, monkeypatch):
    out, start = tmp_path / "table.csv", tmp_path / "start"
    torch.save({"layer0.weight": torch.ones(9, 7)}, start)
    for given in (str(start), {"layer0": torch.ones(9, 7)}):
        with monkeypatch.context() as patch:
            Counter(patch, 3)
            with pytest.raises(KeyboardInterrupt):
                za.analyze(folder, out=out, reference=given, layers="layer0")
        torch.save({"layer0.weight": torch.zeros(9, 7)}, start)
        changed = given if isinstance(given, str) else {"layer0": torch.zeros(9, 7)}
        with pytest.raises(za.ZAnalysisError, match="other settings"):
            za.analyze(folder, out=out, reference=changed, layers="layer0")
        out.with_name("table.csv.part").unlink()


def test_a_folder_that_is_one_checkpoint_may_hold_its_own_table(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    save_file({f"{i}.weight": torch.eye(3) for i in range(4)}, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    interrupted(monkeypatch, model, model / "table.csv", at=2)
    counter = Counter(monkeypatch)
    assert len(za.analyze(model, out=model / "table.csv", reference="init")) == 8
    assert len(counter.measured) == 2


def test_what_failed_is_tried_again(folder, tmp_path, monkeypatch):
    out, real = tmp_path / "table.csv", work_module.measure
    with monkeypatch.context() as patch:
        patch.setattr(
            work_module, "measure", lambda w: w.failed(OSError("away")) if "layer1" in str(w) else real(w)
        )
        patch.setattr("zanalysis.sweep.analysis.save", lambda *_: stop())
        with pytest.raises(KeyboardInterrupt):
            za.analyze(folder, out=out)
    counter = Counter(monkeypatch)
    assert (za.analyze(folder, out=out)["status"] != "error").all()
    assert len(counter.measured) == 4


def stop():
    raise KeyboardInterrupt


def test_other_settings_and_finished_tables_are_refused(folder, tmp_path, monkeypatch):
    out = tmp_path / "table.csv"
    interrupted(monkeypatch, folder, out, at=7)
    for other in ({"metrics": "rank"}, {"view": "in"}, {"tolerance": 1e-3}, {"split": {"x": 2}}):
        with pytest.raises(za.ZAnalysisError, match="interrupted sweep with other settings"):
            za.analyze(folder, out=out, **{"reference": "init"} | other)
    with pytest.raises(za.ZAnalysisError, match="interrupted sweep with other settings"):
        za.analyze(folder, out=out)
    table = za.analyze(folder, metrics="rank", out=out, overwrite=True)
    assert set(table["metric"]) == {"rank"}
    before = out.read_bytes()
    with pytest.raises(za.ZAnalysisError, match="exists already"):
        za.analyze(folder, out=out)
    assert out.read_bytes() == before
    za.analyze(folder, metrics="stable_rank", out=out, overwrite=True)
    assert out.read_bytes() != before


def test_something_else_of_that_name_is_not_taken_for_a_journal(folder, tmp_path):
    (tmp_path / "table.csv.part").write_text("my notes")
    with pytest.raises(za.ZAnalysisError, match="is not what an interrupted sweep left"):
        za.analyze(folder, out=tmp_path / "table.csv")
    assert (tmp_path / "table.csv.part").read_text() == "my notes"


def test_two_sweeps_do_not_write_one_table(folder, tmp_path):
    out, refused = tmp_path / "table.csv", []

    def meanwhile(done, _):
        if done == 3:
            with pytest.raises(za.ZAnalysisError, match="another sweep is writing") as error:
                za.analyze(folder, out=out)
            refused.append(error)

    za.analyze(folder, out=out, progress=meanwhile)
    assert refused


@pytest.mark.parametrize(
    ("sign", "where"),
    [
        (signal.SIGINT, []),
        pytest.param(signal.SIGKILL, [], marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, ["--workers", "2"], marks=pytest.mark.slow),
    ],
)
def test_a_command_that_was_stopped_goes_on(tmp_path, sign, where):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for step in range(20):
        torch.save({f"{i}.weight": torch.randn(120, 120) for i in range(8)}, checkpoints / f"{step}.pt")
    out = tmp_path / "table.parquet"
    words = ["analyze", str(checkpoints), "--metrics", "effective_rank", "--out", str(out), *where]
    command = [sys.executable, "-m", "zanalysis.cli", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    part = out.with_name("table.parquet.part")
    until = time.monotonic() + 60
    while not (part.exists() and part.read_bytes().count(b"\n") > 5) and time.monotonic() < until:
        time.sleep(0.005)
    os.killpg(process.pid, sign)  # a terminal sends it to all
    _, message = process.communicate(timeout=60)
    assert not out.exists()
    kept = part.read_bytes().count(b"\n")
    assert kept > 5
    if sign == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in " ".join(message.split())
        assert "Traceback" not in message
    table = za.analyze(checkpoints, metrics="effective_rank", out=out)
    pd.testing.assert_frame_equal(pd.read_parquet(out), table)
    pd.testing.assert_frame_equal(za.analyze(checkpoints, metrics="effective_rank"), table)
