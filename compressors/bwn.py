"""BWN and XNOR: binary weights with one scale per filter, no pruning."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparsign.compressors.parts.binary import BinaryMethod
from sparsign.compressors.parts.quantizers import ScaledBinary
from sparsign.compressors.parts.transforms import WeightTransform
from sparsign.configs.options import option


@dataclass
class BWN(BinaryMethod):
    """W ~ alpha_k sign(W_k) (XNOR-Net, section 3.1); with `form: fbin` inputs are binary too (section 3.2, XNOR).

    Trained from scratch in one stage. The activation scale K of the paper is left out, as in its released code. That
    code also centres the latent weights over the input channels before every step, and multiplies a layer's gradient
    by n (1 - 1 / c_in), which Adam does not notice; neither is done here (our choice).
    """

    form: str = option("wbin", "wbin (BWN) or fbin (XNOR)", choices=("wbin", "fbin"))
    float_layers: list[str] = option(
        ["first", "last"], "layers left float: first, last, or regular expressions on layer names"
    )

    def path(self, name: str, layer: nn.Module) -> tuple[WeightTransform, ...]:
        return (ScaledBinary(),)
