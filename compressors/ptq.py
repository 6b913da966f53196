"""PTQ, Pruning Ternary Quantization: unit-norm filters, magnitude pruning, then ternary signs of what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.parts.estimators import ESTIMATORS
from sparsign.compressors.parts.sphere import cosine, kept, project, prune
from sparsign.compressors.parts.transforms import Mask, UnitNorm, attach, find, found, latent
from sparsign.compressors.parts.unit_ternary import DELTAS, UnitTernary
from sparsign.configs.options import option
from sparsign.models.graph import UntraceableError, batchnorm_after


@dataclass
class PTQ(Compressor):
    """An abstract-faithful reconstruction: the paper's body was not available.

    Certain (paper): L2 normalisation, pruning and a weight-decay-like term bring the full-precision weight u close to
    the ternary weight u_hat; pruning and normalising come first, a refined straight-through estimator settles the
    ternary weights. Inferred: unit norm per filter, unstructured magnitude pruning, scale 1 / sqrt(k). The rest, all
    rates and lengths too, is our choice.

        prune     u = m w / ||m w||;  m keeps the 1 - r_t largest |u| of each layer, r_t -> r
        quantize  u_hat = sign(u) / sqrt(k);  the gradient of u is one of the four of `parts/estimators.py`
                  R0 plain      m G + lambda w
                  R1 refined    m [G + lambda (u - u_hat)]            G = dL/du_hat
                  R2 tangent    m (I - u u') G + lambda (u - u_hat)
                  R3 rescaled   m [G |u| / |u_hat| + lambda (u - u_hat)]
        after every step  w <- u / ||m u||

    lambda has the scale of ||G_f||: where a sign would flip, at u = 0, the pull is lambda / sqrt(k), so a weight with
    |G| sqrt(k) < lambda keeps its sign.
    """

    form: str = option("float", "network form; PTQ leaves activations alone", choices=("float",))
    float_layers: list[str] = option(["first"], "layers left float: first, last, or regular expressions")
    pfr: float = option(0.9, "prune ratio r: fraction of zero weights in every compressed layer", ge=0, lt=1)
    start_ratio: float = option(0.3, "prune ratio at the first epoch of the ramp", ge=0, lt=1)
    ramp: float = option(0.6, "fraction of the prune stage over which the ratio rises", ge=0, le=1)
    delta: str = option(
        "support", "ternary threshold on survivors: 0 (support) or 0.7 mean|u| (twn: better)", choices=DELTAS
    )
    estimator: str = option("R1", "gradient of the ternary weights", choices=tuple(ESTIMATORS))
    lambda_: float = option(0.01, "pull to the ternary point (R0: to zero); few epochs bear 0.2, ImageNet 1e-4", ge=0)
    lambda_ramp: float = option(3.0, "power of lambda's rise over the quantize stage; 0: constant", ge=0)
    reinit: bool = option(False, "start the quantize stage from u_hat (as the follow-up HQ does)")
    depthwise: str = option("float", "depthwise convs: keep float or make ternary", choices=("float", "ternary"))
    protocol: str = option("cifar", "which stage lengths and rates to use by default", choices=("cifar", "imagenet"))

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain", "prune", "quantize")
    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = (
        "pfr", "start_ratio", "ramp", "estimator", "lambda_", "lambda_ramp", "reinit"
    )  # fmt: skip
    PFR_UNIT: ClassVar[str] = "weight"

    # -- the algorithm -------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        self._pull = self.lambda_
        try:
            followed = batchnorm_after(model)
        except UntraceableError:  # such as a detector: no BN is known to follow, so every layer has its gain
            followed = {}
        for name, layer in self.layers(model).items():
            attach(
                layer,
                Mask(tuple(layer.weight.shape), active=False),
                UnitNorm(active=False),
                UnitTernary(self.delta, gain=name not in followed, estimator=self.estimator),
            )

    def start(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind == "pretrain":
            return
        for layer, ternary in found(model, UnitTernary):
            mask = find(layer, Mask)
            if stage.kind == "prune" and ternary.gain is not None:
                ternary.gain.data.copy_(latent(layer).detach().flatten(1).norm(dim=1).mean())
            mask.active = True
            # On the sphere the norm is 1 already: in the quantize stage the estimator alone says how gradients pass.
            find(layer, UnitNorm).active = stage.kind == "prune"
            ternary.active = stage.kind == "quantize"
            project(layer)
            if stage.kind == "quantize" and self.reinit:
                codes, root = ternary.unit(latent(layer).detach() * mask.mask)
                latent(layer).data.copy_(codes * root)

    def ratio(self, epoch: int, epochs: int) -> float:
        """r_t = r + (r0 - r)(1 - t/T)^3 for the first T epochs, then r (cubic ramp; our choice)."""
        ramp = min(math.floor(self.ramp * epochs), epochs - 1)
        if epoch >= ramp:
            return self.pfr
        return self.pfr + (min(self.start_ratio, self.pfr) - self.pfr) * (1 - epoch / ramp) ** 3

    def pull(self, epoch: int, epochs: int) -> float:
        """lambda_t = lambda ((t + 1) / T)^ramp: signs are free to flip at first and settle at the end (our choice)."""
        return self.lambda_ * ((epoch + 1) / epochs) ** self.lambda_ramp

    def before_epoch(self, model: nn.Module, stage: Stage, epoch: int, epochs: int) -> None:
        self._pull = self.pull(epoch, epochs)
        if stage.kind == "prune" and (epoch == 0 or self.ratio(epoch - 1, epochs) < self.pfr):
            for layer, _ in found(model, UnitTernary):
                prune(layer, self.ratio(epoch, epochs))
                project(layer)

    def penalty(self, model: nn.Module, stage: Stage) -> Tensor | None:
        """(lambda / 2) ||u - point||^2 with the estimator's point (u_hat; R0: 0), a constant."""
        if stage.kind != "quantize" or self.lambda_ == 0:
            return None
        pulls = [ternary.pull(latent(layer) * find(layer, Mask).mask) for layer, ternary in found(model, UnitTernary)]
        return self._pull / 2 * torch.stack(pulls).sum()

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind != "pretrain":
            for layer, _ in found(model, UnitTernary):
                project(layer)

    def finish(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind == "prune":
            for layer, _ in found(model, UnitTernary):
                mask = find(layer, Mask).mask
                if mask.sum() > kept(mask.numel(), self.pfr):  # a stage too short to reach the ramp's end
                    prune(layer, self.pfr)
                latent(layer).data.mul_(mask)
                project(layer)

    # -- the plan and the accounts -------------------------------------------------------------------------------------

    def recipe(self, stage: Stage) -> Recipe:
        if self.protocol == "cifar":
            epochs, lr = {"pretrain": (200, 0.1), "prune": (100, 0.05), "quantize": (100, 0.01)}[stage.kind]
            return Recipe(epochs=epochs, lr=lr, weight_decay=5e-4)
        epochs, lr = {"pretrain": (90, 0.1), "prune": (45, 0.01), "quantize": (30, 0.005)}[stage.kind]
        return Recipe(epochs=epochs, lr=lr, weight_decay=1e-4)

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        layers = super().layers(model)
        if self.depthwise == "ternary":
            return layers
        return {name: layer for name, layer in layers.items() if not is_depthwise(layer)}

    def parameters(self, model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        """Two groups: weights with the recipe's weight decay; BN, biases, gains and ternary weights without."""
        layers = found(model, UnitTernary)
        gains = {id(ternary.gain) for _, ternary in layers if ternary.gain is not None}
        ternary = {id(latent(layer)) for layer, _ in layers} if stage.kind == "quantize" else set()
        used = [p for p in model.parameters() if stage.kind != "pretrain" or id(p) not in gains]
        decayed = [p for p in used if p.dim() > 1 and id(p) not in ternary]
        rest = [p for p in used if p.dim() <= 1 or id(p) in ternary]
        return [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        """Mean cos(u, u_hat) over filters, of all layers and by layer, and the fraction of zero codes."""
        cosines, zeros, total = [], 0, 0
        for layer, ternary in found(model, UnitTernary):
            u = latent(layer) * find(layer, Mask).mask
            codes, _ = ternary.unit(u)
            cosines.append(cosine(u, codes))
            zeros, total = zeros + int((codes == 0).sum()), total + codes.numel()
        by_layer = [float(c.mean()) if len(c) else 1.0 for c in cosines]
        return {
            "cosine": float(torch.cat(cosines).mean()),
            "cosine_by_layer": by_layer,
            "code_sparsity": zeros / total,
        }


def is_depthwise(layer: nn.Module) -> bool:
    """A conv in which every filter reads its own single channel."""
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.groups == layer.in_channels
