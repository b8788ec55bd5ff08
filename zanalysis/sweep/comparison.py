"""Two checkpoints side by side: `za.compare`."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pandas as pd

from zanalysis.analyzers.matrices import View
from zanalysis.analyzers.metrics import NONE
from zanalysis.analyzers.naming import Selection, plain
from zanalysis.errors import InputError
from zanalysis.sweep.analysis import Analysis, Progress
from zanalysis.sweep.layers import StoredLayer
from zanalysis.sweep.splitting import Split
from zanalysis.sweep.states import Paths, State, found
from zanalysis.sweep.work import Absent, Source

__all__ = ["Comparison", "compare", "side_by_side"]

Path = str | os.PathLike[str]


def compare(
    a: Path,
    b: Path,
    *,
    metrics: Any = ("rank", "stable_rank"),
    reference: Any = None,
    tolerance: Any = "default",
    view: View = "out",
    layers: Selection = None,
    split: Split | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure two checkpoints, and what changed from the one to the other.

    Args:
        a: one checkpoint; of a file that holds several steps, the first.
        b: the other; of a file that holds several steps, the last.
        metrics: as for `analyze`.
        reference: as for `analyze`.
        tolerance: as for `analyze`.
        view: as for `analyze`.
        layers: as for `analyze`.
        split: as for `analyze`.
        out: as for `analyze`.
        overwrite: as for `analyze`.
        progress: as for `analyze`.

    Returns:
        The columns of `analyze`: the rows of a, then those of b, and among the latter those of the change
        `b − a`, under the reference `init`. `side_by_side` lays them out layer by layer.

    Raises:
        InputError: if an argument is unknown, or no layer is in both.
        CheckpointError: if a checkpoint cannot be read.

    Example:
        >>> import tempfile, torch, zanalysis as za
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"fc.weight": torch.eye(3)}, f"{folder}/a.pt")
        ...     torch.save({"fc.weight": torch.diag(torch.tensor([1.0, 1.0, 3.0]))}, f"{folder}/b.pt")
        ...     table = za.compare(f"{folder}/a.pt", f"{folder}/b.pt", metrics="rank")
        >>> table[["reference", "value"]].to_numpy().tolist()
        [['none', 3.0], ['init', 1.0], ['none', 3.0]]
    """
    comparison = Comparison(
        a,
        b,
        metrics=metrics,
        reference=reference,
        tolerance=tolerance,
        view=view,
        layers=layers,
        split=split,
        out=out,
        overwrite=overwrite,
    )
    return comparison.run(progress)


class Comparison(Analysis):
    """A sweep over two checkpoints, with the change between them."""

    def __init__(self, a: Path, b: Path, *, reference: Any = None, **settings: Any) -> None:
        """Check what was asked for, and find both.

        Args:
            a: one checkpoint.
            b: the other.
            reference: what is subtracted beside `a`.
            **settings: as for `analyze`.

        Raises:
            InputError: if a and b are the same file.
        """
        self._new: set[str] = set()
        self._pair = [_one(a), _one(b)]
        if self._pair[0].resolve() == self._pair[1].resolve():
            raise InputError(f"got {self._pair[0]} twice; name two different checkpoints to compare.")
        asked = list(reference) if isinstance(reference, list | tuple) else [reference]
        several = [*asked, *([] if any(isinstance(r, str) and r == "init" for r in asked) else ["init"])]
        super().__init__([a, b], reference=several, **settings)

    def _found(self, paths: Paths) -> list[FilePath]:
        return self._pair

    def _states(self) -> Iterator[State]:
        opened = list(super()._states())
        for state in opened:
            if state.error is not None:
                raise state.error
        yield next(state for state in opened if state.place[0] == 0)
        yield [state for state in opened if state.place[0] == 1][-1]

    def _sources(self, layer: StoredLayer) -> dict[str, Source]:
        sources = super()._sources(layer)
        if isinstance(sources["init"], Absent):
            self._new |= set(layer.names)
            sources["init"] = replace(sources["init"], expected=True)
        return sources

    @property
    def table(self) -> pd.DataFrame:
        """The rows that there are so far; the change of a from itself is not among them."""
        table = super().table
        change = table["reference"] == "init"
        itself = change & (table["checkpoint"] == plain(str(self._pair[0])))
        new = change & table["layer"].isin(self._new)
        return table[~(itself | new)].reset_index(drop=True)


def _one(path: Path) -> FilePath:
    checkpoints = found(path)
    if len(checkpoints) > 1:
        raise InputError(
            f"{os.fspath(path)} holds {len(checkpoints)} checkpoints; name one of them to compare."
        )
    return checkpoints[0]


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Lay a comparison out with one row for each layer and metric.

    Args:
        table: as `compare` returns it.

    Returns:
        Columns layer, tensor, reference, tolerance_rule, metric, `a`, `b`, `change`, `status_a`, `status_b`,
        `status_change`. `change` is the metric of `b − a` itself: the rank of the change, not the change of the
        rank. NaN and an empty status where one of them has no such layer.
    """
    first = table["checkpoint"].iloc[0] if len(table) else ""
    last = table["checkpoint"].iloc[-1] if len(table) else ""
    keys = ["layer", "tensor", "reference", "tolerance_rule", "metric"]
    plain_rows = table[table["reference"] != "init"]
    change = table[table["reference"] == "init"].assign(reference=NONE)
    merged: pd.DataFrame | None = None
    for name, rows in (
        ("a", plain_rows[plain_rows["checkpoint"] == first]),
        ("b", plain_rows[plain_rows["checkpoint"] == last]),
        ("change", change),
    ):
        part = rows[[*keys, "value", "status"]].rename(columns={"value": name, "status": f"status_{name}"})
        merged = part if merged is None else merged.merge(part, how="outer", on=keys)
    assert merged is not None
    merged = merged.sort_values(keys, kind="stable").reset_index(drop=True)
    words = [f"status_{name}" for name in ("a", "b", "change")]
    merged[words] = merged[words].astype(object).where(merged[words].notna(), "")
    return merged[[*keys, "a", "b", "change", *words]]
