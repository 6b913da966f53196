"""TTQ, trained ternary quantization (Zhu et al., 2017: paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.parts.trained_ternary import TrainedTernary
from sparsign.compressors.parts.transforms import attach, find, latent
from sparsign.configs.options import option


@dataclass
class TTQ(Compressor):
    """Weights {-W_n, 0, W_p} with two trained scales per layer, fine-tuned from a float network."""

    t: float = option(0.05, "threshold as a fraction of the layer's largest |w| (paper)", ge=0, lt=1)
    zeros: float | None = option(
        None,
        "instead of t: the fraction of zeros every layer gets (alternative in the authors' code); null = use t",
        ge=0,
        lt=1,
    )
    init: str = option("mean", "first W_p, W_n: mean of |w| over the support, or one", choices=("mean", "one"))

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain", "quantize")
    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = ("t", "zeros", "init")

    def recipe(self, stage: Stage) -> Recipe:
        """SGD, momentum 0.9, weight decay 2e-4 from rate 0.1 (paper, ResNet-20); lengths are our choice.

        The quantize stage starts at 0.01, our choice as well. The authors' code starts W_p and W_n at one; their mean,
        the default here, keeps the layer's magnitude, on which a network without BN depends (our choice).
        """
        pretrain = stage.kind == "pretrain"
        return Recipe(epochs=200 if pretrain else 100, lr=0.1 if pretrain else 0.01, weight_decay=2e-4)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        for layer in self.layers(model).values():
            attach(layer, TrainedTernary(self.t, self.zeros, active=False))

    def start(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind != "quantize":
            return
        for layer in self.layers(model).values():
            quantizer = find(layer, TrainedTernary)
            quantizer.active = True
            if self.init == "mean":
                quantizer.fit(latent(layer))

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        quantizers = [find(layer, TrainedTernary) for layer in self.layers(model).values()]
        if not quantizers[0].active:
            return {}
        return {
            "ttq_positive_scale": [q.positive.item() for q in quantizers],
            "ttq_negative_scale": [q.negative.item() for q in quantizers],
        }
