"""Euclidean projections onto the sparse sets of ADMM: keep the strongest weights, filters, columns or channels.

A conv weight is [filters, channels, kh, kw]; a linear weight [out, in] is treated as a 1x1 conv (inferred).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsign.compressors.pruning.decide import removed

STRUCTURES = ("irregular", "filter", "column", "channel")


def group_norms(weight: Tensor, structure: str) -> Tensor:
    """Squared l2 norm of every group, shaped to broadcast against the weight.

    Groups: `irregular` single weights; `filter` rows of the im2col matrix; `column` its columns (one position
    (channel, i, j) in all filters); `channel` everything that reads one input channel.

    Raises:
        ValueError: unknown structure.
    """
    square = weight.square()
    if structure == "irregular":
        return square
    if structure == "filter":
        return square.sum(dim=tuple(range(1, weight.dim())), keepdim=True)
    if structure == "column":
        return square.sum(dim=0, keepdim=True)
    if structure == "channel":
        return square.sum(dim=(0, *range(2, weight.dim())), keepdim=True)
    raise ValueError(f"structure={structure}: expected one of {' | '.join(STRUCTURES)}")


@torch.no_grad()
def keep_mask(weight: Tensor, ratio: float, structure: str) -> Tensor:
    """0/1 mask, broadcastable to the weight, of all but `removed(count, ratio)` groups, those of the largest norm.

    The lab code compares with a percentile, which keeps too few or too many groups where norms tie; here ties are
    broken and the count is exact (our choice).
    """
    norms = group_norms(weight, structure)
    strongest = norms.flatten().topk(norms.numel() - removed(norms.numel(), ratio)).indices
    return torch.zeros_like(norms).flatten().index_fill_(0, strongest, 1.0).view_as(norms)


def project(weight: Tensor, ratio: float, structure: str) -> Tensor:
    """The nearest weight (Frobenius norm) with the fraction `ratio` of its groups zero: group top-k by l2 norm."""
    return weight * keep_mask(weight, ratio, structure)
