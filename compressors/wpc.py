"""WPC: structured pruning and ternarisation at once, made compatible by clipping the penalty of large groups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage, matching
from sparsign.compressors.parts import threshold_ternary
from sparsign.compressors.parts.threshold_ternary import FixedTernary, TGATernary
from sparsign.compressors.parts.transforms import Mask, Quantizer, attach, find, latent, transformed
from sparsign.compressors.pruning import groups
from sparsign.configs.options import option

ORDERS = {
    "joint": ["pretrain", "quantize"],
    "prune_then_ternarise": ["pretrain", "prune", "quantize"],
    "ternarise_then_prune": ["pretrain", "quantize", "prune"],
}


@dataclass
class WPC(Compressor):
    """Weight penalty clipping with self-adapting threshold (paper; details from the lab's code).

        loss = CE(f(x; T(W))) + lambda sum_layers sum_i min(n_i, delta),   delta = a mean_i n_i
        T(W) = alpha c,  Delta = 0.05 max|W|,  c = 1[W >= Delta] - 1[W <= -Delta]

    n_i = ||W_i|| over one filter x g input channels x kernel. There is no mask: the penalty pushes a group under the
    ternary threshold and the ternariser makes its zeros exact. A plain lasso also shrinks the large groups, hence
    max|W|, hence Delta itself. The clip spares them: wholly where delta is a constant (`clip_detached`: the paper's
    words); in the lab's code (`clip`) delta carries gradient, and every group is pulled by lambda a H / G, H of the G
    groups being at or above delta. Training is joint, from a float network; the sequential orders are the ablations
    (inferred). TGA's Delta and W move in one step (our choice; the lab's code moves Delta first, then runs again).
    """

    form: str = option("float", "network form; WPC leaves activations alone", choices=("float",))
    group: int = option(16, "input channels per group g; a layer takes its largest divisor up to it", ge=1)
    penalty_kind: str = option(
        "clip",
        "clip: min(n, a mean n) as in the lab's code, clip_detached: its threshold a constant, lasso: n, rank, mix",
        choices=groups.PENALTIES,
    )
    unpenalised: list[str] = option([], "ternary layers without penalty: regular expressions on layer names")
    lambda_: float = option(2e-3, "weight of the penalty", ge=0)
    clip_ratio: float = option(0.7, "a: threshold relative to the mean norm, or quantile for rank", gt=0, le=1)
    ternariser: str = option("fixed", "fixed: Delta = threshold max|W|, tga: learnable", choices=("fixed", "tga"))
    threshold: float = option(0.05, "ternary threshold relative to max|W| (tga: its start)", ge=0, lt=1)
    threshold_lr: float = option(0.01, "learning rate of tga's threshold", gt=0)
    order: str = option("joint", "penalty and ternariser together, or one after the other", choices=tuple(ORDERS))
    from_scratch: bool = option(False, "no float network before: the joint stage starts from the initial weights")
    tolerance: float = option(1e-5, "prune_then_ternarise drops groups whose |w| are all below it", ge=0)
    finetune: bool = option(False, "add a stage without penalty in which zero groups stay zero")
    protocol: str = option("cifar", "which of the lab's stage lengths and rates to use", choices=("cifar", "imagenet"))

    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = (
        "penalty_kind", "unpenalised", "lambda_", "clip_ratio", "order", "tolerance", "finetune"
    )  # fmt: skip
    PFR_UNIT: ClassVar[str] = "group"

    # -- the algorithm -------------------------------------------------------------------------------------------------

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
                groups.drop(layer, ternary.encode(latent(layer).detach())[0] * mask.mask, self.group)
            ternary.active = self._ternary(stage)

    def penalty(self, model: nn.Module, stage: Stage) -> Tensor | None:
        """lambda sum_layers sum_i min(n_i, delta)."""
        if stage.kind != ("quantize" if self.order == "joint" else "prune") or self.lambda_ == 0:
            return None
        weights = [latent(layer) for name, layer in transformed(model) if self._penalised(name)]
        norms = [groups.group_norms(w, self.group) for w in weights]
        return self.lambda_ * torch.stack([groups.penalty(n, self.penalty_kind, self.clip_ratio) for n in norms]).sum()

    def finish(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind == "prune" and self.order == "prune_then_ternarise":
            for _, layer in transformed(model):
                groups.drop(layer, latent(layer).detach().abs() >= self.tolerance, self.group)

    def _ternary(self, stage: Stage) -> bool:
        """Whether the forward pass of this stage uses T(W)."""
        return stage.kind in ("quantize", "finetune") or (stage.kind, self.order) == ("prune", "ternarise_then_prune")

    def _penalised(self, name: str) -> bool:
        return not matching(self.unpenalised, [name], "compressor.unpenalised")

    # -- the learnable threshold of TGA --------------------------------------------------------------------------------

    def parameters(self, model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        """All parameters; tga's thresholds by plain SGD of their own, and only while they act."""
        return threshold_ternary.apart(model, self.threshold_lr, self._ternary(stage))

    def before_step(self, model: nn.Module, stage: Stage) -> None:
        threshold_ternary.clamp_gradients(model)

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        threshold_ternary.bound_thresholds(model)

    # -- the plan and the accounts -------------------------------------------------------------------------------------

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_scratch and self.order != "joint":
            raise ValueError(f"compressor.from_scratch=true: expected order=joint, not {self.order}")

    def stages(self, model: nn.Module) -> list[Stage]:
        names = ORDERS[self.order] + ["finetune"] * self.finetune
        return [Stage(name) for name in names if not (self.from_scratch and name == "pretrain")]

    def recipe(self, stage: Stage) -> Recipe:
        """Lab code, except the fine-tuning and the ImageNet pretraining (our choice)."""
        recipe = RECIPES[self.protocol].get(stage.kind) or RECIPES[self.protocol]["quantize"]
        if self.protocol == "imagenet" and self.ternariser == "tga" and recipe.optimizer == "adam":
            return replace(recipe, milestones=(0.5, 0.6, 0.7))
        from_scratch = self.from_scratch and self.protocol == "cifar" and stage.kind == "quantize"
        return replace(recipe, lr=0.1) if from_scratch else recipe

    def accounting(self) -> dict[str, Any]:
        return super().accounting() | {"group": self.group}

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        """Densities and the compression rate of T(W), which the layers hold or would hold; health of the weights.

        Over all ternary layers (our choice: the lab's count leaves downsample convs out).
        """
        layers = [layer for _, layer in transformed(model)]
        codes = [find(layer, Quantizer).encode(latent(layer))[0] * find(layer, Mask).mask for layer in layers]
        return groups.summary([latent(layer) for layer in layers], codes, self.group)


STEPS = {"decay": "multistep", "gamma": 0.1}
RECIPES = {
    "cifar": {
        "pretrain": Recipe(epochs=200, lr=0.1, weight_decay=2e-4, milestones=(0.3, 0.6), **STEPS),
        "quantize": Recipe(
            epochs=200, lr=0.01, decay="multistep", milestones=(0.4, 0.6, 0.8), gamma=(0.1, 0.1, 0.5)
        ),  # from scratch: lr 0.1
        "finetune": Recipe(epochs=40, lr=0.001),
    },
    "imagenet": {
        "pretrain": Recipe(epochs=90, lr=0.1, weight_decay=1e-4, milestones=(1 / 3, 2 / 3), **STEPS),
        "quantize": Recipe(
            epochs=50, optimizer="adam", lr=1e-4, weight_decay=5e-6,
            decay="multistep", milestones=(0.6, 0.8, 0.9), gamma=(0.2, 0.2, 0.5),
        ),
        "finetune": Recipe(epochs=10, lr=0.001, weight_decay=1e-4),
    },
}  # fmt: skip
"""Protocol -> kind of stage -> recipe; a prune stage is trained as a quantize stage."""
