"""Analyzers over checkpoints, steps and layers, to one tidy table; here or on a cluster.

- `analysis`: every layer of every checkpoint; `comparison`: two checkpoints side by side; `model_curves`: pruning
  and Tucker-2 of a user's model at each checkpoint.
- `states` opens checkpoints in turn, `layers` chooses their tensors by the rule of the live side, `splitting`
  cuts those that hold several matrices, `references` finds what is subtracted.
- `work` is one layer of one checkpoint; `running` carries it out here, `cluster` on Dask; `journal` keeps what an
  interruption leaves; `table` and `saving` make one file of it.
"""

from zanalysis.sweep.analysis import analyze
from zanalysis.sweep.comparison import compare, side_by_side
from zanalysis.sweep.model_curves import curves

__all__ = ["analyze", "compare", "curves", "side_by_side"]
