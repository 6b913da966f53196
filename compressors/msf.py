"""MSF: a binary network without the filters of least scale factor, a baseline of Subsidiary and STQ-Nets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsign.compressors.base import Stage
from sparsign.compressors.parts.binary import BinaryFilterPruning
from sparsign.compressors.parts.quantizers import ScaledBinary
from sparsign.compressors.parts.transforms import WeightTransform
from sparsign.compressors.pruning.decide import least
from sparsign.compressors.pruning.score import mean_magnitudes
from sparsign.configs.options import option


@dataclass
class MSF(BinaryFilterPruning):
    """Removes, layer by layer, the filters with the least mean|W| and fine-tunes.

    Weights are alpha_k sign(W_k) with W_k centred over its input channels and alpha_k = mean|W_k|, as in Subsidiary's
    code, whose baseline this is. That the rule is that scale factor is inferred from its name; the same ratio in every
    layer is our choice.
    """

    pfr: float = option(0.3, "pruned filter ratio of every binary layer", ge=0, lt=1)

    CENTRED: ClassVar[bool] = True
    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = ("pfr",)

    def path(self, name: str, layer: nn.Module) -> tuple[WeightTransform, ...]:
        return (ScaledBinary(),)

    def start(self, model: nn.Module, stage: Stage) -> None:
        super().start(model, stage)
        if stage.kind == "prune":
            scores = mean_magnitudes(self.prunable(model))
            self.remove(model, {name: least(score, self.pfr) for name, score in scores.items()})
