"""Alerts: what is said of a record while the training runs, once, and never more than said."""

import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hooks import RankTracker, alerts, every
from zanalysis.errors import InputError
from zanalysis.runfile.reader import open_run


def events_of(tracker):
    return [(step, kind, layer, text) for step, _, kind, layer, text in tracker._memory.events]


@pytest.fixture
def square():
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 6, bias=False))


def set_rank(layer, rank):
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:rank, :rank] = torch.eye(rank)


# --- plain predicates ---------------------------------------------------------------------------------


def test_a_predicate_sees_the_newest_record_and_speaks_once_until_it_is_over(tmp_path, square, caplog):
    seen, told, said = [], [], iter([False, True, "it is so", True, None, False, "again"])

    def odd(table):
        seen.append(table)
        return next(said)

    path = tmp_path / "run.h5"
    with RankTracker(square, None, path, schedule=every(2), alerts=[odd], on_alert=told.append) as tracker:
        for _ in range(12):
            tracker.step()
    table = open_run(path).table()
    for step, one in zip(range(0, 13, 2), seen, strict=True):
        pd.testing.assert_frame_equal(one, table[table["step"] == step].reset_index(drop=True))
    assert told == [alerts.Alarm(2, "odd", "", ""), alerts.Alarm(12, "odd", "", "again")]
    events = open_run(path).events
    assert events[["step", "kind", "text"]].to_numpy().tolist() == [
        [2, "alert", "odd"],
        [8, "alert_over", "odd: over"],
        [12, "alert", "odd: again"],
    ]
    assert [r.getMessage() for r in caplog.records] == ["step 2: odd", "step 12: odd: again"]
    assert {r.levelno for r in caplog.records} == {logging.WARNING}


def test_a_mapping_speaks_of_each_layer_by_itself(square, attach):
    said = iter([{}, {"0": "low"}, {"0": "lower", "1": "low"}, {"1": "low"}, {"0": "low"}])
    tracker = attach(square, schedule=every(1), alerts=lambda table: next(said))
    for _ in range(4):
        tracker.step()
    assert [event[:3] for event in events_of(tracker)] == [
        (1, "alert", "0"),
        (2, "alert", "1"),
        (3, "alert_over", "0"),
        (4, "alert_over", "1"),
        (4, "alert", "0"),
    ]


def test_a_failing_predicate_stands_down_and_the_others_go_on(square, attach, caplog):
    calls = []

    def broken(table):
        calls.append(1)
        table["value"] = math.nan  # of its own copy
        raise KeyError("gone")

    def fine(table):
        return bool(table["value"].notna().all())

    tracker = attach(square, schedule=every(1), alerts=[broken, fine])
    tracker.step()
    tracker.step()
    assert len(calls) == 1
    assert [event[:2] for event in events_of(tracker)] == [(0, "alert"), (0, "alert")]
    assert events_of(tracker)[0][3] == "the alert broken failed at step 0 and stands down: KeyError('gone')"
    assert events_of(tracker)[1][3] == "fine"


def test_a_failing_callback_is_said_once_and_stops_nothing(square, attach):
    answers = iter([True, False, True, False])

    def stop(alarm):
        raise KeyboardInterrupt if alarm is None else RuntimeError("stop!")

    tracker = attach(square, schedule=every(1), alerts=lambda table: next(answers), on_alert=stop)
    for _ in range(3):
        tracker.step()
    kinds = [kind for _, kind, _, _ in events_of(tracker)]
    assert kinds == ["alert", "on_alert", "alert_over", "alert", "alert_over"]
    assert tracker.table()["step"].unique().tolist() == [0, 1, 2, 3]


def test_alerts_draw_no_random_number_from_the_training(square, attach):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tracker = attach(
        square, schedule=every(1), alerts=lambda table: float(torch.rand(())) + np.random.rand() < 0
    )
    tracker.step()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("given", ["rank", 3, [int], ["rank"], [None]])
def test_what_is_no_alert_is_refused(square, given):
    with pytest.raises(InputError, match=r"expected (a function|functions) of a table"):
        RankTracker(square, alerts=given)


# --- those that are ready-made ------------------------------------------------------------------------


def test_rank_collapse_is_told_of_once_for_each_layer_until_it_is_over(square, attach):
    own = []
    watch = alerts.rank_collapse(below=0.5, on_alert=own.append)
    tracker = attach(square, schedule=every(1), metrics="rank", alerts=[watch])
    for ranks in [(4, 4), (1, 2), (1, 4), (3, 4), (1, 1)]:
        set_rank(square[0], ranks[0]), set_rank(square[1], ranks[1])
        tracker.step()
    assert [(a.step, a.layer) for a in own] == [(2, "0"), (5, "0"), (5, "1")]
    assert own[0].text == "the rank of 0 is 1, below 2"
    assert ("alert_over", "0") in [(kind, layer) for step, kind, layer, _ in events_of(tracker) if step == 4]


