"""Figures over training: what is drawn is what was recorded, with its reference and its gaps."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hooks import RankTracker, Recorder, every
from zanalysis import figures
from zanalysis.errors import InputError
from zanalysis.figures.network import _shrunk
from zanalysis.figures.recorded import maximal_rank
from zanalysis.runfile.reader import open_run
from zanalysis.runfile.tables import Spectra


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small network trained with every metric that figures read, and its raw weights."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    x, y = torch.randn(40, 5), torch.randint(0, 4, (40,))
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU(),
                          nn.Linear(8, 4, bias=False))  # fmt: skip
    with torch.no_grad():
        for index in (0, 2, 4):
            nn.init.eye_(model[index].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    metrics = ("rank", "stable_rank", "singular_values", "jacobian_singular_values")
    tracked = RankTracker(model, optimizer, folder / "run.h5", schedule=every(2), metrics=metrics,
                          reference=[None, "init", "identity"], probe=x[:3])  # fmt: skip
    with tracked, Recorder(model, optimizer, folder / "raw.h5", schedule=every(6)):
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return folder


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_a_trajectory_is_the_tables_with_its_reference_its_maximum_and_its_gap(runs):
    run = open_run(runs / "run.h5")
    (axes,) = figures.figure_5({"ZerO": run}, "2")
    table = run.table()
    wanted = table[(table.layer == "2") & (table.metric == "stable_rank") & (table.reference == "init")]
    drawn = lines(axes)["ZerO, $W - W_0$"]
    np.testing.assert_array_equal(drawn.get_xdata(), wanted["step"])
    np.testing.assert_array_equal(drawn.get_ydata(), wanted["value"])
    assert np.isnan(drawn.get_ydata()[0])
    assert lines(axes)["maximum, min(m, n)"].get_ydata()[0] == 8
    assert list(lines(axes)["_gaps"].get_xdata()) == [0]
    assert axes.get_title() == "layer 2\nthe update since the start, $W - W_0$"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("stable rank", "optimizer steps")
    assert "Gap at step 0 (ZerO; 2): the matrix is zero." in axes.figure.get_supxlabel()


def test_several_references_are_panels_and_a_mixture_is_said(runs):
    shown = figures.figure_5(runs / "run.h5", ["0", "2"], reference=["none", "init"])
    assert [axes.get_title().split("\n")[0] for axes in shown] == ["layer 0", "layer 2", "layer 0", "layer 2"]
    assert "run, $W$" in lines(shown[0])
    mixed = {"a": open_run(runs / "run.h5"), "b": open_run(runs / "run.h5")}
    (axes,) = figures.figure_5(mixed, "2", reference={"a": "none", "b": "init"})
    assert {"a, $W$", "b, $W - W_0$"} <= set(lines(axes))
    assert "they are not the same quantity" in axes.figure.get_supxlabel()


def test_runs_of_one_system_are_a_mean_with_a_band():
    def table(shift):
        return pd.DataFrame({"step": [0, 1, 2], "layer": "fc", "tensor": "weight", "reference": "init",
                             "metric": "stable_rank", "value": [np.nan, 1.0 + shift, 2.0 + shift]})  # fmt: skip

    (axes,) = figures.figure_5({"ZerO": [table(0.0), table(1.0)]})
    line = lines(axes)["ZerO, $W - W_0$ (mean of 2 seeds, band: 1 std)"]
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 1.5, 2.5])
    assert len(axes.collections) == 1
    assert "the table gives no reason" in axes.figure.get_supxlabel()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": "nothing"}, "no layer matches 'nothing'"),
        ({"reference": "intial"}, "against the reference 'intial'"),
        ({"metric": "stable_rnak"}, "did you mean 'stable_rank"),
        ({"reference": {"other": "init"}}, "reference names none for 'run'"),
        ({"axes": []}, "got 0 axes, expected 3"),
    ],
)
def test_what_was_not_recorded_is_one_sentence(runs, options, sentence):
    with pytest.raises(InputError, match=sentence):
        figures.figure_5(runs / "run.h5", **options)


def test_nothing_to_draw_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no run was given"):
        figures.figure_5([])
    with pytest.raises(InputError, match=r"holds neither results\.json nor a run file"):
        figures.figure_5(tmp_path)
    with pytest.raises(InputError, match="no column 'layer'"):
        figures.figure_5(pd.DataFrame({"step": [0]}))


def test_the_maximum_follows_the_recorded_view(tmp_path):
    for view, most in (("out", 6), ("in", 4), ("taps", 4)):
        with RankTracker(nn.Conv2d(4, 6, 3), path=tmp_path / f"{view}.h5", view=view):
            pass
        run = open_run(tmp_path / f"{view}.h5")
        assert {maximal_rank(run, name) for name in run.layers} == {most}
    assert np.isnan(maximal_rank(run, "elsewhere"))


def test_the_heat_map_shows_every_value_and_zeros_as_below(runs):
    spectra = open_run(runs / "run.h5").spectra("2", reference="init")
    values = spectra.values[:, :8]
    assert np.isnan(spectra.values[:, 8:]).all()
    axes = figures.spectrum_heatmap(runs / "run.h5", "2")
    mesh = axes.collections[-1]
    drawn = np.asarray(mesh.get_array()).reshape(values.shape[::-1]).T
    visible = values >= mesh.norm.vmin
    np.testing.assert_array_equal(drawn[visible], values[visible])
    assert not visible[0].any()
    assert (drawn[~visible] < mesh.norm.vmin).all()
    assert axes.get_ylabel() == r"index i of $\sigma_i$ (8 of 8 recorded)"
    assert "White: zero" in axes.figure.get_supxlabel()
    with pytest.raises(InputError, match="spectra of 3 layers; choose one: 0, 2, 4"):
        figures.spectrum_heatmap(runs / "run.h5")
    with pytest.raises(InputError, match="against 'identty'; did you mean 'identity'"):
        figures.spectrum_heatmap(runs / "run.h5", "2", "identty")


def test_the_staircase_marks_emergence_on_the_curve_and_draws_theory():
    spectrum = Spectra(np.arange(0, 50, 10), np.array([[0.0, 0], [1, 0], [2, 0], [2, 1], [2, 1]]))
    evidence = pd.DataFrame({"layer": "fc", "reference": "init", "criterion": ["emergence", "emergence", "waits"],
                             "index": [1, 0, 0], "value": [25.0, 15.0, 0.5]})  # fmt: skip
    axes = figures.staircase(spectrum, "fc", emergence=evidence, theory=[14.0, 26.0])
    marks = [line for line in axes.get_lines() if line.get_label() in ("emerges", "_emerges")]
    assert [(float(m.get_xdata()[0]), float(m.get_ydata()[0])) for m in marks] == [(15.0, 1.5), (25.0, 0.5)]
    np.testing.assert_array_equal(lines(axes)["theory: emerges"].get_xdata(), [14.0, 26.0])
    np.testing.assert_array_equal(lines(axes)["$\\sigma_{2}$"].get_ydata(), spectrum.values[:, 1])
    with pytest.raises(InputError, match="no columns index and value"):
        figures.staircase(spectrum, "fc", emergence=evidence.drop(columns="index"))
    with pytest.raises(InputError, match="no singular value"):
        figures.staircase(Spectra(np.arange(2), np.full((2, 3), np.nan)))


def test_the_jacobian_is_the_median_over_samples(runs, tmp_path):
    run = open_run(runs / "run.h5")
    axes = figures.jacobian_over_training(run)
    values = np.stack([run.spectra(f"model[{i}]", "jacobian").values[:, 0] for i in range(3)])
    drawn = lines(axes)["$\\sigma_{1}$"]
    np.testing.assert_array_equal(drawn.get_ydata(), np.median(values, axis=0))
    assert axes.get_yscale() == "log"
    with RankTracker(nn.Linear(3, 3), path=tmp_path / "plain.h5"):
        pass
    with pytest.raises(InputError, match="has no Jacobian; record it with"):
        figures.jacobian_over_training(tmp_path / "plain.h5")


def test_the_network_before_and_after_with_its_block(runs):
    shown = figures.figure_2(runs / "raw.h5")
    assert len(shown) == 6
    run = open_run(runs / "raw.h5")
    start, end = (run.tensor("2", step=step).double() for step in (0, 12))
    np.testing.assert_array_equal(shown[1].images[0].get_array(), start.abs())
    residual = (end - torch.eye(8)).abs().numpy()
    drawn = shown[4].images[0].get_array()
    np.testing.assert_array_equal(drawn.filled(0.0), residual)
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), residual == 0)
    outline = shown[4].patches[0]
    assert (outline.get_width(), outline.get_height()) == (5, 5)
    assert shown[4].get_title().endswith("nothing outside the block")
    assert shown[3].get_title().endswith("nothing outside the block")


def test_what_lies_outside_the_block_is_said(runs):
    state = {"a.weight": torch.eye(6, 3), "b.weight": torch.eye(6)}
    end = {name: W.clone() for name, W in state.items()}
    end["b.weight"][5, 4] = 0.25
    shown = figures.figure_2(state, end, reference="init")
    assert shown[3].get_title().endswith("outside the block: up to 2.5e-01")
    with pytest.raises(InputError, match="only one state was given"):
        figures.figure_2(state)
    with pytest.raises(InputError, match="not the same at both ends"):
        figures.figure_2(state, {"a.weight": torch.eye(3)})
    with pytest.raises(InputError, match="did you mean 'init'"):
        figures.figure_2(state, end, reference="innit")
    with pytest.raises(InputError, match="there is no matrix"):
        figures.figure_2({"a": torch.zeros(3)}, {})


def test_shrinking_a_large_matrix_loses_no_entry():
    matrix = np.zeros((1500, 700))
    matrix[1499, 3] = matrix[777, 699] = 1.0
    small = _shrunk(matrix)
    assert small.shape == (512, 512)
    assert small.sum() == 2


def test_a_notebook_shows_a_sheet_without_pyplot(runs):
    axes = figures.spectrum_heatmap(runs / "run.h5", "2")
    assert axes.figure._repr_png_().startswith(b"\x89PNG")
    assert not mpl.pyplot.get_fignums()


def table_of(values):
    """A table of stable ranks at successive steps."""
    keys = {"layer": "a", "tensor": "weight", "reference": "init", "metric": "stable_rank"}
    rows = [{"step": step, **keys, "value": value, "status": "ok"} for step, value in enumerate(values)]
    return pd.DataFrame(rows)


def test_a_number_alone_between_gaps_is_seen():
    (axes,) = figures.figure_5(table_of([1.0, np.nan, 2.0, 2.5, np.nan, 3.0]))
    (line,) = [line for line in axes.get_lines() if line.get_label().startswith("run")]
    assert line.get_marker() == "o"
    assert list(line.get_markevery()) == [0, 5]
    (axes,) = figures.figure_5(table_of([1.0, 2.0]))
    assert axes.get_lines()[0].get_marker() == "None"


def test_any_name_stands_in_the_legend_as_it_is():
    names = {"_best": table_of([1.0, 2.0]), "cost_$x^{": table_of([2.0, 3.0])}
    (axes,) = figures.figure_5(names)
    axes.figure.draw_without_rendering()
    said = [text.get_text().strip() for text in axes.figure.legends[0].get_texts()]
    assert said == ["_best, $W - W_0$", r"cost_\$x^{, $W - W_0$"]


def test_a_legend_of_long_names_stays_on_the_sheet():
    names = {f"a system with quite a long name {i}": table_of([1.0, 2.0 + i]) for i in range(4)}
    for given in (names, {"short": table_of([1.0, 2.0]), "b": table_of([1.0, 3.0])}):
        (axes,) = figures.figure_5(given)
        axes.figure.draw_without_rendering()
        (legend,) = axes.figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= axes.figure.bbox.width
    assert legend._ncols == 2
