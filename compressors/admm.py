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
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage, check_names
from sparsign.compressors.parts.constraints import Constraint, FewGroups, FewLevels
from sparsign.compressors.parts.duals import Dual, convergence
from sparsign.compressors.parts.fixed_levels import FixedLevels, Frozen, scales_alone
from sparsign.compressors.parts.levels import KINDS, levels_of, search_interval
from sparsign.compressors.parts.transforms import WeightMask, attach, find, found, latent, scaled, weighted
from sparsign.compressors.pruning.cut import attach_channel_masks
from sparsign.compressors.pruning.projections import STRUCTURES
from sparsign.compressors.pruning.purify import purified, remove_unused_paths
from sparsign.compressors.pruning.rounds import COMBINED, Rounds, pruning_steps
from sparsign.configs.options import option


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

    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = (
        "structure", "pfr", "ratios", "rounds", "rhos", "rho_growth", "interval", "purify", "purify_emptiness",
        "purify_share", "quantize", "bits", "layer_bits", "one_sided", "freeze", "freeze_rounds",
    )  # fmt: skip

    # -- the algorithm -------------------------------------------------------------------------------------------------

    def start(self, model: nn.Module, stage: Stage) -> None:
        """U = 0, Z = Proj_S(W), rho = the stage's."""
        if stage.kind == "quantize" and stage.round == 1 and self.quantize == "interval":
            self._choose_intervals(model)
        for layer, s in self.constraints(model, stage):
            find(layer, Dual).begin(layer.weight, s.project, self.plan.rho(stage))

    def penalty(self, model: nn.Module, stage: Stage) -> Tensor | None:
        """sum_l rho_l/2 ||W_l - Z_l + U_l||_F^2."""
        terms = [dual.penalty(layer.weight) for layer, dual in _pulling(model)]
        return torch.stack(terms).sum() if terms else None

    def before_epoch(self, model: nn.Module, stage: Stage, epoch: int, epochs: int) -> None:
        """rho = growth rho, Z = Proj_S(W + U), U = U + W - Z."""
        if epoch and epoch % self.interval == 0:
            for layer, s in self.constraints(model, stage):
                find(layer, Dual).update(layer.weight, s.project, self.rho_growth)

    def finish(self, model: nn.Module, stage: Stage) -> None:
        """After the last rho W = Proj_S(W), for good."""
        if stage.kind in ("prune", "quantize") and not self.plan.at_last_rho(stage):
            return
        for _, dual in _pulling(model):
            dual.active = False
        retrained = self.plan.since_quantized(stage)
        if stage.kind == "prune":
            self._masked_mapping(model, stage)
        elif stage.kind == "quantize" or 0 < retrained <= self.freeze_rounds:
            self._snap(model, last=retrained == self.freeze_rounds)

    def constraints(self, model: nn.Module, stage: Stage) -> Iterator[tuple[nn.Module, Constraint]]:
        """(layer, S) of every layer that this stage constrains; none but in prune and quantize stages."""
        if stage.kind == "prune":
            step, layers = self.plan.step(stage), weighted(model)
            for name, final in self._ratios(model).items():
                if step.structure != "filter" or name != list(layers)[-1]:  # the last layer's filters are the classes
                    yield layers[name], FewGroups(step.structure, step.ratio(final))
        elif stage.kind == "quantize":
            for name, layer in self.layers(model).items():
                yield layer, self._few_levels(name, layer)

    def _masked_mapping(self, model: nn.Module, stage: Stage) -> None:
        """The zeros of Proj_S(W) are masked for good.

        Structured and purified networks lose their unused paths too; plain irregular pruning keeps what its ratio says.
        """
        for layer, s in self.constraints(model, stage):
            mask, weight = find(layer, WeightMask).mask, latent(layer).detach()
            mask *= s.mask(weight * mask)
            if self.purify:
                mask *= purified(weight * mask, self.purify_emptiness, self.purify_share)
            weight *= mask
        if self.purify or self.structure != "irregular":
            remove_unused_paths(model, self._example)

    def _snap(self, model: nn.Module, last: bool) -> None:
        """Weights on their levels: the nearest before every freeze round, all after the last (ADMM-NN: lab code)."""
        for name, layer in self.layers(model).items():
            weight = layer.weight.detach()
            codes, scale = self._few_levels(name, layer).encode(weight)
            if last:
                find(layer, FixedLevels).fix(codes, scale)
            else:
                find(layer, Frozen).freeze(weight, scaled(codes, scale), find(layer, WeightMask).mask, self.freeze)

    # -- the plan and the layers ---------------------------------------------------------------------------------------

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rhos:
            raise ValueError("compressor.rhos=[]: expected at least one rho")
        steps = pruning_steps(self.structure, self.rounds) if self.pfr or any(self.ratios.values()) else []
        self.plan = Rounds(steps, self.rhos, self.quantize != "none", self.freeze_rounds, self.interval)
        if self.plan.quantized:
            for bits in (self.bits, *self.layer_bits.values()):
                levels_of(self.quantize, bits, self.one_sided)
        elif not steps:
            raise ValueError(
                "compressor.pfr=0 with quantize=none and no ratios: expected something to prune or quantize"
            )
        if self.freeze_rounds and self.quantize != "interval":
            raise ValueError(
                f"compressor.freeze_rounds={self.freeze_rounds}: expected 0 with quantize={self.quantize} "
                "(only interval keeps its scale)"
            )

    def accounting(self) -> dict[str, Any]:
        """Layers with ratios of their own have no one ratio that was asked for."""
        return super().accounting() | ({"pfr": None} if self.ratios else {})

    @property
    def PFR_UNIT(self) -> str:
        """What `pfr` counts: the structure's group; of columns then filters, what lies outside the kept of both."""
        return {"irregular": "weight", COMBINED: "matrix"}.get(self.structure, self.structure)

    def stages(self, model: nn.Module) -> list[Stage]:
        return self.plan.stages()

    def recipe(self, stage: Stage) -> Recipe:
        return self.plan.recipe(stage)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        self._example = torch.zeros_like(example[:1])
        pruned = self._ratios(model)
        quantized = self.layers(model) if self.plan.quantized else {}
        if pruned and not any(self.plan.steps[0].ratio(final) for final in pruned.values()):
            raise ValueError(
                f"compressor.rounds={self.rounds}: the first would remove nothing, for in the end only "
                f"{max(pruned.values()):g} of a layer goes; expected fewer rounds, or a larger compressor.pfr"
            )
        last = list(weighted(model))[-1]
        if self.structure == "filter" and list(pruned) == [last]:
            raise ValueError(
                f"compressor.ratios.{last}={pruned[last]}: the last layer's filters are the classes, and no "
                "other layer is pruned; expected another layer or another compressor.structure"
            )
        if unused := [name for name in self.layer_bits if self.plan.quantized and name not in quantized]:
            raise ValueError(
                f"compressor.layer_bits.{unused[0]}={self.layer_bits[unused[0]]}: the layer is left float; expected it "
                f"not to be in compressor.float_layers={self.float_layers}"
            )
        for name, layer in weighted(model).items():
            shape = layer.weight.shape
            attach(layer, WeightMask(shape))
            if name in pruned or name in quantized:
                attach(layer, Dual(shape))
            if name in quantized:
                attach(layer, *[Frozen(shape)] * bool(self.freeze_rounds), FixedLevels(shape))
        attach_channel_masks(model)

    def parameters(self, model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        return scales_alone(model)

    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        return convergence(_pulling(model))

    def _ratios(self, model: nn.Module) -> dict[str, float]:
        """Layer name -> fraction removed in the end, for the layers that lose something."""
        names = list(weighted(model))
        check_names(self.ratios, names, "compressor.ratios")
        check_names(self.layer_bits, names, "compressor.layer_bits")
        default = dict.fromkeys(self.layers(model), self.pfr) if self.pfr else {}
        ratios = {**default, **self.ratios}
        return {name: ratios[name] for name in names if ratios.get(name)}

    def _few_levels(self, name: str, layer: nn.Module) -> FewLevels:
        levels = levels_of(self.quantize, self.layer_bits.get(name, self.bits), self.one_sided)
        interval = find(layer, FixedLevels).scale.detach() if self.quantize == "interval" else None
        return FewLevels(levels, find(layer, WeightMask).mask, interval)

    def _choose_intervals(self, model: nn.Module) -> None:
        for name, layer in self.layers(model).items():
            levels, kept, _ = self._few_levels(name, layer)
            find(layer, FixedLevels).scale.data.copy_(search_interval(layer.weight.detach(), kept, levels))


def _pulling(model: nn.Module) -> list[tuple[nn.Module, Dual]]:
    """(layer, dual) of every layer that ADMM pulls at now."""
    return [(layer, dual) for layer, dual in found(model, Dual) if dual.active]
