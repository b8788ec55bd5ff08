"""Pruning and Tucker-2 of a user's model at each checkpoint: `za.curves`.

The model is the user's own code, run because the user named it: `package.module:function`, or a function, that
returns `(model, evaluate)`; `evaluate(model)` returns one number, such as the accuracy on held-out data. The
weights come from the checkpoint, whose names must be those of the model, up to the prefixes that wrappers add.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from zanalysis.analyzers._weights import fraction, model_weights
from zanalysis.analyzers.naming import Selection, layer_name, selected
from zanalysis.errors import InputError, did_you_mean
from zanalysis.sweep.analysis import Progress, check_workers
from zanalysis.sweep.cluster import connected
from zanalysis.sweep.curve_work import Build, CurveOutcome, CurveWork, built
from zanalysis.sweep.journal import Journal, described
from zanalysis.sweep.running import carried_out, in_turn
from zanalysis.sweep.saving import checked_target, save
from zanalysis.sweep.states import Paths, found, states

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CURVES", "CURVE_COLUMNS", "FRACTIONS", "SPARSITIES", "Curves", "curves"]

CURVES = ("pruning", "tucker")
CURVE_COLUMNS = [
    "checkpoint", "step", "curve", "scope", "layer", "sparsity", "rank_out", "rank_in", "parameters", "error",
    "score", "status",
]  # fmt: skip
SPARSITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
FRACTIONS = (0.125, 0.25, 0.5, 0.75)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def curves(
    paths: Paths,
    model: Build,
    *,
    curves: str | Sequence[str] = CURVES,
    sparsities: Sequence[float] = SPARSITIES,
    scope: str = "layer",
    fractions: Sequence[float] = FRACTIONS,
    layers: Selection = None,
    workers: int | None = None,
    scheduler: Any = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Score a model at each checkpoint with its smallest weights removed, or its kernels at lower ranks.

    Args:
        paths: one checkpoint, several, or folders of them.
        model: what builds the model and its evaluation: `"package.module:function"`, looked for in the working
            folder too, or a function; it takes nothing and returns `(model, evaluate)`.
        curves: ``"pruning"`` (see `zanalysis.pruning_curve`), ``"tucker"`` (see `zanalysis.tucker_curve`) or both.
        sparsities: the fractions removed.
        scope: ``"layer"`` or ``"global"``, of pruning.
        fractions: the Tucker ranks, as fractions of the output and the input channels; at least one each.
        layers: names, globs, regular expressions or predicates: what is pruned, and which kernels are
            decomposed; None for every weight, and every convolution with one group.
        workers: as for `analyze`.
        scheduler: as for `analyze`.
        out: as for `analyze`.
        overwrite: as for `analyze`.
        progress: called with the number of curves done and of all.

    Returns:
        One row for each point: checkpoint, step, curve, scope, layer (of Tucker), sparsity (of pruning),
        rank_out and rank_in (of Tucker), parameters (entries kept, or numbers in core and factors), error
        (relative, of the kernel), score and status; NaN where a column does not apply. A curve that fails is one
        row with the status ``error``.

    Raises:
        InputError: if an argument is unknown, or the model cannot be built or scored.
        CheckpointError: if a checkpoint cannot be read, or does not fit the model.
    """
    sweep = Curves(
        paths,
        model,
        curves=curves,
        sparsities=sparsities,
        scope=scope,
        fractions=fractions,
        layers=layers,
        workers=workers,
        scheduler=scheduler,
        out=out,
        overwrite=overwrite,
    )
    return sweep.run(progress)


