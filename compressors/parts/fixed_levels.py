"""Weights that stand on their levels for good: some of a layer, or all of it (integer codes, one trainable scale)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import Quantizer, WeightTransform, found, latent, scaled
from sparsign.compressors.pruning.decide import removed


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


class Frozen(WeightTransform):
    """v = value where frozen, else w; dv/dw = 0 where frozen, else 1.

    Whatever moves the latent weight (momentum, weight decay), a frozen one stays on its level.
    """

    def __init__(self, shape: torch.Size, active: bool = False) -> None:
        super().__init__(active)
        self.register_buffer("frozen", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("value", torch.zeros(shape))

    @torch.no_grad()
    def freeze(self, weight: Tensor, nearest: Tensor, kept: Tensor, fraction: float) -> None:
        """Freezes the `fraction` of the free weights that are closest to their nearest level (ADMM-NN: lab code).

        The lab code takes 30 % of the weights at every level; here 30 % of the layer's, as most levels of a strongly
        pruned layer hold one weight or none (our choice). Pruned weights (`kept` = 0) are frozen as well, at zero.
        """
        free = kept.bool() & ~self.frozen
        distance = (weight - nearest).abs().masked_fill(~free, -1)
        still_free = int(free.sum()) - removed(int(free.sum()), fraction)
        farthest = distance.flatten().topk(still_free).indices
        self.frozen.fill_(True).view(-1)[farthest] = False
        self.value.copy_(nearest)
        self.active = True

    def transform(self, weight: Tensor) -> Tensor:
        return torch.where(self.frozen, self.value, weight)


def scales_alone(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: everything; but of a layer on its levels only the scale (and bias), without weight decay."""
    levels = found(model, FixedLevels)
    scales = [fixed.scale for _, fixed in levels if fixed.active]
    others = {id(fixed.scale) for _, fixed in levels} | {id(latent(layer)) for layer, f in levels if f.active}
    groups = [{"params": [p for p in model.parameters() if id(p) not in others]}]
    return groups + ([{"params": scales, "weight_decay": 0.0}] if scales else [])
