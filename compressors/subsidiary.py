"""Subsidiary: filters of a binary network pruned by a trained mask, one layer after the other (authors' code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Recipe, Stage
from sparsign.compressors.parts.binary import BinaryFilterPruning
from sparsign.compressors.parts.quantizers import ScaledBinary, inside, straight_through
from sparsign.compressors.parts.transforms import WeightTransform, find
from sparsign.configs.options import option


class FilterSearch(WeightTransform):
    """weight * h(m), h(m) = 1[m >= 0] per filter; dh/dm := 1[|m| <= 1].

    m [out, 1, 1, 1] starts uniform in +-1e-4 (authors' code), so about half of the filters start switched off.
    """

    def __init__(self, shape: tuple[int, ...], active: bool = True) -> None:
        super().__init__(active)
        self.m = nn.Parameter(torch.empty(shape[0], *[1] * (len(shape) - 1)).uniform_(-1e-4, 1e-4))

    def hard(self) -> Tensor:
        """h(m) [out, 1, 1, 1] with its straight-through gradient."""
        return straight_through(self.m, (self.m >= 0).to(self.m.dtype), inside(self.m))

    def transform(self, weight: Tensor) -> Tensor:
        return weight * self.hard()


@dataclass
class Subsidiary(BinaryFilterPruning):
    """For every binary layer from the first: search its mask with all weights frozen, then fine-tune from it upwards.

    Search (`prune-i`): min over m of CE + alpha_s ||h(m)||_0. Then filters with m < 0 are removed, and `finetune-i`
    trains the weights of layer i and everything after it. The L0 term counts h(m), so that its straight-through
    gradient is alpha_s where |m| <= 1. The authors' code takes an L0 norm of the parameter, whose gradient is zero:
    there the loss and weight decay alone prune (inferred). The ratio is an outcome of the search, not an option.

    Weights are alpha_k sign(W_k), W_k centred over its input channels, alpha_k = mean|W_k| (authors' code): with the
    search's zeros the levels -alpha_k, 0, alpha_k, and a layer's speed-up 58 / (1 - pfr), 73x at 21.4 % (paper).
    """

    alpha_s: float = option(1e-8, "weight of the L0 term (authors' code: 1e-7 to 1e-9)", ge=0)
    min_filters: int = option(1, "at least that many filters of a layer stay, those of largest m (our choice)", ge=1)

    CENTRED: ClassVar[bool] = True
    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = ("alpha_s", "min_filters")

    def stages(self, model: nn.Module) -> list[Stage]:
        rounds = range(1, len(self.prunable(model)) + 1)
        return [Stage("pretrain"), *(Stage(f"{kind}-{i}") for i in rounds for kind in ("prune", "finetune"))]

    def recipe(self, stage: Stage) -> Recipe:
        """Search: Adam 1e-3, weight decay 1e-5; fine-tune: 1e-4; 200 epochs each, lr_t = lr * 1000^(-t/200) (code).

        The binary network before is trained as in STQ-Nets, and fine-tuning without weight decay (our choices).
        """
        if stage.kind == "pretrain":
            return super().recipe(stage)
        search = stage.kind == "prune"
        return Recipe(
            epochs=200,
            optimizer="adam",
            lr=1e-3 if search else 1e-4,
            weight_decay=1e-5 if search else 0.0,
            decay="multistep",
            milestones=tuple(t / 200 for t in range(1, 200)),
            gamma=1000 ** (-1 / 200),
        )

    def path(self, name: str, layer: nn.Module) -> tuple[WeightTransform, ...]:
        return (ScaledBinary(), FilterSearch(layer.weight.shape, active=False))

    def _layer(self, model: nn.Module, stage: Stage) -> tuple[str, nn.Module]:
        """The layer that a prune or finetune stage is about."""
        return list(self.prunable(model).items())[stage.round - 1]

    def start(self, model: nn.Module, stage: Stage) -> None:
        super().start(model, stage)
        if stage.kind == "prune":
            find(self._layer(model, stage)[1], FilterSearch).active = True

    def parameters(self, model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        masks = {id(find(layer, FilterSearch).m) for layer in self.layers(model).values()}
        weights = [(name, p) for name, p in model.named_parameters() if id(p) not in masks]
        if stage.kind == "pretrain":
            return [{"params": [p for _, p in weights]}]
        layer_name, layer = self._layer(model, stage)
        if stage.kind == "prune":
            return [{"params": [find(layer, FilterSearch).m]}]
        first = next(i for i, (name, _) in enumerate(weights) if name.startswith(f"{layer_name}."))
        return [{"params": [p for _, p in weights[first:]]}]

    def penalty(self, model: nn.Module, stage: Stage) -> Tensor | None:
        if stage.kind != "prune" or self.alpha_s == 0:
            return None
        return self.alpha_s * find(self._layer(model, stage)[1], FilterSearch).hard().sum()

    @torch.no_grad()
    def finish(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind != "prune":
            return
        name, layer = self._layer(model, stage)
        search = find(layer, FilterSearch)
        m = search.m.flatten()
        dead = m < 0
        dead[m.argsort(descending=True)[: self.min_filters]] = False
        search.active = False
        self.remove(model, {name: dead})
