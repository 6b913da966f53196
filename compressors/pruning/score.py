"""Score: how much each filter matters, and how clearly scores fall in two groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import latent


def has_scale(model: nn.Module, norm: str) -> bool:
    """False for a BN without gamma (affine=False)."""
    return model.get_submodule(norm).weight is not None


def bn_scales(model: nn.Module, norms: dict[str, str]) -> dict[str, Tensor]:
    """|gamma| [out] of the BN behind each conv (network slimming; STQ-A). `norms`: conv name -> BN name."""
    return {conv: model.get_submodule(norm).weight.abs() for conv, norm in norms.items()}


@torch.no_grad()
def mean_magnitudes(layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """mean|W_k| [out] of the latent weights, XNOR-Net's scale factor of each filter (MSF)."""
    return {name: latent(layer).flatten(1).abs().mean(dim=1) for name, layer in layers.items()}


def separation(values: Tensor) -> float:
    """Share of the variance explained by the best split in two (Otsu): 0.64 normal, 0.75 even, 1 for two points.

    Args:
        values: [n], n > 1. Returns 0 where all are equal.
    """
    below = torch.arange(1, len(values), dtype=torch.float64) / len(values)
    partial = values.double().sort().values.cumsum(0)[:-1] / len(values)
    between = (values.double().mean() * below - partial) ** 2 / (below * (1 - below))
    return (between.max() / values.double().var(correction=0).clamp_min(1e-30)).item()
