"""STQ-B: a binary network under a fixed random expander mask, trained once (STQ-Nets, algorithm 2: paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.binary import BinaryMethod
from sparsign.compressors.parts.quantizers import Binary, ScaledBinary
from sparsign.compressors.parts.transforms import Mask, WeightTransform
from sparsign.configs.options import option


@dataclass
class STQB(BinaryMethod):
    """Every filter of a layer keeps D = round((1 - pfr) * c_in) of its 2-D kernels, drawn once at random.

    The mask is a D-regular bipartite graph between input channels and filters. It never changes, so one training round
    gives a network whose weights are binary and structurally pruned (paper). The unit of the ratio is the kernel
    W[k, i] (inferred from the paper's speed-up formula). D per filter in every layer, narrow layers left whole and full
    precision for the shortcut's conv are our choice; so is training without mean-centring of the weights.
    """

    pfr: float = option(0.3, "pruned kernel ratio of every masked layer", ge=0, lt=1)
    min_channels: int = option(64, "layers with fewer input channels stay unmasked", ge=1)
    mask_seed: int = option(0, "seed of the mask, independent of the run's seed", ge=0)
    scale: bool = option(False, "weights alpha_k * sign(w) instead of sign(w), whose scale the next BN absorbs")

    PFR_UNIT: ClassVar[str] = "kernel"

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        """Raises ValueError: no layer is wide enough for a mask, or too few kernels are left to read every input."""
        widest = max(layer.weight.shape[1] for layer in self.layers(model).values())
        if self.pfr > 0 and widest < self.min_channels:
            raise ValueError(
                f"compressor.min_channels={self.min_channels}: no layer of the model would be masked, expected at most "
                f"{widest}, the input channels of its widest layer"
            )
        self._generator = torch.Generator().manual_seed(self.mask_seed)
        super().prepare(model, example)

    def path(self, name: str, layer: nn.Module) -> tuple[WeightTransform, ...]:
        """sign(W) m, or, with `scale`, alpha_k sign(W m) m: alpha_k is the mean over what the mask leaves."""
        quantizer = ScaledBinary() if self.scale else Binary()
        if self.pfr == 0 or layer.weight.shape[1] < self.min_channels:
            return (quantizer,)
        mask = self._mask(name, layer)
        return (mask, quantizer, mask) if self.scale else (quantizer, mask)

    def _mask(self, name: str, layer: nn.Module) -> Mask:
        """[out, in, 1, 1], for every group of the conv an expander of its own."""
        filters, inputs = layer.weight.shape[:2]
        groups = getattr(layer, "groups", 1)
        degree = max(1, round((1 - self.pfr) * inputs))
        if filters // groups * degree < inputs:
            raise ValueError(
                f"compressor.pfr={self.pfr}: {name} would read {filters // groups} x {degree} kernels, "
                f"expected at least one for each of its {inputs} input channels"
            )
        mask = Mask((filters, inputs, *[1] * (layer.weight.dim() - 2)))
        parts = [expander(filters // groups, inputs, degree, self._generator) for _ in range(groups)]
        mask.mask.copy_(torch.cat(parts).view_as(mask.mask))
        return mask


def expander(filters: int, inputs: int, degree: int, generator: torch.Generator) -> Tensor:
    """Random {0, 1} matrix [filters, inputs]: every row has `degree` ones, every column at least one.

    Rows are independent uniform draws. Where that leaves a column empty (rare at the paper's ratios) the draw is
    repaired: a filter exchanges an input that others read too for the forgotten one. Needs filters * degree >= inputs.
    """
    chosen = torch.rand(filters, inputs, generator=generator).argsort(dim=1)[:, :degree]
    mask = torch.zeros(filters, inputs).scatter_(1, chosen, 1.0)
    for forgotten in (mask.sum(dim=0) == 0).nonzero().flatten():
        spare = (mask * (mask.sum(dim=0) > 1)).nonzero()
        row, column = spare[torch.randint(len(spare), (), generator=generator)]
        mask[row, column], mask[row, forgotten] = 0.0, 1.0
    return mask
