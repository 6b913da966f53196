"""Groups of weights as WPC's hardware reads them: one filter x g consecutive input channels x the whole kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import Mask, find, latent
from sparsign.compressors.pruning.decide import removed

PENALTIES = ("clip", "clip_detached", "lasso", "rank", "mix")
PROCESSING_ELEMENTS = 16
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


def clip_threshold(norms: Tensor, ratio: float) -> Tensor:
    """delta = a mean n, recomputed at every step: the self-adapting threshold of weight penalty clipping (lab code)."""
    return ratio * norms.mean()


def rank_index(count: int, ratio: float) -> int:
    """How many of a layer's `count` groups lie below the rank threshold: int(16 a) int(count / 16) (lab code).

    Of every 16 groups, one for each processing element, int(16 a) are pulled: 11 for a = 0.7. Layers with fewer than 16
    groups take the plain floor(a count) (our choice: the lab's index is 0 there).
    """
    whole = removed(PROCESSING_ELEMENTS, ratio) * (count // PROCESSING_ELEMENTS)
    return min(whole or removed(count, ratio), count - 1)


def rank_threshold(norms: Tensor, ratio: float) -> Tensor:
    """The norm at index `rank_index` of the ascending norms (lab code).

    A constant: its gradient would pull the one group of that rank for all the larger ones (our choice).
    """
    flat = norms.detach().flatten()
    return flat.kthvalue(rank_index(flat.numel(), ratio) + 1).values


def penalty(norms: Tensor, kind: str, ratio: float) -> Tensor:
    """sum_i min(n_i, delta): 0-dim, no factor for the group's size (lab code).

        clip            delta = a mean n, which carries gradient (lab code)
        clip_detached   delta = a mean n, a constant (the paper's words)
        rank            delta = the norm at rank a
        mix             delta = the smaller of mean n, which carries gradient, and the norm at rank 35 % (lab code)
        lasso           no delta: sum_i n_i

    Gradient by n_i, with H groups at or above delta out of G: 1[n_i < delta], plus a H / G where delta is a mean n and
    carries gradient (mix: H / G). Under `clip` a group above delta is pulled all the same: by 0.47 lambda where two
    thirds are above it at a = 0.7. Under `clip_detached` only groups that the loss itself leaves below delta can go,
    whatever lambda is: to prune more, raise a.
    """
    if kind == "lasso":
        return norms.sum()
    if kind == "rank":
        delta = rank_threshold(norms, ratio)
    elif kind == "mix":
        delta = torch.minimum(norms.mean(), rank_threshold(norms, MIX_RANK))
    else:
        delta = clip_threshold(norms, ratio)
        delta = delta.detach() if kind == "clip_detached" else delta
    return torch.where(norms < delta, norms, delta).sum()


@torch.no_grad()
def drop(layer: nn.Module, alive: Tensor, g: int) -> None:
    """Masks, for good, every group in which no entry of `alive` (the weight's shape) is nonzero."""
    mask, channels = find(layer, Mask), layer.weight.shape[1]
    any_alive = grouped(alive, g).count_nonzero(dim=2) > 0
    per_channel = any_alive.repeat_interleave(group_channels(channels, g), dim=1)
    mask.mask.copy_(per_channel.view(mask.mask.shape))
    mask.active = True
    latent(layer).mul_(mask.mask)


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


def summary(weights: list[Tensor], codes: list[Tensor], g: int) -> dict[str, float | list[float]]:
    """Densities, sparsities and the compression rate of the layers' codes; size and spread of their weights."""
    density, s_min = group_density(codes, g), smallest_sparsity(codes, g)
    spreads = [float(group_norms(w, g).std(correction=0)) for w in weights]
    found = {
        "group_density": density,
        "filter_density": filter_density(codes),
        "code_sparsity": 1 - sum(int(c.count_nonzero()) for c in codes) / sum(c.numel() for c in codes),
        "s_min": s_min,
        "max_weight": sum(float(w.abs().max()) for w in weights) / len(weights),
        "norm_spread": sum(spreads) / len(spreads),
        "group_density_by_layer": [group_density([c], g) for c in codes],
    }
    return found | ({"compression_rate": compression_rate(density, s_min)} if density else {})
