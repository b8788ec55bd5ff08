"""The notebooks, executed at smoke scale, with their values asserted."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from zanalysis.experiments.data import load
from zanalysis.experiments.theorem1 import Training
from zanalysis.experiments.verification import train_all

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_figure_3(tmp_path, monkeypatch):
    train_all(Training(load("digits"), scale="smoke"), [64, 80], tmp_path / "runs")
    monkeypatch.setenv("ZANALYSIS_RUNS", str(tmp_path / "runs"))
    notebook = nbformat.read(NOTEBOOKS / "figure_3.ipynb", as_version=4)
    notebook.cells.append(
        nbformat.v4.new_code_cell("print([(v.claim, v.verdict, v.measured) for v in verdicts])")
    )
    notebook.cells.append(nbformat.v4.new_code_cell("print(len(axes), len(axes[0].get_lines()), len(runs))"))
    NotebookClient(
        notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": NOTEBOOKS}}
    ).execute()
    assert "('(ii)', 'holds', 61.0)" in notebook.cells[-2].outputs[0].text
    assert notebook.cells[-1].outputs[0].text.split() == ["2", "4", "6"]
    kinds = [
        output.data.keys()
        for cell in notebook.cells
        if "outputs" in cell
        for output in cell.outputs
        if "data" in output
    ]
    assert any("image/png" in kind for kind in kinds)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_committed_outputs_are_light_and_without_errors(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs, "commit it executed"
    for output in outputs:
        assert output.output_type != "error"
        assert len(str(output)) < 500_000
