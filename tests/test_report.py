"""The report: what the page holds is what was recorded, and nothing in a file acts on it."""

import base64
import functools
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from report_runs import EVIL, hostile_run, small_run
from torch import nn

import zanalysis as za
import zanalysis.cli as cli
from hooks import RankTracker, every
from zanalysis.errors import InputError, RunFileError
from zanalysis.experiments.data import load
from zanalysis.experiments.theorem1 import Case, Training, train
from zanalysis.reporting import (
    facts,
    gathering,
    meanings,
    notices,
    payload,
    rendering,
    text,
    thinning,
    verdicts,
)
from zanalysis.runfile import RunWriter, Series, SpectrumKey
from zanalysis.runfile.tables import COLUMNS
from zanalysis.verify import exact_cases
from zanalysis.verify.verdict import Verdict


def made(run, folder, name="report.html"):
    return za.report(run, folder / name, overwrite=True).read_text(encoding="utf-8")


def unpacked(html, island="data"):
    packed = re.search(rf'id="{island}">([^<]*)<', html)[1]
    return gzip.decompress(base64.b64decode(packed)).decode()


def data_of(html):
    return json.loads(unpacked(html))


def words(html):
    """Return what a reader reads: the text without the scripts and styles."""

    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found, self.skip = [], False

        def handle_starttag(self, tag, attrs):
            self.skip = tag in ("script", "style")

        def handle_endtag(self, tag):
            self.skip = False

        def handle_data(self, data):
            if not self.skip:
                self.found.append(data)

    reader = Reader()
    reader.feed(html)
    return " ".join(" ".join(reader.found).split())