def test_rank_collapse_takes_a_number_and_layers(square, attach):
    told = []
    watch = alerts.rank_collapse(below=4, layers="1")
    tracker = attach(square, schedule=every(1), metrics="rank", alerts=watch, on_alert=told.append)
    set_rank(square[0], 1), set_rank(square[1], 3)
    tracker.step()
    assert [(a.step, a.layer, a.alert) for a in told] == [(1, "1", "rank_collapse(below=4)")]


def test_nonfinite_names_the_layer_and_its_tensors(square, attach):
    told = []
    optimizer = torch.optim.SGD(square.parameters(), lr=0.1)
    tracker = attach(
        square, optimizer, schedule=every(1), metrics="rank", tensors=("weight", "gradient"),
        alerts=alerts.nonfinite(), on_alert=told.append,
    )  # fmt: skip
    for scale in (1.0, math.nan, 1.0):
        optimizer.zero_grad()
        (square[1](torch.ones(4)) * scale).sum().backward()
        optimizer.step()
    assert [(a.step, a.layer) for a in told] == [(2, "1")]
    assert told[0].text == "the gradient and the weight of 1 hold NaN or infinity"
    assert tracker.table()["step"].max() == 3


@pytest.mark.parametrize("metrics", [("rank", "zero_gradient"), "frobenius_norm", "spectral_norm"])
def test_dead_tells_of_a_gradient_that_is_zero_for_some_records(square, attach, metrics):
    told = []
    optimizer = torch.optim.SGD(square.parameters(), lr=0.1, momentum=0.9)
    tracker = attach(
        square, optimizer, schedule=every(1), metrics=metrics, tensors="gradient",
        alerts=alerts.dead(steps=3), on_alert=told.append,
    )  # fmt: skip
    for factor in (1, 0, 0, 1, 0, 0, 0, 0, 1, 0):
        optimizer.zero_grad()
        (
            square[1](square[0](torch.ones(4)).detach()).sum() + factor * square[0](torch.ones(4)).sum()
        ).backward()
        optimizer.step()
    assert [(a.step, a.layer) for a in told] == [(7, "0")]
    assert told[0].text == "the gradient of 0 was exactly zero at 3 records in a row"
    assert [event[:3] for event in events_of(tracker)][-1] == (9, "alert_over", "0")


def test_dead_tells_of_a_weight_that_does_not_move_but_not_of_a_frozen_one(square, attach):
    told = []
    square.append(nn.Linear(6, 6)).requires_grad_(True)[2].requires_grad_(False)
    tracker = attach(
        square, schedule=every(1), metrics="frobenius_norm", alerts=alerts.dead(steps=2), on_alert=told.append
    )
    for step in range(5):
        with torch.no_grad():
            square[0].weight.mul_(1.5)
            if step != 1:
                square[1].weight.mul_(1.0)
            else:
                square[1].weight.mul_(0.5)
        tracker.step()
    # It moved in step 2: records 3 and 4 are the first two without a move.
    assert [(a.step, a.layer, a.text) for a in told] == [
        (4, "1", "the weight of 1 has not moved over 2 records")
    ]


def test_dead_with_the_reference_init_sees_a_weight_that_keeps_its_norm(square, attach):
    told = []
    tracker = attach(
        square, schedule=every(1), metrics="frobenius_norm", reference=[None, "init"], layers="0",
        alerts=alerts.dead(steps=1), on_alert=told.append,
    )  # fmt: skip
    for _ in range(3):
        with torch.no_grad():
            square[0].weight.copy_(square[0].weight.roll(1))
        tracker.step()
    assert told == []
    tracker.step()
    assert [a.step for a in told] == [4]


def test_two_trackers_with_the_same_alert_remember_each_their_own(attach):
    told, watch = [], alerts.dead(steps=2)
    models = [nn.Linear(3, 3), nn.Linear(3, 3)]
    trackers = [
        attach(m, schedule=every(1), metrics="frobenius_norm", alerts=[watch], on_alert=told.append)
        for m in models
    ]
    for tracker in trackers:
        tracker.step()
    assert told == []
    trackers[0].step()
    assert len(told) == 1


def test_values_have_bounds_on_both_sides(square, attach):
    told = []
    watch = alerts.value("frobenius_norm", above=10, below=0.5, layers="0")
    stable = alerts.stable_rank_above(1.5, layers="0")
    tracker = attach(
        square, schedule=every(1), metrics=("frobenius_norm", "stable_rank"), alerts=[watch, stable],
        on_alert=told.append,
    )  # fmt: skip
    for scale in (1.0, 20.0, 1.0, 0.1):
        with torch.no_grad():
            square[0].weight.zero_()
            square[0].weight[0, 0] = scale
        tracker.step()
    assert [(a.step, a.text) for a in told if a.alert.startswith("frob")] == [
        (2, "frobenius_norm of 0 is 20, above 10"),
        (4, "frobenius_norm of 0 is 0.1, below 0.5"),
    ]
    assert watch.name == "frobenius_norm above 10 and frobenius_norm below 0.5"
    # Of the random weights it began with alone: the others have rank 1.
    assert [a.step for a in told if a.alert.startswith("stable")] == [0]


