"""Groups of weights as WPC's hardware reads them: one filter x g consecutive input channels x the whole kernel."""

from __future__ import annotations

import torch
from torch import Tensor

PENALTIES = ("clip", "lasso", "rank", "mix")
PROCESSING_ELEMENTS = 16
"""Ranks are counted in multiples of them (lab code)."""
MIX_RANK = 0.35


def group_channels(channels: int, g: int) -> int:
    """The largest divisor of `channels` that is at most g (our choice where g itself does not divide)."""
    return next(d for d in range(min(g, channels), 0, -1) if channels % d == 0)


def grouped(weight: Tensor, g: int) -> Tensor:
    """[out, in, kh, kw] or [out, in] -> [out, in / g', g' kh kw] with g' = group_channels(in, g) (lab code)."""
    out, channels = weight.shape[:2]
    return weight.reshape(out, channels // group_channels(channels, g), -1)


def group_norms(weight: Tensor, g: int, eps: float = 1e-12) -> Tensor:
    """n = sqrt(sum w^2 + eps) of every group: [out, in / g']. eps keeps the gradient of an all-zero group finite."""
    return (grouped(weight, g).square().sum(dim=2) + eps).sqrt()


def clip_threshold(norms: Tensor, ratio: float, detach: bool) -> Tensor:
    """delta = a mean n, recomputed at every step: the self-adapting threshold of weight penalty clipping (lab code)."""
    delta = ratio * norms.mean()
    return delta.detach() if detach else delta


def rank_threshold(norms: Tensor, ratio: float) -> Tensor:
    """The largest of the floor(a G) smallest norms, the count rounded down to a multiple of the PEs (lab code).

    Layers with too few groups for one multiple keep the unrounded count, at least one group. A constant: its gradient
    would pull the one group of that rank for all the larger ones (both our choice).
    """
    count = int(ratio * norms.numel())
    count = count - count % PROCESSING_ELEMENTS or max(count, 1)
    return norms.detach().flatten().kthvalue(count).values


def group_penalty(norms: Tensor, kind: str, ratio: float, detach: bool) -> Tensor:
    """sum_i min(n_i, delta): 0-dim, no factor for the group's size (lab code).

        clip: delta = a mean n      rank: the a-quantile of n      mix: the smaller of a mean n and the 35 % quantile
        lasso: no delta

    Gradient by n_i, with H groups at or above delta out of G: 1[n_i < delta], plus a H / G where delta is a mean n and
    not detached (inferred from the lab code).
    """
    if kind == "lasso":
        return norms.sum()
    delta = rank_threshold(norms, ratio) if kind == "rank" else clip_threshold(norms, ratio, detach)
    if kind == "mix":
        delta = torch.minimum(delta, rank_threshold(norms, MIX_RANK))
    return torch.where(norms < delta, norms, delta).sum()


def group_density(codes: list[Tensor], g: int) -> float:
    """Groups with any nonzero code / groups, over all layers."""
    alive = [grouped(c, g).count_nonzero(dim=2) > 0 for c in codes]
    return sum(int(a.sum()) for a in alive) / sum(a.numel() for a in alive)


def filter_density(codes: list[Tensor]) -> float:
    """Filters with any nonzero code / filters, over all layers."""
    alive = [c.flatten(1).count_nonzero(dim=1) > 0 for c in codes]
    return sum(int(a.sum()) for a in alive) / sum(a.numel() for a in alive)


def smallest_sparsity(codes: list[Tensor], g: int) -> float:
    """s_min: the smallest fraction of zeros inside any surviving group of any layer (lab code); 0 if none survives."""
    fills = [(grouped(c, g) != 0).float().mean(dim=2) for c in codes]
    fullest = max(float(f.max()) for f in fills)
    return 1 - fullest if fullest else 0.0


def compression_rate(density: float, s_min: float) -> float:
    """16 / (density (1 - s_min)): 32-bit weights to 2-bit codes of the surviving groups (lab code).

    Index bits and float layers are not counted. Infinite when no group survives.
    """
    kept = density * (1 - s_min)
    return 16 / kept if kept else float("inf")
