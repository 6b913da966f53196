"""BWN and XNOR: binary weights with one scale per filter, no pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage, clip_latent
from sparsign.compressors.parts.quantizers import ScaledBinary
from sparsign.compressors.parts.transforms import attach
from sparsign.configs.options import option


@dataclass
class BWN(Compressor):
    """W ~ alpha_k sign(W_k) (XNOR-Net, section 3.1); with `form: fbin` inputs are binary too (section 3.2, XNOR).

    Trained from scratch in one stage. The activation scale K of the paper is left out, as in its released code. That
    code also centres the latent weights over the input channels before every step, and multiplies a layer's gradient
    by n (1 - 1 / c_in), which Adam does not notice; neither is done here (our choice).
    """

    form: str = option("wbin", "wbin (BWN) or fbin (XNOR)", choices=("wbin", "fbin"))

    STAGES: ClassVar = ("pretrain",)

    def recipe(self, stage: Stage) -> Recipe:
        """As STQ-Nets' own binary networks, which this is the baseline of: Adam, cosine over 300 epochs (paper)."""
        return Recipe(epochs=300, optimizer="adam", lr=1e-3, weight_decay=0.0)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        for layer in self.layers(model).values():
            attach(layer, ScaledBinary())

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        clip_latent(self.layers(model))
