"""Spans of several processes, brought into one: as a sum where that is exact, else one after the other.

A span that keeps a Gram matrix and has skipped no sample is a sum over its samples, and maxima; so spans
of the same kind add up however many processes there are, at the price of one. A triangular factor, or what
a span has to remember of samples it skipped, is no sum: it is to be merged, one after the other.
"""

import torch
from torch import Tensor

from zanalysis.analyzers.factors import Gram
from zanalysis.analyzers.span import ActivationSpan, _Kept

__all__ = ["span_facts", "span_of_sums", "sum_length", "summands"]


def span_facts(span: ActivationSpan) -> tuple[bool, int, int, float]:
    """Return what must be alike for spans to add up.

    Args:
        span: a span with samples.

    Returns:
        Whether it is a sum, its features, how many columns are kept of them, and the eps that counts.
    """
    kept = span._kept
    addable = kept is not None and isinstance(kept.factor, Gram) and not kept.rule.skipped
    return addable, span.features, span._width, span._eps


def sum_length(features: int, width: int, maxima: bool) -> int:
    """Return how many numbers `summands` gives.

    Args:
        features: of the spans.
        width: how many columns are kept of them.
        maxima: whether the second part is meant.

    Returns:
        The number.
    """
    return 1 + features if maxima else 1 + width * width


def summands(span: ActivationSpan) -> tuple[Tensor, Tensor]:
    """Return what adds up, and of what the largest counts.

    Args:
        span: a span that is a sum.

    Returns:
        The samples and the Gram matrix; the longest sample and, of a sketch, the largest of each feature.
    """
    kept = span._kept
    assert kept is not None
    assert isinstance(kept.factor, Gram)
    samples = kept.longest.new_full((1,), span.samples)
    peaks = kept.longest.new_zeros(span.features) if kept.sketch is None else kept.sketch.peaks
    # Not a number does not survive every library's maximum; the Gram matrix has it already.
    largest = torch.cat([kept.longest.reshape(1), peaks]).nan_to_num(torch.inf, torch.inf)
    return torch.cat([samples, kept.factor.product.flatten()]), largest


def span_of_sums(features: int, width: int, eps: float, sums: Tensor, maxima: Tensor) -> ActivationSpan:
    """Return the span of all samples.

    Args:
        features: of the spans.
        width: how many columns are kept of them.
        eps: that counts.
        sums: the sums of what `summands` gives first.
        maxima: the maxima of what it gives second.

    Returns:
        The span; it can take more samples and be merged on.
    """
    span = ActivationSpan(features, max_features=width if width < features else None)
    span._eps = eps
    span.samples = int(sums[0])
    kept = _Kept(features, width, False, False, sums.device)
    assert isinstance(kept.factor, Gram)
    kept.factor.product.copy_(sums[1:].reshape(width, width))
    kept.longest = maxima[0].clone()
    if kept.sketch is not None:
        kept.sketch.peaks = maxima[1:].clone()
    span._kept = kept
    return span
