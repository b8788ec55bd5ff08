"""The detector of greedy low-rank learning: its numbers, its verdicts on known answers and on run files."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn
from typer.testing import CliRunner

import zanalysis as za
from hooks import RankTracker, every, logspaced
from zanalysis.cli import app, main
from zanalysis.errors import InputError
from zanalysis.experiments.factorization import Factorization, target_of, train
from zanalysis.experiments.glrl_cases import KINDS, case_of
from zanalysis.runfile import RunWriter, Series, SpectrumKey
from zanalysis.verify.glrl import CLAIM
from zanalysis.verify.glrl_criteria import NECESSARY, gaussian_stable_rank
from zanalysis.verify.glrl_part import EVIDENCE, judge_spectrum
from zanalysis.verify.glrl_record import spectra_of
from zanalysis.verify.glrl_staircase import F, Pair, order_p_value, staircase_of
from zanalysis.verify.glrl_trajectory import Trajectory, trajectory_of

# The benchmarks are no part of what is installed.
_spec = importlib.util.spec_from_file_location(
    "glrl_benchmark", Path(__file__).parent.parent / "benchmarks/glrl.py"
)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

SLOW_KINDS = ("depth 2, minibatch noise",)
STEPS = np.arange(0, 400, 4)
MIDDLES, FINAL = (90, 190, 290), (3.0, 2.0, 1.0)


def stairs(middles=MIDDLES, final=FINAL, steps=STEPS, width=6.0, k=8):
    """Singular values that rise at these steps to these values, as logistic curves do."""
    values = np.zeros((len(steps), k))
    for i, (middle, value) in enumerate(zip(middles, final, strict=True)):
        values[:, i] = value * special.expit((steps - middle) / width)
    return -np.sort(-values, axis=1)


def judged(values, steps=STEPS, shape=(8, 8), **more):
    return judge_spectrum(steps, values, shape, **more)


def found(verdict, criterion, column="verdict"):
    rows = verdict.evidence[verdict.evidence["criterion"] == criterion]
    return rows[column].tolist() if len(rows) != 1 else rows[column].item()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SLOW_KINDS])
def test_each_kind_of_known_answer_is_judged_right(kind):
    case = case_of(kind, 0)
    verdict = judge_spectrum(
        case.steps, case.values, case.shape, reference=case.reference, clock=case.clock
    ).verdict
    assert verdict != "holds" if case.expected == "not" else verdict == case.expected


@pytest.mark.slow
def test_confusion_matrix_on_seeds_that_set_no_threshold():
    matrix = benchmark.confusion(first=1000, cases=8)
    assert sum(map(Counter.total, matrix.values())) >= 200
    assert benchmark.shortcomings(matrix) == []
    assert len(benchmark.table_of(matrix, "").rows) == len(KINDS) + 3


def test_shortcomings_are_named():
    right = {kind: Counter({"inconclusive" if e == "inconclusive" else "holds" if e == "holds" else "violated": 10})
             for kind, (_, e) in KINDS.items()}  # fmt: skip
    assert benchmark.shortcomings(right) == []
    assert "1 negatives hold" in benchmark.shortcomings(right | {"noise": Counter(holds=1, violated=9)})[0]
    assert (
        "positives hold; 95 %" in benchmark.shortcomings(right | {"exact solution": Counter(violated=10)})[0]
    )
    assert "cannot tell" in benchmark.shortcomings(right | {"dead": Counter(violated=1)})[0]


def test_a_staircase_holds_and_every_criterion_has_its_number():
    verdict = judged(stairs())
    assert (verdict.verdict, verdict.bound, verdict.measured) == ("holds", 3, 3)
    assert list(verdict.evidence.columns) == EVIDENCE
    assert {word for name in NECESSARY for word in [found(verdict, name)]} == {"holds"}
    # Half-way steps, to the distance between records.
    assert found(verdict, "emergence", "value") == pytest.approx(MIDDLES, abs=0.5)
    assert found(verdict, "emergence", "index") == [0, 1, 2]
    # A logistic curve is at 3/4 after ln 3 widths; what rises 100 steps later has come e^-(100 - 6 ln 3)/6 of its way.
    low = 1 / (1 + np.exp((100 - 6 * np.log(3)) / 6))
    assert found(verdict, "overlap", "value") == pytest.approx([low, low], abs=2e-6)
    assert found(verdict, "haste", "value") == pytest.approx(
        [low / (0.75 * 96.6 / 196.6), low / (0.75 * 196.6 / 296.6)], rel=0.1
    )
    assert "100 % of what rises behind the first waits its turn" in verdict.why


def test_the_share_that_waits_is_weighed_by_how_much_rises():
    # The second rises with the first, the third waits: 1 of the 3 that rise behind the first.
    verdict = judged(stairs((90, 90, 290), (3.0, 2.0, 1.0)))
    assert found(verdict, "staircase", "value") == pytest.approx(1 / 3)
    assert verdict.measured == 2
    assert verdict.verdict == "inconclusive"
    assert "33 % of what rises behind the first waits its turn" in verdict.why


def test_what_rises_together_is_refuted_at_any_clock():
    for clock in (STEPS, STEPS**2, np.sqrt(STEPS)):
        verdict = judged(stairs((190,) * 3), steps=clock)
        assert verdict.verdict == "violated"
        assert found(verdict, "overlap", "value") == pytest.approx([F, F])
        assert found(verdict, "staircase", "confidence") == 0
        assert "rise together" in verdict.why
        assert "the rank does not rise" in verdict.why


def test_modes_that_start_at_once_are_refuted_however_far_apart_they_converge():
    rates = np.array([1.0, 0.04, 0.0016])
    steps = np.unique(np.r_[0, np.round(np.geomspace(1, 3000, 200))])
    values = np.zeros((len(steps), 8))
    values[:, :3] = [3, 2, 1] * (1 - np.exp(-rates * steps[:, None]))
    verdict = judged(values, steps)
    assert verdict.verdict == "violated"
    assert max(found(verdict, "overlap", "value")) < 0.25  # (s, f)-incremental all the same
    # 1 - e^(-λt) at the time at which the faster one has come 3/4 of its way, over steady growth.
    assert min(found(verdict, "haste", "value")) > 1
    assert "all grow from the start" in verdict.why


def test_a_long_warm_up_bends_them_into_waiting_unless_the_learning_rate_is_known():
    steps = np.arange(300.0)
    clock = np.where(steps < 150, steps**2 / 300, steps - 75)
    values = np.zeros((300, 8))
    values[:, :2] = [2, 1] * (1 - np.exp(-np.array([0.3, 0.015]) * clock[:, None]))
    haste = [found(judged(values, steps, clock=c), "haste", "value") for c in (None, clock)]
    assert haste[0] < 0.5 < 1 < haste[1]
    assert judged(values, steps, clock=clock).verdict == "violated"


def test_a_step_is_apart_and_waits_and_only_what_is_far_from_both_is_refuted():
    def pair(overlap, haste, seen=True, unfinished=False):
        one = Pair(0, 1, overlap, haste, 1.0, seen, unfinished)
        return one.is_step, one.is_refuted, one.is_resolved

    assert pair(0.24, 0.39) == (True, False, True)
    assert pair(0.27, 0.39) == (False, False, True)
    assert pair(0.1, 0.5) == (False, False, True)
    assert pair(0.6, 0.6) == pair(0.1, 0.9) == (False, True, True)
    assert pair(0.6, 0.6, unfinished=True) == pair(0.1, 0.1, seen=False) == (False, False, False)
    assert pair(0.1, 0.1, unfinished=True) == (True, False, True)  # it waited, whatever it still does


def test_what_stays_in_its_noise_does_not_emerge():
    values = stairs()
    values[:, 3] = 0.4 * np.abs(np.random.default_rng(0).standard_normal(len(STEPS)))
    trajectory = Trajectory(STEPS.astype(float), values, (8, 8))
    assert trajectory.rises[3] > 0.1 * trajectory.rises.max()  # large enough to count, were it not noise
    assert trajectory.emerging.tolist() == [0, 1, 2]


def test_an_order_that_may_be_chance_does_not_hold():
    # Each rises between two records: few permutations differ.
    verdict = judged(stairs((118, 282), (2.0, 1.0), width=0.1))
    assert found(verdict, "staircase", "value") == 1
    assert found(verdict, "staircase", "confidence") < 0.95
    assert (found(verdict, "staircase"), verdict.verdict) == ("inconclusive", "inconclusive")
    assert "more records" in verdict.why


def test_units_of_weights_and_steps_do_not_matter():
    plain, scaled = judged(stairs()), judged(1e-6 * stairs(), STEPS * 1000)
    kept = plain.evidence["criterion"] != "emergence"
    np.testing.assert_allclose(
        scaled.evidence["value"][kept], plain.evidence["value"][kept], rtol=1e-9, atol=1e-12
    )
    assert scaled.evidence["value"][~kept].to_numpy() == pytest.approx(
        1000 * plain.evidence["value"][~kept].to_numpy()
    )


def test_order_is_tested_at_its_level_where_all_rise_together_in_noise():
    rng = np.random.default_rng(0)
    # Far enough apart that sorting does not part what the noise brings together.
    rise = np.linspace(0, 1, 80)[:, None] * np.array([4, 2, 1])
    p_values = []
    for _ in range(200):
        values = rise + np.cumsum(0.01 * rng.standard_normal(rise.shape) * [4, 2, 1], axis=0)
        p_values.append(order_p_value(trajectory_of(np.arange(80), values, (8, 8))))
    # Binomial: 10 of 200 at 5 %, 20 at four standard deviations.
    assert np.mean(np.array(p_values) <= 0.05) <= 0.11
    assert order_p_value(trajectory_of(STEPS, stairs(), (8, 8))) == 0.001


HIGH = np.linspace(3, 2.3, 8) * np.linspace(1, 1.2, 100)[:, None]


@pytest.mark.parametrize("curve", [stairs()[::-1], HIGH])
def test_what_starts_high_is_refuted(curve):
    verdict = judged(curve)
    assert verdict.verdict == "violated"
    rank = (curve[0] ** 2).sum() / curve[0].max() ** 2
    if rank > 2:
        assert f"does not start low: at {rank:.2f}, where noise of this shape has 2.00" in verdict.why
    assert "the rank does not rise" in verdict.why


def test_a_weight_that_ends_at_zero_is_refuted():
    verdict = judged(stairs()[::-1])
    assert (
        judged(np.where(STEPS[:, None] < 390, stairs()[::-1], 0.0)).verdict == "violated" == verdict.verdict
    )


def test_a_jump_within_one_step_is_refuted_and_one_between_records_is_not():
    values = np.where(np.arange(60)[:, None] > 30, [3, 2, 1, 0.9, 0.8, 0.7, 0.6, 0.5], 0.0)
    values = values + 1e-3 * np.arange(60)[:, None] * values
    at_once, between = judged(values, np.arange(60)), judged(values, 50 * np.arange(60))
    assert at_once.verdict == "violated"
    assert [found(one, "staircase") for one in (at_once, between)] == ["violated", "inconclusive"]
    assert [found(one, "gradual") for one in (at_once, between)] == ["violated", "inconclusive"]
    assert between.verdict == "inconclusive"
    assert "most of it happened before step 1550" in between.why
    assert "logspaced" in between.why


def test_one_singular_value_alone_is_inconclusive():
    verdict = judged(stairs((190,), (3.0,)))
    assert (verdict.verdict, verdict.bound) == ("inconclusive", 1)
    assert "nothing can come after another" in verdict.why


def test_what_still_rises_is_left_open():
    values = stairs((190,) * 3, steps=STEPS // 2, width=40)
    verdict = judged(values)
    assert verdict.verdict == "inconclusive"
    assert "as fast as ever when the record ends: record longer" in verdict.why


def test_two_that_emerge_between_the_same_records_are_left_open():
    steps = np.r_[np.arange(0, 100, 4), np.arange(300, 800, 10)]
    values = stairs((60, 180, 200), (3.0, 2.0, 1.0), steps=steps, width=3)
    verdict = judged(values, steps)
    assert verdict.verdict != "violated"
    assert not [pair for pair in staircase_of(trajectory_of(steps, values, (8, 8))).pairs if pair.is_refuted]


@pytest.mark.parametrize("still", [0.0, 1.0])
def test_a_dead_layer_is_named_and_does_not_count(still):
    values = np.tile(still * np.arange(8.0, 0, -1), (40, 1))
    values[0] = 0
    verdict = judged(values, np.arange(40), layer="fc")
    assert (verdict.verdict, verdict.bound) == ("inconclusive", None)
    assert verdict.why.startswith("fc against init: a dead layer")


def test_gaps_padding_disorder_and_repeats_change_nothing():
    values = stairs()
    whole = judged(values)
    padded = np.full((len(STEPS), 12), np.nan)
    padded[:, :8] = values
    order = np.random.default_rng(0).permutation(len(STEPS))
    shuffled = judged(padded[order], STEPS[order])
    assert shuffled.evidence.equals(whole.evidence)
    # A record of before a resumption, then the one that counts.
    twice = judged(np.r_[values[:50], values[40:]], np.r_[STEPS[:50], STEPS[40:]])
    assert twice.evidence.equals(whole.evidence)
    holes = values.copy()
    holes[[7, 33, 71]] = np.nan
    holes[60, 3] = np.inf
    assert judged(holes).verdict == "holds"
    nothing = judged(np.full((30, 8), np.nan), np.arange(30))
    assert (nothing.verdict, nothing.bound) == ("inconclusive", None)
    assert "at 0 steps, too few to tell" in nothing.why


def test_a_cut_spectrum_bounds_the_rank_and_says_what_to_record():
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.random((60, 4)), axis=0) * [1, 0.99, 0.98, 0.97]
    cut = judged(np.r_[np.zeros((1, 4)), values], np.arange(61) * 10, shape=(64, 64))
    bounds = [cut.evidence.loc[0, side] for side in ("low", "high")]
    # From the first record with a quarter of the end on, over two records; less one, over a Gaussian matrix's 16.
    first = np.argmax(values.max(axis=1) >= values.max() / 4)
    squares = -(np.sort(-values[first : first + 2], axis=1) ** 2)
    least = squares.sum(1) / squares[:, 0]
    most = least + 60 * squares[:, 3] / squares[:, 0]
    assert bounds == pytest.approx([(least.mean() - 1) / 15, (most.mean() - 1) / 15])
    assert cut.evidence.loc[0, "verdict"] == "inconclusive"
    known = judged(
        np.r_[np.zeros((1, 4)), values], np.arange(61) * 10, shape=(64, 64), recorded_rank=np.full(61, 4.0)
    )
    assert known.evidence.loc[0, "low"] == known.evidence.loc[0, "high"] == 3 / 15


def test_the_null_of_the_starting_level_is_that_of_noise():
    rng = np.random.default_rng(0)
    for shape in ((64, 64), (32, 128)):
        squares = np.linalg.svd(rng.standard_normal((20, *shape)), compute_uv=False) ** 2
        assert gaussian_stable_rank(shape) == pytest.approx((squares.sum(1) / squares[:, 0]).mean(), rel=0.06)


# On run files.

SYSTEM = Factorization(
    target_of([4, 2, 1], 12, 12), depth=2, start="gaussian", scale=1e-5, rate=0.02, steps=900
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("glrl") / "run.h5"
    return train(SYSTEM, path, schedule=every(5), reference=["init", None])


def test_a_recorded_run_is_judged_by_layer_and_reference(run):
    verdict = za.verify_glrl(run)
    assert (verdict.claim, verdict.verdict, verdict.bound, verdict.measured) == (CLAIM, "holds", 4, 4)
    claims = [part.claim for part in verdict.parts]
    assert claims == [f"{layer} {read}" for layer in "01" for read in ("against init", "read raw")]
    assert "2 of 2 hold against init, 2 of 2 hold read raw" in verdict.why
    assert set(verdict.evidence["reference"]) == {"init", "none"}
    one = za.verify_glrl(za.open_run(run), layers="0", reference="init")
    assert (len(one.parts), one.bound) == (1, 1)
    assert one.parts[0].why in one.why


def test_a_random_start_read_raw_is_warned_of(run):
    raw = za.verify_glrl(run, reference="none").parts[0]
    assert "Warning: the layer starts at random and is read raw" in raw.why
    assert "Warning" not in za.verify_glrl(run, reference="init").parts[0].why


def test_unknown_layers_and_references_name_the_nearest(run):
    with pytest.raises(InputError, match="no layer matches '7'; known: 0, 1"):
        za.verify_glrl(run, layers=["7"])
    with pytest.raises(InputError, match="did you mean 'init'"):
        za.verify_glrl(run, reference="inti")
    with pytest.raises(InputError, match="a predicate on the parameter needs the model"):
        za.verify_glrl(run, layers=lambda name, parameter: True)
    assert len(za.verify_glrl(run, layers=lambda name: name == "1").parts) == 2


def test_a_run_without_spectra_says_how_to_record_them(tmp_path, mlp):
    model, optimizer, step = mlp
    with RankTracker(model, optimizer, tmp_path / "a.h5", schedule=every(1)):
        step(3)
    with pytest.raises(
        InputError, match=r"no spectrum of a weight.*metrics=\('stable_rank', 'singular_values'\)"
    ):
        za.verify_glrl(tmp_path / "a.h5")  # fmt: skip


def test_few_steps_and_small_matrices_are_left_out_by_name(tmp_path, mlp):
    model, optimizer, step = mlp
    with RankTracker(
        model, optimizer, tmp_path / "a.h5", schedule=every(1), metrics="singular_values"
    ) as tracker:
        none_yet = za.verify_glrl(tmp_path / "a.h5")
        step(30)
        tracker.close()
    assert (none_yet.verdict, none_yet.bound) == ("inconclusive", 0)
    assert "fewer than 20 steps: record with RankTracker" in none_yet.why
    verdict = za.verify_glrl(tmp_path / "a.h5")
    assert (verdict.verdict, verdict.parts) == ("inconclusive", ())
    assert "Left out: 0 (none), 2 (none): too small, with fewer than 8 rows or columns." in verdict.why


def test_an_identity_read_raw_is_refuted_and_warned_of(tmp_path):
    system = Factorization(SYSTEM.target, depth=3, start="identity", scale=1.0, rate=0.005, steps=400)
    train(system, tmp_path / "a.h5", schedule=logspaced(20), reference=[None, "init"], layers=["1"])
    raw = za.verify_glrl(tmp_path / "a.h5", reference="none")
    assert raw.verdict == "violated"
    assert "does not start low" in raw.why
    assert "Warning: the layer starts as the identity and is read raw" in raw.why
    update = za.verify_glrl(tmp_path / "a.h5", reference="init")
    assert "Warning" not in update.why


def test_a_logged_learning_rate_is_the_clock(tmp_path):
    # Plain linear, two rates, under a warm-up of half the training.
    target = np.zeros((8, 8))
    target[[0, 1], [0, 1]] = 2, 1
    weight = nn.Linear(8, 8, bias=False, dtype=torch.float64)
    with torch.no_grad():
        weight.weight.zero_()
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.0)
    variances = torch.ones(8, dtype=torch.float64)
    variances[1] = 0.04
    settings = {"schedule": every(2), "metrics": ("singular_values",), "reference": "init"}
    for logged in (True, False):
        with torch.no_grad():
            weight.weight.zero_()
        path = tmp_path / f"{logged}.h5"
        with RankTracker(weight, optimizer, path, **settings) as tracker:
            for step in range(400):
                optimizer.param_groups[0]["lr"] = rate = 0.3 * min(1.0, step / 200)
                optimizer.zero_grad()
                ((weight.weight - torch.from_numpy(target)).square() * variances).sum().div(2).backward()
                optimizer.step()
                if logged:
                    tracker.log(lr=rate)
    verdicts = {logged: za.verify_glrl(tmp_path / f"{logged}.h5").parts[0] for logged in (True, False)}
    assert found(verdicts[True], "haste", "value") > 1 > found(verdicts[False], "haste", "value")
    assert verdicts[True].verdict == "violated"


def test_what_holds_by_the_count_of_steps_alone_says_so():
    # Linear regression, two rates far apart, at rest before a warm-up of a tenth of the training: a false staircase.
    steps = np.arange(0, 3000, 2.0)
    clock = np.where(steps < 300, steps**2 / 600, steps - 150)
    values = np.zeros((len(steps), 8))
    values[:, :2] = [2, 1.5] * (1 - np.exp(-np.array([0.5, 0.006]) * clock[:, None]))
    unknown, known = judged(values, steps), judged(values, steps, clock=clock)
    assert (unknown.verdict, known.verdict) == ("holds", "violated")
    assert "no learning rate was logged" in unknown.why
    assert "tracker.log(lr=…)" in unknown.why
    assert "learning rate" not in judged(stairs(), clock=STEPS).why


def test_a_learning_rate_is_known_by_the_name_that_the_trainer_of_transformers_gives_it(tmp_path):
    weight = nn.Linear(8, 8)
    for name in ("lr", "learning_rate"):
        with RankTracker(weight, None, tmp_path / f"{name}.h5", metrics="singular_values") as tracker:
            for step in range(1, 101):
                tracker.log(**{name: step / 100})
                tracker.step()
    clocks = [
        next(spectra_of(za.open_run(tmp_path / f"{name}.h5"), None, None)).clock
        for name in ("lr", "learning_rate")
    ]
    assert clocks[0].tolist() == clocks[1].tolist()


def written(path, series=(), attributes=None, k=8, values=None):
    keys = [SpectrumKey("fc", "weight", "init")]
    writer = RunWriter(path, series, keys, attributes or {}, k=k, mode="w")
    values = stairs() if values is None else values
    for step, row in zip(STEPS, values, strict=True):
        blank = np.full(len(series), 1.0)
        writer.append(int(step), blank, blank, np.zeros(len(series), np.uint8), row[None, :k])
    writer.close()
    return path


def test_what_a_foreign_file_does_not_say_is_said(tmp_path):
    for attributes in ({}, {"layers": "?"}, {"layers": [7, {"name": "fc", "shape": "x"}], "view": "mine"}):
        verdict = za.verify_glrl(written(tmp_path / "a.h5", attributes=attributes))
        assert verdict.verdict == "holds"
        assert "The shape is not recorded; the matrix is taken to be 8×8." in verdict.why
    told = {"layers": [{"name": "fc", "matrices": ["fc"], "shape": [8, 2, 3, 3], "start": "zero"}]}
    assert "of 8 (" in za.verify_glrl(written(tmp_path / "a.h5", attributes=told)).why
    told["view"] = "in"
    assert "too small" in za.verify_glrl(written(tmp_path / "a.h5", attributes=told)).why


def test_the_recorded_stable_rank_is_taken_where_the_spectrum_is_cut(tmp_path):
    told = {"layers": [{"name": "fc", "matrices": ["fc"], "shape": [64, 64], "start": "other"}]}
    series = [Series("fc", "weight", "init", "none", "stable_rank")]
    verdict = za.verify_glrl(written(tmp_path / "a.h5", series, told, k=3))
    assert (verdict.evidence["high"][0], verdict.evidence["low"][0]) == (0, 0)  # 1 is written as the rank
    assert "goes from 1.00 to 1.00 of 64" in verdict.why


def test_the_run_is_the_sum_of_its_parts(tmp_path):
    keys = [SpectrumKey(name, "weight", "init") for name in "abcd"]
    together = stairs((190,) * 3)

    def verdict_of(*kinds):
        writer = RunWriter(tmp_path / "a.h5", (), keys[: len(kinds)], {}, k=8, mode="w")
        curves = {"holds": stairs(), "violated": together, "dead": np.ones((100, 8))}
        for i, step in enumerate(STEPS):
            spectrum = np.stack([curves[kind][i] for kind in kinds])
            writer.append(int(step), *(np.empty(0),) * 2, np.empty(0, np.uint8), spectrum)
        writer.close()
        return za.verify_glrl(tmp_path / "a.h5")

    assert verdict_of("holds", "dead").verdict == "holds"
    assert "Left out: b against init: dead" in verdict_of("holds", "dead").why
    assert verdict_of("holds", "violated").verdict == "inconclusive"  # half is not more than half
    assert verdict_of("holds", "violated", "violated", "dead").verdict == "violated"
    assert verdict_of("dead").verdict == "inconclusive"


def test_the_command_line_has_its_exit_codes_and_files(run, tmp_path):
    command = CliRunner()
    done = command.invoke(app, ["verify", "glrl", str(run), "--out", str(tmp_path / "v.json"), "--json",
                                "--evidence", str(tmp_path / "e.csv")])  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert rows == json.loads((tmp_path / "v.json").read_text())
    assert (rows[0]["claim"], rows[0]["verdict"], len(rows)) == (CLAIM, "holds", 5)
    assert (tmp_path / "e.csv").read_text().startswith(",".join(EVIDENCE))
    shown = command.invoke(app, ["verify", "glrl", str(run), "--layer", "[01]", "--reference", "init"])
    assert shown.exit_code == 0
    assert "1 against init" in shown.stdout
    assert f"{CLAIM}: holds." in shown.stdout
    together = written(tmp_path / "t.h5", values=stairs((190,) * 3))
    assert command.invoke(app, ["verify", "glrl", str(together)]).exit_code == 3
    for arguments, sentence in (
        (["--out", str(tmp_path / "v.json")], "exists already"),
        (["--out", str(tmp_path / "v.csv")], "verdicts are written as .json"),
        (["--out", str(tmp_path / "b.json"), "--evidence", str(tmp_path / "b.json")], "give them two files"),
        (["--layer", "nope"], "no layer matches 'nope'"),
    ):
        with pytest.raises(InputError, match=sentence):
            command.invoke(app, ["verify", "glrl", str(run), *arguments], catch_exceptions=False)


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["zanalysis", "verify", "glrl", str(tmp_path / "none.h5")])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    said = capsys.readouterr().err
    assert "none.h5" in said
    assert len(said.strip().splitlines()) == 1
