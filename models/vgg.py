"""VGG-11 and VGG-16 for small images: 3x3 convs with batch norm and a single Linear(512, num_classes)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsign.models.chain import ORDERS, ConvLayer, binary_chain, float_chain
from sparsign.models.checks import check_form, check_image_size, choose
from sparsign.models.initialisation import initialise

STAGES = {  # filters of the convs between two 2x2 max-pools; one pool stands at the end of every stage
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
}


class VGG(nn.Module):
    """`features` (a chain, see `models/chain.py`), global average pool, `classifier`.

    [N, in_channels, H, W] -> logits [N, num_classes].
    """

    def __init__(self, features: nn.Sequential, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def vgg11(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """VGG-11 (configuration A): 9.22M conv weights; 7 inner convs with 2688 filters are binary in form fbin.

    Options (form fbin only): `order` conv_first | norm_first, `sign_gradient` hardtanh | approx.
    """
    return _vgg("vgg11", num_classes, in_channels, image_size, form, options)


def vgg16(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """VGG-16 (configuration D): 14.71M conv weights. Options as for `vgg11`."""
    return _vgg("vgg16", num_classes, in_channels, image_size, form, options)


def _vgg(
    name: str, num_classes: int, in_channels: int, image_size: int, form: str, options: dict[str, Any]
) -> nn.Module:
    check_form(name, form)
    check_image_size(name, image_size, minimum=16)
    layers = []
    for number, widths in enumerate(STAGES[name], start=1):
        pool = partial(nn.MaxPool2d, 2, ceil_mode=number == 5)  # a 24 px crop has one pixel left for the fifth
        if number == 5 and image_size < 32:
            pool = None
        layers += [ConvLayer(width) for width in widths[:-1]] + [ConvLayer(widths[-1], pool=pool)]
    if form != "fbin":
        choose(f"{name} in this form", options, {})
        return VGG(float_chain(layers, in_channels), num_classes)
    chosen = choose(name, options, {"sign_gradient": ("hardtanh", "approx"), "order": ORDERS})
    return VGG(binary_chain(layers, in_channels, chosen["sign_gradient"], chosen["order"]), num_classes)
