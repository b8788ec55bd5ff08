"""Deep linear networks and matrix factorizations: systems whose low-rank trajectory is known.

A product `W = W_N ⋯ W_1` descends on a loss of `W`. From an infinitesimal start it learns the singular
values of its target one after another (Saxe et al. 2014, arXiv 1312.6120; Arora et al. 2019, arXiv
1905.13655; Li et al. 2021, arXiv 2012.09839; Gissin et al. 2020, arXiv 1909.12051); from a large one, or as a plain
linear map (depth 1), it learns them together (Gidel et al. 2019, arXiv 1904.13262).

Layout: a target is `[rows, columns]`; the factors are a list, `W_1` first, `[width, columns]` to
`[rows, width]`; a record is the factors at T steps; a spectrum over time is `[T, k]`, descending.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hooks import RankTracker, every
from hooks.schedules import Schedule
from zanalysis.errors import InputError

__all__ = [
    "STARTS",
    "Descent",
    "Factorization",
    "descend",
    "initial_factors",
    "product",
    "target_of",
    "train",
]

Array = npt.NDArray[np.float64]
Start = Literal["aligned", "balanced", "gaussian", "orthogonal", "identity"]
STARTS: tuple[Start, ...] = ("aligned", "balanced", "gaussian", "orthogonal", "identity")


@dataclass(frozen=True)
class Factorization:
    """A product of matrices, what it learns, and how.

    The loss is `½ ‖(W − W*) Σ^½‖²`, on the observed entries alone where there are some; with a batch it is
    that of as many Gaussian inputs of covariance Σ, drawn anew at each step, and noisy labels.

    Attributes:
        target: W*, `[rows, columns]`.
        depth: N, how many factors; 1 is a plain linear map.
        width: of the hidden layers; the larger side of the target if None.
        start: how the factors start, see `initial_factors`.
        scale: of the product at the start: its singular values, or of ``"gaussian"`` its typical one.
        rate: learning rate.
        steps: of gradient descent.
        observed: 1 where an entry is seen, 0 elsewhere, `[rows, columns]`; None for all (matrix completion).
        variances: of the inputs, the diagonal of Σ, `[columns]`; None for ones.
        batch: how many inputs a step sees; None for the expectation.
        noise: standard deviation of the labels' noise; with a batch only.
        seed: of everything drawn.
    """

    target: Array
    depth: int = 2
    width: int | None = None
    start: Start = "balanced"
    scale: float = 1e-4
    rate: float = 0.05
    steps: int = 2000
    observed: Array | None = None
    variances: Array | None = None
    batch: int | None = None
    noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Descent:
    """The factors over the steps.

    Attributes:
        steps: `[T]`, completed steps.
        factors: for each step the factors, `W_1` first.
    """

    steps: npt.NDArray[np.int64]
    factors: tuple[tuple[Array, ...], ...]

    def spectra(self, layer: int | None = None, reference: Literal["init"] | None = None) -> Array:
        """Return the singular values over the steps.

        Args:
            layer: which factor, from 0; None for the product.
            reference: ``"init"`` for the cumulative update, None for the matrix itself.

        Returns:
            `[T, k]`, descending.
        """
        chosen = [product(factors) if layer is None else factors[layer] for factors in self.factors]
        matrices = np.stack(chosen)
        return np.linalg.svd(matrices - (matrices[0] if reference else 0.0), compute_uv=False)


def product(factors: Sequence[Array]) -> Array:
    """Return `W_N ⋯ W_1`.

    Args:
        factors: `W_1` first.

    Returns:
        `[rows, columns]`.
    """
    return reduce(lambda done, factor: factor @ done, factors)


def target_of(values: npt.ArrayLike, rows: int, columns: int, seed: int = 0) -> Array:
    """Return a matrix of given singular values, with random singular vectors.

    Args:
        values: the singular values, at most min(rows, columns) of them.
        rows: how many.
        columns: how many.
        seed: of the singular vectors.

    Returns:
        `[rows, columns]`.
    """
    rng = np.random.default_rng(seed)
    left, right = _orthogonal(rng, rows), _orthogonal(rng, columns)
    kept = np.asarray(values, float)
    k = len(kept)
    return np.asarray((left[:, :k] * kept) @ right[:, :k].T)


def _orthogonal(rng: np.random.Generator, n: int) -> Array:
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return np.asarray(q * np.sign(np.diag(r)))


def initial_factors(system: Factorization) -> list[Array]:
    """Return the factors before the first step.

    - ``"aligned"``: balanced, in the target's own singular vectors: the start of the exact solution.
    - ``"balanced"``: `W_{l+1}ᵀ W_{l+1} = W_l W_lᵀ`, every singular value of the product is `scale`.
    - ``"gaussian"``: independent entries of variance `scale^{2/N} / columns of the factor`.
    - ``"orthogonal"``: independent (partial) orthogonal factors times `scale^{1/N}`.
    - ``"identity"``: partial identities times `scale^{1/N}`.

    Args:
        system: what is learned.

    Returns:
        The factors, `W_1` first: `[width, columns]` to `[rows, width]`.

    Raises:
        InputError: if the start is unknown, or the depth no whole number of 1 or more.
    """
    if system.start not in STARTS:
        raise InputError(f"unknown start {system.start!r}; expected one of {', '.join(STARTS)}.")
    if system.depth < 1:
        raise InputError(f"got depth {system.depth!r}, expected a whole number, 1 or more.")
    rng = np.random.default_rng([system.seed, 1])
    rows, columns = system.target.shape
    hidden = system.width or max(rows, columns)
    sizes = [columns, *[hidden] * (system.depth - 1), rows]
    size = system.scale ** (1 / system.depth)
    frames = [_orthogonal(rng, n) for n in sizes]
    if system.start == "aligned":
        left, _, right = np.linalg.svd(system.target)
        frames[0], frames[-1] = right.T, left
    factors = []
    for layer, (n, m) in enumerate(pairwise(sizes)):
        if system.start == "gaussian":
            factors.append(size * rng.standard_normal((m, n)) / np.sqrt(n))
        elif system.start == "orthogonal":
            factors.append(size * _orthogonal(rng, max(m, n))[:m, :n])
        elif system.start == "identity":
            factors.append(size * np.eye(m, n))
        else:
            k = min(rows, columns, hidden)
            factors.append(size * frames[layer + 1][:, :k] @ frames[layer][:, :k].T)
    return factors


def _batches(system: Factorization) -> Iterator[tuple[Array, Array] | None]:
    """Yield for each step the inputs `[batch, columns]` and the labels' noise `[batch, rows]`."""
    rng = np.random.default_rng([system.seed, 2])
    rows, columns = system.target.shape
    spread = np.ones(columns) if system.variances is None else np.sqrt(system.variances)
    for _ in range(system.steps):
        if system.batch is None:
            yield None
            continue
        inputs = rng.standard_normal((system.batch, columns)) * spread
        yield inputs, system.noise * rng.standard_normal((system.batch, rows))