def test_an_alert_looks_at_the_reference_asked_for_alone(square, attach):
    told = []
    attach(
        square, metrics=("rank", "frobenius_norm"), reference=[None, "init"], on_alert=told.append,
        alerts=[
            alerts.rank_collapse(below=2),  # of the weights, not of their change, which is zero
            alerts.value("frobenius_norm", below=1e-9, reference="init", layers="1"),
        ],
    )  # fmt: skip
    assert [(a.layer, a.text) for a in told] == [("1", "frobenius_norm of 1 is 0, below 1e-09")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: alerts.rank_collapse(below=0), "expected a rank, or a share"),
        (lambda: alerts.rank_collapse(below="2"), "got below = '2', expected a number"),
        (lambda: alerts.dead(steps=0), "expected a number of records"),
        (lambda: alerts.value("rank"), r"has no bound; pass above=…"),
        (lambda: alerts.value("rank", above=math.nan), "got above = nan"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("alert", "message"),
    [
        (alerts.rank_collapse(below=2), "looks at rank of weight − none, which is not recorded"),
        (alerts.stable_rank_above(2, layers="nowhere"), "no layer matches 'nowhere'"),
        (alerts.stable_rank_above(2, layers=lambda name, parameter: True), "chooses layers by their names"),
        (alerts.dead(steps=2), r"dead\(\) needs tensors"),
    ],
)
def test_an_alert_that_looks_at_what_is_not_recorded_is_refused_at_once(square, alert, message, tmp_path):
    with pytest.raises(InputError, match=message):
        RankTracker(square, path=tmp_path / "run.h5", metrics="stable_rank", alerts=[alert])
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_the_rank_of_activations_is_refused(square):
    with pytest.raises(InputError, match="known of weights and gradients alone"):
        RankTracker(
            square,
            metrics="rank",
            tensors="activation",
            alerts=alerts.rank_collapse(0.5, tensor="activation"),
        )


def test_alerts_cost_little(mlp):
    # A count, not a time: one table for each record, whatever the number of alerts.
    model, optimizer, train = mlp
    tables = []
    watch = [lambda table: tables.append(len(table)) for _ in range(3)]
    with RankTracker(model, optimizer, schedule=every(5), metrics="rank", alerts=watch):
        train(10)
    assert tables == [2] * 9


def test_on_record_is_given_the_spectra_too(square, attach):
    given = []
    attach(
        square,
        metrics=("rank", "singular_values"),
        spectrum_size=5,
        on_record=lambda step, rows: given.append(rows),
    )
    spectra = {one["layer"]: one for one in given[0].spectra}
    expected = torch.linalg.svdvals(square[0].weight.detach()).numpy()
    assert set(spectra) == {"0", "1"}
    assert (spectra["0"]["step"], spectra["0"]["tensor"], spectra["0"]["reference"]) == (0, "weight", "none")
    np.testing.assert_allclose(spectra["0"]["values"][:4], expected, rtol=1e-6)
    assert np.isnan(spectra["0"]["values"][4])
    assert {row["metric"] for row in given[0]} == {"rank"}


# --- what is easily meant, or easily mistaken ---------------------------------------------------------


def test_a_mapping_of_answers_speaks_only_of_the_layers_whose_answer_is_yes(square, attach):
    said = iter([{"0": False, "1": None}, {"0": np.bool_(True), "1": np.bool_(False)}, {"0": "", "1": "low"}])
    tracker = attach(square, schedule=every(1), alerts=lambda table: next(said))
    for _ in range(2):
        tracker.step()
    assert events_of(tracker) == [
        (1, "alert", "0", "<lambda>"),
        (2, "alert_over", "0", "<lambda>: over in 0"),
        (2, "alert", "1", "<lambda>: low"),
    ]


def test_an_alert_that_was_not_called_is_refused_rather_than_true(square):
    with pytest.raises(InputError, match=r"got the function nonfinite .*alerts\.nonfinite\(…\)"):
        RankTracker(square, None, alerts=[alerts.nonfinite])


@pytest.mark.parametrize("name", ["on_alert", "on_record"])
def test_a_callback_that_cannot_be_called_is_refused_at_construction(square, name):
    with pytest.raises(InputError, match=f"got {name} = 5, expected a function"):
        RankTracker(square, None, alerts=[lambda table: True], **{name: 5})


def test_numbers_of_numpy_are_numbers():
    assert alerts.dead(np.int64(3)).name == "dead(steps=3)"
    assert alerts.stable_rank_above(np.float32(2)).name == "stable_rank above 2"
    assert alerts.rank_collapse(np.int64(2)).name == "rank_collapse(below=2)"