@pytest.fixture(autouse=True, scope="module")
def _computed_once():
    """Compute what is the same beside any run once: it takes most of the time that a page takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_cases, "perturbed_identities", functools.cache(exact_cases.perturbed_identities))
        yield


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "identity-80.h5"
    return train(Case("identity", 80), Training(load("digits"), scale="smoke"), path)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "cnn.h5")


def test_every_number_of_a_short_run_is_drawn(cnn, tmp_path):
    run = za.open_run(cnn)
    data = data_of(made(run, tmp_path))
    table = run.table()
    assert data["steps"] == run.steps.tolist()
    assert len(data["series"]) == len(run.series)
    for drawn, key in zip(data["series"], run.series, strict=True):
        rows = table[(table[list(key._fields)] == list(key)).all(axis=1)]
        assert data["layers"][drawn["l"]] == key.layer
        assert data["kinds"][drawn["k"]]["metric"] == key.metric
        assert drawn["exact"] is True
        value = np.array([math.nan if y is None else y for y in drawn["y"]])
        np.testing.assert_allclose(value, rows["value"], rtol=1e-5)
        finite = rows["value"].dropna()
        assert drawn["max"][1] == pytest.approx(finite.max(), rel=1e-5)
        assert drawn["max"][0] == rows["step"][finite.idxmax()]
    spectra = run.spectra("0", reference="init")
    drawn = next(one for one in data["spectra"] if one["reference"] == "minus init" and one["l"] == 0)
    np.testing.assert_allclose(np.array(drawn["z"], float).T, spectra.values[:, : len(drawn["z"])], rtol=1e-3)
    loss = next(line for line in data["logged"] if line["name"] == "loss")
    np.testing.assert_allclose(loss["y"], run.logged()["loss"].dropna(), rtol=1e-5)


def test_the_summary_says_what_was_trained(cnn, tmp_path):
    said = words(made(cnn, tmp_path))
    for fact in (
        "Sequential",
        "SGD (lr 0.1)",
        "every(2)",
        "rank, stable_rank",
        "minus init",
        f"torch {torch.__version__}",
    ):
        assert fact in said
    assert "11 steps, 0 to 20" in said
    assert "Warnings (0)" in said  # no row repeats another, no number is missing
    assert '"torch_seed"' in said  # the settings, as recorded


def test_bounds_are_those_of_the_shape_or_of_the_theorem(perceptron, cnn, tmp_path):
    data = data_of(made(perceptron, tmp_path))
    bounds = {
        (data["layers"][s["l"]], data["kinds"][s["k"]]["metric"], data["combos"][s["c"]]): s["bound"]
        for s in data["series"]
    }
    combo = "minus identity, τ default"
    assert bounds["W2", "rank", combo] == [64, "N_x by Theorem 1 (ii)"]
    assert bounds["W1", "rank", combo] == [64, "min(m, n)"]
    assert bounds["W2", "support_rows", "minus identity"] == [64, "N_x by Theorem 1 (ii)"]
    assert bounds["W3", "support_columns", "minus identity"] == [80, "columns n"]
    assert bounds["W2", "stable_rank", "minus identity"] == [80, "min(m, n)"]
    assert bounds["W2", "identity_scale", "minus identity"] is None
    convolution = next(s for s in data_of(made(cnn, tmp_path))["series"])
    assert convolution["bound"] == [4, "min(m, n)"]  # of 4 × 1·3·3


def test_a_theorem_bounds_only_what_it_is_about(tmp_path):
    series = [
        Series("W2", tensor, reference, rule, metric)
        for tensor, reference, rule, metric in (
            ("weight", "identity", "default", "rank"),
            ("weight", "none", "default", "rank"),
            ("weight", "identity", "none", "stable_rank"),
            ("gradient", "identity", "default", "rank"),
        )
    ]
    run_with(tmp_path / "a.h5", series, [[1, 1, 1, 1]])
    found = payload.bounds(gathering.gather(tmp_path / "a.h5"), {"W2": (90, 80)}, (("W2", 64, "N_x"),))
    assert found == [(64, "N_x"), (80, "min(m, n)"), (80, "min(m, n)"), (80, "min(m, n)")]
    wide = payload.bounds(gathering.gather(tmp_path / "a.h5"), {"W2": (9, 8)}, (("W2", 64, "N_x"),))
    assert wide[0] == (8, "min(m, n)")


def test_shapes_follow_the_view():
    layers = [
        {"name": "conv", "matrices": ["conv"], "shape": [8, 4, 3, 3]},
        {"name": "experts", "matrices": ["experts[0]", "experts[1]"], "shape": [2, 5, 7]},
        {"name": "fc", "matrices": ["fc"], "shape": [6, 9]},
        {"name": "odd", "shape": ["<b>", 3]},
        "nonsense",
    ]
    out = meanings.shapes_of({"view": "out", "layers": layers})
    assert out == {"conv": (8, 36), "experts[0]": (5, 7), "experts[1]": (5, 7), "fc": (6, 9)}
    assert meanings.shapes_of({"view": "in", "layers": layers})["conv"] == (4, 72)
    assert meanings.shapes_of({"view": "mine", "layers": layers}) == {}
    assert meanings.shapes_of({"layers": 3}) == {}
    assert meanings.bound_of("rank", "activation", (3, 4)) is None


def test_verdicts_on_the_run_stand_apart_from_mathematics(perceptron, cnn, tmp_path):
    said = words(made(perceptron, tmp_path))
    before, after = said.split("Checked anew, without this run")
    assert "holds (ii)" in before
    assert "is exactly zero outside" in before
    assert "predicted ≤ 64" in before
    assert "predicted = 4" in after  # Lemma 2
    assert "Lemma 2" in after
    assert "Lemma 2" not in before
    said = words(made(cnn, tmp_path))
    before = said.split("Checked anew")[0]
    assert "holds" not in before  # nothing of the theorem is about a convolutional network
    assert "not recorded as a perceptron" in before


def test_every_verifier_appears_and_one_that_fails_is_named(cnn, tmp_path, monkeypatch):
    assert "inconclusive greedy low-rank learning" in words(made(cnn, tmp_path))  # at 11 steps
    monkeypatch.setattr(
        verdicts, "verify_glrl", lambda run: Verdict("low rank", "violated", 3, 4, "it <grows>")
    )

    def broken(run):
        raise KeyError("shape")

    monkeypatch.setattr(verdicts, "verify_theorem1", broken)
    html = made(cnn, tmp_path)
    assert "violated low rank" in words(html)
    assert "it &lt;grows&gt;" in html
    assert "Theorem 1 could not be judged: KeyError" in words(html)


def run_with(path, series, rows, status=None, attributes=None, close=True, **more):
    writer = RunWriter(path, series, attributes=attributes or {}, **more)
    for i, row in enumerate(rows):
        codes = np.zeros(len(series), np.uint8) if status is None else np.array(status[i], np.uint8)
        writer.append(i * 10, np.array(row, float), np.full(len(series), np.nan), codes, np.empty((0, 0)))
    if close:
        writer.close()
    else:
        writer.flush()
    return writer


def test_warnings(tmp_path):
    series = [
        Series("dead", "weight", "none", "default", "rank"),
        Series("stuck", "weight", "init", "default", "rank"),
        Series("broken", "weight", "none", "none", "stable_rank"),
        Series("tied", "weight", "none", "none", "distinct_rows"),
    ]
    nan = math.nan
    rows = [[3, 0, 1, 4], [3, 0, nan, 4], [0, 0, nan, 4]]
    status = [[0, 2, 0, 0], [0, 2, 1, 0], [2, 2, 1, 0]]
    layers = [{"name": "tied", "matrices": ["tied"], "shape": [6, 9]}]
    attributes = {"layers": layers, "resumed": [{"start": 20}]}
    writer = run_with(tmp_path / "a.h5", series, rows, status, attributes, close=False)
    writer.event(10, "dropped", "7 records were dropped")
    writer.log(10, "loss", math.inf)
    writer.flush()
    said = words(made(tmp_path / "a.h5", tmp_path))
    writer.close()
    assert "unfinished The file was not closed" in said
    assert "dead dead The weight is all zero since step 20" in said
    assert "dead stuck The layer has not moved from its initial weights at any recorded step" in said
    assert "nonfinite broken No number at 2 of 3 recorded steps, 10 to 20 for stable_rank" in said
    assert "tied tied Only 4 of 6 rows are distinct at step 20: 2 neurons repeat others" in said
    assert "dropped Step 10: 7 records were dropped" in said
    assert "The run was resumed at step 20" in said
    assert "The logged scalar loss is infinite once" in said
    assert "Warnings (8)" in said
    assert "unfinished" not in words(made(tmp_path / "a.h5", tmp_path))  # closed by now


def test_a_gap_has_its_reason(tmp_path):
    series = [Series("a", "weight", "none", "none", "stable_rank")]
    nan = math.nan
    run_with(tmp_path / "a.h5", series, [[1], [nan], [nan], [2], [nan]], [[0], [1], [2], [0], [12]])
    (line,) = data_of(made(tmp_path / "a.h5", tmp_path))["series"]
    assert line["y"] == [1, None, None, 2, None]
    assert line["gaps"] == [[10, 10, 1, "nonfinite"], [20, 20, 1, "zero"], [40, 40, 1, "error"]]


@pytest.mark.parametrize("kind", ["walk", "counts", "spikes"])
def test_thinning_loses_no_extreme_and_no_gap(kind):
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 9, 20_000))
    value = np.cumsum(rng.normal(size=(20_000, 3)), axis=0)
    if kind == "counts":
        value = np.round(value / 40)
    if kind == "spikes":
        value = np.where(rng.random(value.shape) < 1e-3, 1e6, 0.0)
    value[5000:5003, 0] = np.nan
    value[7000, 1] = np.inf
    limit = 1000
    for s, (rows, exact, _) in enumerate(thinning.thinned(steps, value, limit)):
        one = np.where(np.isfinite(value[:, s]), value[:, s], np.nan)
        kept = one[rows]
        assert len(rows) <= limit
        assert (np.diff(rows) > 0).all()
        assert {rows[0], rows[-1]} == {0, len(steps) - 1}
        if exact:
            drawn = np.interp(steps, steps[rows], np.nan_to_num(kept, nan=-1))
            np.testing.assert_allclose(drawn, np.nan_to_num(one, nan=-1), atol=1e-9)
        edges = np.linspace(steps[0], steps[-1], limit // 5 + 1)
        for low, high in itertools.pairwise(edges):
            inside = (steps >= low) & (steps < high)
            there = inside[rows]
            if not exact:
                assert np.nanmax(one[inside]) == np.nanmax(kept[there])
                assert np.nanmin(one[inside]) == np.nanmin(kept[there])
        assert np.isnan(one).any() == np.isnan(kept).any()
    assert {kind != "walk"} == {exact for _, exact, _ in thinning.thinned(steps, value, limit)[2:]}


def test_gaps_are_merged_where_they_are_many():
    steps = np.arange(5000)
    value = np.where(steps % 2, np.nan, 1.0)
    found = thinning.gaps(steps, value, np.ones(5000, np.uint8))
    assert len(found) == 200
    assert sum(gap.records for gap in found) == 2500


def test_a_long_run_says_that_it_is_thinned(tmp_path):
    series = [Series("a", "weight", "none", "none", "stable_rank")]
    rng = np.random.default_rng(0)
    value = rng.normal(size=5000)
    value[3210] = 99
    run_with(tmp_path / "a.h5", series, value[:, None])
    html = made(tmp_path / "a.h5", tmp_path)
    (line,) = data_of(html)["series"]
    assert line["exact"] is False
    assert line["n"] == 5000
    assert len(line["y"]) <= 2000
    assert line["max"] == [32100, 99]
    assert 99 in line["y"]
    assert 32100 in line["x"]
    said = (
        "1 of 1 lines are drawn from fewer points than were recorded: the steps are parted into 400 buckets"
    )
    assert said in words(html)


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_names_from_a_file_stay_text(tmp_path):
    html = made(hostile_run(tmp_path / "hostile.h5"), tmp_path)
    tags = Tags(html).tags
    assert [tag for tag, _ in tags].count("script") == 3
    assert not {tag for tag, _ in tags} & {"img", "b2", "iframe", "object", "a2", "style2", "i"}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert not [a["href"] for tag, a in tags if tag == "a" and not a["href"].startswith("#")]
    for text_of_page in (html, json.dumps(data_of(html), ensure_ascii=False)):
        assert not re.search(
            "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", text_of_page
        )
    said = words(html)
    for name in ("<script>alert(1)</script>", r"fc\x1b[31mred", r"a\u202egnp.exe", "{{7*7}}"):
        assert name in said
    assert "49" not in re.findall(r"\b49\b", said)


def test_the_policy_allows_this_script_and_no_request(cnn, tmp_path):
    html = made(cnn, tmp_path)
    policy = next(
        a["content"] for tag, a in Tags(html).tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert "unsafe" not in rules["script-src"]
    own = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    for script in (own, unpacked(html, "drawing")):
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in rules["script-src"]
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", html)


def test_the_same_run_gives_the_same_page(cnn, tmp_path):
    assert made(cnn, tmp_path, "a.html") == made(cnn, tmp_path, "b.html")


def test_empty_runs_and_runs_of_one_kind_of_record(tmp_path):
    series = [Series("a", "weight", "none", "default", "rank")]
    run_with(tmp_path / "empty.h5", series, [])
    html = made(tmp_path / "empty.h5", tmp_path)
    assert "Nothing is recorded yet" in words(html)
    assert len(html) < 100_000
    run_with(tmp_path / "one.h5", series, [[3]])
    assert data_of(made(tmp_path / "one.h5", tmp_path))["series"][0]["last"] == [0, 3]
    writer = RunWriter(tmp_path / "spectra.h5", (), [SpectrumKey("a[0]", "gradient", "none")], k=3)
    writer.append(0, np.empty(0), np.empty(0), np.empty(0, np.uint8), np.array([[2, 1, np.nan]]))
    writer.close()
    data = data_of(made(tmp_path / "spectra.h5", tmp_path))
    assert data["series"] == []
    assert data["spectra"][0]["z"] == [[2], [1]]
    writer = RunWriter(tmp_path / "logged.h5", ())
    writer.log(3, "loss", 0.5)
    writer.close()
    data = data_of(made(tmp_path / "logged.h5", tmp_path))
    assert data["series"] == []
    assert data["logged"][0]["y"] == [0.5]


@pytest.mark.slow
def test_a_killed_run_is_shown_as_far_as_it_got(tmp_path):
    code = f"""