def _gradient(system: Factorization, whole: Array, batch: tuple[Array, Array] | None) -> Array:
    """Return the loss's gradient by the product, `[rows, columns]`."""
    residual = whole - system.target
    if batch is not None:
        inputs, noise = batch
        return np.asarray((residual @ inputs.T - noise.T) @ inputs / len(inputs))
    if system.variances is not None:
        residual = residual * system.variances
    return residual if system.observed is None else residual * system.observed


def descend(system: Factorization, recorded: Callable[[int], bool]) -> Descent:
    """Train by gradient descent in float64, with the gradient written out.

    Args:
        system: what is learned, and how.
        recorded: `step -> bool`, such as `hooks.every(10)`; step 0 is always recorded.

    Returns:
        The record.

    Raises:
        InputError: if the system is not one that can be trained.
    """
    factors = initial_factors(system)
    steps, kept = [0], [tuple(factors)]
    for step, batch in enumerate(_batches(system), 1):
        below = [np.eye(system.target.shape[1])]
        for factor in factors:
            below.append(factor @ below[-1])
        flowing = _gradient(system, below[-1], batch)
        moved = list(factors)
        for layer in reversed(range(len(factors))):
            moved[layer] = factors[layer] - system.rate * flowing @ below[layer].T
            flowing = factors[layer].T @ flowing
        factors = moved
        if recorded(step):
            steps.append(step)
            kept.append(tuple(factors))
    return Descent(np.array(steps), tuple(kept))


def train(
    system: Factorization,
    path: str | os.PathLike[str],
    *,
    schedule: Schedule | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Train the same system as a torch model with the tracker attached.

    Args:
        system: what is learned, and how.
        path: the run file.
        schedule: when to record; 200 times, evenly, if None.
        overwrite: whether an existing file is replaced.
        **options: of `hooks.RankTracker`, such as `reference`, which is ``"init"`` unless given.

    Returns:
        The path.

    Raises:
        InputError: if the system is not one that can be trained.
        RunFileError: if the run file is there already and may not be replaced.
    """
    factors = [torch.from_numpy(factor) for factor in initial_factors(system)]
    layers = [nn.Linear(f.shape[1], f.shape[0], bias=False, dtype=torch.float64) for f in factors]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for layer, factor in zip(layers, factors, strict=True):
            layer.weight.copy_(factor)
    target = torch.from_numpy(system.target)
    optimizer = torch.optim.SGD(model.parameters(), lr=system.rate)
    settings = {
        "metrics": ("rank", "stable_rank", "singular_values"),
        "reference": "init",
        "attributes": {"experiment": "factorization", "depth": system.depth, "start": system.start,
                       "scale": system.scale, "rate": system.rate, "seed": system.seed},
    }  # fmt: skip
    with RankTracker(
        model,
        optimizer,
        path,
        schedule=schedule or every(max(1, system.steps // 200)),
        mode="w" if overwrite else "x",
        **{**settings, **options},
    ) as tracker:
        for batch in _batches(system):
            optimizer.zero_grad()
            loss = _loss(system, model, target, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tracker.log(loss=loss)
    return Path(path)


def _loss(
    system: Factorization, model: nn.Module, target: torch.Tensor, batch: tuple[Array, Array] | None
) -> torch.Tensor:
    if batch is not None:
        inputs, noise = map(torch.from_numpy, batch)
        far: torch.Tensor = model(inputs) - inputs @ target.T - noise
        return far.square().sum() / (2 * len(inputs))
    residual: torch.Tensor = model(torch.eye(target.shape[1], dtype=target.dtype)).T - target
    if system.variances is not None:
        residual = residual * torch.from_numpy(system.variances).sqrt()
    if system.observed is not None:
        residual = residual * torch.from_numpy(system.observed)
    return residual.square().sum() / 2
