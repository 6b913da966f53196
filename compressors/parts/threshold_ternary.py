"""WPC's two ternary quantizers: a fixed threshold relative to the largest weight, and a learnable one (TGA)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.quantizers import straight_through
from sparsign.compressors.parts.transforms import Quantizer, found, latent, scaled


class FixedTernary(Quantizer):
    """q(w) = alpha c: Delta = t max|W|, c = 1[w >= Delta] - 1[w <= -Delta], alpha = mean|w| where |w| >= Delta.

    dq/dw := 1[|w| < 1]; alpha is not differentiated (lab code; t = 0.05). One Delta and one alpha per layer.
    """

    def __init__(self, ratio: float = 0.05, active: bool = True) -> None:
        super().__init__(active)
        self.ratio = ratio

    @torch.no_grad()
    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        size = weight.abs()
        support = (size >= self.ratio * size.max()) & (size > 0)
        return weight.sign() * support, (size * support).sum() / support.sum().clamp_min(1)

    def transform(self, weight: Tensor) -> Tensor:
        return straight_through(weight, scaled(*self.encode(weight)), weight.abs() < 1)


class TGATernary(Quantizer):
    """Ternary with a learnable threshold: truncated Gaussian approximation (lab code).

    q(w) = alpha c: c = sign(w - mu) 1[|w - mu| > |Delta|], alpha = mu + sigma phi(x) / (1 - Phi(x)), the mean of a
    Gaussian's tail, x = |Delta| / sigma; mu, sigma: the layer's mean and standard deviation (not differentiated).

        dq/dw := 1             codes pass gradient / alpha ("gradient correctness")
        dq/dDelta = sign(Delta) c (z^2 - x z), z = phi(x) / (1 - Phi(x)): only through alpha
    """

    def __init__(self, active: bool = True) -> None:
        super().__init__(active)
        self.threshold = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def initialise(self, weight: Tensor, ratio: float) -> None:
        """Delta = ratio max|W|, within 3 sigma."""
        self.threshold.copy_(ratio * weight.abs().max())
        self.bound(weight)

    @torch.no_grad()
    def bound(self, weight: Tensor) -> None:
        """Keeps |Delta| within 3 sigma."""
        limit = 3 * weight.std(correction=0)
        self.threshold.clamp_(min=-limit, max=limit)

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        weight = weight.detach()
        mu, sigma = weight.mean(), weight.std(correction=0).clamp_min(1e-12)
        delta = self.threshold.abs()
        x = (delta / sigma).clamp(max=3)
        tail = 0.5 * torch.special.erfc(x / math.sqrt(2))
        alpha = mu + sigma * torch.exp(-x * x / 2) / (math.sqrt(2 * math.pi) * tail)
        return (weight - mu).sign() * ((weight - mu).abs() > delta), alpha

    def transform(self, weight: Tensor) -> Tensor:
        codes, alpha = self.encode(weight)
        return scaled(codes, alpha) + (weight - weight.detach())


def apart(model: nn.Module, lr: float, acting: bool) -> list[dict[str, Any]]:
    """Parameter groups: everything; and while they act TGA's thresholds, by plain SGD without weight decay."""
    thresholds = [ternary.threshold for _, ternary in found(model, TGATernary)]
    own = {id(t) for t in thresholds}
    everything = [{"params": [p for p in model.parameters() if id(p) not in own]}]
    if not thresholds or not acting:
        return everything
    plain = {"plain_sgd": True, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    return [*everything, {"params": thresholds, "lr": lr, **plain}]


def clamp_gradients(model: nn.Module) -> None:
    """Gradients of TGA's thresholds to +-1e-3 (lab code)."""
    for _, ternary in found(model, TGATernary):
        if ternary.threshold.grad is not None:
            ternary.threshold.grad.clamp_(-1e-3, 1e-3)


def bound_thresholds(model: nn.Module) -> None:
    """TGA's acting thresholds to 3 sigma of their layers."""
    for layer, ternary in found(model, TGATernary):
        if ternary.active:
            ternary.bound(latent(layer))
