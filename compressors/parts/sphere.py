"""Filters on the unit sphere, as PTQ keeps them: pruning by magnitude, going back to norm 1, the angle to the codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import Mask, find, latent
from sparsign.compressors.pruning.decide import removed


def per_filter(values: Tensor, like: Tensor) -> Tensor:
    """[out] -> [out, 1, 1, 1] (or [out, 1]), ready to broadcast over a weight like `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def kept(count: int, ratio: float) -> int:
    """How many of `count` weights survive at this prune ratio, at least one."""
    return max(count - removed(count, ratio), 1)


@torch.no_grad()
def prune(layer: nn.Module, ratio: float) -> None:
    """Mask := the largest |u| of the layer. Weights masked before compete again with the value they still have."""
    weight, mask = latent(layer), find(layer, Mask).mask
    best = weight.abs().flatten().topk(kept(weight.numel(), ratio)).indices
    mask.zero_().view(-1)[best] = 1.0


@torch.no_grad()
def project(layer: nn.Module) -> None:
    """w_f <- w_f / ||m_f w_f||: back to the unit sphere; masked weights keep their ratio to the others."""
    weight, mask = latent(layer), find(layer, Mask).mask
    norm = (weight * mask).flatten(1).norm(dim=1)
    weight.div_(per_filter(torch.where(norm > 0, norm, 1.0), weight))


def cosine(weight: Tensor, codes: Tensor) -> Tensor:
    """cos(u_f, t_f) for every filter that is not empty: [filters]."""
    cosines = torch.cosine_similarity(weight.flatten(1), codes.flatten(1), dim=1)
    return cosines[codes.flatten(1).any(dim=1)]
