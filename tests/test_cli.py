"""The command line, as a process of its own."""

import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from torch import nn
from typer.testing import CliRunner

import zanalysis.cli
from hooks import RankTracker, every
from zanalysis.errors import InputError, ZAnalysisError
from zanalysis.experiments import theorem1
from zanalysis.runfile.reader import open_run


def zanalysis_command(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "zanalysis.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment},
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("theorem1")
    result = zanalysis_command(
        "verify", "theorem1", "--scale", "smoke", "--width", 64, "--width", 128, "--out", out
    )
    return out, result


def test_theorem1_leaves_runs_figure_and_verdicts(smoke):
    out, result = smoke
    assert result.returncode == 0, result.stderr
    runs = {"identity-64.h5", "identity-128.h5", "random-128.h5", "hadamard-128.h5"}
    runs |= {"hadamard-float64-64.h5", "hadamard-float64-128.h5"}
    assert {path.name for path in out.iterdir()} == runs | {"figure_3.png", "verdict.json"}
    verdicts = {row["claim"]: row for row in json.loads((out / "verdict.json").read_text())}
    assert {claim: row["verdict"] for claim, row in verdicts.items()} == dict.fromkeys(verdicts, "holds")
    assert (verdicts["(ii)"]["bound"], verdicts["(ii)"]["measured"]) == (64, 61)
    assert verdicts["second cap"]["bound"] == 74 >= verdicts["second cap"]["measured"]
    assert verdicts["(iii)"]["measured"] > 64
    assert (out / "figure_3.png").read_bytes().startswith(b"\x89PNG")
    for word in ("claim", "prediction", "measured", "verdict", "second cap", "61 (≤ 64)"):
        assert word in result.stdout
    assert "hadamard-float64 128" in result.stderr  # the bar of each network


def test_info_says_what_a_file_holds(smoke):
    out, _ = smoke
    result = zanalysis_command("info", out / "identity-64.h5")
    assert result.returncode == 0
    for word in (
        "Sequential",
        "SGD",
        "every(50)",
        "support_rows",
        "span_dimension/phi1",
        "W2",
        "64×64",
        "identity",
    ):
        assert word in result.stdout


def test_info_shows_names_from_a_file_inert(tmp_path):
    path = tmp_path / "run.h5"
    model = nn.Sequential()
    model.add_module("fc\x1b[31m[red]", nn.Linear(4, 4))
    RankTracker(model, path=path).close()
    result = zanalysis_command("info", path)
    assert result.returncode == 0
    assert "\x1b" not in result.stdout + result.stderr
    assert r"fc\x1b[31m[red]" in result.stdout


@pytest.mark.parametrize(
    "attributes",
    [None, [1], {"layers": 5}, {"layers": [{"name": "a"}]}, {"optimizers": [{"type": 3}]}, {"model": 3}],
    ids=repr,
)
def test_info_of_a_run_whose_description_is_damaged(attributes, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.h5"
    RankTracker(nn.Linear(4, 4), path=path).close()
    with h5py.File(path, "r+") as file:
        del file["attributes"]
        file["attributes"] = np.frombuffer(json.dumps(attributes).encode(), np.uint8)
    assert in_process(["info", str(path)], monkeypatch, capsys)[0] == 2


def test_finished_runs_are_used_again_and_others_refused(smoke, tmp_path, monkeypatch, capsys):
    out, _ = smoke
    for path in out.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    trained = []
    words = ["verify", "theorem1", "--scale", "smoke", "--width", 64, "--width", 128, "--out", tmp_path]
    before = (tmp_path / "identity-64.h5").read_bytes()
    (tmp_path / "hadamard-128.h5").unlink()
    monkeypatch.setattr(theorem1, "train", lambda case, *_, **__: trained.append(case.filename) or fail())
    assert in_process([*words, "--seed", 1], monkeypatch, capsys)[0] == 2
    code, err = in_process(words, monkeypatch, capsys)
    assert (code, trained) == (130, ["hadamard-128.h5"])
    assert "reusing 5 finished runs" in err
    # What the interrupted training left, and what is of other settings, is not taken for finished.
    RankTracker(nn.Linear(2, 2), path=tmp_path / "hadamard-128.h5").close()
    code, err = in_process(words, monkeypatch, capsys)
    assert code == 2
    assert "hadamard-128.h5 exists already (its experiment is not recorded, not theorem1)" in " ".join(
        err.split()
    )
    assert (tmp_path / "identity-64.h5").read_bytes() == before


def fail():
    raise KeyboardInterrupt


def test_an_interruption_is_one_sentence_and_leaves_nothing_stale(tmp_path, monkeypatch, capsys):
    for name in ("verdict.json", "figure_3.png", "identity-64.h5"):
        (tmp_path / name).write_text("of an earlier verification")
    batches = theorem1._batches
    monkeypatch.setattr(
        theorem1, "_batches", lambda *given: (b if i < 60 else fail() for i, b in enumerate(batches(*given)))
    )
    words = ["verify", "theorem1", "--scale", "smoke", "--width", 64, "--out", tmp_path, "--quiet"]
    code, err = in_process([*words, "--overwrite"], monkeypatch, capsys)
    assert code == 130
    assert "interrupted; the run files in" in err
    assert [path.name for path in tmp_path.iterdir()] == ["identity-64.h5"]
    assert open_run(tmp_path / "identity-64.h5").steps.tolist() == [0, 50]
    code, err = in_process(words, monkeypatch, capsys)
    assert code == 2
    assert "identity-64.h5 exists already (it is not complete)" in " ".join(err.split())


@pytest.mark.parametrize("name", ["verdict.json", "figure_3.png", "identity-64.h5"])
def test_folders_in_the_way_are_found_before_training(name, tmp_path, monkeypatch, capsys):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(theorem1, "train", fail)
    words = ["verify", "theorem1", "--width", 64, "--out", tmp_path, "--overwrite"]
    code, err = in_process(words, monkeypatch, capsys)
    assert code == 2
    assert f"{name} is a folder" in " ".join(err.split())


def test_a_terminal_without_unicode_gets_question_marks(smoke):
    out, _ = smoke
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": ""}
    words = ["verify", "theorem1", "--scale", "smoke", "--width", 64, "--width", 128, "--out", out]
    result = zanalysis_command(*words, **plain)
    assert result.returncode == 0, result.stderr
    assert "reusing 6 finished runs" in result.stderr
    assert "61 (? 64)" in result.stdout
    assert "α" in (out / "verdict.json").read_text(encoding="utf-8")
    result = zanalysis_command("info", out / "identity-64.h5", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "64?64" in result.stdout


def test_a_closed_pipe_is_exit_code_1_without_a_word(smoke):
    out, _ = smoke
    command = [sys.executable, "-m", "zanalysis.cli", "info", str(out / "identity-64.h5")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


def test_version():
    result = CliRunner().invoke(zanalysis.cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"zanalysis {zanalysis.__version__}\n")


def in_process(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["zanalysis", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        zanalysis.cli.main()
    return left.value.code, capsys.readouterr().err


BAD = {
    "unknown data": (["verify", "theorem1", "--data", "mnits"], "did you mean 'mnist'"),
    "unknown scale": (["verify", "theorem1", "--scale", "smal"], "did you mean 'small'"),
    "unknown network": (["verify", "theorem1", "--network", "cnn"], "expected 'paper' or 'notebook'"),
    "width of one": (["verify", "theorem1", "--width", 1], "expected a whole number, 2 or more"),
    "no such device": (["verify", "theorem1", "--device", "quantum"], "cannot be used here"),
    "seed out of range": (["verify", "theorem1", "--seed", 2**70], "expected a whole number from 0 to"),
    "negative seed": (["verify", "theorem1", "--seed", -1], "expected a whole number from 0 to"),
    "no memory": (["verify", "theorem1", "--width", 10**6], "does not fit into the memory of cpu"),
    "no memory at all": (["verify", "theorem1", "--width", 10**12], "does not fit into the memory of cpu"),
    "no mps": (["verify", "theorem1", "--device", "mps"], "cannot be used here"),
    "missing data": (["verify", "theorem1", "--data", "mnist", "--data-dir", "nowhere"], "put train-images"),
    "out is a file": (["verify", "theorem1", "--out", "{file}"], "cannot make the folder"),
    "missing run": (["info", "nowhere.h5"], "does not exist"),
    "text": (["info", "{file}"], "is not an HDF5 file"),
    "foreign": (["info", "{foreign}"], "is an HDF5 file, but no run file"),
    "folder": (["info", "{folder}"], "is a folder"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_is_one_sentence_and_exit_code_2(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("hello, this is text\n")
    with h5py.File(tmp_path / "foreign", "w") as file:
        file["a"] = 1
    places = {"file": tmp_path / "file", "foreign": tmp_path / "foreign", "folder": tmp_path}
    words, says = BAD[name]
    monkeypatch.chdir(tmp_path)
    code, err = in_process([str(word).format(**places) for word in words], monkeypatch, capsys)
    assert code == 2
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert len(err) < 400 or "put train-images" in err
    assert not (tmp_path / "runs").exists()


def test_a_violated_verdict_is_exit_code_3(tmp_path, monkeypatch):
    from zanalysis.verify import exact_cases
    from zanalysis.verify.verdict import Verdict

    broken = Verdict("Lemma 1", "violated", 1, 2, "fabricated")
    monkeypatch.setattr(exact_cases, "lemma_1", lambda: broken)
    words = [
        "verify",
        "theorem1",
        "--scale",
        "smoke",
        "--width",
        "64",
        "--out",
        str(tmp_path / "o"),
        "--json",
        "--quiet",
    ]
    result = CliRunner().invoke(zanalysis.cli.app, words)
    assert result.exit_code == 3
    rows = json.loads(result.stdout)
    assert next(row for row in rows if row["claim"] == "Lemma 1")["why"] == "fabricated"


def test_help_has_an_example():
    result = CliRunner().invoke(zanalysis.cli.app, ["verify", "theorem1", "--help"])
    assert "Example: zanalysis verify theorem1" in " ".join(result.stdout.split())


def test_errors_are_of_one_family():
    with pytest.raises(InputError, match="expected a whole number, 1 or more"):
        every(0)
    assert issubclass(InputError, ZAnalysisError)
