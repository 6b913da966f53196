"""WPC: structured pruning and ternarisation at once, made compatible by clipping the penalty of large groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage, matching
from sparsign.compressors.parts.threshold_ternary import FixedTernary, TGATernary
from sparsign.compressors.parts.transforms import Mask, Quantizer, attach, find, latent, transformed
from sparsign.compressors.pruning import groups
from sparsign.configs.options import option

ORDERS = ("joint", "prune_then_ternarise", "ternarise_then_prune")


@dataclass
class WPC(Compressor):
    """Weight penalty clipping with self-adapting threshold (paper; details from the lab's code).

        loss = CE(f(x; T(W))) + lambda sum_layers sum_i min(n_i, delta),   delta = a mean_i n_i
        T(W) = alpha c,  Delta = 0.05 max|W|,  c = 1[W >= Delta] - 1[W <= -Delta]

    n_i = ||W_i|| over one filter x g input channels x kernel. There is no mask: the penalty pushes a group under the
    ternary threshold and the ternariser makes its zeros exact. A plain lasso also shrinks the large groups, hence
    max|W|, hence Delta itself; the clip leaves them alone (inferred). Training is joint, from a float network; the
    sequential orders are the ablations (inferred). TGA's Delta and W move in one step (our choice; the lab's code moves
    Delta first and runs forward again).
    """

    form: str = option("float", "network form; WPC leaves activations alone", choices=("float",))
    group: int = option(16, "input channels per group g; a layer takes its largest divisor up to it", ge=1)
    penalty_kind: str = option(
        "clip", "clip: min(n, a mean n), lasso: n, rank: min(n, a-quantile), mix", choices=groups.PENALTIES
    )
    unpenalised: list[str] = option([], "ternary layers without penalty: regular expressions on layer names")
    lambda_: float = option(2e-3, "weight of the penalty", ge=0)
    clip_ratio: float = option(0.7, "a: threshold relative to the mean norm, or quantile for rank", gt=0, le=1)
    detach_threshold: bool = option(False, "treat the clipping threshold as a constant (the lab's code does not)")
    ternariser: str = option("fixed", "fixed: Delta = threshold max|W|, tga: learnable", choices=("fixed", "tga"))
    threshold: float = option(0.05, "ternary threshold relative to max|W| (tga: its start)", ge=0, lt=1)
    threshold_lr: float = option(0.01, "learning rate of tga's threshold", gt=0)
    order: str = option("joint", "penalty and ternariser together, or one after the other", choices=ORDERS)
    tolerance: float = option(1e-5, "prune_then_ternarise drops groups whose |w| are all below it", ge=0)
    finetune: bool = option(False, "add a stage without penalty in which zero groups stay zero")
    protocol: str = option("cifar", "which of the lab's stage lengths and rates to use", choices=("cifar", "imagenet"))

    PFR_UNIT: ClassVar[str] = "group"

    def stages(self, model: nn.Module) -> list[Stage]:
        names = {
            "joint": ["pretrain", "quantize"],
            "prune_then_ternarise": ["pretrain", "prune", "quantize"],
            "ternarise_then_prune": ["pretrain", "quantize", "prune"],
        }[self.order]
        return [Stage(name) for name in names + ["finetune"] * self.finetune]

    def recipe(self, stage: Stage) -> Recipe:
        """Lab code, except the fine-tuning and the ImageNet pretraining (our choice)."""
        steps: dict[str, Any] = {"decay": "multistep", "gamma": 0.1}
        if self.protocol == "cifar":
            if stage.kind == "pretrain":
                return Recipe(epochs=200, lr=0.1, weight_decay=2e-4, milestones=(0.3, 0.6), **steps)
            if stage.kind == "finetune":
                return Recipe(epochs=40, lr=0.001)
            return Recipe(epochs=200, lr=0.01, **steps | {"milestones": (0.4, 0.6, 0.8), "gamma": (0.1, 0.1, 0.5)})
        if stage.kind == "pretrain":
            return Recipe(epochs=90, lr=0.1, weight_decay=1e-4, milestones=(1 / 3, 2 / 3), **steps)
        if stage.kind == "finetune":
            return Recipe(epochs=10, lr=0.001, weight_decay=1e-4)
        milestones = (0.5, 0.6, 0.7) if self.ternariser == "tga" else (0.6, 0.8, 0.9)
        adam = {"optimizer": "adam", "lr": 1e-4, "weight_decay": 5e-6}
        return Recipe(epochs=50, **adam, decay="multistep", milestones=milestones, gamma=(0.2, 0.2, 0.5))

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        if not any(self._penalised(name) for name in self.layers(model)):
            raise ValueError(f"compressor.unpenalised={self.unpenalised}: leaves no layer of the model to penalise")
        for layer in self.layers(model).values():
            tga = self.ternariser == "tga"
            ternary = TGATernary(active=False) if tga else FixedTernary(self.threshold, active=False)
            attach(layer, ternary, Mask((*layer.weight.shape[:2], *[1] * (layer.weight.dim() - 2)), active=False))

    def start(self, model: nn.Module, stage: Stage) -> None:
        for _, layer in transformed(model):
            ternary, mask = find(layer, Quantizer), find(layer, Mask)
            if stage.kind == "quantize" and isinstance(ternary, TGATernary):
                ternary.initialise(latent(layer), self.threshold)
            if stage.kind == "finetune":
                self._drop(layer, ternary.encode(latent(layer).detach())[0] * mask.mask)
            ternary.active = self._ternary(stage)

    def _ternary(self, stage: Stage) -> bool:
        """Whether the forward pass of this stage uses T(W)."""
        return stage.kind in ("quantize", "finetune") or (stage.kind, self.order) == ("prune", "ternarise_then_prune")

    def parameters(self, model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        """All parameters; tga's thresholds by plain SGD of their own, and only while they act."""
        thresholds = [
            q.threshold for _, layer in transformed(model) if isinstance(q := find(layer, Quantizer), TGATernary)
        ]
        own = {id(t) for t in thresholds}
        everything = [{"params": [p for p in model.parameters() if id(p) not in own]}]
        if not thresholds or not self._ternary(stage):
            return everything
        sgd = {"lr": self.threshold_lr, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        return [*everything, {"params": thresholds, **sgd}]

    def penalty(self, model: nn.Module, stage: Stage) -> Tensor | None:
        if stage.kind != ("quantize" if self.order == "joint" else "prune") or self.lambda_ == 0:
            return None
        weights = [latent(layer) for name, layer in transformed(model) if self._penalised(name)]
        norms = [groups.group_norms(w, self.group) for w in weights]
        terms = [groups.group_penalty(n, self.penalty_kind, self.clip_ratio, self.detach_threshold) for n in norms]
        return self.lambda_ * torch.stack(terms).sum()

    def _penalised(self, name: str) -> bool:
        return not matching(self.unpenalised, [name], "compressor.unpenalised")

    def before_step(self, model: nn.Module, stage: Stage) -> None:
        """Gradients of tga's thresholds are clamped to +-1e-3 (lab code)."""
        for _, layer in transformed(model):
            threshold = getattr(find(layer, Quantizer), "threshold", None)
            if threshold is not None and threshold.grad is not None:
                threshold.grad.clamp_(-1e-3, 1e-3)

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        for _, layer in transformed(model):
            if isinstance(ternary := find(layer, Quantizer), TGATernary) and ternary.active:
                ternary.bound(latent(layer))

    def finish(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind == "prune" and self.order == "prune_then_ternarise":
            for _, layer in transformed(model):
                self._drop(layer, latent(layer).detach().abs() >= self.tolerance)

    @torch.no_grad()
    def _drop(self, layer: nn.Module, alive: Tensor) -> None:
        """Masks, for good, every group in which no entry of `alive` (the weight's shape) is nonzero."""
        mask, channels = find(layer, Mask), layer.weight.shape[1]
        any_alive = groups.grouped(alive, self.group).count_nonzero(dim=2) > 0
        per_channel = any_alive.repeat_interleave(groups.group_channels(channels, self.group), dim=1)
        mask.mask.copy_(per_channel.view(mask.mask.shape))
        mask.active = True
        latent(layer).mul_(mask.mask)

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        """Densities and the compression rate of T(W), which the layers hold or would hold; health of the weights.

        Over all ternary layers (our choice: the lab's count leaves downsample convs out).
        """
        weights = [latent(layer) for _, layer in transformed(model)]
        codes = [
            find(layer, Quantizer).encode(latent(layer))[0] * find(layer, Mask).mask for _, layer in transformed(model)
        ]
        density, s_min = groups.group_density(codes, self.group), groups.smallest_sparsity(codes, self.group)
        spreads = [float(groups.group_norms(w, self.group).std(correction=0)) for w in weights]
        found = {
            "group_density": density,
            "filter_density": groups.filter_density(codes),
            "code_sparsity": 1 - sum(int(c.count_nonzero()) for c in codes) / sum(c.numel() for c in codes),
            "s_min": s_min,
            "max_weight": sum(float(w.abs().max()) for w in weights) / len(weights),
            "norm_spread": sum(spreads) / len(spreads),
            "group_density_by_layer": [groups.group_density([c], self.group) for c in codes],
        }
        return found | ({"compression_rate": groups.compression_rate(density, s_min)} if density else {})
