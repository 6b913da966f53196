"""STQ-A: a binary network whose filters are pruned by the L1-penalised scales of their batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Stage, histogram
from sparsign.compressors.parts.binary import BinaryFilterPruning
from sparsign.compressors.parts.quantizers import Binary, ScaledBinary
from sparsign.compressors.parts.transforms import WeightTransform
from sparsign.compressors.pruning.cut import filter_metrics
from sparsign.compressors.pruning.decide import choose_filters
from sparsign.compressors.pruning.score import bn_scales, has_scale, separation
from sparsign.configs.options import option
from sparsign.models.cutting import uncut
from sparsign.models.graph import batchnorm_after

TINY = 1e-8
"""Scales that the penalty has reached oscillate around 0, some orders of magnitude below the others."""


@dataclass
class STQA(BinaryFilterPruning):
    """STQ-A (STQ-Nets): min CE + beta sum_l sum_k |gamma_lk|, global threshold on |gamma|, zero the filters, fine-tune.

    Weights are sign(W) without a scale: BN's gamma is the scale of its filter (paper). Shifts are not penalised: in a
    net without shortcuts conv -> BN -> sign ignores a common factor of gamma and beta, so only a channel whose beta
    outgrows its gamma becomes constant and thereby prunable.
    """

    pfr: float = option(0.4, "asked ratio of pruned filters to all filters of binary convs", ge=0, lt=1)
    beta: float = option(1e-4, "weight of the L1 penalty on BN scales (paper: 1e-4 or 1e-5)", ge=0)
    layer_cap: float = option(0.7, "at most that part of a layer's filters is pruned (our choice)", ge=0, le=1)
    min_filters: int = option(16, "at least that many filters of a layer stay (our choice)", ge=1)
    exempt_layers: int = option(1, "so many first binary convs lose no filter (paper: initial conv layers)", ge=0)
    scale: bool = option(False, "scale factors mean|W| per filter, as XNOR-Net has them")

    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = ("pfr", "layer_cap", "min_filters", "exempt_layers")

    def path(self, name: str, layer: nn.Module) -> tuple[WeightTransform, ...]:
        return (ScaledBinary() if self.scale else Binary(),)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        """Raises ValueError: no binary conv has BN behind it, or all of them are exempt."""
        layers, norms = self.prunable(model), batchnorm_after(model)
        self._norms = {name: norms[name] for name in layers if name in norms and has_scale(model, norms[name])}
        if not self._norms:
            raise ValueError(
                "compressor=stq_a prunes by BN scales: no binary conv of this model is followed by BN that has one"
            )
        if self.pfr > 0 and self.exempt_layers >= len(self._norms):
            raise ValueError(
                f"compressor.exempt_layers={self.exempt_layers}: expected less than {len(self._norms)}, the binary "
                "convs of the model that have BN behind them"
            )
        super().prepare(model, example)

    def gammas(self, model: nn.Module) -> dict[str, Tensor]:
        """|gamma| of the BN behind each binary conv, [out] each."""
        return bn_scales(model, self._norms)

    def penalty(self, model: nn.Module, stage: Stage) -> Tensor | None:
        if stage.kind != "pretrain" or self.beta == 0:
            return None
        return self.beta * torch.cat(list(self.gammas(model).values())).sum()

    def start(self, model: nn.Module, stage: Stage) -> None:
        super().start(model, stage)
        if stage.kind == "prune":
            scores = {name: gamma.detach().cpu() for name, gamma in self.gammas(model).items()}
            exempt = set(list(scores)[: self.exempt_layers])
            total = sum(uncut(layer).shape[0] for layer in self._convs(model).values())
            self.remove(model, choose_filters(scores, exempt, self.pfr, self.layer_cap, self.min_filters, total))

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        pooled = torch.cat(list(self.gammas(model).values())).float().cpu()
        return {
            "gamma_mean": pooled.mean().item(),
            "gamma_separation": separation(pooled.clamp_min(TINY).log10()),
            **histogram("gamma_hist", pooled, 30, 0.0, 1.5),
            **histogram("gamma_log10_hist", pooled.clamp_min(TINY).log10(), 18, -8.0, 1.0),
            "pfr": filter_metrics(self._convs(model))["pfr"],
        }

    def _convs(self, model: nn.Module) -> dict[str, nn.Module]:
        """The binary convs, those without BN behind them too: `pfr` is of their filters."""
        return {name: layer for name, layer in self.layers(model).items() if isinstance(layer, nn.Conv2d)}
