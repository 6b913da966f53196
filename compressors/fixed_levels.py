"""Weights that stand on their levels for good: stored integer codes, one trainable scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressors.transforms import Quantizer, scaled


class _OnLevels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale: Tensor, codes: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(codes)
        return scaled(codes, scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001
        codes = ctx.saved_tensors[0].to(grad.dtype)
        return (grad * codes).sum() / codes.square().sum().clamp_min(1), None


class FixedLevels(Quantizer):
    """q(w) = alpha Q, whatever w is: Q a buffer of int8 codes, alpha a parameter.

    dq/dw = 0 and dL/dalpha := <dL/dq, Q> / <Q, Q>: a gradient step on alpha is the step on all weights, projected back
    to the line of Q. The plain sum <dL/dq, Q> grows with the layer and diverges at the weights' rate (our choice).
    """

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
        return _OnLevels.apply(self.scale, self.codes)
