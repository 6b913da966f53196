"""TTQ, trained ternary quantization (Zhu et al., 2017: paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.parts.transforms import Quantizer, attach, find, latent, scaled
from sparsign.configs.options import option


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, positive: Tensor, negative: Tensor, codes: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(positive, negative, codes)
        return scaled(codes, (positive, negative))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN001
        positive, negative, codes = ctx.saved_tensors
        above, below = codes > 0, codes < 0
        slope = torch.where(above, positive, torch.where(below, negative, 1.0))
        return grad * slope, (grad * above).sum(), -(grad * below).sum(), None


class TrainedTernary(Quantizer):
    """q(w) = W_p if w > Delta, -W_n if w < -Delta, else 0; W_p and W_n are parameters of the layer.

    dL/dW_p = sum of g where w > Delta; dL/dW_n = -sum of g where w < -Delta;
    dL/dw = W_p g, W_n g or g (inside the dead zone).

    Delta = t max|w|, or, with `zeros`, the value below which that fraction of |w| lies.
    """

    def __init__(self, t: float = 0.05, zeros: float | None = None, active: bool = True) -> None:
        super().__init__(active)
        self.t, self.zeros = t, zeros
        self.positive = nn.Parameter(torch.ones(()))
        self.negative = nn.Parameter(torch.ones(()))

    def codes(self, weight: Tensor) -> Tensor:
        """sign(w) where |w| > Delta, else 0, in the weight's shape."""
        size = weight.detach().abs()
        if self.zeros is None:
            delta = self.t * size.max()
        else:
            count = int(self.zeros * size.numel())
            delta = size.flatten().kthvalue(count).values if count else -1.0
        return torch.where(size > delta, weight.detach().sign(), 0.0)

    def encode(self, weight: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.codes(weight), (self.positive.detach(), self.negative.detach())

    def transform(self, weight: Tensor) -> Tensor:
        return _Trained.apply(weight, self.positive, self.negative, self.codes(weight))

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Sets W_p and W_n to the mean of |w| over their supports, the least-squares values."""
        codes = self.codes(weight)
        for scale, support in ((self.positive, codes > 0), (self.negative, codes < 0)):
            scale.copy_((weight.abs() * support).sum() / support.sum().clamp_min(1))


@dataclass
class TTQ(Compressor):
    """Weights {-W_n, 0, W_p} with two trained scales per layer, fine-tuned from a float network."""

    t: float = option(0.05, "threshold as a fraction of the layer's largest |w| (paper)", ge=0, lt=1)
    zeros: float | None = option(
        None,
        "instead of t: the fraction of zeros every layer gets (alternative in the authors' code); null = use t",
        ge=0,
        lt=1,
    )
    init: str = option("mean", "first W_p, W_n: mean of |w| over the support, or one", choices=("mean", "one"))

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain", "quantize")
    PFR_UNIT: ClassVar[str] = "weight"

    def recipe(self, stage: Stage) -> Recipe:
        """SGD, momentum 0.9, weight decay 2e-4 from rate 0.1 (paper, ResNet-20); lengths are our choice.

        The quantize stage starts at 0.01, our choice as well. The authors' code starts W_p and W_n at one; their mean,
        the default here, keeps the layer's magnitude, on which a network without BN depends (our choice).
        """
        pretrain = stage.kind == "pretrain"
        return Recipe(epochs=200 if pretrain else 100, lr=0.1 if pretrain else 0.01, weight_decay=2e-4)

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        for layer in self.layers(model).values():
            attach(layer, TrainedTernary(self.t, self.zeros, active=False))

    def start(self, model: nn.Module, stage: Stage) -> None:
        if stage.kind != "quantize":
            return
        for layer in self.layers(model).values():
            quantizer = find(layer, TrainedTernary)
            quantizer.active = True
            if self.init == "mean":
                quantizer.fit(latent(layer))

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        quantizers = [find(layer, TrainedTernary) for layer in self.layers(model).values()]
        if not quantizers[0].active:
            return {}
        return {
            "ttq_positive_scale": [q.positive.item() for q in quantizers],
            "ttq_negative_scale": [q.negative.item() for q in quantizers],
        }
