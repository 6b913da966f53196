"""TWN, ternary weight networks (Li et al., 2016: paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.parts.quantizers import straight_through
from sparsign.compressors.parts.transforms import Quantizer, attach, find
from sparsign.configs.options import option


class Ternary(Quantizer):
    """q(w) = alpha * sign(w) * 1[|w| > Delta]; dq/dw := 1 (identity straight-through).

    Delta = 0.7 mean|w| (closed form of the paper for weights between uniform, 2/3, and normal, 0.75);
    alpha = mean of |w| where |w| > Delta. Both for the whole layer, or per filter.
    """

    def __init__(self, per_filter: bool = False, factor: float = 0.7, active: bool = True) -> None:
        super().__init__(active)
        self.per_filter, self.factor = per_filter, factor

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        size = weight.abs().flatten(1 if self.per_filter else 0)
        support = size > self.factor * size.mean(dim=-1, keepdim=True)
        alpha = (size * support).sum(dim=-1) / support.sum(dim=-1).clamp_min(1)
        shape = (-1, *[1] * (weight.dim() - 1)) if self.per_filter else ()
        return torch.where(support.view_as(weight), weight.sign(), 0.0), alpha.view(shape)

    def transform(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            codes, alpha = self.encode(weight)
        return straight_through(weight, alpha * codes)


@dataclass
class TWN(Compressor):
    """Weights alpha * {-1, 0, 1}, fine-tuned from a float network."""

    per_filter: bool = option(False, "threshold and scale per filter instead of per layer")

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain", "quantize")
    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = ("per_filter",)

    def recipe(self, stage: Stage) -> Recipe:
        """SGD with weight decay 1e-4 (paper); lengths and rates are our choice."""
        pretrain = stage.kind == "pretrain"
        return Recipe(epochs=200 if pretrain else 100, lr=0.1 if pretrain else 0.01, weight_decay=1e-4)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        for layer in self.layers(model).values():
            attach(layer, Ternary(self.per_filter, active=False))

    def start(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind == "quantize":
            for layer in self.layers(model).values():
                find(layer, Ternary).active = True