import os, torch
from hooks import RankTracker, every
model = torch.nn.Linear(6, 5)
tracker = RankTracker(model, path={str(tmp_path / "killed.h5")!r}, schedule=every(1), flush_seconds=0.001)
for step in range(200):
    tracker.step()
import time; time.sleep(0.3)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    html = made(tmp_path / "killed.h5", tmp_path)
    assert "The file was not closed" in words(html)
    assert data_of(html)["series"][0]["n"] > 1


def checkpoints(steps=(0, 10, 20)):
    return pd.DataFrame(
        [
            (f"c{i}.pt", step, layer, "weight", "none", "default", "rank", float(i + 2), 1e-5, "ok")
            for i, step in enumerate(steps)
            for layer in ("a", "NA")
        ],
        columns=["checkpoint", *COLUMNS],
    )


def test_a_table_of_checkpoints(tmp_path):
    table = checkpoints()
    data = data_of(made(table, tmp_path))
    assert data["axis"] == "step of the checkpoint"
    assert data["steps"] == [0, 10, 20]
    assert [s["y"] for s in data["series"]] == [[2, 3, 4]] * 2
    table.to_csv(tmp_path / "t.csv", index=False)
    assert data_of(made(tmp_path / "t.csv", tmp_path)) == data
    # A layer that one checkpoint lacks is a gap, not an invented number.
    data = data_of(made(table.drop(index=3), tmp_path))
    assert data["series"][1]["y"] == [2, None, 4]
    assert data["series"][1]["gaps"][0][3] == "not measured"
    html = made(checkpoints((5, 5, 5)), tmp_path)
    assert data_of(html)["axis"] == "number of the checkpoint"
    assert "Several checkpoints have the same step" in words(html)


