"""How many weights the masks of a network leave, before any dead path goes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import Mask, transforms, weighted


def weights_left(model: nn.Module) -> dict[str, int]:
    """`weights_left` of all conv and linear layers and `conv_weights_left`; empty where no layer has an active mask.

    A weight is left where every mask of its layer is 1: a zero that a quantizer makes there still counts.
    """
    layers = list(weighted(model).values())
    if not any(_masks(layer) for layer in layers):
        return {}
    counts = [(left(layer), isinstance(layer, nn.Conv2d)) for layer in layers]
    return {"weights_left": sum(n for n, _ in counts), "conv_weights_left": sum(n for n, conv in counts if conv)}


def left(layer: nn.Module) -> int:
    """Weights of one conv or linear layer where all its masks are 1."""
    kept = torch.ones(layer.weight.shape, dtype=torch.bool, device=layer.weight.device)
    for mask in _masks(layer):
        kept &= mask != 0
    return int(kept.sum())


def left_with_zeros(layers: Iterable[nn.Module]) -> int | None:
    """Weights that the masks of `layers` leave, where a quantizer has made zeros of some of them.

    None where none has, or where no mask tells: then the nonzero weights of the packed file are those that are left.
    """
    layers = list(layers)
    if not any(_masks(layer) for layer in layers):
        return None
    count = sum(map(left, layers))
    return count if count != sum(int(layer.weight.count_nonzero()) for layer in layers) else None


def _masks(layer: nn.Module) -> list[Tensor]:
    return [t.mask for t in transforms(layer) if isinstance(t, Mask) and t.active]
