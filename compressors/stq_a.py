"""STQ-A: a binary network whose filters are pruned by the L1-penalised scales of their batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage, clip_latent
from sparsign.compressors.parts.quantizers import Binary, ScaledBinary
from sparsign.compressors.parts.transforms import attach, transforms
from sparsign.compressors.pruning.spread import attach_channel_masks, remove_filters
from sparsign.configs.options import option
from sparsign.models.graph import batchnorm_after


def choose_filters(
    importance: dict[str, Tensor], exempt: set[str], ratio: float, cap: float, least: int
) -> dict[str, Tensor]:
    """Which filters go: the floor(ratio * all) least important, but at most `cap` of a layer and never below `least`.

    Filters of exempt layers count in `all` and stay. What a full layer cannot give up is taken from the next filters in
    the global order (redistribution, our choice; the paper has limits of unknown value). Ties go to the earlier filter.

    Args:
        importance: layer name -> |gamma| [out].
    Returns:
        layer name -> bool [out], True = remove.
    """
    wanted = int(ratio * sum(len(v) for v in importance.values()) + 1e-9)
    room = {n: max(0, len(v) - max(least, round((1 - cap) * len(v)))) for n, v in importance.items()}
    order = [(float(g), n, k) for n, v in importance.items() if n not in exempt for k, g in enumerate(v)]
    dead = {n: torch.zeros(len(v), dtype=torch.bool) for n, v in importance.items()}
    for _, name, k in sorted(order, key=lambda item: item[0]):
        if wanted > 0 and room[name] > 0:
            dead[name][k] = True
            room[name] -= 1
            wanted -= 1
    return dead


TINY = 1e-8  # scales that the penalty has reached oscillate around 0, some orders of magnitude below the others


def separation(values: Tensor) -> float:
    """Share of the variance explained by the best split in two (Otsu): 0.64 normal, 0.75 even, 1 for two points.

    Args:
        values: [n], n > 1. Returns 0 where all are equal.
    """
    below = torch.arange(1, len(values), dtype=torch.float64) / len(values)
    partial = values.double().sort().values.cumsum(0)[:-1] / len(values)
    between = (values.double().mean() * below - partial) ** 2 / (below * (1 - below))
    return (between.max() / values.double().var(correction=0).clamp_min(1e-30)).item()


@dataclass
class STQA(Compressor):
    """STQ-A (STQ-Nets): min CE + beta sum_l sum_k |gamma_lk|, global threshold on |gamma|, zero the filters, fine-tune.

    Weights are sign(W) without a scale: BN's gamma is the scale of its filter (paper). Shifts are not penalised: in a
    net without shortcuts conv -> BN -> sign ignores a common factor of gamma and beta, so only a channel whose beta
    outgrows its gamma becomes constant and thereby prunable.
    """

    form: str = option("fbin", "fbin (binary inputs and weights) or wbin (binary weights)", choices=("fbin", "wbin"))
    float_layers: list[str] = option(["first", "last", "downsample"], "layers left float: first, last, or patterns")
    pfr: float = option(0.4, "asked ratio of pruned filters to all filters of binary convs", ge=0, lt=1)
    beta: float = option(1e-4, "weight of the L1 penalty on BN scales (paper: 1e-4 or 1e-5)", ge=0)
    layer_cap: float = option(0.7, "at most that part of a layer's filters is pruned (our choice)", ge=0, le=1)
    min_filters: int = option(16, "at least that many filters of a layer stay (our choice)", ge=1)
    prune_first_binary: bool = option(False, "allow pruning the first binary layer (paper: not)")
    scale: bool = option(False, "scale factors mean|W| per filter, as XNOR-Net has them")

    STAGES: ClassVar = ("pretrain", "prune", "finetune")

    def recipe(self, stage: Stage) -> Recipe:
        """Adam, no weight decay, cosine, 300 epochs (paper); lr 1e-3 is our choice. Pruning itself trains nothing."""
        return Recipe(epochs=0 if stage.kind == "prune" else 300, optimizer="adam", lr=1e-3, weight_decay=0.0)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        self._example = example
        layers = self.layers(model)
        norms = batchnorm_after(model)
        self._norms = {name: norms[name] for name in layers if name in norms}
        if not self._norms:
            raise ValueError("compressor=stq_a prunes by BN scales: no binary conv of this model is followed by BN")
        for layer in layers.values():
            attach(layer, ScaledBinary() if self.scale else Binary())
        attach_channel_masks(model)

    def gammas(self, model: nn.Module) -> dict[str, Tensor]:
        """|gamma| of the BN behind each binary conv, [out] each."""
        return {conv: model.get_submodule(bn).weight.abs() for conv, bn in self._norms.items()}

    def penalty(self, model: nn.Module, stage: Stage) -> Tensor | None:
        if stage.kind != "pretrain" or self.beta == 0:
            return None
        return self.beta * torch.cat(list(self.gammas(model).values())).sum()

    def start(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind != "prune":
            return
        importance = {n: g.detach().cpu() for n, g in self.gammas(model).items()}
        exempt = set() if self.prune_first_binary else {next(iter(importance))}
        remove_filters(
            model, self._example, choose_filters(importance, exempt, self.pfr, self.layer_cap, self.min_filters)
        )

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        clip_latent(self.layers(model))

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        pooled = torch.cat(list(self.gammas(model).values())).float().cpu()
        kept = {n: transforms(m)[-1].mask.flatten(1).amax(1) for n, m in self.layers(model).items() if n in self._norms}
        total = sum(len(v) for v in kept.values())
        return {
            "gamma_mean": pooled.mean().item(),
            "gamma_separation": separation(pooled.clamp_min(TINY).log10()),
            "gamma_hist": torch.histc(pooled, bins=30, min=0.0, max=1.5).tolist(),
            "gamma_log10_hist": torch.histc(pooled.clamp_min(TINY).log10(), bins=18, min=-8.0, max=1.0).tolist(),
            "pfr": 1 - sum(v.sum().item() for v in kept.values()) / total,
        }
