"""`zanalysis figure`, as a user meets it."""

import json
import sys

import matplotlib as mpl
import pytest
import torch
from torch import nn

from hooks import RankTracker
from zanalysis import cli, cli_figure


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process; return exit code, results and messages."""
    monkeypatch.setenv("COLUMNS", "150")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["zanalysis", "figure", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run_file(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))
    path = tmp_path / "run.h5"
    with RankTracker(
        model, path=path, metrics=("stable_rank", "singular_values"), reference=[None, "init"]
    ) as tracker:
        for _ in range(3):
            with torch.no_grad():
                model[0].weight.add_(torch.randn(6, 6))
            tracker.step()
    return path


@pytest.mark.parametrize(("suffix", "magic"), [("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_figure_becomes_a_file_of_its_suffix_the_same_each_time(command, run_file, tmp_path, suffix, magic):
    before = dict(mpl.rcParams)
    out = tmp_path / f"figure.{suffix}"
    code, results, messages = command("5", run_file, "--out", out, "--layer", "0", "--reference", "none")
    assert (code, results.strip(), messages) == (0, str(out), "")
    first = out.read_bytes()
    assert first.startswith(magic)
    assert command("5", run_file, "--out", out, "--layer", "0", "--reference", "none", "--overwrite")[0] == 0
    assert out.read_bytes() == first
    assert dict(mpl.rcParams) == before
    assert not list(tmp_path.glob(".*part"))


def test_what_is_there_is_not_replaced_unasked(command, run_file, tmp_path):
    out = tmp_path / "a.png"
    out.write_text("mine")
    code, _, messages = command("spectrum", run_file, "--layer", "0", "--out", out)
    assert code == 2
    assert "exists already" in messages
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["7", "run.h5", "--out", "a.png"], "there is no figure '7'"),
        (["spectrm", "run.h5", "--out", "a.png"], "did you mean 'spectrum'"),
        (["5", "run.h5", "--out", "a.gif"], "unknown suffix '.gif'"),
        (["5", "run.h5", "--out", "nowhere/a.png"], "there is no folder"),
        (["5", "none.h5", "--out", "a.png"], "none.h5"),
        (["4", "run.h5", "--out", "a.png"], "is not JSON"),
        (["spectrum", "run.h5", "run.h5", "--out", "a.png"], "got 2 paths, expected one"),
        (
            ["spectrum", "run.h5", "--layer", "0", "--layer", "2", "--out", "a.png"],
            "--layer was given 2 times",
        ),
        (["table-2", "run.h5", "--layer", "0", "--out", "a.png"], "--layer does not go with figure table-2"),
        (["spectrum", "run.h5", "--out", "a.png"], "spectra of 2 layers; choose one"),
        (["jacobian", "run.h5", "--out", "a.png"], "has no Jacobian"),
        (["3", "run.h5", "--out", "a.png"], "no run starts at the partial identity"),
        (["2", "run.h5", "--out", "a.png"], "record them with hooks.Recorder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(command, run_file, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    code, results, messages = command(*words)
    assert (code, results) == (2, "")
    assert sentence in " ".join(messages.split())
    assert "Traceback" not in messages
    assert not (tmp_path / "a.png").exists()


def test_every_figure_of_the_command_is_drawn(command, run_file, tmp_path):
    assert set(cli_figure.FIGURES) == set(cli_figure._DRAW)
    rows = [
        {"label": f"{name}-{at}", "title": name, "at": at, "values": [at], "seeds": [0], "diverged": [], "paper": None}
        for name in ("ZerO", "Fixup") for at in (2, 4)
    ]  # fmt: skip
    swept, plain = tmp_path / "swept", tmp_path / "plain"
    for folder, of in ((swept, rows), (plain, [{**row, "at": None} for row in rows[::2]])):
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps({"rows": of, "trainings": {}}))
    for which, source, *more in (
        ("4", swept), ("table-4", swept), ("table-2", plain), ("table-3", plain),
        ("staircase", run_file, "--layer", "0"), ("spectrum", run_file, "--layer", "0"),
        ("5", tmp_path, "--metric", "stable_rank"),
    ):  # fmt: skip
        out = tmp_path / f"{which}.svg"
        code, _, messages = command(which, source, "--out", out, *more)
        assert (code, messages) == (0, "")
        assert out.stat().st_size > 1000
