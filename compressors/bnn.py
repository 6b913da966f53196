"""BNN and BinaryConnect: weights sign(w) without a scale (Courbariaux et al., 2015 and 2016: paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage, clip_latent
from sparsign.compressors.parts.quantizers import Binary
from sparsign.compressors.parts.transforms import attach
from sparsign.configs.options import option


@dataclass
class BNN(Compressor):
    """Binary weights from the first step on; form fbin is BNN, form wbin is BinaryConnect.

    Latent weights are clipped to [-1, 1] after every step, where the straight-through gradient passes. The first and
    last layers and a shortcut's conv stay float here (our choice, as in the tables that STQ-Nets compares with).
    """

    form: str = option("fbin", "network form: fbin (BNN) or wbin (BinaryConnect)", choices=("wbin", "fbin"))
    float_layers: list[str] = option(
        ["first", "last", "downsample"], "layers left float: first, last, or regular expressions on layer names"
    )

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain",)

    def recipe(self, stage: Stage) -> Recipe:
        """As STQ-Nets' own binary networks, which this is the baseline of: Adam, cosine over 300 epochs (paper)."""
        return Recipe(epochs=300, optimizer="adam", lr=1e-3, weight_decay=0.0)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        for layer in self.layers(model).values():
            attach(layer, Binary())

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        clip_latent(self.layers(model))
