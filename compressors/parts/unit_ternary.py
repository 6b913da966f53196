"""PTQ's ternary quantizer: codes of unit-norm filters, whose scale follows from the codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.estimators import ESTIMATORS
from sparsign.compressors.parts.sphere import per_filter
from sparsign.compressors.parts.transforms import Quantizer, scaled

DELTAS = ("support", "twn")


class UnitTernary(Quantizer):
    """q(u) = s u_hat, u_hat = t / sqrt(k): t = sign(u) 1[|u| > Delta], k = nonzeros of t in the filter (inferred).

    u [out, in, kh, kw] or [out, in] holds (masked) filters of unit norm; u_hat has unit norm too, and is zero for an
    empty filter. s is 1 where a BatchNorm follows, else one learnable gain per layer (our choice).

        Delta    support: 0, so that the ternary support is the pruning mask      twn: 0.7 mean|u| over survivors
        dq/du := s times the surrogate's slope, one of the four of `estimators.py`
        dq/ds  = u_hat                         exact

    While inactive the layer computes with s u: the sphere of the prune stage, or the plain weight as long as s is 1.
    """

    def __init__(self, delta: str = "support", gain: bool = False, estimator: str = "R1", active: bool = False) -> None:
        super().__init__(active)
        self.delta, self.estimator = delta, ESTIMATORS[estimator]
        self.gain = nn.Parameter(torch.ones(())) if gain else None

    def forward(self, weight: Tensor) -> Tensor:
        if self.active:
            return self.transform(weight)
        return weight if self.gain is None else self.gain * weight

    def unit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(t, 1 / sqrt(k)) of shapes [out, ...] and [out, 1, ...], without the gain."""
        threshold = 0.0
        if self.delta == "twn":
            threshold = 0.7 * weight.abs().sum() / weight.count_nonzero().clamp_min(1)
        codes = weight.sign() * (weight.abs() > threshold)
        count = codes.flatten(1).count_nonzero(dim=1).clamp_min(1)
        return codes, per_filter(count.to(weight.dtype).rsqrt(), weight)

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        codes, root = self.unit(weight.detach())
        return codes, root if self.gain is None else self.gain * root

    def transform(self, weight: Tensor) -> Tensor:
        codes, root = self.unit(weight.detach())
        passed, _ = self.estimator(weight, codes * root)
        if self.gain is not None:
            passed, root = self.gain.detach() * passed, self.gain * root
        return scaled(codes, root) + (passed - passed.detach())

    def pull(self, weight: Tensor) -> Tensor:
        """||u - point||^2: 0-dim, half of whose gradient is the estimator's second term."""
        codes, root = self.unit(weight.detach())
        _, point = self.estimator(weight, codes * root)
        return ((weight - point) ** 2).sum()