def test_the_table_of_a_run_draws_the_same_lines(cnn, tmp_path):
    run = za.open_run(cnn)
    data, again = data_of(made(run, tmp_path)), data_of(made(run.table(), tmp_path))

    def named(data):
        return {
            (data["layers"][s["l"]], data["combos"][s["c"]], *data["kinds"][s["k"]].values()): s["y"]
            for s in data["series"]
        }

    assert named(data) == named(again)


def test_tables_that_are_none_are_refused(tmp_path):
    table = checkpoints()
    for bad, match in (
        (table.drop(columns=["status", "value"]), "the table lacks value, status"),
        (table.assign(value="much"), "must hold numbers"),
        (pd.concat([table, table]), "several values for the same step"),
        (
            table.assign(status=range(6)).loc[np.arange(300) % 6].assign(status=range(300)),
            "is it the right table",
        ),
        (None, "not of NoneType"),
    ):
        with pytest.raises(InputError, match=match):
            za.report(bad, tmp_path / "no.html")
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunFileError, match=r"cannot read .*bad\.csv"):
        za.report(tmp_path / "bad.csv", tmp_path / "no.html")
    with pytest.raises(RunFileError, match="cannot read"):
        za.report(tmp_path / "absent.csv", tmp_path / "no.html")
    assert not (tmp_path / "no.html").exists()


