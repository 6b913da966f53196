"""A method: one dataclass, its fields the options, a quantizer and what happens at the start of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.parts.quantizers import straight_through
from sparsign.compressors.parts.transforms import Quantizer, attach, find
from sparsign.configs.options import option


class Largest(Quantizer):
    """q(w) = alpha sign(w) for the `density` of a layer's weights that are largest, else 0; dq/dw := 1."""

    def __init__(self, density: float) -> None:
        super().__init__(active=False)
        self.density = density

    @torch.no_grad()
    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        size = weight.abs()
        kept = size >= size.flatten().quantile(1 - self.density)
        return weight.sign() * kept, (size * kept).sum() / kept.sum()

    def transform(self, weight: Tensor) -> Tensor:
        codes, alpha = self.encode(weight)
        return straight_through(weight, alpha * codes)


@dataclass
class KeepLargest(Compressor):
    """Ternary weights of a fixed density, fine-tuned from a float network."""

    density: float = option(0.5, "part of a layer's weights that is left", gt=0, le=1)

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain", "quantize")
    PFR_UNIT: ClassVar[str] = "weight"

    def recipe(self, stage: Stage) -> Recipe:
        return Recipe(epochs=20, lr=0.05 if stage.kind == "pretrain" else 0.01)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        for layer in self.layers(model).values():
            attach(layer, Largest(self.density))

    def start(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind == "quantize":
            for layer in self.layers(model).values():
                find(layer, Largest).active = True