class Curves:
    """One sweep of curves: checked when it is made, carried out once.

    Attributes:
        done: what is done so far.
    """

    def __init__(
        self,
        paths: Paths,
        model: Build,
        *,
        curves: str | Sequence[str] = CURVES,
        sparsities: Sequence[float] = SPARSITIES,
        scope: str = "layer",
        fractions: Sequence[float] = FRACTIONS,
        layers: Selection = None,
        workers: int | None = None,
        scheduler: Any = None,
        out: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Check what was asked for, build the model once, and find the checkpoints.

        Args:
            paths: as for `curves`, like all others.
            model: what builds the model.
            curves: which.
            sparsities: of pruning.
            scope: of pruning.
            fractions: of Tucker.
            layers: which.
            workers: how many Dask workers to start.
            scheduler: whose Dask workers to use.
            out: the file for the table.
            overwrite: whether it may be replaced.

        Raises:
            InputError: if something of this is not as expected.
        """
        check_workers(workers, scheduler)
        self._curves = [curves] if isinstance(curves, str) else list(curves)
        for curve in self._curves:
            if curve not in CURVES:
                raise InputError(f"unknown curve {curve!r}; {did_you_mean(str(curve), CURVES)}")
        if scope not in ("layer", "global"):
            raise InputError(f"unknown scope {scope!r}; {did_you_mean(str(scope), ('layer', 'global'))}")
        self._settings: dict[str, dict[str, Any]] = {
            "pruning": {"sparsities": [fraction(s, "sparsity") for s in sparsities], "scope": scope},
            "tucker": {"fractions": [fraction(f, "fraction") for f in fractions]},
        }
        self._out = None if out is None else checked_target(out, overwrite)
        self._overwrite, self._workers, self._scheduler = overwrite, workers, scheduler
        self._model = model
        self._paths = found(paths)
        self._layers = _chosen(built(model)[0], self._curves, layers)
        self._total = 0
        self.done: list[tuple[CurveWork, CurveOutcome]] = []

    @property
    def table(self) -> "pd.DataFrame":
        """The points that there are so far."""
        import pandas as pd

        order = sorted(
            self.done, key=lambda pair: (pair[0].place, pair[0].step, pair[0].curve, pair[0].layers)
        )
        rows = [row for work, outcome in order for row in _points(work, outcome)]
        table = pd.DataFrame(rows, columns=CURVE_COLUMNS)
        numbers = CURVE_COLUMNS[CURVE_COLUMNS.index("sparsity") : -1]
        return table.astype(dict.fromkeys(numbers, "float64") | {"step": "int64"})

    def run(self, progress: Progress | None = None) -> "pd.DataFrame":
        """Carry the sweep out.

        Args:
            progress: as for `curves`.

        Returns:
            The table. It is written to the file that was named, too.
        """
        with ExitStack() as stack:
            on_dask = self._workers is not None or self._scheduler is not None
            runner = stack.enter_context(connected(self._workers, self._scheduler)) if on_dask else in_turn
            journal = None
            if self._out is not None:
                asked = {name: self._settings[name] for name in self._curves}
                settings = {"model": described(self._model), "layers": described(self._layers), **asked}
                journal = Journal(self._out, settings, self._overwrite)
                stack.callback(journal.close)
            for work, outcome in carried_out(self._work(), runner, journal, CurveOutcome):
                self.done.append((work, outcome))
                if progress is not None:
                    progress(len(self.done), max(self._total, len(self.done)))
            table = self.table
            if journal is not None and self._out is not None:
                journal.finish(partial(save, table, self._out))
        return table

    def _work(self) -> Iterator[CurveWork]:
        each = len(self._paths)
        self._total = each * sum(
            1 if curve == "pruning" else len(self._layers[curve]) for curve in self._curves
        )
        for state in states(self._paths):
            if state.checkpoint is None:
                assert state.error is not None
                raise state.error
            for curve in self._curves:
                names = self._layers[curve]
                for layers in [tuple(names)] if curve == "pruning" else [(name,) for name in names]:
                    yield CurveWork(
                        state.place,
                        f"{state.fingerprint}:{curve}:{','.join(layers)}",
                        state.label,
                        state.step,
                        state.checkpoint,
                        self._model,
                        curve,
                        layers,
                        self._settings[curve],
                    )


def _chosen(model: nn.Module, curves: Sequence[str], layers: Selection) -> dict[str, list[str]]:
    weights = model_weights(model)
    names = selected(layers, {name: partial(weights.__getitem__, name) for name in weights})
    kernels = {
        layer_name(name)
        for name, m in model.named_modules()
        if isinstance(m, _CONVOLUTIONS) and m.groups == 1
    }
    convolutions = names if layers is not None else [name for name in names if name in kernels]
    if "tucker" in curves and not convolutions:
        raise InputError(
            f"{type(model).__name__} has no convolution to decompose; name other layers with layers, or leave the "
            "curve tucker out."
        )
    return {"pruning": names, "tucker": convolutions}


def _points(work: CurveWork, outcome: CurveOutcome) -> Iterator[dict[str, Any]]:
    fixed = {"checkpoint": work.checkpoint, "step": work.step, "curve": work.curve}
    fixed |= {
        "scope": work.settings.get("scope", ""),
        "layer": work.layers[0] if work.curve == "tucker" else "",
    }
    if outcome.errors:
        yield {**fixed, "status": "error"}
    for i in range(len(outcome.columns.get("score", ()))):
        point = {name: values[i] for name, values in outcome.columns.items()}
        ok = math.isfinite(point["score"])
        yield {
            **fixed,
            **point,
            "score": point["score"] if ok else math.nan,
            "status": "ok" if ok else "nonfinite",
        }
