"""Figure 3: what is drawn is what was recorded."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

from zanalysis.errors import InputError
from zanalysis.experiments.data import load
from zanalysis.experiments.theorem1 import Case, Training, train
from zanalysis.runfile.reader import open_run

mpl.use("Agg")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    training = Training(load("digits"), scale="smoke")
    cases = [Case("identity", 64), Case("identity", 80), Case("random", 80), Case("hadamard", 80)]
    return {case: train(case, training, folder / case.filename) for case in cases}


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_curves_bounds_and_labels(runs):
    from zanalysis.figures import figure_3

    identity = [path for case, path in runs.items() if case.initialization == "identity"]
    left, right = figure_3(identity, [path for case, path in runs.items() if case.width == 80])
    assert {"rank at $10^{-4}$, $N_h$ = 64", "rank at $10^{-4}$, $N_h$ = 80", "bound $N_x$ = 64"} <= set(
        lines(left)
    )
    table = open_run(runs[Case("identity", 80)]).table()
    wanted = table[(table.layer == "W2") & (table.metric == "rank") & (table.tolerance_rule == "0.0001")]
    drawn = lines(left)["rank at $10^{-4}$, $N_h$ = 80"]
    np.testing.assert_array_equal(drawn.get_xdata(), wanted["step"])
    np.testing.assert_array_equal(drawn.get_ydata(), wanted["value"])
    shown = lines(right)
    assert {
        "Hadamard: rank at $10^{-4}$",
        "Hadamard: exact support",
        "Hadamard: activation span",
        "random (Kaiming): rank at $10^{-4}$",
    } <= set(shown)
    # What breaks the bound is in the picture, above the dashed line.
    assert max(shown["Hadamard: exact support"].get_ydata()) > 64
    assert left.get_xlabel() == right.get_xlabel() == "optimizer steps"
    assert left.get_ylabel() == r"rank of $W_{2} - \alpha I$"
    mpl.pyplot.close("all")


def test_a_panel_without_runs_is_refused():
    from zanalysis.figures import figure_3

    with pytest.raises(InputError, match="at least one run for each panel"):
        figure_3([], [])


def test_a_run_without_the_identity_is_refused(tmp_path):
    from hooks import RankTracker
    from zanalysis.figures import figure_3

    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    RankTracker(model, path=tmp_path / "a.h5").close()
    with pytest.raises(InputError, match="has no rank against the identity"):
        figure_3([tmp_path / "a.h5"], [tmp_path / "a.h5"])


def drawn(runs, width):
    from zanalysis.figures import figure_3

    at = [path for case, path in runs.items() if case.width == width]
    identity = [
        path for case, path in runs.items() if case.initialization == "identity" and case.width == width
    ]
    axes = figure_3(identity, at)
    mpl.pyplot.close("all")
    return axes


def test_titles_and_labels_assert_nothing_and_state_the_tolerance(runs):
    left, right = drawn(runs, 80)
    assert left.get_title() == "partial identity at $N_h$ = 80"
    assert right.get_title() == "initializations at $N_h$ = 80"
    assert "exact support" in lines(left)  # of one width there is no largest
    ranks = [label for label in [*lines(left), *lines(right)] if "rank at" in label]
    assert len(ranks) == 4
    assert all("rank at $10^{-4}$" in label for label in ranks)


def test_curves_that_coincide_are_drawn_wider_below(runs):
    _, right = drawn(runs, 80)
    identity, hadamard = (
        lines(right)[f"{name}: rank at $10^{{-4}}$"] for name in ("partial identity", "Hadamard")
    )
    assert identity.get_linewidth() > hadamard.get_linewidth()
    assert identity.get_zorder() < hadamard.get_zorder()


def test_bounds_of_one_height_are_one_line(runs):
    left, right = drawn({**runs, Case("hadamard", 64): runs[Case("identity", 64)]}, 64)
    assert "bound $N_x$ = 64" in lines(left)
    assert "bound $N_x$ = full rank $N_h$ = 64" in lines(right)
    assert not {"bound $N_x$ = 64", "full rank $N_h$ = 64"} & set(lines(right))


def test_everything_in_the_legend_lies_inside_the_axes(tmp_path, runs):
    narrow = Training(load("digits"), scale="smoke")
    small = {Case("identity", 16): train(Case("identity", 16), narrow, tmp_path / "identity-16.h5")}
    for width, of in ((80, runs), (16, small)):
        for axes in drawn(of, width):
            for line in axes.get_lines():
                assert max(line.get_ydata()) < axes.get_ylim()[1]
    assert lines(axes).keys() >= {"$N_x$ = 64 > full rank $N_h$ = 16"}
    assert not [label for label in lines(axes) if label.startswith("bound")]


def test_saving_needs_no_display_and_leaves_the_backend(runs, tmp_path, monkeypatch):
    from zanalysis.figures import save_figure_3

    monkeypatch.setattr(mpl.pyplot, "figure", None)
    backend = mpl.get_backend()
    save_figure_3([runs[Case("identity", 80)]], [runs[Case("identity", 80)]], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert mpl.get_backend() == backend
