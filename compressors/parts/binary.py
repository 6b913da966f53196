"""What the binary methods share: signs of clipped latent weights, trained by Adam, between float ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.parts.quantizers import Binary
from sparsign.compressors.parts.transforms import WeightTransform, attach, latent, weighted
from sparsign.compressors.pruning.cut import attach_channel_masks, filter_metrics, remove_filters
from sparsign.configs.options import option


@dataclass
class BinaryMethod(Compressor):
    """Binary weights from the first step on. A subclass says what a weight goes through, and what else it does.

    Latent weights are clipped to [-1, 1] after every step, where the clipped straight-through gradient passes, so that
    it cannot die (BNN, section 1.2). The first and last layers and a shortcut's conv stay float.
    """

    form: str = option(
        "fbin", "network form: fbin (binary inputs too) or wbin (weights only)", choices=("wbin", "fbin")
    )
    float_layers: list[str] = option(
        ["first", "last", "downsample"], "layers left float: first, last, or regular expressions on layer names"
    )

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain",)
    CENTRED: ClassVar[bool] = False
    """Whether latent weights also lose their mean over the input channels at every step (XNOR-Net's code)."""

    def recipe(self, stage: Stage) -> Recipe:
        """Adam, no weight decay, cosine, 300 epochs (STQ-Nets); rate 1e-3 is our choice. Pruning trains nothing."""
        return Recipe(epochs=0 if stage.kind == "prune" else 300, optimizer="adam", lr=1e-3, weight_decay=0.0)

    def path(self, name: str, layer: nn.Module) -> tuple[WeightTransform, ...]:
        """What the weight of a compressed layer goes through, in order."""
        return (Binary(),)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        for name, layer in self.layers(model).items():
            attach(layer, *self.path(name, layer))

    def start(self, model: nn.Module, stage: Stage) -> None:
        if self.CENTRED:
            self.settle(model, stage)

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        self.settle(model, stage)

    @torch.no_grad()
    def settle(self, model: nn.Module, stage: Stage) -> None:
        """Latent weights [out, in, ...]: minus their mean over `in` where the method centres, then into [-1, 1].

        One input (a depthwise conv, a first conv of grey images) is not centred: nothing would be left of it. Weights
        that the stage does not train are left as they are: rounding moves a mean at every subtraction.
        """
        trained = {id(p) for group in self.parameters(model, stage) for p in group["params"]} if self.CENTRED else set()
        for layer in self.layers(model).values():
            weight = latent(layer)
            if id(weight) in trained and weight.shape[1] > 1:
                weight.sub_(weight.mean(dim=1, keepdim=True))
            weight.clamp_(-1, 1)


@dataclass
class BinaryFilterPruning(BinaryMethod):
    """A binary method that removes whole filters, with their BN and their readers' columns."""

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain", "prune", "finetune")

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        self._example = example
        self.prunable(model)  # refused before anything is trained
        super().prepare(model, example)
        attach_channel_masks(model)

    def prunable(self, model: nn.Module) -> dict[str, nn.Module]:
        """The compressed layers but the network's last, whose filters are the classes.

        Raises:
            ValueError: none is left.
        """
        last = list(weighted(model))[-1]
        found = {name: layer for name, layer in self.layers(model).items() if name != last}
        if not found:
            raise ValueError(
                f"compressor.float_layers={self.float_layers}: leaves no layer but the last, {last}, "
                "whose filters are the classes: there is none to prune"
            )
        return found

    def remove(self, model: nn.Module, dead: dict[str, Tensor]) -> None:
        """Removes the filters `dead[layer]` (bool [out]) for good."""
        remove_filters(model, self._example, dead)

    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        return filter_metrics(self.layers(model))
