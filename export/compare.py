"""The images that an exported file is tried on, and how far its numbers may be from the packed network's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsign.packing.spec import PackedModel

TOLERANCE = 1e-4
"""Of the largest number of an output."""
IMAGES = 4


def random_images(packed: PackedModel) -> Tensor:
    """Normal fp32 [IMAGES, C, H, W], the same every time."""
    return torch.randn(IMAGES, *packed.input_shape, generator=torch.Generator().manual_seed(0))


def errors(found: list[np.ndarray], expected: list[Tensor]) -> np.ndarray:
    """[N]: each image's largest error over all outputs [N, ...], in units of the output's largest number."""
    apart = [
        abs(a - b.numpy()).reshape(len(a), -1).max(axis=1) / max(b.abs().max().item(), np.finfo(np.float32).tiny)
        for a, b in zip(found, expected, strict=True)
    ]
    return np.max(apart, axis=0)
