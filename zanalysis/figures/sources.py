"""From what a user has to what is drawn over training: runs, files, folders of an experiment and tables."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from zanalysis.errors import InputError
from zanalysis.runfile.reader import Run, open_run

__all__ = [
    "NAMES",
    "RESULTS",
    "Labelled",
    "Source",
    "Sources",
    "against",
    "folder_trainings",
    "labelled",
    "read_json",
]

Source = Run | pd.DataFrame | str | os.PathLike[str]
Sources = Source | Sequence[Source] | Mapping[str, Source | Sequence[Source]]
Labelled = tuple[str, Run | pd.DataFrame]

RESULTS = "results.json"
NAMES = {
    "zero": "ZerO", "kaiming": "Kaiming", "xavier": "Xavier", "fixup": "Fixup", "rezero": "ReZero",
    "skipinit": "SkipInit", "constnet": "ConstNet", "constnet-noise": "ConstNet*", "identity": "partial identity",
    "hadamard": "Hadamard", "random": "random",
}  # fmt: skip
_NEEDED = {"step", "layer", "tensor", "reference", "metric", "value"}
_WORDS = {
    "none": "the weight itself, W",
    "init": r"the update since the start, $W - W_0$",
    "identity": r"less the identity, $W - \alpha I^*$",
}


def against(reference: str) -> str:
    """Say what a number is of, by the name of what was subtracted.

    Args:
        reference: as in a run's table.

    Returns:
        A clause.

    Example:
        >>> against("none")
        'the weight itself, W'
    """
    return _WORDS.get(reference, f"less the reference {reference!r}")


def folder_trainings(results: Path, said: Mapping[str, Any]) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    """Go through the trainings of an experiment that have ended.

    Args:
        results: path of its `results.json`.
        said: what is in it.

    Yields:
        The system's name, the folder that the training's files lie in, and its record.

    Raises:
        InputError: if the file is not what an experiment leaves.
    """
    try:
        titles = {row["label"]: row["title"] for row in said["rows"]}
        home = _beside(results, said)
        for name, record in said["trainings"].items():
            label, at = name.removesuffix(f"-{record['seed']}"), record["settings"].get("at")
            title = titles.get(label, label)
            yield title if at is None else f"{title}, {at}", home, record
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{results} is not what an experiment leaves ({error!r}).") from error


def _folder_runs(folder: Path) -> Iterator[tuple[str, Path]]:
    results = folder / RESULTS
    if results.is_file():
        for title, home, record in folder_trainings(results, read_json(results)):
            yield title, home / record["run"]
        return
    found = sorted(folder.glob("*.h5"))
    if not found:
        raise InputError(
            f"{folder} holds neither {RESULTS} nor a run file; pass the folder of an experiment."
        )
    for path in found:
        yield "", path


def _beside(results: Path, said: Mapping[str, Any]) -> Path:
    return results.parent / str(said.get("trainings_in", "."))


def read_json(path: Path) -> dict[str, Any]:
    """Read what an experiment left.

    Args:
        path: of a `results.json`.

    Returns:
        What it holds.

    Raises:
        InputError: if it cannot be read, or holds something else.
    """
    try:
        said = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; expected the {RESULTS} of an experiment.") from error
    if not isinstance(said, dict):
        raise InputError(f"{path} holds no results; expected the {RESULTS} of an experiment.")
    return said


def labelled(sources: Sources) -> list[Labelled]:
    """Open what is to be drawn, and name it.

    Args:
        sources: runs, paths of run files, folders of experiments, tables, or several of them, or a mapping that
            names them.

    Returns:
        Pairs of a name and an open run or a table; runs of one system have the same name.

    Raises:
        InputError: if there is none, or a table lacks a column.
    """
    if isinstance(sources, Mapping):
        pairs = [(label, one) for label, value in sources.items() for _, one in _opened(value)]
        found = [(str(label), one) for label, one in pairs]
    else:
        found = _opened(sources)
    if not found:
        raise InputError("there is nothing to draw: no run was given; pass a run file or a folder of them.")
    return found


def _opened(sources: Source | Sequence[Source]) -> list[Labelled]:
    several: list[Any] = list(sources) if isinstance(sources, list | tuple) else [sources]
    found: list[Labelled] = []
    for one in several:
        if isinstance(one, pd.DataFrame):
            if missing := sorted(_NEEDED - set(one.columns)):
                raise InputError(
                    f"the table has no column {missing[0]!r}; expected what run.table() or za.analyze gives."
                )
            found.append(("run" if len(several) == 1 else f"run {len(found) + 1}", one))
        elif isinstance(one, Run):
            found.append((_name(one), one))
        elif Path(one).name == RESULTS or Path(one).is_dir():
            folder = Path(one).parent if Path(one).name == RESULTS else Path(one)
            for label, path in _folder_runs(folder):
                run = open_run(path)
                found.append((label or _name(run), run))
        else:
            run = open_run(one)
            found.append((_name(run), run))
    return _told_apart(found)


def _told_apart(found: list[Labelled]) -> list[Labelled]:
    """Give runs of one name and one seed the names of their files.

    Args:
        found: names and runs.

    Returns:
        The same, with other names where they would stand for different things.
    """
    keys = [(label, _seed(one)) for label, one in found]
    return [
        (label if keys.count(key) == 1 or not isinstance(one, Run) else one.path.stem, one)
        for (label, one), key in zip(found, keys, strict=True)
    ]


def _name(run: Run) -> str:
    user = run.attributes.get("user", {})
    named = user.get("system", user.get("initialization"))
    return NAMES.get(str(named), str(named)) if named else run.path.stem


def _seed(source: Run | pd.DataFrame) -> Any:
    return source.attributes.get("user", {}).get("seed", 0) if isinstance(source, Run) else id(source)
