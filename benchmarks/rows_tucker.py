"""The benchmark row of Tucker-2: a whole error surface against seven calls of tensorly."""

import math
from statistics import median
from time import perf_counter

import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import Tensor

from zanalysis.analyzers.tucker import tucker2_error_surface

CHANNELS, TAPS, REPETITIONS = 256, 3, 3
RANKS = range(32, CHANNELS, 32)
"""The seven ranks, the same in both modes, that the peer is asked for."""


def _peer(W: Tensor) -> list[float]:
    """Return tensorly's error at each of the seven rank pairs, with its own defaults."""
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        return [float(partial_tucker(W, rank=[rank, rank], modes=[0, 1])[1][-1]) for rank in RANKS]


def _ours(W: Tensor) -> list[float]:
    """Return the errors at the same seven pairs, out of all pairs."""
    surface = tucker2_error_surface(W)
    return [surface[rank - 1, rank - 1].item() for rank in RANKS]


def rows() -> list[dict[str, str | float]]:
    """Time both on the same fresh kernels, interleaved, in this process; medians.

    The values are the relative errors at ranks (128, 128) of the last kernel. Ours is that of the HOSVD,
    tensorly's that after its refinement, so that ours may be a few percent larger.

    Returns:
        One row: name, ours_s, peer_s, ratio, ours_value, peer_value, required.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (CHANNELS, CHANNELS, TAPS, TAPS)
    warm_up = torch.randn(shape, generator=generator)
    _ours(warm_up), _peer(warm_up[:, :, :1, :1])
    ours_s, peer_s = [], []
    ours = peer = [math.nan]
    for _ in range(REPETITIONS):
        W = torch.randn(shape, generator=generator)
        start = perf_counter()
        ours = _ours(W)
        middle = perf_counter()
        peer = _peer(W)
        ours_s.append(middle - start)
        peer_s.append(perf_counter() - middle)
    middle_rank = len(RANKS) // 2
    return [
        {
            "name": "whole Tucker-2 error surface of 256x256x3x3 against seven tensorly calls",
            "ours_s": median(ours_s),
            "peer_s": median(peer_s),
            "ratio": median(peer_s) / median(ours_s),
            "ours_value": ours[middle_rank],
            "peer_value": peer[middle_rank],
            "required": 50.0,
        }
    ]


if __name__ == "__main__":
    for row in rows():
        print(row)
