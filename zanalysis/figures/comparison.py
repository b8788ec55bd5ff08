"""What an experiment found, as it is drawn: systems, seeds and values, beside what its source reports."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from zanalysis.errors import InputError, RunFileError
from zanalysis.figures.sources import RESULTS, read_json

__all__ = ["Comparison", "Results", "read_comparison"]

Results = Mapping[str, Any] | pd.DataFrame | str | os.PathLike[str]


@dataclass(frozen=True)
class Comparison:
    """What an experiment found.

    Attributes:
        rows: columns system, at (what is swept; NaN for nothing), seed, value (NaN where it diverged), diverged.
        paper: columns system, at, mean (NaN: diverged there too), std: what the source reports.
        metric: what the values are, with their unit.
        sweep: what `at` is.
        setting: scale and data, a clause.
        why_not: why the source's values cannot be compared; empty if they can.
    """

    rows: pd.DataFrame
    paper: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["system", "at", "mean", "std"]))
    metric: str = "value"
    sweep: str = "depth"
    setting: str = ""
    why_not: str = ""


def read_comparison(results: Results) -> Comparison:
    """Read what an experiment found.

    Args:
        results: the folder of an experiment, its `results.json`, what is in it, or a table with the columns system
            and value, and at, seed, diverged and paper where there are such.

    Returns:
        Systems, seeds and values.

    Raises:
        InputError: if it is something else, or empty.
        RunFileError: if there is no such file.
    """
    if isinstance(results, pd.DataFrame):
        return _from_table(results)
    said: Mapping[str, Any]
    if isinstance(results, Mapping):
        said, where = results, "the results"
    else:
        path = Path(results)
        path = path / RESULTS if path.is_dir() else path
        if not path.is_file():
            raise RunFileError(f"there is no {path}; `zanalysis experiment NAME` writes one.")
        said, where = read_json(path), str(path)
    try:
        return _from_results(said)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{where} is not what an experiment leaves ({error!r} is missing or wrong)."
        ) from error


def _from_table(table: pd.DataFrame) -> Comparison:
    if missing := sorted({"system", "value"} - set(table.columns)):
        raise InputError(
            f"the table has no column {missing[0]!r}; expected system, value, and at where swept."
        )
    if table.empty:
        raise InputError("there is nothing to draw: the table has no row.")
    at = table["at"] if "at" in table else pd.Series(math.nan, table.index)
    rows = pd.DataFrame(
        {
            "system": table["system"].astype(str),
            "at": at.astype(float),
            "seed": table["seed"] if "seed" in table else range(len(table)),
            "value": table["value"].astype(float),
            "diverged": table["diverged"].astype(bool) if "diverged" in table else table["value"].isna(),
        }
    )
    if "paper" not in table:
        return Comparison(rows)
    paper = rows.assign(mean=table["paper"].astype(float), std=math.nan).dropna(subset=["mean"])
    return Comparison(rows, paper.drop_duplicates(["system", "at"])[["system", "at", "mean", "std"]])


def _from_results(said: Mapping[str, Any]) -> Comparison:
    rows, paper = [], []
    for row in said["rows"]:
        at = math.nan if row["at"] is None else float(row["at"])
        own = [(row["title"], at, seed, value, False)
               for seed, value in zip(row["seeds"], row["values"], strict=True)]  # fmt: skip
        rows += own + [(row["title"], at, seed, math.nan, True) for seed in row["diverged"]]
        if row["paper"] is not None:
            numbers = (math.nan if row["paper"].get(k) is None else row["paper"][k] for k in ("mean", "std"))
            paper.append((row["title"], at, *numbers))
    if not rows:
        raise InputError("there is nothing to draw: no training of this experiment has ended yet.")
    protocol = said.get("protocol", {})
    reasons = said.get("not_comparable_because", [])
    return Comparison(
        pd.DataFrame(rows, columns=["system", "at", "seed", "value", "diverged"]),
        pd.DataFrame(paper, columns=["system", "at", "mean", "std"]),
        str(said.get("metric", "value")),
        _sweep(said),
        f"scale {said.get('scale', '?')}, {protocol.get('data', '?')}, {said.get('counts', 'last epoch')}",
        "; ".join(map(str, reasons)),
    )


def _sweep(said: Mapping[str, Any]) -> str:
    """Find the name of what is swept: the model's argument that has its value in every training.

    Args:
        said: what `results.json` holds.

    Returns:
        Its name.
    """
    swept = [record["settings"] for record in said.get("trainings", {}).values()]
    swept = [settings for settings in swept if settings.get("at") is not None]
    # Another argument may happen to have the same value; what the protocol fixes is not what is swept.
    fixed = said.get("protocol", {}).get("arguments", {})
    names = dict.fromkeys(name for settings in swept for name in settings.get("arguments", {}))
    found = [n for n in names if all(s.get("arguments", {}).get(n) == s["at"] for s in swept)]
    return str(next((name for name in found if name not in fixed), next(iter(found), "depth")))