def test_a_page_is_not_overwritten_and_never_half_written(cnn, tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"report\.html exists already; pass overwrite=True"):
        za.report(cnn, out)
    assert out.read_text() == "mine"
    # Taken between the look and the writing.
    monkeypatch.setattr("zanalysis.reporting._free", lambda path, overwrite: path)
    with pytest.raises(InputError, match="exists already"):
        za.report(cnn, out)
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="is a folder"):
        za.report(cnn, tmp_path)
    with pytest.raises(InputError, match="does not exist; make it first"):
        za.report(cnn, tmp_path / "no" / "report.html")
    assert za.report(cnn, out, overwrite=True) == out
    assert out.read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("package", ["plotly.offline", "jinja2"])
def test_without_the_extra_one_sentence_says_so(package, cnn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    rendering._plotly.cache_clear()
    rendering._template.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'zanalysis\[report\]'"):
        za.report(cnn, tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_the_command(cnn, tmp_path, monkeypatch, capsys):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["zanalysis", "report", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return left.value.code, said.out.strip(), " ".join(said.err.split())

    out = tmp_path / "a.html"
    assert command(cnn, "--out", out) == (0, str(out), "")
    assert out.read_text().startswith("<!doctype html>")
    code, _, error = command(cnn, "--out", out)
    assert code == 2
    assert error.startswith("zanalysis: ")
    assert "exists already" in error
    assert command(cnn, "--out", out, "--overwrite")[0] == 0
    (tmp_path / "x.h5").write_text("no run at all")
    code, _, error = command(tmp_path / "x.h5", "--out", out, "--overwrite")
    assert code == 2
    assert error.endswith("is not an HDF5 file; pass the path given to RankTracker.")


def test_a_bar_appears_only_where_it_takes_long(capsys):
    with cli._bar_if_slow("quick", False, after=60) as watch:
        watch(1, 2)
    assert "quick" not in capsys.readouterr().err
    with cli._bar_if_slow("slow", False, after=0) as watch:
        time.sleep(0.1)
        watch(1, 2)
    assert "slow" in capsys.readouterr().err
    with cli._bar_if_slow("silent", True, after=0) as watch:
        time.sleep(0.1)
    assert "silent" not in capsys.readouterr().err


def test_text_is_made_visible():
    assert text.visible("a\nb\u2028c\ud800d") == r"a\nb\u2028c\ud800d"
    assert text.visible("Größe σ 模型 👍") == "Größe σ 模型 👍"
    assert all(char.isprintable() for char in map(text.visible, EVIL))
    assert text.settings({"a\u202e": "\x1b"}).count("\n") == 2
    assert "\u202e" not in text.settings({"a\u202e": "\x1b"})


def test_a_run_that_was_tracked_live_is_the_models(tmp_path):
    # Several references and rules, a user's own metric, a batch of matrices.
    def own(matrix):
        return matrix.abs().max()

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.bank = nn.Parameter(torch.randn(2, 4, 5))

    tracker = RankTracker(
        Experts(), path=tmp_path / "a.h5", schedule=every(1), metrics=("rank", own),
        reference=[None, "init"], tolerance=["default", 0.1],
    )  # fmt: skip
    tracker.step()
    tracker.close()
    data = data_of(made(tmp_path / "a.h5", tmp_path))
    assert data["layers"] == ["bank[0]", "bank[1]"]
    assert {"no reference, τ default", "no reference, τ 0.1", "minus init, τ 0.1"} <= set(data["combos"])
    assert {kind["metric"] for kind in data["kinds"]} == {"rank", "own"}
    assert data["series"][0]["bound"] == [4, "min(m, n)"]


def test_that_a_recording_begins_without_gradients_is_no_warning(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    with RankTracker(
        model, optimizer, tmp_path / "run.h5", schedule=every(1), tensors=("weight", "gradient"),
        metrics=("rank", "jacobian_singular_values"), probe=x,
    ):  # fmt: skip
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    record = gathering.gather(tmp_path / "run.h5")
    assert [notice.kind for notice in notices.notices(record, {})] == []
    assert dict(facts.summary(record))["layers"] == "2"
