"""Which samples a subset holds."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["stratified"]


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose samples so that each class is there in proportion.

    A class of n_c of n samples gets count · n_c / n of them, rounded down; what is left goes to the largest
    remainders, on a tie to the lower label. Within a class those samples are taken whose index has the
    smallest hash (splitmix64, Steele et al. 2014): integers only, so that machines and versions agree.

    Args:
        labels: `[samples]`, int64, not negative.
        count: how many to choose, at most as many as there are.
        seed: which ones.

    Returns:
        `[count]`, int64, ascending.

    Example:
        >>> stratified(torch.tensor([0, 1, 0, 1, 0, 1]), 4, seed=0).tolist()
        [1, 2, 4, 5]
    """
    classes = labels.numpy()
    sizes = np.bincount(classes)
    quotas, remainders = np.divmod(count * sizes, len(classes))
    for label in np.argsort(-remainders, kind="stable")[: count - int(quotas.sum())]:
        quotas[label] += 1
    order = np.lexsort((_hashes(len(classes), seed), classes))
    ends = np.cumsum(sizes)
    chosen = [
        order[end - size : end - size + quota] for end, size, quota in zip(ends, sizes, quotas, strict=True)
    ]
    return torch.from_numpy(np.sort(np.concatenate(chosen)).astype(np.int64))


def _hashes(count: int, seed: int) -> np.ndarray:
    start = _mixed(np.array([seed], np.uint64))
    return _mixed(start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
