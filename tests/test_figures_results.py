"""Figures of an experiment's results: what is drawn are the numbers of the table."""

import copy
import json
import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from hooks import RankTracker
from zanalysis import figures
from zanalysis.analyzers.tucker_kernel import tucker2_error_surface
from zanalysis.errors import InputError, RunFileError
from zanalysis.figures.canvas import styles
from zanalysis.figures.measured import Crossing, equal_score


def row(label, title, values, at=None, diverged=(), paper=None):
    return {
        "label": label, "title": title, "at": at, "values": values, "seeds": list(range(len(values))),
        "diverged": list(diverged), "mean": None, "std": None, "paper": paper,
    }  # fmt: skip


TABLE = {
    "experiment": "table-2", "scale": "paper", "metric": "test error [%]", "counts": "the last epoch",
    "protocol": {"data": "cifar-10"}, "not_comparable_because": [], "trainings": {},
    "rows": [
        row("zero", "ZerO", [5.0, 5.1, 5.3], paper={"mean": 5.13, "std": 0.08}),
        row("kaiming", "Kaiming", [5.2], diverged=[1], paper={"mean": 5.15, "std": 0.13}),
        row("fixup", "Fixup", [], diverged=[0, 1]),
    ],
}  # fmt: skip
SWEEP = {
    **TABLE, "experiment": "figure-4", "metric": "test accuracy [%]",
    "trainings": {"zero-8-0": {"settings": {"at": 8, "arguments": {"width": 2, "depth": 8}}}},
    "rows": [
        row("zero-8", "ZerO", [80.0, 82.0, 87.0], 8), row("zero-20", "ZerO", [81.0, 83.0], 20),
        row("zero-110", "ZerO", [79.0, 79.0], 110),
        row("fixup-8", "Fixup", [70.0, 72.0], 8), row("fixup-20", "Fixup", [], 20, diverged=[0, 1]),
        row("fixup-110", "Fixup", [60.0], 110, diverged=[1]),
    ],
}  # fmt: skip


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def below(axes):
    return " ".join([*texts(axes), axes.figure.get_supxlabel()]).replace("\n", " ")


def test_accuracy_against_depth_is_the_mean_with_its_deviation_and_a_gap():
    axes = figures.figure_4(SWEEP)
    zero, fixup = lines(axes)["ZerO"], lines(axes)["Fixup"]
    np.testing.assert_array_equal(zero.get_xdata(), [8, 20, 110])
    np.testing.assert_array_equal(zero.get_ydata(), [83.0, 82.0, 79.0])
    np.testing.assert_array_equal(fixup.get_ydata(), [71.0, math.nan, 60.0])
    whiskers = np.array([segment[:, 1] for segment in axes.collections[0].get_segments()])
    spread = np.array([math.sqrt(13), math.sqrt(2), 0.0])
    np.testing.assert_allclose(whiskers.mean(axis=1), [83.0, 82.0, 79.0], rtol=1e-12)
    np.testing.assert_allclose(np.ptp(whiskers, axis=1), 2 * spread, atol=1e-12)
    assert axes.get_ylabel() == "test accuracy [%]"
    assert axes.get_xlabel() == "depth [layers with weights], logarithmic"


def test_trainings_that_diverged_stand_below_every_curve_and_are_counted():
    axes = figures.figure_4(SWEEP)
    crosses = [line for line in axes.get_lines() if line.get_label() == "_diverged"]
    assert [float(line.get_xdata()[0]) for line in crosses] == [20.0, 110.0]
    assert {"Fixup 2/2", "Fixup 1/2"} <= set(texts(axes))
    strip = max(line.get_ydata()[0] for line in crosses)
    low, high = axes.get_ylim()
    assert low + strip * (high - low) < 60.0
    assert all(tick >= 50 for tick in axes.get_yticks())
    assert "no mean counts them" in below(axes)


