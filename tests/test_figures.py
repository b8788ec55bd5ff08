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
    assert {"rank, $N_h$ = 64", "rank, $N_h$ = 80", "bound $N_x$ = 64"} <= set(lines(left))
    table = open_run(runs[Case("identity", 80)]).table()
    wanted = table[(table.layer == "W2") & (table.metric == "rank") & (table.tolerance_rule == "0.0001")]
    drawn = lines(left)["rank, $N_h$ = 80"]
    np.testing.assert_array_equal(drawn.get_xdata(), wanted["step"])
    np.testing.assert_array_equal(drawn.get_ydata(), wanted["value"])
    shown = lines(right)
    assert {
        "Hadamard: rank",
        "Hadamard: exact support",
        "Hadamard: activation span",
        "random (Kaiming): rank",
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
