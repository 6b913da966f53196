"""What the benchmarks of single layers share: networks of copies of a layer, and times per layer from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sparsign.kernels.engine import native

NO_MAP = np.empty(0, np.int32)
Call = Callable[[Tensor], Tensor]


def p20(times: Sequence[float]) -> float:
    """The 20th percentile, which other processes disturb less than the median."""
    return float(np.percentile(times, 20))


def per_layer(many: Sequence[float], one: Sequence[float], copies: int) -> float:
    """Time of a layer, from samples of a network with `copies` of it and of one with a single copy."""
    return (p20(many) - p20(one)) / (copies - 1)


def gmacs(outputs: int, inputs: int, size: int, seconds: float) -> float:
    """10^9 multiply-accumulates a second of a 3x3 layer with outputs of size x size pixels."""
    return 1e-9 * 9 * outputs * inputs * size**2 / seconds


def layers(size: int, weights: Sequence[np.ndarray], in_a_row: bool = False) -> Call:
    """A network of 3x3 layers [outputs, inputs, 3, 3] on the compiled engine, and a pool of the last one's outputs.

    int8 weights: over signs, from signs to signs; else fp32. The layers read the image, or each the one before.
    """
    module, (outputs, inputs), bits = native(), weights[0].shape[:2], weights[0].dtype == np.int8
    network, source = module.Network("", (inputs, size, size), False), 0
    if bits:
        source, chain = network.value(True, size, size, inputs), module.Chain()
        chain.sign(source)
        network.gather([module.Source(0, 1, NO_MAP)], (inputs, size, size), chain)
    window = module.Window((3, 3), (1, 1), (1, 1), (1, 1))
    for k, weight in enumerate(weights):
        chain, to_bits = module.Chain(), bits and k < len(weights) - 1
        out = network.value(to_bits, size, size, outputs)
        (chain.sign if to_bits else chain.store)(out)
        (network.conv_bits if bits else network.conv_float)(source, window, weight, chain)
        if in_a_row:
            source = out
    answer, chain = network.value(False, 1, 1, outputs), module.Chain()
    chain.store(answer)
    network.pool(False, out, module.Window((size, size), (1, 1), (0, 0), (1, 1)), (1, 1), False, chain)
    network.finish(answer)
    logits = torch.empty(1, outputs)

    def run(images: Tensor) -> Tensor:
        network.run(images.data_ptr(), 1, logits.data_ptr(), 1)
        return logits

    return run


def prepacked(weight: Tensor, size: int) -> Call:
    """torch's fp32 convolution with a weight that oneDNN has packed; reads channels_last."""
    ops = torch.ops.mkldnn_prepacked
    packed = ops.conv2d_prepack(weight, None, [1, 1], [1, 1], [1, 1], 1, [1, weight.shape[1], size, size], "none")
    return lambda x: ops.conv2d_run(x, packed)
