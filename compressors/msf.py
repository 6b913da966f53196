"""MSF: a binary network without the filters of least scale factor, a baseline of Subsidiary and STQ-Nets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage, clip_latent
from sparsign.compressors.parts.quantizers import Binary
from sparsign.compressors.parts.transforms import attach, latent, transforms
from sparsign.compressors.pruning.spread import attach_channel_masks, remove_filters
from sparsign.configs.options import option


@dataclass
class MSF(Compressor):
    """Removes, layer by layer, the filters with the least mean|W| and fine-tunes.

    That the rule is mean|W| (XNOR-Net's scale factor) is inferred from its name; the same ratio in every layer is our
    choice. The rule reads the latent weights W; the network itself computes with sign(W).
    """

    form: str = option("fbin", "network form: fbin (binary inputs too) or wbin", choices=("wbin", "fbin"))
    float_layers: list[str] = option(
        ["first", "last", "downsample"], "layers left float: first, last, or regular expressions on layer names"
    )
    pfr: float = option(0.3, "pruned filter ratio of every binary layer", ge=0, lt=1)

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain", "prune", "finetune")

    def recipe(self, stage: Stage) -> Recipe:
        """As STQ-Nets' own runs: Adam, cosine over 300 epochs (paper); pruning itself trains nothing."""
        return Recipe(epochs=0 if stage.kind == "prune" else 300, optimizer="adam", lr=1e-3, weight_decay=0.0)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        self._example = example
        for layer in self.layers(model).values():
            attach(layer, Binary())
        attach_channel_masks(model)

    @torch.no_grad()
    def start(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind == "prune":
            scales = {name: latent(layer).flatten(1).abs().mean(dim=1) for name, layer in self.layers(model).items()}
            remove_filters(model, self._example, {name: least(s, self.pfr) for name, s in scales.items()})

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        clip_latent(self.layers(model))

    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        return filter_metrics(self.layers(model))


def least(importance: Tensor, ratio: float) -> Tensor:
    """Bool [filters]: the floor(ratio * filters) of least importance. Ties go to the earlier filter."""
    dead = torch.zeros_like(importance, dtype=torch.bool)
    dead[importance.argsort(stable=True)[: int(ratio * len(importance) + 1e-9)]] = True
    return dead


def filter_metrics(layers: dict[str, nn.Module]) -> dict[str, float | list[float]]:
    """`pfr` over all filters of the layers, and the kept fraction of each, from their channel masks."""
    kept = [transforms(layer)[-1].mask.flatten(1).amax(dim=1) for layer in layers.values()]
    return {"pfr": 1 - torch.cat(kept).mean().item(), "kept_filters": [k.mean().item() for k in kept]}
