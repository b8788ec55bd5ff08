"""Figures: runs, tables and results in, matplotlib Axes out; legible in print, on a screen and in grey.

Without `axes=` each draws on a new sheet that pyplot does not know; `axes.figure` is that sheet: a notebook shows
it, and `save_figure` writes it.
"""

from zanalysis.figures.complexity import figure_6
from zanalysis.figures.depth import figure_4
from zanalysis.figures.files import save_figure
from zanalysis.figures.jacobian import jacobian_over_training
from zanalysis.figures.network import figure_2
from zanalysis.figures.spectra import spectrum_heatmap, staircase
from zanalysis.figures.tables import table_2, table_3, table_4
from zanalysis.figures.theorem import figure_3, panels_of_figure_3, save_figure_3
from zanalysis.figures.trajectories import figure_5

__all__ = [
    "figure_2",
    "figure_3",
    "figure_4",
    "figure_5",
    "figure_6",
    "jacobian_over_training",
    "panels_of_figure_3",
    "save_figure",
    "save_figure_3",
    "spectrum_heatmap",
    "staircase",
    "table_2",
    "table_3",
    "table_4",
]
