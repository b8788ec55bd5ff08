"""One curve of a user's model at one checkpoint: building the model, loading its weights, scoring it."""

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zanalysis.analyzers._weights import Evaluate, model_weights
from zanalysis.analyzers.naming import layer_name
from zanalysis.analyzers.pruning import pruning_curve
from zanalysis.analyzers.tucker import tucker_curve
from zanalysis.checkpoints import Checkpoint
from zanalysis.errors import InputError, did_you_mean

__all__ = ["Build", "CurveOutcome", "CurveWork", "built", "load_weights", "named_function"]

Build = str | Callable[[], tuple[nn.Module, Evaluate]]


@dataclass(frozen=True)
class CurveWork:
    """One curve of one checkpoint.

    Attributes:
        place: which checkpoint it is of.
        key: what names it in a journal.
        checkpoint: the checkpoint as a table names it.
        step: its step.
        source: the open checkpoint.
        build: what builds the model.
        curve: ``"pruning"`` or ``"tucker"``.
        layers: what is pruned; or the one kernel that is decomposed.
        settings: sparsities and scope, or fractions.
    """

    place: tuple[int, int]
    key: str
    checkpoint: str
    step: int
    source: Checkpoint = field(repr=False)
    build: Build
    curve: str
    layers: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def weight(self) -> int:
        """How many numbers are in memory at a time."""
        return sum(math.prod(tensor.shape) for tensor in self.source.tensors)

    def __str__(self) -> str:
        return f"{self.checkpoint}: {self.curve} curve of {', '.join(self.layers)}"

    def run(self) -> "CurveOutcome":
        """Carry it out.

        Returns:
            The points, or what failed.
        """
        try:
            model, evaluate = built(self.build)
            load_weights(model, self.source)
            if self.curve == "pruning":
                columns = pruning_curve(
                    model, evaluate, self.settings["sparsities"], self.settings["scope"], layers=self.layers
                )
                columns["parameters"] = columns.pop("kept")
                del columns["pruned"]
            else:
                shape = model_weights(model, self.layers)[self.layers[0]].shape
                ranks = [tuple(max(1, round(f * n)) for n in shape[:2]) for f in self.settings["fractions"]]
                columns = tucker_curve(model, evaluate, self.layers[0], ranks)
        except Exception as error:
            return self.failed(error)
        return CurveOutcome(columns)

    def failed(self, error: BaseException) -> "CurveOutcome":
        """Say that it could not be carried out.

        Args:
            error: why.

        Returns:
            No point, and the error.
        """
        return CurveOutcome({}, (f"{type(error).__name__}: {error}",))


@dataclass(frozen=True)
class CurveOutcome:
    """The points of one curve.

    Attributes:
        columns: of equal length, as the curve's function returns them.
        errors: what failed, in sentences.
    """

    columns: Mapping[str, Any]
    errors: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing has to be tried again."""
        return not self.errors

    def as_json(self) -> dict[str, Any]:
        """Return it as a journal keeps it."""
        return dict(self.columns)


def built(build: Build) -> tuple[nn.Module, Evaluate]:
    """Call what builds a model and its evaluation.

    Args:
        build: `"package.module:function"`, or a function.

    Returns:
        The model in eval mode, and what scores it.

    Raises:
        InputError: if there is no such function, or it returns something else.
    """
    answer = named_function(build)()
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise InputError(f"{build} returned {type(answer).__name__}, expected (model, evaluate).")
    model, evaluate = answer
    if not isinstance(model, nn.Module) or not callable(evaluate):
        raise InputError(
            f"{build} returned ({type(model).__name__}, {type(evaluate).__name__}), expected a torch.nn.Module and a "
            "function of it that returns one number."
        )
    return model.eval(), evaluate


def named_function(build: Build) -> Callable[[], Any]:
    """Import a function of the user's; modules in the working folder are found, too.

    Args:
        build: `"package.module:function"`, or the function itself.

    Returns:
        The function.

    Raises:
        InputError: if there is no such function.
    """
    if not isinstance(build, str):
        if not callable(build):
            raise InputError(f"got model = {build!r}, expected 'package.module:function' or a function.")
        return build
    module, colon, name = build.partition(":")
    if not colon or not module or not name:
        raise InputError(f"got model = {build!r}, expected package.module:function.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as python -m has it; a console script does not
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"there is no {build!r}: {error}; expected package.module:function.") from error
    if not callable(function):
        raise InputError(f"{build} is {type(function).__name__}, expected a function.")
    return function  # type: ignore[no-any-return]


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into a model, one at a time.

    Args:
        model: the model.
        checkpoint: the checkpoint; its names may have the prefixes that wrappers add.

    Raises:
        InputError: if it lacks a tensor of the model, or has one of another shape.
    """
    stored = {layer_name(tensor.name): tensor for tensor in checkpoint.tensors}
    with torch.no_grad():
        for name, target in model.state_dict(keep_vars=True).items():
            tensor = stored.get(layer_name(name))
            if tensor is None:
                known = did_you_mean(name, [t.name for t in checkpoint.tensors])
                raise InputError(f"the checkpoint has no {name!r}, which the model has; {known}")
            if tensor.shape != tuple(target.shape):
                raise InputError(
                    f"{name!r} has shape {list(tensor.shape)} in the checkpoint and {list(target.shape)} in the model; "
                    "build the model that the checkpoint is of."
                )
            target.copy_(tensor.load())