def test_a_table_row_is_mean_deviation_seeds_and_the_papers_value():
    axes = figures.table_2(TABLE)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["ZerO", "Kaiming", "Fixup"]
    assert texts(axes)[0] == "5.13 ± 0.15   (3 seeds)"
    assert {"paper: 5.13 ± 0.08", "5.20   (1 seed, 1 more diverged)", "diverged (2 of 2 seeds)"} <= set(
        texts(axes)
    )
    seeds = [line for line in axes.get_lines() if line.get_label() == "_seeds"]
    np.testing.assert_array_equal(seeds[0].get_xdata(), [5.0, 5.1, 5.3])
    drawn = [
        float(line.get_xdata()[0])
        for line in axes.get_lines()
        if line.get_marker() == "D" and len(line.get_xdata())
    ]
    assert {5.13, 5.15} <= set(drawn)
    assert axes.get_xlabel() == "test error [%]"


def test_values_of_another_setting_are_not_drawn_and_the_reason_is_said():
    other = {**TABLE, "not_comparable_because": ["scale small", "digits instead of cifar-10"]}
    axes = figures.table_3(other)
    assert not [text for text in texts(axes) if text.startswith("paper")]
    assert "because the setting is another: scale small; digits instead of cifar-10." in below(axes)


def test_values_far_apart_are_drawn_on_a_logarithmic_axis_that_says_so():
    far = {**TABLE, "rows": [*TABLE["rows"], row("constnet", "ConstNet", [72.0])]}
    axes = figures.table_2(far)
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "test error [%], logarithmic"


