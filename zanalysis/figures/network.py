"""Figure 2 of the ZerO paper: the matrices of a network at its start, and the block in which it learned."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from zanalysis.analyzers.matrices import identity_scale_of, subtract_identity
from zanalysis.analyzers.naming import Selection, layer_name, selected
from zanalysis.checkpoints.contents import Checkpoint
from zanalysis.checkpoints.opening import open_checkpoints
from zanalysis.errors import InputError, did_you_mean
from zanalysis.figures.canvas import GREY, caption, panels, titled

__all__ = ["figure_2"]

State = Mapping[str, torch.Tensor] | str | os.PathLike[str]
Array = npt.NDArray[np.float64]
_MOST = 8
_PIXELS = 512
_SPAN = 1e-6
_SUBTRACTED = {"identity": "$\\alpha I^*$", "init": "$W_0$"}


def figure_2(
    start: State,
    trained: State | None = None,
    *,
    layers: Selection = None,
    reference: str = "identity",
    block: int | None = None,
    axes: Sequence[Axes] | None = None,
) -> tuple[Axes, ...]:
    """Draw Figure 2 of the ZerO paper: each weight matrix at the start, and below it what training added.

    Above: the size of every entry at the start. Below: the residual after training, its size logarithmic and exact
    zeros white: `W − α·I*`, α being what weight decay left of the identity, or `W − W_0`. Under the partial identity
    it stays inside the first N_x rows and columns, outlined, which is Theorem 1 (ii) of the paper. A matrix of more
    than 512 rows or columns is shrunk, each cell being the largest of its entries.

    Args:
        start: the weights at the start: a state dict, a checkpoint, or a file that `hooks.Recorder` wrote, which holds
            both ends.
        trained: the weights at the end, likewise; the last recorded step of `start` if None.
        layers: names, globs, patterns or predicates; None for every matrix.
        reference: what is subtracted below: ``"identity"``, α·I*, or ``"init"``, the weights at the start.
        block: N_x; the columns of the first matrix if None.
        axes: twice as many as matrices `[rows, columns]`, the upper ones first; a new figure if None.

    Returns:
        The Axes, row by row; each shows one matrix `[rows, columns]`.

    Raises:
        InputError: if there is no matrix, only one step, or the two ends do not fit each other.

    Example:
        >>> import torch
        >>> start = {"W1.weight": torch.eye(4, 2), "W2.weight": torch.eye(4)}
        >>> end = {name: W.clone() for name, W in start.items()}
        >>> end["W2.weight"][0, 1] = 0.5
        >>> upper1, upper2, lower1, lower2 = figure_2(start, end)
        >>> lower2.get_title().splitlines()[1]
        'nothing outside the block'
    """
    if reference not in _SUBTRACTED:
        raise InputError(f"unknown reference {reference!r}; {did_you_mean(reference, _SUBTRACTED)}")
    first, last = _ends(start, trained)
    names = selected(layers, {name: (lambda name=name: first[name]) for name in first})  # type: ignore[misc]
    if len(names) > _MOST:
        raise InputError(
            f"there are {len(names)} matrices to draw; choose at most {_MOST} with layers=… (--layer)."
        )
    for name in names:
        if name not in last or last[name].shape != first[name].shape:
            raise InputError(
                f"the matrix {name!r} is not the same at both ends; pass two checkpoints of one network."
            )
    n_x = block if block is not None else next(iter(first.values())).shape[1]
    shown = panels(axes, 2, len(names), (2.3, 2.4))
    residuals = {name: _residual(last[name], first[name], reference) for name in names}
    norm = _norm(list(residuals.values()))
    upper: Any = None
    lower: Any = None
    for place, name in enumerate(names):
        upper = _start(shown[place], name, first[name])
        lower = _end(shown[len(names) + place], name, residuals[name], n_x, norm, _SUBTRACTED[reference])
    figure = shown[0].figure
    for drawn, row, what in (
        (upper, shown[: len(names)], "size of the entry"),
        (lower, shown[len(names) :], "size, logarithmic"),
    ):
        bar = figure.colorbar(drawn, ax=row, shrink=0.8, pad=0.01)
        bar.set_label(what, fontsize=7.5)
        bar.ax.tick_params(labelsize=7)
    caption(
        shown,
        f"Above: the weights at the start. Below: after training, less {_SUBTRACTED[reference]}; white is exactly "
        f"zero. Outlined: the first N_x = {n_x} rows and columns.",
        "Large matrices are shrunk; each cell is the largest of its entries."
        if any(max(first[name].shape) > _PIXELS for name in names) else "",
    )  # fmt: skip
    return tuple(shown)


def _ends(start: State, trained: State | None) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    if isinstance(start, Mapping):
        if trained is None:
            raise InputError("only one state was given; pass the trained weights too.")
        first = _matrices(start.items())
    else:
        checkpoints = open_checkpoints(start)
        if trained is None and len(checkpoints) == 1:
            raise InputError(
                f"{start} holds one step only; pass the trained weights too, or a file of hooks.Recorder with both."
            )
        first = _loaded(checkpoints[0])
        if trained is None:
            return first, _loaded(checkpoints[-1])
    assert trained is not None
    return first, _matrices(trained.items()) if isinstance(trained, Mapping) else _loaded(
        open_checkpoints(trained)[-1]
    )


def _loaded(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    own = [tensor for tensor in checkpoint.tensors if tensor.status == "ok" and len(tensor.shape) == 2]
    if not own:
        raise InputError(f"{checkpoint.path} holds no matrix; Figure 2 is of a perceptron.")
    return _matrices((tensor.name, tensor.load()) for tensor in own)


def _matrices(named: Any) -> dict[str, torch.Tensor]:
    found = {
        layer_name(name): W.detach().double().cpu()
        for name, W in named
        if W.ndim == 2 and W.is_floating_point()
    }
    if not found:
        raise InputError("there is no matrix to draw; Figure 2 is of a perceptron.")
    return found


def _residual(W: torch.Tensor, start: torch.Tensor, reference: str) -> Array:
    if reference == "init":
        return np.asarray((W - start).abs())
    scale = identity_scale_of(W)
    return np.asarray(subtract_identity(W, scale.nan_to_num(1.0)).abs())


def _norm(residuals: Sequence[Array]) -> LogNorm:
    largest = max([float(np.nanmax(one, initial=0.0)) for one in residuals], default=0.0) or 1.0
    positive = [float(one[one > 0].min(initial=largest)) for one in residuals]
    return LogNorm(max(min([*positive, largest / 10]), _SPAN * largest), largest)


def _shrunk(matrix: Array) -> Array:
    """Return the matrix in at most 512 × 512 cells, each the largest of its entries, so that nothing is lost."""
    for axis in (0, 1):
        size = matrix.shape[axis]
        if size > _PIXELS:
            starts = np.unique(np.linspace(0, size, _PIXELS, endpoint=False).astype(int))
            matrix = np.maximum.reduceat(matrix, starts, axis=axis)
    return matrix


def _image(axes: Axes, matrix: Array, shape: Sequence[int], **how: Any) -> Any:
    drawn = axes.imshow(
        _shrunk(matrix),
        extent=(0.5, shape[1] + 0.5, shape[0] + 0.5, 0.5),
        interpolation="nearest",
        aspect="equal",
        **how,
    )
    axes.grid(visible=False)
    axes.tick_params(labelsize=7)
    return drawn


def _start(axes: Axes, name: str, W: torch.Tensor) -> Any:
    axes.set_title(f"{titled(name)}, {W.shape[0]} × {W.shape[1]}\nW at the start", fontsize=8)
    return _image(
        axes, np.asarray(W.abs()), W.shape, cmap="Greys", vmin=0, vmax=max(1.0, float(W.abs().max()))
    )


def _end(axes: Axes, name: str, residual: Array, n_x: int, norm: LogNorm, less: str) -> Any:
    rows, columns = residual.shape
    colors = mpl.colormaps["cividis_r"].with_extremes(bad="white", under=mpl.colormaps["cividis_r"](0.0))
    drawn = _image(axes, np.ma.masked_equal(residual, 0.0), residual.shape, cmap=colors, norm=norm)
    inside = min(n_x, rows), min(n_x, columns)
    outside = residual.copy()
    outside[: inside[0], : inside[1]] = 0
    worst = float(outside.max(initial=0.0))
    said = "nothing outside the block" if worst == 0 else f"outside the block: up to {worst:.1e}"
    if inside == (rows, columns):
        said = "the block is the whole"
    axes.set_title(f"{titled(name)}, W − {less} after training\n{said}", fontsize=8)
    axes.add_patch(Rectangle((0.5, 0.5), inside[1], inside[0], fill=False, edgecolor="#D55E00", linewidth=1.4,
                             clip_on=False, zorder=5))  # fmt: skip
    axes.set_facecolor("white")
    for spine in axes.spines.values():
        spine.set_edgecolor(GREY)
    return drawn
