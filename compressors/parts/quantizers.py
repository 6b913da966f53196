"""Binary and scaled-binary weight quantizers: forward and pseudo-gradient of each on one screen."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsign.compressors.parts.transforms import Quantizer
from sparsign.models.sign import binarize

JUST_ABOVE_ONE = 1 + torch.finfo(torch.float32).eps


def inside(weight: Tensor) -> Tensor:
    """1[|w| <= 1]: where the clipped straight-through gradient of a latent value passes (BNN, equation 4).

    The bounds belong to it: latent values are clipped onto them, and would never leave them otherwise.
    """
    return weight.abs() <= 1


class StraightThrough(torch.autograd.Function):
    """y = value; dL/dw = dL/dy * passes: the straight-through estimator, `passes` a 0/1 tensor or None (all)."""

    @staticmethod
    def forward(ctx, weight: Tensor, value: Tensor, passes: Tensor | None) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(passes)
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN001
        (passes,) = ctx.saved_tensors
        return (grad if passes is None else grad * passes), None, None


def straight_through(weight: Tensor, value: Tensor, passes: Tensor | None = None) -> Tensor:
    """`value` in the forward pass, gradient of the identity (times `passes`) in the backward pass."""
    return StraightThrough.apply(weight, value, passes)


class ClippedSign(torch.autograd.Function):
    """y = sign(w), sign(0) = 1; dL/dw = dL/dy * inside(w), in one fused operation."""

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(weight)
        return binarize(weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # noqa: ANN001
        (weight,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, weight, -JUST_ABOVE_ONE, JUST_ABOVE_ONE)


class Binary(Quantizer):
    """BNN: q(w) = sign(w); dq/dw = 1[|w| <= 1]. No scale: the next BN's gamma plays it (Courbariaux et al., 2016)."""

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return binarize(weight), torch.ones((), device=weight.device)

    def transform(self, weight: Tensor) -> Tensor:
        return ClippedSign.apply(weight)


class ScaledBinary(Quantizer):
    """BWN / XNOR-Net: q(w) = alpha_k sign(w), alpha_k = mean of |w| over the nonzero weights of filter k.

    dL/dw_i = g_i alpha 1[|w_i| <= 1] + sign(w_i)/n sum_j g_j sign(w_j): exact gradient of mean|w| * sign(w) with the
    clipped straight-through sign (Rastegari et al., 2016, section 3; the coupled form of its released code). Weights
    that are exactly zero are structural (masked before): they take no part in alpha; mask them after the quantizer too.
    """

    def _alpha(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        count = flat.detach().count_nonzero(dim=1).clamp_min(1)
        return (flat.abs().sum(dim=1) / count).view(-1, *[1] * (weight.dim() - 1))

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return binarize(weight), self._alpha(weight)

    def transform(self, weight: Tensor) -> Tensor:
        return self._alpha(weight) * ClippedSign.apply(weight)
