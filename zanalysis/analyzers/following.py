"""Stable ranks on a device that is not waited for: launched now, finished on the host when they arrive.

As in `subspace`, the leading singular vectors of the last record start the next one. Here everything that
needs a decision is left to the host, so that nothing synchronizes: the device does a fixed number of
products and QR decompositions of narrow blocks, and sends a few small matrices. With Q the orthonormal rows
of a block Krylov space of `AᵀA` (`A Aᵀ` where A is wide), those are `T = Q AᵀA Qᵀ`, `M = Q (AᵀA)² Qᵀ`, the
squares of `‖A‖_F` and the largest entry. The eigenvalues of T are the Ritz values θ_i², and with its
eigenvectors E the products of their residuals are `EᵀM E − Θ²`; the error is bounded as in `subspace`.
The host's answer sets the number of blocks for the next record: more where the bound was not reached,
fewer where it was by far.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from zanalysis.analyzers.statuses import CODES
from zanalysis.analyzers.subspace import FRESH, KEPT, bounded, orthonormal, orthonormal_to

__all__ = ["Answer", "Follower", "Launched", "finished"]

ENOUGH = 8e-5
"""Bound on the relative error of σ₁² beyond which a record is `not_converged`."""

FIRST_DEPTH = 12
"""Blocks of a first record, which starts from nothing."""

MOST_DEPTH = 16
CHECKED_EVERY = 64
"""How many records until many random vectors join again, at the depth of a first record."""

EASY = 1e-2
"""Where the bound is this share of `ENOUGH`, one block less will do."""


class Launched(NamedTuple):
    """What was sent on its way.

    Attributes:
        sums: float64 `[batch, 2 + 2 k²]` on the device: ‖A‖_F², the largest magnitude, T and M.
        basis: the rows of Q, `[batch, k, c]`, on the device.
    """

    sums: Tensor
    basis: Tensor


class Answer(NamedTuple):
    """What the host makes of it.

    Attributes:
        values: stable ranks, float64 `[batch]`; NaN where undefined or not converged.
        codes: uint8 `[batch]` into `STATUSES`.
        error: the largest bound on the relative error of a σ₁² that is there at all.
        mixing: `[batch, KEPT, k]`: the leading Ritz vectors in the basis.
    """

    values: Tensor
    codes: Tensor
    error: float
    mixing: Tensor


def finished(sums: Tensor, side: int) -> Answer:
    """Finish a record on the host.

    Args:
        sums: as `Launched` has them, on the CPU.
        side: the shorter side of the matrices.

    Returns:
        The stable ranks, and what the next record starts from.
    """
    k = math.isqrt((sums.shape[1] - 2) // 2)
    squares, largest = sums[:, 0], sums[:, 1]
    projected, twice = (part.reshape(-1, k, k) for part in (sums[:, 2 : 2 + k * k], sums[:, 2 + k * k :]))
    there = projected.isfinite().flatten(1).all(1) & twice.isfinite().flatten(1).all(1)
    clean = torch.where(there[:, None, None], projected, 0.0)
    theta, vectors = torch.linalg.eigh((clean + clean.mT) / 2)
    theta, vectors = theta.flip(-1)[:, :KEPT], vectors.flip(-1)[:, :, :KEPT].mT
    twice = torch.where(there[:, None, None], twice, 0.0)
    grams = vectors @ twice @ vectors.mT - torch.diag_embed(theta.square())
    tops, errors = zip(*map(bounded, theta.numpy(), grams.numpy()), strict=True)
    top, error = torch.tensor(tops, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64)
    good = there & (error <= ENOUGH)
    values = torch.where(good, (squares / top).clamp(1, side), torch.nan)
    codes = torch.where(good, CODES["ok"], CODES["not_converged"])
    codes = torch.where(largest == 0, CODES["zero"], codes)
    codes = torch.where(largest.isfinite(), codes, CODES["nonfinite"])
    worst = float(error[there].max()) if bool(there.any()) else 0.0
    return Answer(values, codes.to(torch.uint8), worst, vectors)


@dataclass
class Follower:
    """The leading singular subspaces of matrices of one shape, from record to record.

    Attributes:
        depth: how many blocks the next record will have beside the first.
        records: how many were launched.
        basis: of the last record, on the device.
        mixing: the host's answer to the last record, if it has arrived.
    """

    depth: int = FIRST_DEPTH
    records: int = 0
    basis: Tensor | None = None
    mixing: Tensor | None = None
    _generators: dict[torch.device, torch.Generator] = field(default_factory=dict)

    def launch(self, matrices: Sequence[Tensor]) -> Launched:
        """Send the products of one record on their way.

        Args:
            matrices: each `[m, n]` of one shape, float32 or a 16-bit dtype, on one device.

        Returns:
            What will have been computed.
        """
        A = torch.stack([matrix.float() for matrix in matrices])
        A = A if A.shape[-2] >= A.shape[-1] else A.mT
        side = A.shape[-1]
        again = self.records % CHECKED_EVERY == 0
        start = self._start(A, KEPT + 2 * FRESH if again else FRESH)
        depth = max(self.depth, FIRST_DEPTH) if again and self.records else self.depth
        self.records += 1
        X = orthonormal(start[:, :side])
        basis, images = [X], [A.mT.matmul(A @ X.mT).mT]
        while len(basis) <= depth and (room := side - sum(part.shape[1] for part in basis)):
            Q = torch.cat(basis, 1)
            basis.append(orthonormal_to(Q, images[-1][:, :room], self._noise(A, min(room, X.shape[1]))))
            images.append(A.mT.matmul(A @ basis[-1].mT).mT)
        self.basis, self.mixing = torch.cat(basis, 1), None
        image = torch.cat(images, 1).double()
        projected, twice = self.basis.double() @ image.mT, image @ image.mT
        lengths = torch.linalg.vector_norm(A, dim=-1).double()
        low, high = A.amin((-2, -1)), A.amax((-2, -1))
        sizes = torch.stack([lengths.square().sum(-1), torch.maximum(-low, high).double()], 1)
        return Launched(torch.cat([sizes, projected.flatten(1), twice.flatten(1)], 1), self.basis)

    def learn(self, answer: Answer, launched: Launched) -> None:
        """Take up the host's answer for the next record.

        Args:
            answer: what `finished` made of it.
            launched: the record it belongs to; a later one may be on its way already.
        """
        if answer.error > ENOUGH:
            self.depth = min(MOST_DEPTH, 2 * self.depth)
        elif answer.error < EASY * ENOUGH:
            self.depth = max(1, self.depth - 1)
        if launched.basis is self.basis:
            self.mixing = answer.mixing

    def _start(self, A: Tensor, fresh: int) -> Tensor:
        if self.basis is None or self.basis.shape[::2] != A.shape[::2] or self.basis.device != A.device:
            return self._noise(A, fresh + KEPT)
        known = self.basis[:, :KEPT]
        if self.mixing is not None:
            mixing = self.mixing.float()
            if A.device.type == "cuda":  # from pinned memory a copy waits for nothing
                mixing = mixing.pin_memory()
            known = mixing.to(A.device, non_blocking=True) @ self.basis
        return torch.cat([known, self._noise(A, fresh)], 1)

    def _noise(self, A: Tensor, rows: int) -> Tensor:
        if A.device not in self._generators:
            self._generators[A.device] = torch.Generator(A.device).manual_seed(982_451_653)
        shape = (A.shape[0], rows, A.shape[-1])
        return torch.randn(shape, generator=self._generators[A.device], device=A.device)
