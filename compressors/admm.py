"""ADMM-NN-S: structured pruning and quantization by ADMM with growing rho (Ma et al., arXiv 1907.02124).

    minimise loss(W)  subject to  W_l in S_l,  S_l = few nonzero groups (prune) or few levels (quantize)

    W-step      SGD on  loss(W) + sum_l rho_l/2 ||W_l - Z_l + U_l||_F^2
    Z, U-step   Z = Proj_S(W + U);  U = U + W - Z
    at the end  W = Proj_S(W) with the zeros masked for good ("masked mapping"), then retraining of the survivors

These steps, the projections and the multi-rho schedule are lab code; that the latter is the paper's "dynamic"
regularization is inferred.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsign.compressors.admm_steps import COMBINED, numbered, pruning_steps
from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.parts.duals import Dual, Projection
from sparsign.compressors.parts.fixed_levels import FixedLevels, Frozen
from sparsign.compressors.parts.levels import KINDS, Levels, encode, levels_of, search_interval
from sparsign.compressors.parts.transforms import Mask, attach, find, latent, scaled, transformed, transforms
from sparsign.compressors.pruning.projections import STRUCTURES, keep_mask, project
from sparsign.compressors.pruning.purify import purified, remove_unused_paths, weighted
from sparsign.compressors.pruning.spread import attach_channel_masks
from sparsign.configs.options import near_match, option


@dataclass
class ADMM(Compressor):
    """Prunes, retrains, then quantizes the survivors, each under ADMM's pull to the constraint set."""

    structure: str = option("filter", "groups that are removed whole", choices=(*STRUCTURES, COMBINED))
    pfr: float = option(0.5, "fraction of groups removed from every layer not left float", ge=0, lt=1)
    ratios: dict[str, float] = option(
        {}, "layer name -> fraction removed, instead of pfr (float layers too)", ge=0, lt=1
    )
    rounds: int = option(1, "progressive rounds; each keeps half of what the one before it kept", ge=1)
    rhos: list[float] = option([1e-4, 1e-3, 1e-2, 1e-1], "one ADMM stage per rho, Z and U restarted at each", gt=0)
    rho_growth: float = option(1.0, "factor on rho at every Z, U update", ge=1)
    interval: int = option(1, "epochs between Z, U updates", ge=1)
    purify: bool = option(True, "after pruning, remove groups that hardly count, and unused paths")
    purify_emptiness: float = option(7 / 9, "fraction of empty columns that marks a channel", ge=0, le=1)
    purify_share: float = option(0.01, "squared norm over the mean group's, below which a group goes", ge=0, le=1)
    quantize: str = option("ternary", "levels of the surviving weights", choices=("none", *KINDS))
    bits: int = option(4, "bits per weight for quantize = bits | interval", ge=1, le=8)
    layer_bits: dict[str, int] = option({}, "layer name -> bits, instead of bits", ge=1, le=8)
    one_sided: bool = option(False, "no level 0 for quantize = bits: a pruned layer has its zeros already")
    freeze: float = option(0.3, "fraction of the free weights frozen on their levels before a freeze round", gt=0, lt=1)
    freeze_rounds: int = option(0, "for quantize = interval: finetune rounds until all weights are frozen", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rhos:
            raise ValueError("compressor.rhos=[]: expected at least one rho")
        self.steps = pruning_steps(self.structure, self.rounds) if self.pfr or any(self.ratios.values()) else []
        if self.quantize != "none":
            for bits in (self.bits, *self.layer_bits.values()):
                levels_of(self.quantize, bits, self.one_sided)
        elif not self.steps:
            raise ValueError(
                "compressor.pfr=0 with quantize=none and no ratios: expected something to prune or quantize"
            )
        if self.freeze_rounds and self.quantize != "interval":
            raise ValueError(
                f"compressor.freeze_rounds={self.freeze_rounds}: expected 0 with quantize={self.quantize} "
                "(only interval keeps its scale)"
            )

    @property
    def PFR_UNIT(self) -> str:
        """What `pfr` counts: the structure's group; of columns then filters, what lies outside the kept of both."""
        return {"irregular": "weight", COMBINED: "matrix"}.get(self.structure, self.structure)

    # -- the plan ------------------------------------------------------------------------------------------------------

    def stages(self, model: nn.Module) -> list[Stage]:
        """pretrain; per pruning step: prune at every rho, finetune; then quantize at every rho, finetune.

        Every freeze round is one more finetune before the last.
        """
        kinds = ["pretrain"]
        for _ in self.steps:
            kinds += ["prune"] * len(self.rhos) + ["finetune"]
        if self.quantize != "none":
            kinds += ["quantize"] * len(self.rhos) + ["finetune"] * (self.freeze_rounds + 1)
        return numbered(kinds)

    def recipe(self, stage: Stage) -> Recipe:
        """Lab code (CIFAR-10): SGD 0.1 cosine, then 0.01, restarted at every Z, U update in the ADMM stages.

        Its 160 epochs of ADMM are shared by the rhos, and the finetune of quantized weights is short: our choice. So is
        one schedule for both kinds of ADMM (its quantizers multiply rho by 1.2 or 1.5 at every update instead, up to 30
        or 100), and that all layers are quantized at once (arXiv 1903.09769: the first and last in a second step).
        """
        sgd = {"weight_decay": 1e-4, "nesterov": False}
        if stage.kind == "pretrain":
            return Recipe(epochs=200, lr=0.1, **sgd)
        if stage.kind in ("prune", "quantize"):
            epochs = max(160 // len(self.rhos), self.interval)
            return Recipe(epochs=epochs, lr=0.01, decay="cyclic", interval=self.interval, **sgd)
        snapped = stage.round > len(self.steps)
        return Recipe(epochs=20 if snapped else 200, lr=0.001 if snapped else 0.01, **sgd)

    # -- the algorithm -------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        self._example = torch.zeros_like(example[:1])
        pruned = self._pruned(model)
        quantized = self.layers(model) if self.quantize != "none" else {}
        for name, layer in weighted(model).items():
            shape = layer.weight.shape
            attach(layer, Mask(shape))
            if name in pruned or name in quantized:
                attach(layer, Dual(shape))
            if name in quantized:
                attach(layer, *[Frozen(shape)] * bool(self.freeze_rounds), FixedLevels(shape))
        attach_channel_masks(model)

    def start(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind == "quantize" and stage.round == 1 and self.quantize == "interval":
            self._choose_intervals(model)
        for layer, projection in self._constrained(model, stage):
            find(layer, Dual).begin(layer.weight, projection, self.rhos[(stage.round - 1) % len(self.rhos)])

    def parameters(self, model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        """Everything; of a layer on its levels only the scale (and bias), without weight decay."""
        levels = [
            (layer, t) for _, layer in transformed(model) for t in transforms(layer) if isinstance(t, FixedLevels)
        ]
        scales = [fixed.scale for _, fixed in levels if fixed.active]
        others = {id(fixed.scale) for _, fixed in levels} | {id(latent(layer)) for layer, f in levels if f.active}
        groups = [{"params": [p for p in model.parameters() if id(p) not in others]}]
        return groups + ([{"params": scales, "weight_decay": 0.0}] if scales else [])

    def penalty(self, model: nn.Module, stage: Stage) -> Tensor | None:
        terms = [dual.penalty(layer.weight) for layer, dual in _active(model)]
        return torch.stack(terms).sum() if terms else None

    def before_epoch(self, model: nn.Module, stage: Stage, epoch: int, epochs: int) -> None:
        if epoch and epoch % self.interval == 0:
            for layer, projection in self._constrained(model, stage):
                find(layer, Dual).update(layer.weight, projection, self.rho_growth)

    def finish(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind in ("prune", "quantize") and stage.round % len(self.rhos):
            return
        for _, dual in _active(model):
            dual.active = False
        if stage.kind == "prune":
            self._masked_mapping(model, stage)
        retrained = stage.round - len(self.steps) if stage.kind == "finetune" else 0  # rounds since quantization
        if stage.kind == "quantize" or 0 < retrained <= self.freeze_rounds:
            self._snap(model, last=retrained == self.freeze_rounds)

    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        active = _active(model)
        if not active:
            return {}
        gaps = [dual.gap(layer.weight) for layer, dual in active]
        return {
            "admm_gap": gaps,  # ||W - Z|| / ||W|| per layer
            "admm_gap_max": max(gaps),
            "admm_dual_residual": [float(dual.moved) for _, dual in active],  # ||Z_new - Z_old|| per layer
            "admm_rho": float(active[0][1].rho),
        }

    # -- the constraint sets -------------------------------------------------------------------------------------------

    def _constrained(self, model: nn.Module, stage: Stage) -> Iterator[tuple[nn.Module, Projection]]:
        """(layer, projection onto S) of every layer that this stage constrains."""
        if stage.kind == "prune":
            for layer, ratio, structure in self._targets(model, stage):
                yield layer, lambda v, ratio=ratio, structure=structure: project(v, ratio, structure)
        elif stage.kind == "quantize":
            for name, layer in self.layers(model).items():
                yield layer, lambda v, name=name, layer=layer: scaled(*self._encode(name, layer, v))

    def _targets(self, model: nn.Module, stage: Stage) -> Iterator[tuple[nn.Module, float, str]]:
        """(layer, fraction to remove, structure) of a prune stage."""
        step, layers = self.steps[(stage.round - 1) // len(self.rhos)], weighted(model)
        for name, final in self._pruned(model).items():
            if step.structure != "filter" or name != list(layers)[-1]:  # the last layer's filters are the classes
                yield layers[name], step.ratio(final), step.structure

    def _pruned(self, model: nn.Module) -> dict[str, float]:
        """Layer name -> fraction removed in the end, for the layers that lose something."""
        names = list(weighted(model))
        for table, values in (("ratios", self.ratios), ("layer_bits", self.layer_bits)):
            for name, value in values.items():
                if name not in names:
                    hint = near_match(name, names) or f" (expected one of {', '.join(names)})"
                    raise ValueError(f"compressor.{table}.{name}={value}: the model has no such layer{hint}")
        default = dict.fromkeys(self.layers(model), self.pfr) if self.pfr else {}
        ratios = {**default, **self.ratios}
        return {name: ratios[name] for name in names if ratios.get(name)}

    def _masked_mapping(self, model: nn.Module, stage: Stage) -> None:
        """W = Proj_S(W) and its zeros masked for good.

        Structured and purified networks lose their unused paths too; plain irregular pruning keeps what its ratio says.
        """
        for layer, ratio, structure in self._targets(model, stage):
            mask, weight = find(layer, Mask).mask, latent(layer).detach()
            mask *= keep_mask(weight * mask, ratio, structure)
            if self.purify:
                mask *= purified(weight * mask, self.purify_emptiness, self.purify_share)
            weight *= mask
        if self.purify or self.steps[0].structure != "irregular":
            remove_unused_paths(model, self._example)

    def _levels(self, name: str) -> Levels:
        return levels_of(self.quantize, self.layer_bits.get(name, self.bits), self.one_sided)

    def _choose_intervals(self, model: nn.Module) -> None:
        for name, layer in self.layers(model).items():
            interval = search_interval(layer.weight.detach(), find(layer, Mask).mask, self._levels(name))
            find(layer, FixedLevels).scale.data.copy_(interval)

    def _snap(self, model: nn.Module, last: bool) -> None:
        """Weights on their levels: the nearest before every freeze round, all after the last (ADMM-NN: lab code)."""
        for name, layer in self.layers(model).items():
            weight = layer.weight.detach()
            codes, scale = self._encode(name, layer, weight)
            if last:
                find(layer, FixedLevels).fix(codes, scale)
            else:
                find(layer, Frozen).freeze(weight, scaled(codes, scale), find(layer, Mask).mask, self.freeze)

    def _encode(self, name: str, layer: nn.Module, values: Tensor) -> tuple[Tensor, Tensor]:
        """(codes, scale) of the nearest quantized weight; pruned zeros stay zero."""
        interval = find(layer, FixedLevels).scale.detach() if self.quantize == "interval" else None
        return encode(values, find(layer, Mask).mask, self._levels(name), interval)


def _active(model: nn.Module) -> list[tuple[nn.Module, Dual]]:
    """(layer, dual) of every layer that ADMM pulls at now."""
    duals = [(layer, t) for _, layer in transformed(model) for t in transforms(layer) if isinstance(t, Dual)]
    return [(layer, dual) for layer, dual in duals if dual.active]
