"""The budget: recording stays within a share of the time, as an injected clock tells it."""

import random
from itertools import pairwise

import pytest

from hooks import RankTracker, every
from hooks.account import Account
from hooks.agenda import Agenda
from hooks.budget import Budget, checked_budget
from zanalysis.errors import InputError
from zanalysis.runfile.reader import open_run


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def trained(
    share, cost, step_seconds=1.0, steps=2000, writing=0.0, due=lambda step: True, window=1, agree=None
):
    """Train in theory; `cost` gives the seconds of the i-th record. Return what was recorded, and the shares."""
    clock = Clock()
    account = Account(["rank"], clock)
    budget = Budget(share, account, agree) if agree else Budget(share, account)
    agenda = Agenda(lambda step: due(step) and budget.allows(step), window)
    recorded, shares = [], []

    def record(step):
        with account.timed("shared"):
            with account.timed("rank"):
                clock.now += cost(len(recorded))
            with account.timed("writing"):
                clock.now += writing
        budget.recorded()
        recorded.append(step)

    record(0)
    for step in range(1, steps + 1):
        agenda.windows(step)
        clock.now += step_seconds
        if agenda.recorded(step):
            record(step)
            shares.append(account.total / account.elapsed)
    return recorded, shares, budget


NOISE = [random.Random(7).uniform(0.5, 1.5) for _ in range(3000)]
COSTS = {
    "constant": lambda i: 0.1,
    "varying": lambda i: 0.1 * NOISE[i],
    "falling": lambda i: 5.0 if i == 0 else 0.02 + 1 / (1 + i),
    "rising": lambda i: 0.01 * 1.03**i,
    "alternating": lambda i: (0.3, 0.02)[i % 2],
    "seldom dear": lambda i: 0.3 if i % 7 == 0 else 0.1,
}


@pytest.mark.parametrize("writing", [0.0, 0.05])
@pytest.mark.parametrize("kind", COSTS)
def test_the_share_stays_within_the_budget_at_every_record(kind, writing):
    recorded, shares, budget = trained(0.02, COSTS[kind], writing=writing)
    assert len(shares) >= 5
    assert max(shares) <= 0.02
    assert budget.skipped > 0
    assert budget.kept + budget.skipped == 2000
    assert len(recorded) == 1 + budget.kept


def test_the_budget_is_made_use_of():
    # 2000 s at 2 % are 40 s; a record costs 0.1 s, and one is always kept in reserve twice over.
    recorded, shares, _ = trained(0.02, lambda i: 0.1)
    assert 390 <= len(recorded) <= 408  # recording itself takes time too: 2040 s in all
    assert shares[-1] > 0.0195


def test_thinned_records_are_spread_evenly():
    recorded, _, _ = trained(0.02, lambda i: 0.1)
    distances = {b - a for a, b in pairwise(recorded[10:])}
    assert distances <= {4, 5}


def test_a_cheap_recording_is_not_thinned_at_all():
    recorded, _, budget = trained(0.02, lambda i: 0.199 / 4, due=lambda step: step % 10 == 0)
    assert recorded == list(range(0, 2001, 10))
    assert (budget.skipped, budget.summary) == (0, "")
    assert trained(0.02, lambda i: 0.019 / 3)[0] == [0, *range(2, 2001)]  # ahead of step 1 no time has passed


def test_writing_counts():
    free = trained(0.02, lambda i: 0.005)[0]
    written = trained(0.02, lambda i: 0.005, writing=0.195)[0]
    assert len(free) == 2000
    assert len(written) < 210


def test_after_an_unforeseen_cost_nothing_is_recorded_until_the_share_is_kept_again():
    recorded, shares, _ = trained(0.1, lambda i: 10.0 if i == 20 else 0.01, steps=600)
    index = recorded[20]
    assert recorded[:21] == [0, *range(2, 22)]
    assert shares[19] > 0.1
    # 10.2 s were spent: the clock must reach 102 s, and another record at twice 10 s must fit in besides.
    assert recorded[21] - index > 250
    assert shares[20] <= 0.1


def test_a_window_is_decided_on_when_it_begins_and_those_to_come_count_as_spent():
    asked = []

    def due(step):
        asked.append(step)
        return step % 2 == 0

    recorded, shares, budget = trained(0.02, lambda i: 0.1, due=due, window=5)
    assert asked == list(range(1, 2005))
    assert max(shares) <= 0.02
    assert set(recorded) <= set(range(0, 2001, 2))
    assert budget.skipped > 500


def test_many_windows_that_are_open_at_once_do_not_spend_the_same_time():
    # Of forty steps to come, each alone would fit in.
    _, shares, budget = trained(0.02, lambda i: 0.1, window=40)
    assert max(shares) <= 0.02
    assert budget.skipped > 1000


def test_one_answer_counts_where_several_processes_have_to_agree():
    answers = []

    def of_rank_0(own):
        answers.append(own)
        return len(answers) % 10 == 0

    recorded, _, budget = trained(0.5, lambda i: 0.001, steps=100, agree=of_rank_0)
    assert recorded == list(range(0, 101, 10))
    assert answers == [False] + [True] * 99
    assert (budget.kept, budget.skipped) == (10, 90)


