"""EC2T: ternary weights whose assignment pays for the entropy of its codes (Marban et al., CVPR workshops 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.parts.trained_ternary import TrainedTernary
from sparsign.compressors.parts.transforms import attach, found, latent
from sparsign.configs.options import option

FEWEST_ZEROS = 0.5
"""p_0 is never taken for less, so that a zero is always the cheapest code (authors' code)."""
LEAST_CENTROID = 0.675
"""W_p and W_n in standard deviations of the layer, at least: smaller ones would swallow the zeros (authors' code)."""
SUSTAIN = 0.05


@dataclass
class EC2T(Compressor):
    """Weights {-W_n, 0, W_p} with trained scales as in TTQ, assigned at the least distance plus lambda bits.

        c(w) = argmin_c (w - v_c)^2 - Lambda_l log2 p_c,   v = (-W_n, 0, W_p)

    From a float network: while the assignment is alive W, W_p and W_n train; then it is fixed, and only the scales and
    what is not ternary train on. p, Lambda_l, the bounds and the start of the scales are the authors' code.
    """

    lambda_: float = option(
        0.15, "strength of the entropy term: 0 nearest scale, 1 the rarer sign dies out", ge=0, lt=1
    )
    init: float = option(0.45, "first W_p, W_n as a fraction of the layer's largest and smallest w", gt=0, le=1)

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain", "quantize", "finetune")
    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = ("lambda_", "init")

    def recipe(self, stage: Stage) -> Recipe:
        """20 epochs and 20 of retraining by Adam (authors' code); its rates are our choice, as is the pretraining."""
        if stage.kind == "pretrain":
            return Recipe(epochs=200, lr=0.1)
        return Recipe(epochs=20, optimizer="adam", lr=1e-3 if stage.kind == "quantize" else 1e-4, weight_decay=0.0)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        layers = self.layers(model)
        largest = max(layer.weight.numel() for layer in layers.values())
        for layer in layers.values():
            share = (layer.weight.numel() / largest + SUSTAIN) / (1 + SUSTAIN)  # small layers stay fuller (their code)
            attach(layer, EntropyTernary(layer.weight.shape, self.lambda_ * share, active=False))

    def start(self, model: nn.Module, stage: Stage) -> None:
        for layer, ternary in found(model, EntropyTernary):
            if stage.kind == "quantize":
                ternary.begin(latent(layer), self.init)
            if stage.kind == "finetune":
                ternary.fix(latent(layer))

    def parameters(self, model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        """Everything; the scales only once they act, the latent weights only until the assignment is fixed."""
        idle = set()
        for layer, ternary in found(model, EntropyTernary):  # by the stage: a resumed one asks before its state is back
            idle |= {id(p) for p in (ternary.positive, ternary.negative) if stage.kind == "pretrain"}
            idle |= {id(latent(layer))} if stage.kind == "finetune" else set()
        return [{"params": [p for p in model.parameters() if id(p) not in idle]}]

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind == "quantize":
            for layer, ternary in found(model, EntropyTernary):
                ternary.bound(latent(layer))

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        """Entropy of the codes in bits a weight and their fraction of zeros, of all layers; entropy by layer."""
        codes = [ternary.codes(latent(layer)) for layer, ternary in found(model, EntropyTernary) if ternary.active]
        if not codes:
            return {}
        bits = [entropy(c) for c in codes]
        total = sum(c.numel() for c in codes)
        return {
            "code_entropy": sum(b * c.numel() for b, c in zip(bits, codes, strict=True)) / total,
            "code_entropy_by_layer": bits,
            "code_sparsity": sum(int((c == 0).sum()) for c in codes) / total,
        }


class EntropyTernary(TrainedTernary):
    """q(w) = v_c, c = argmin_c (w - v_c)^2 - Lambda log2 p_c, v = (-W_n, 0, W_p); pseudo-gradients as in TTQ.

    Against a zero, W_p costs less where w > W_p / 2 + Lambda (log2 p_0 - log2 p_+) / (2 W_p), and -W_n likewise: the
    assignment is TTQ's with two thresholds of its own. Both are positive, so the two signs never meet.

        p        frequencies of the nearest v, of which at least half count as zeros
        Lambda   `strength` times the Lambda at which the largest weight of a sign becomes a zero, the smaller of both

    Once `fixed`, the codes are a buffer.
    """

    def __init__(self, shape: tuple[int, ...], strength: float, active: bool = True) -> None:
        super().__init__(active=active)
        self.strength, self.fixed = strength, False
        self.register_buffer("assigned", torch.zeros(shape, dtype=torch.int8))

    def codes(self, weight: Tensor) -> Tensor:
        if self.fixed:
            return self.assigned.to(weight.dtype)
        w = weight.detach()
        above, below = self.thresholds(w)
        return (w > above).to(w.dtype) - (w < -below).to(w.dtype)

    @torch.no_grad()
    def thresholds(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(t_+, t_-), 0-dim and positive: +1 where w > t_+, -1 where w < -t_-."""
        scales = torch.stack([self.positive, self.negative]).to(weight)
        tops = torch.stack([weight.max(), -weight.min()])
        p = torch.stack([(weight > scales[0] / 2).sum(), (weight < -scales[1] / 2).sum()]) / weight.numel()
        zeros = (1 - p.sum()).clamp_min(FEWEST_ZEROS)
        p = p * ((1 - zeros) / p.sum().clamp_min(1e-12))
        dearer = zeros.log2() - p.clamp_min(1 / weight.numel()).log2()  # bits by which a sign is dearer than a zero
        gain = tops**2 - (scales - tops) ** 2  # squared distance that the sign's largest weight saves
        dies = torch.where(dearer > 0, gain / dearer, torch.inf).min().clamp_min(0)
        dies = torch.where(dies.isfinite(), dies, 0.0)
        return tuple(scales / 2 + self.strength * dies * dearer.clamp_min(0) / (2 * scales))

    @torch.no_grad()
    def begin(self, weight: Tensor, ratio: float) -> None:
        """W_p = ratio max w, W_n = -ratio min w, within their bounds; from now on the weight is ternary."""
        self.positive.copy_(ratio * weight.max())
        self.negative.copy_(-ratio * weight.min())
        self.bound(weight)
        self.active = True

    @torch.no_grad()
    def bound(self, weight: Tensor) -> None:
        least = LEAST_CENTROID * weight.std(correction=0).clamp_min(1e-12)
        self.positive.clamp_(min=least)
        self.negative.clamp_(min=least)

    @torch.no_grad()
    def fix(self, weight: Tensor) -> None:
        """Keeps the present assignment for good."""
        self.assigned.copy_(self.codes(weight))
        self.fixed = True

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"fixed": self.fixed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.fixed = bool(state["fixed"])


def entropy(codes: Tensor) -> float:
    """Order-0 entropy of codes in {-1, 0, 1}, bits each."""
    p = torch.bincount((codes.flatten() + 1).long().cpu(), minlength=3).double() / codes.numel()
    return float(-(p * p.clamp_min(1e-300).log2()).sum())