def test_a_swept_table_groups_by_what_is_swept():
    lost = row("standard-2", "standard", [200.0], 2, paper={"mean": None, "std": None})
    rows = [lost, row("zero-2", "ZerO", [190.0], 2), row("zero-20", "ZerO", [150.0], 20)]
    trainings = {"zero-2-0": {"settings": {"at": 2, "arguments": {"layers": 2}}}}
    axes = figures.table_4({**TABLE, "metric": "test perplexity", "rows": rows, "trainings": trainings})
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["layers 2", "layers 20"]
    assert {"standard: 200.00   (1 seed)", "paper: diverged", "ZerO: 150.00   (1 seed)"} <= set(texts(axes))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: figures.figure_4(TABLE), "nothing is swept"),
        (lambda: figures.table_2(SWEEP), "sweeps depth"),
        (lambda: figures.table_4(TABLE), "sweeps nothing"),
        (lambda: figures.table_2({**TABLE, "rows": []}), "no training of this experiment has ended"),
        (lambda: figures.table_2({"rows": [{}]}), "not what an experiment leaves"),
        (lambda: figures.table_2(pd.DataFrame(columns=["system", "value"])), "has no row"),
        (lambda: figures.table_2(pd.DataFrame({"system": ["a"]})), "no column 'value'"),
        (lambda: figures.figure_4(SWEEP, axes=[None]), "got 1 axes, expected 1 matplotlib Axes"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()


def test_what_is_swept_is_what_differs_between_trainings_and_not_an_argument_of_the_same_value():
    arguments = ({"heads": 2, "layers": 2}, {"heads": 2, "layers": 6})
    said = {
        **SWEEP,
        "protocol": {"data": "pydoc", "arguments": {"heads": 2}},
        "trainings": {f"zero-{a['layers']}-0": {"settings": {"at": a["layers"], "arguments": a}} for a in arguments},
        "rows": [row("zero-2", "ZerO", [64.0], 2), row("zero-6", "ZerO", [79.0], 6)],
    }  # fmt: skip
    groups = [tick.get_text() for tick in figures.table_4(said).get_yticklabels()]
    assert groups == ["layers 2", "layers 6"]
    del said["trainings"]["zero-6-0"]  # the protocol alone can tell
    assert figures.table_4(said).get_yticklabels()[0].get_text() == "layers 2"


def test_a_missing_file_and_one_that_is_no_json_are_one_sentence(tmp_path):
    with pytest.raises(RunFileError, match=r"there is no .*results\.json"):
        figures.table_2(tmp_path)
    (tmp_path / "results.json").write_text("[1,")
    with pytest.raises(InputError, match="is not JSON"):
        figures.table_2(tmp_path)


def test_results_are_read_from_folder_file_and_mapping_alike(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(TABLE))
    said = [texts(figures.table_2(one)) for one in (TABLE, tmp_path, tmp_path / "results.json")]
    assert said[0] == said[1] == said[2]


def test_drawing_leaves_pyplot_settings_and_the_input_alone():
    before, given = dict(mpl.rcParams), copy.deepcopy(SWEEP)
    axes = figures.figure_4(given)
    figures.table_2(TABLE)
    assert dict(mpl.rcParams) == before
    assert given == SWEEP
    assert axes.figure.number is None if hasattr(axes.figure, "number") else True
    assert not mpl.pyplot.get_fignums()


def test_axes_of_the_user_are_drawn_into_and_returned():
    figure = Figure()
    own = figure.subplots()
    assert figures.figure_4(SWEEP, axes=own) is own
    assert own.get_legend() is not None
    assert not figure.legends


def test_systems_never_differ_by_colour_alone_and_keep_their_look():
    names = ["ZerO", "Kaiming", "Xavier", "Fixup", "ReZero", "SkipInit", "ConstNet", "ConstNet*"]
    look = styles(names)
    for part in ("color", "line", "marker"):
        assert len({str(getattr(style, part)) for style in look.values()}) == 8
    assert styles(["other", "ZerO"])["ZerO"] == look["ZerO"] != styles(["other", "ZerO"])["other"]


def curve(system, by, at, scores):
    return pd.DataFrame({"system": system, "seed": 0, by: at, "score": scores})


def test_equal_scores_are_found_on_the_first_way_down_between_two_points():
    table = pd.concat([
        curve("a", "sparsity", [0.0, 0.5, 0.8, 1.0], [90.0, 90.0, 86.0, 10.0]),
        curve("b", "sparsity", [0.0, 0.5, 0.8, 1.0], [88.0, 70.0, 88.0, 88.0]),
    ])  # fmt: skip
    level, found = equal_score(table, "sparsity", higher=True, tolerance=1.0, fewer=False)
    assert level == 87.0
    # a: 90 -> 86 over 0.5..0.8 reaches 87 after three quarters; b: 88 -> 70 over 0..0.5 after an eighteenth.
    assert [one.at for one in found] == pytest.approx([0.725, 0.5 / 18], abs=1e-12)
    level, found = equal_score(
        curve("a", "rank_out", [1, 2, 4], [9.0, 4.0, 3.0]), "rank_out", False, 1.0, True
    )
    assert (level, found) == (4.0, [Crossing("a", 2.0, False)])
    level, found = equal_score(
        curve("a", "rank_out", [1, 2, 4], [3.5, 3.0, 3.0]), "rank_out", False, 1.0, True
    )
    assert found == [Crossing("a", 1.0, True)]


def test_figure_6_draws_every_curve_and_the_whole_surface(attach):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, bias=False))
    tracker = attach(model, metrics=("stable_rank",), reference="init")
    with torch.no_grad():
        model[0].weight.add_(0.1)
    tracker.step()
    pruning = {"ZerO": {"sparsity": [0.0, 0.5, 0.9], "score": [90.0, 89.0, 40.0]},
               "Kaiming": {"sparsity": [0.0, 0.5, 0.9], "score": [91.0, 80.0, 20.0]}}  # fmt: skip
    tucker = {
        "ZerO": {
            "layer": ["0"] * 2,
            "rank_out": [6, 2],
            "rank_in": [3, 1],
            "error": [0.0, 0.4],
            "score": [90.0, 80.0],
        }
    }
    surface = tucker2_error_surface(model[0].weight.detach())
    shown = figures.figure_6(tracker.table(), pruning, tucker, {"ZerO": surface})
    rank, pruned, by_rank, heat, empty, error = shown
    np.testing.assert_array_equal(lines(pruned)["_ZerO"].get_ydata(), [90.0, 89.0, 40.0])
    np.testing.assert_array_equal(lines(pruned)["_Kaiming"].get_xdata(), [0.0, 50.0, 90.0])
    np.testing.assert_array_equal(lines(by_rank)["_ZerO"].get_xdata(), [2, 6])
    np.testing.assert_array_equal(lines(error)["_ZerO"].get_ydata(), [0.4, 0.0])
    np.testing.assert_array_equal(heat.images[0].get_array(), surface.numpy())
    assert by_rank.get_xlim()[0] > by_rank.get_xlim()[1]
    marked = [float(line.get_xdata()[0]) for line in pruned.get_lines() if line.get_label() == "_equal"]
    assert marked == pytest.approx([50.0, 50.0 * 2 / 11], abs=1e-9)
    said = below(rank)
    assert "Pruned at equal scores (89, the worse of the unpruned less 1): ZerO 50 %, Kaiming 9 %." in said
    assert "another error surface was not measured" in texts(empty)[0].replace("\n", " ")