def test_what_was_skipped_is_said():
    _, _, budget = trained(0.02, lambda i: 0.1, steps=100)
    assert budget.summary.startswith(
        f"{budget.skipped} of 100 due steps were not recorded, to stay within budget=0.02"
    )
    assert "step 7 is due and not recorded: recording has taken" in budget.reason(7)


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, True, "2%", float("nan"), float("inf"), [0.1]])
def test_a_budget_is_a_share(budget):
    with pytest.raises(
        InputError, match=r"got budget = .*, expected the share of the time .* above 0 and at most 1"
    ):
        checked_budget(budget)


def test_no_budget_and_the_largest():
    assert checked_budget(None) is None
    assert checked_budget(1) == 1.0


# --- looking ahead ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 3, 7])
@pytest.mark.parametrize("distance", [1, 3, 5])
def test_windows_are_the_last_steps_up_to_each_record(window, distance):
    asked = []

    def due(step):
        asked.append(step)
        return step % distance == 0

    agenda = Agenda(due, window, start=10)
    for step in range(11, 60):
        expected = tuple(r for r in range(step, step + window) if r % distance == 0)
        assert agenda.windows(step) == expected
        assert agenda.recorded(step) == (step % distance == 0)
        assert agenda.windows(step) == expected
    assert asked == list(range(11, 59 + window))


# --- attached -----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Trackers tell the time by a clock that only the test moves."""
    clock = Clock()
    monkeypatch.setattr("hooks.tracker.account_of", lambda metrics, device: Account(metrics, clock))
    return clock


def run_of(path, clock, mlp, seconds, steps=200, step_seconds=1.0, **options):
    """Train by a clock on which each record costs what `seconds` yields."""
    model, optimizer, train = mlp

    def costly(W):
        clock.now += seconds / 2  # of each of the two layers
        return 0.0

    with RankTracker(model, optimizer, path, metrics=costly, **options):
        for _ in range(steps):
            clock.now += step_seconds
            train(1)
    return open_run(path)


def test_a_tracker_stays_within_its_budget_and_records_that_it_did(tmp_path, clock, mlp):
    run = run_of(tmp_path / "run.h5", clock, mlp, 0.5, schedule=every(5), budget=0.02)
    steps = run.steps.tolist()
    assert steps[0] == 0
    assert set(steps) < set(range(0, 201, 5))
    assert 4 <= len(steps) <= 8
    total = run.overhead.set_index("part").loc["total"]
    assert total["seconds"] == len(steps) * 0.5
    assert 0.01 < total["share"] <= 0.02
    assert run.attributes["budget"] == 0.02
    events = run.events
    assert events["kind"].tolist() == ["budget", "budget"]
    assert events["step"].tolist() == [5, 200]
    assert events["text"][0].startswith("step 5 is due and not recorded: recording has taken 0.5 s of 4.5 s")
    skipped = 40 - (len(steps) - 1)
    assert events["text"][1].startswith(
        f"{skipped} of 40 due steps were not recorded, to stay within budget=0.02"
    )


def test_a_budget_that_is_kept_anyway_changes_nothing(tmp_path, clock, mlp):
    run = run_of(tmp_path / "run.h5", clock, mlp, 0.02, schedule=every(5), budget=0.02)
    assert run.steps.tolist() == list(range(0, 201, 5))
    assert len(run.events) == 0


def test_without_a_budget_nothing_is_thinned(tmp_path, clock, mlp):
    run = run_of(tmp_path / "run.h5", clock, mlp, 100.0, schedule=every(5))
    assert run.steps.tolist() == list(range(0, 201, 5))
    assert run.attributes["budget"] is None


def test_steps_of_a_window_that_is_not_recorded_are_not_watched(clock, mlp):
    model, optimizer, train = mlp
    told = []

    def costly(W):
        clock.now += 2.0
        return 0.0

    options = {"tensors": ("weight", "activation"), "metrics": (costly, "span_dimension"), "span_window": 3}
    with RankTracker(model, optimizer, schedule=every(5), budget=0.1, **options) as tracker:
        take = tracker._reducer._beside._trained.take
        tracker._reducer._beside._trained.take = lambda *args: (
            told.append(tracker._taps.step + 1),
            take(*args),
        )
        for _ in range(1000):
            clock.now += 1.0
            train(1)
    recorded = tracker.table()["step"].unique().tolist()
    assert 2 < len(recorded) < 20
    assert sorted(set(told)) == [step - back for step in recorded[1:] for back in (2, 1, 0)]


def test_a_failing_schedule_is_no_due_step_of_a_budget(clock, mlp, caplog):
    model, optimizer, train = mlp

    def failing(step):
        if step == 3:
            raise ValueError("no idea")
        return True

    with RankTracker(model, optimizer, schedule=failing, metrics="rank", budget=0.5) as tracker:
        for _ in range(6):
            clock.now += 1.0
            train(1)
    assert tracker.table()["step"].unique().tolist() == [0, 1, 2, 4, 5, 6]
    assert "the schedule failed at step 3: ValueError('no idea')" in caplog.text


@pytest.mark.parametrize("budget", [0, 2, "1%"])
def test_a_tracker_refuses_what_is_no_budget(mlp, budget):
    with pytest.raises(InputError, match="expected the share of the time that recording may take"):
        RankTracker(mlp[0], mlp[1], budget=budget)
