"""TTQ's quantizer: ternary weights with a trained scale for each sign."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import Quantizer, scaled
from sparsign.compressors.pruning.decide import removed


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
    """TTQ (Zhu et al., 2017, equations 6 to 8): W_p if w > Delta, -W_n if w < -Delta, else 0; W_p, W_n are trained.

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
            count = removed(size.numel(), self.zeros)
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