def test_figure_6_without_measurements_says_what_was_not_measured(attach):
    tracker = attach(torch.nn.Linear(4, 4), metrics=("stable_rank",))
    shown = figures.figure_6(tracker.table(), reference="none")
    assert texts(shown[1]) == ["pruning\nwas not measured"]
    with pytest.raises(InputError, match="no column 'score'"):
        figures.figure_6(tracker.table(), {"a": {"sparsity": [0.0]}}, reference="none")


def test_the_folder_of_an_experiment_has_everything_of_figure_6(tmp_path):
    folder = tmp_path / "figure-6-small"
    folder.mkdir()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, bias=False))
    with RankTracker(model, path=folder / "zero-0.h5", metrics=("stable_rank",), reference="init") as tracker:
        with torch.no_grad():
            model[0].weight.add_(torch.randn(6, 3, 3, 3))
        tracker.step()
    save_file({"0.weight": model[0].weight.detach()}, folder / "zero-0.safetensors")
    (folder / "p.csv").write_text("sparsity,score\n0.0,90\n0.5,80\n")
    (folder / "t.csv").write_text("layer,rank_out,rank_in,error,score\n0,6,3,0.0,90\n0,3,2,0.4,70\n")
    measured = {"pruning": "p.csv", "tucker": "t.csv"}
    record = {"seed": 0, "run": "zero-0.h5", "settings": {"at": None}, "measured": measured}
    said = {
        "rows": [row("zero", "ZerO", [90.0])],
        "trainings": {"zero-0": record},
        "metric": "test accuracy [%]",
    }
    (folder / "results.json").write_text(json.dumps({**said, "trainings_in": "."}))
    rank, pruned, by_rank, heat, *_ = figures.figure_6(folder)
    assert rank.get_title().startswith("layer 0\n")
    assert "ZerO, $W - W_0$" in lines(rank)
    np.testing.assert_array_equal(lines(pruned)["_ZerO"].get_ydata(), [90, 80])
    np.testing.assert_array_equal(lines(by_rank)["_ZerO"].get_ydata(), [70, 90])
    surface = tucker2_error_surface(model[0].weight.detach())
    np.testing.assert_array_equal(heat.images[0].get_array(), surface.numpy())
    assert by_rank.get_ylabel() == "test accuracy [%]"
    (folder / "p.csv").unlink()
    with pytest.raises(InputError, match=r"cannot read .*p\.csv"):
        figures.figure_6(folder)
    (folder / "results.json").write_text(json.dumps({**said, "trainings": {}}))
    with pytest.raises(InputError, match="nothing of pruning or Tucker-2 was measured"):
        figures.figure_6(folder)
