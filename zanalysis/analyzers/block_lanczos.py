"""Extreme singular values of a linear map that is known by its products alone.

Block Golub-Kahan-Lanczos with full reorthogonalization (Golub & Kahan 1965; Golub, Luk & Overton 1981 for
blocks). After p columns the map A satisfies A V = U P and Aᵀ U = V Pᵀ + Q [0 … T], with orthonormal U, V,
Q: the singular values of the small P approximate those of A, and ‖T yᵢ‖, with yᵢ the last block of P's left
singular vector i, is the residual of the i-th. A single vector finds each repeated singular value once; a
block finds it as often as the block is wide.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["extreme_singular_values"]

Product = Callable[[Tensor], Tensor]
_SPARE = 8
_EPS = torch.finfo(torch.float64).eps


def extreme_singular_values(
    times: Product,
    adjoint: Product,
    shape: tuple[int, int],
    k: int,
    *,
    smallest: bool = False,
    tolerance: float = 1e-10,
    most: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Find the k largest or smallest singular values of a map.

    Every value is certified: σ is returned if unit vectors u, v are at hand with ‖A v − σ u‖ and ‖Aᵀ u − σ v‖
    at most tolerance · σ₁, by products of their own, and is NaN otherwise. Some singular value of A then
    lies that close to σ (Weyl). Where σ itself is that small, ‖A v − σ u‖ is enough, with v on the smaller
    side. The start is random, by a generator of its own with a fixed seed.

    Args:
        times: `[n, columns] -> [m, columns]`, A times a block, float64.
        adjoint: `[m, columns] -> [n, columns]`, Aᵀ times a block.
        shape: (m, n).
        k: how many, at most min(m, n).
        smallest: ask for the k smallest in place of the k largest.
        tolerance: of the certificate, relative to σ₁.
        most: columns of V to stop at; default min(m, n), at which the values are exact.
        device: where the products live.

    Returns:
        `[k]` float64, descending; NaN where not certified, all NaN if a product is not finite.
    """
    m, n = shape
    if m < n:
        # V must live on the smaller side, so that it can fill the space.
        times, adjoint, m, n = adjoint, times, n, m
    own = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=own, dtype=torch.float64).to(device)

    nan = torch.full((k,), torch.nan, dtype=torch.float64, device=device)
    limit = min(n, most or n)
    new_v = torch.linalg.qr(draw(n, min(k + _SPARE, n))).Q
    V, U, P = new_v[:, :0], new_v.new_zeros(m, 0), new_v.new_zeros(0, 0)
    scale = 0.0
    while True:
        product = times(new_v)
        if not product.isfinite().all():
            return nan
        scale = max(scale, torch.linalg.vector_norm(product, dim=0).amax().item())
        V = torch.cat([V, new_v], 1)
        inside, outside = _project(U, product)
        new_u, below = _orthonormal(outside, U, _EPS * scale * m**0.5, draw)
        old, wide = P.shape[0], new_v.shape[1]
        P = torch.nn.functional.pad(P, (0, wide, 0, wide))
        P[:old, old:], P[old:, old:] = inside, below
        U = torch.cat([U, new_u], 1)

        back = adjoint(new_u)
        if not back.isfinite().all():
            return nan
        rest = _project(V, back)[1]
        left, values, right = torch.linalg.svd(P)
        wanted = slice(len(values) - k, None) if smallest else slice(0, k)
        residual = torch.linalg.vector_norm(rest @ left[old:, wanted], dim=0)
        near = tolerance / 4 * values[0]
        done = V.shape[1] == n or bool(((residual <= near) | (values[wanted] <= near)).all())
        room = n - V.shape[1]
        if done or V.shape[1] >= limit:
            break
        new_v, _ = _orthonormal(rest, V, _EPS * scale * n**0.5, draw)
        new_v = new_v[:, : min(room, new_v.shape[1])]

    u, v, sigma = U @ left[:, wanted], V @ right[wanted].T, values[wanted]
    forth = torch.linalg.vector_norm(times(v) - sigma * u, dim=0)
    back = torch.linalg.vector_norm(adjoint(u) - sigma * v, dim=0)
    # Where σ is that small, A v alone shows it, and in a null space u need not be the partner of v.
    near = tolerance * values[0]
    return torch.where((forth <= near) & ((back <= near) | (sigma <= near)), sigma, torch.nan)


def _project(basis: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    # Coefficients in an orthonormal basis, and what is left of the block. Doing it twice is enough (Parlett,
    # The Symmetric Eigenvalue Problem, 6.9).
    inside = basis.T @ block
    outside = block - basis @ inside
    again = basis.T @ outside
    return inside + again, outside - basis @ again


def _orthonormal(
    block: Tensor, basis: Tensor, floor: float, draw: Callable[[int, int], Tensor]
) -> tuple[Tensor, Tensor]:
    # The block as Q S, with Q orthonormal and orthogonal to the basis. Directions below the floor are noise:
    # they are drawn anew, with zero rows in S, so that the iteration goes on behind an invariant subspace.
    left, values, right = torch.linalg.svd(block, full_matrices=False)
    alive = values > floor
    q = torch.where(alive, left, 0.0)
    missing = int((~alive).sum())
    if missing:
        kept = torch.cat([basis, left[:, alive]], 1)
        room = block.shape[0] - kept.shape[1]
        fresh = torch.linalg.qr(_project(kept, draw(block.shape[0], min(missing, room)))[1]).Q
        fresh = torch.linalg.qr(_project(kept, fresh)[1]).Q
        q[:, len(values) - missing : len(values) - missing + fresh.shape[1]] = fresh
    return q, torch.where(alive, values, 0.0)[:, None] * right
