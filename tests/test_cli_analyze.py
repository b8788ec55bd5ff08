"""`zanalysis analyze`, `compare` and `export`, as a user meets them."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import zanalysis as za
from hooks import RankTracker
from zanalysis import cli, cli_offline
from zanalysis.analyzers.metrics import JACOBIAN, KNOWN, OF_GRADIENTS, SPAN
from zanalysis.sweep.saving import as_records


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process; return exit code, results and messages."""
    monkeypatch.setenv("COLUMNS", "150")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["zanalysis", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    W = torch.diag(torch.arange(1.0, 6.0))
    for step in (0, 5, 10):
        state = {"fc.weight": W + step * torch.ones(5, 5), "dead.weight": torch.zeros(4, 3)}
        torch.save(state, folder / f"step-{step}.pt")
    return folder


def test_one_checkpoint_is_a_table_of_its_layers(command, checkpoints):
    code, results, messages = command("analyze", checkpoints / "step-5.pt", "--metrics", "rank,support")
    assert code == 0
    rows = [line.split() for line in results.splitlines() if line.strip() and "─" not in line]
    assert rows == [
        ["layer", "rank", "support_columns", "support_rows"],
        ["dead", "0", "(zero)", "0", "(zero)", "0", "(zero)"],
        ["fc", "5", "5", "5"],
    ]
    assert "Traceback" not in messages


def test_a_folder_is_a_trajectory(command, checkpoints):
    code, results, _ = command(
        "analyze", checkpoints, "--reference", "init", "--layers", "fc", "--metrics", "rank"
    )
    assert code == 0
    rows = [line.split() for line in results.splitlines() if "step-" in line]
    assert [(row[1], row[3]) for row in rows] == [("0", "0"), ("5", "1"), ("10", "1")]
    assert "rank − init" in results


def test_results_are_json_and_messages_are_not_among_them(command, checkpoints):
    code, results, _ = command("analyze", checkpoints, "--json", "--reference", "none", "--reference", "init")
    assert code == 0
    table = za.analyze(checkpoints, reference=[None, "init"])
    assert json.loads(results) == as_records(table)
    assert command("analyze", checkpoints, "--json", "--quiet")[2] == ""


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_out_is_written_by_its_suffix_and_not_twice(command, checkpoints, tmp_path, suffix):
    out = tmp_path / f"table.{suffix}"
    words = ["analyze", checkpoints, "--metrics", "rank", "--out", out]
    code, results, messages = command(*words)
    assert (code, results) == (0, "")
    assert "6 rows are in" in messages
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[suffix]
    assert len(read(out)) == 6
    code, _, messages = command(*words)
    assert code == 2
    assert "exists already" in " ".join(messages.split())
    assert command(*words, "--overwrite")[0] == 0


def test_parquet_without_pyarrow_is_one_sentence(command, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, messages = command("analyze", checkpoints, "--out", tmp_path / "t.parquet")
    assert code == 2
    assert "pip install 'zanalysis[parquet]'" in " ".join(messages.split())


def test_tolerance_view_and_split_reach_the_library(command, checkpoints):
    code, results, _ = command(
        "analyze", checkpoints / "step-0.pt", "--tolerance", "default", "--tolerance", "2.5", "--layers", "fc",
        "--metrics", "rank", "--split", "fc=5x", "--json",
    )  # fmt: skip
    assert code == 2
    code, results, _ = command(
        "analyze", checkpoints / "step-0.pt", "--tolerance", "default", "--tolerance", "2.5", "--layers", "fc",
        "--metrics", "rank", "--view", "in", "--json", "--quiet",
    )  # fmt: skip
    assert code == 0
    assert [(row["tolerance_rule"], row["value"]) for row in json.loads(results)] == [
        ("2.5", 3.0),
        ("default", 5.0),
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("*.in_proj_weight=qkv", ("*.in_proj_weight", {"parts": "qkv"})),
        ("*.experts=8", ("*.experts", {"parts": 8})),
        ("*.c_attn=qkv,heads=12,dim=1", ("*.c_attn", {"parts": "qkv", "heads": 12, "dim": 1})),
        ("encoder.*=kernel", ("encoder.*", "kernel")),
    ],
)
def test_splits_are_read_as_written(given, expected):
    assert cli_offline._split(given) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["analyze", "no-such.pt"], "no-such.pt does not exist"),
        (["analyze", "{}", "--metrics", "rnak"], "did you mean 'rank'"),
        (["analyze", "{}", "--view", "side"], "unknown view 'side'"),
        (["analyze", "{}", "--tolerance", "loose"], "unknown tolerance 'loose'"),
        (["analyze", "{}", "--layers", "conv*"], "no layer matches 'conv*'"),
        (["analyze", "{}", "--split", "fc"], "expected GLOB=HOW"),
        (["analyze", "{}", "--split", "fc=qkv,heads=x"], "expected heads=12 or dim=1"),
        (["analyze", "{}", "--curves", "pruning"], "--model and --curves go together"),
        (["analyze", "{}", "--model", "a:b", "--curves", "pruning", "--sparsities", "x"], "expected numbers"),
        (["analyze", "{}", "--out", "t.txt"], "unknown suffix '.txt'"),
        (["compare", "{}", "{}"], "two different checkpoints"),
        (["export", "{}"], "HDF5"),
        (["export", "{}", "--to", "xlsx"], "unknown format 'xlsx'"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(command, checkpoints, words, message):
    code, results, messages = command(*(word.format(checkpoints / "step-0.pt") for word in words))
    assert code == 2
    assert results == ""
    assert messages.startswith("zanalysis: ")
    assert message in " ".join(messages.split())
    assert "Traceback" not in messages


def test_unreadable_among_others_is_said_last_and_code_2(command, checkpoints):
    (checkpoints / "step-7.pt").write_bytes(b"PK\3\4 nothing")
    code, results, messages = command("analyze", checkpoints, "--metrics", "rank")
    assert code == 2
    assert results.count("step-") == 7
    assert "1 checkpoint could not be read" in " ".join(messages.split())


def test_interrupted_without_out_shows_what_there_is(command, checkpoints, monkeypatch):
    from zanalysis.sweep import work

    real, done = work.measure, []

    def measure(unit):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(unit)
        return real(unit)

    monkeypatch.setattr(work, "measure", measure)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    code, results, messages = command("analyze", checkpoints, "--metrics", "rank")
    torch.set_num_threads(before)
    assert code == 130
    assert results.count("step-") == 3
    assert "interrupted" in messages


def test_interrupted_before_the_start_promises_no_file(command, checkpoints, tmp_path, monkeypatch):
    from zanalysis.sweep.analysis import Analysis

    def run(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(Analysis, "run", run)
    code, _, messages = command("analyze", checkpoints, "--out", tmp_path / "table.csv")
    assert code == 130
    assert ".part" not in messages


def test_compare_shows_both_and_the_change(command, checkpoints):
    code, results, _ = command(
        "compare", checkpoints / "step-0.pt", checkpoints / "step-5.pt", "--layers", "fc"
    )
    assert code == 0
    rows = [line.split() for line in results.splitlines()]
    assert ["fc", "rank", "5", "5", "1"] in rows
    assert "step-0.pt" in results
    assert "b − a" in results


def test_curves_of_a_users_module(command, checkpoints, tmp_path, monkeypatch):
    (tmp_path / "cli_nets.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    model = nn.ModuleDict({'fc': nn.Linear(5, 5, bias=False), 'dead': nn.Linear(3, 4, bias=False)})\n"
        "    return model, lambda m: m['fc'].weight.sum().item()\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--model", "cli_nets:build", "--curves", "pruning", "--sparsities", "0,0.8", "--json", "-q"]
    code, results, messages = command("analyze", checkpoints / "step-0.pt", *words)
    assert code == 0, messages
    assert [(row["sparsity"], row["score"]) for row in json.loads(results)] == [(0.0, 15.0), (0.8, 15.0)]
    words = [*words[:-2], "--layers", "fc", "--fractions", "0.4"]
    words[3] = "pruning,tucker"
    code, results, _ = command("analyze", checkpoints / "step-0.pt", *words)
    assert code == 0
    assert "tucker" in results
    assert "rank_out" in results


def test_export_writes_every_table_of_a_run(command, tmp_path):
    model = nn.Linear(5, 4)
    with RankTracker(model, path=tmp_path / "run.h5", metrics=("rank", "singular_values")) as tracker:
        tracker.log(loss=1.5)
    run = za.open_run(tmp_path / "run.h5")
    names = ["events", "logged", "overhead", "scalars", "spectra"]
    code, results, messages = command(
        "export", tmp_path / "run.h5", "--to", "parquet", "--out", tmp_path / "tables"
    )
    assert code == 0, messages
    assert [line.rpartition("/")[2] for line in sorted(results.split())] == [
        f"run-{n}.parquet" for n in names
    ]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tables" / "run-scalars.parquet"), run.table())
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tables" / "run-logged.parquet"), run.logged())
    spectra = pd.read_parquet(tmp_path / "tables" / "run-spectra.parquet")
    assert spectra["value"].dropna().tolist() == run.spectra("weight").values[0][:4].tolist()
    assert command("export", tmp_path / "run.h5")[0] == 0
    assert pd.read_csv(tmp_path / "run-logged.csv")["loss"].tolist() == [1.5]
    code, _, messages = command("export", tmp_path / "run.h5")
    assert code == 2
    assert "exists already" in " ".join(messages.split())
    assert command("export", tmp_path / "run.h5", "--overwrite")[0] == 0


def test_tab_completes_metrics_and_the_list_is_the_librarys():
    assert set(cli_offline.METRICS) == set(KNOWN) - {OF_GRADIENTS, SPAN, JACOBIAN}
    complete = cli_offline._completing(cli_offline.METRICS)
    assert complete("rank,stab") == ["rank,stable_rank"]
    assert "rank_margin" in complete("ra")


@pytest.mark.parametrize("name", ["analyze", "compare", "export"])
def test_help_has_an_example(name):
    result = CliRunner().invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0
    assert f"zanalysis {name}" in result.stdout


def test_a_process_of_its_own_shows_a_bar_and_no_torch_for_help(checkpoints):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "FORCE_COLOR": "1"}
    words = [sys.executable, "-m", "zanalysis.cli", "analyze", str(checkpoints), "--json"]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0
    assert "measuring layers" in result.stderr
    assert len(json.loads(result.stdout)) == 12
    code = "import sys, zanalysis.cli; print('torch' in sys.modules, 'pandas' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["False", "False"]
