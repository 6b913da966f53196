"""Re-estimating batch-norm statistics in the arithmetic that the network will be used in.

Pruning and quantising leave them stale, and so does bf16: a binary network's integer sums do not fit eight bits of
mantissa, and its signs react to the rounding, which can cost a network trained in bf16 several points in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], count: int) -> None:
    """Replaces running mean and variance of every BN by their average over the first `count` training batches."""
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # torch: cumulative average
    model.train()
    for index, (images, _) in enumerate(batches):
        if index == count:
            break
        model(images)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
