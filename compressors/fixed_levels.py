"""Weights that stand on their levels for good: stored integer codes, one trainable scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressors.transforms import Quantizer, scaled


class FixedLevels(Quantizer):
    """q(w) = alpha Q, whatever w is; dq/dalpha = Q, dq/dw = 0. Q is a buffer of int8 codes, alpha a parameter."""

    def __init__(self, shape: torch.Size, active: bool = False) -> None:
        super().__init__(active)
        self.register_buffer("codes", torch.zeros(shape, dtype=torch.int8))
        self.scale = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def fix(self, codes: Tensor, scale: Tensor) -> None:
        """From now on the weight is scale * codes. Codes are integers in [-127, 127] of the weight's shape."""
        self.codes.copy_(codes)
        self.scale.copy_(scale)
        self.active = True

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.codes, self.scale.detach().clone()

    def transform(self, weight: Tensor) -> Tensor:
        return scaled(self.codes, self.scale)
