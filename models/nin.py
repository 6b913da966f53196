"""Network in network for CIFAR, with the layer list of XNOR-Net's and the subsidiary-component paper's code."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsign.models.chain import ORDERS, ConvLayer, binary_chain, float_chain
from sparsign.models.checks import check_form, check_image_size, choose
from sparsign.models.initialisation import initialise

MAX_POOL, AVERAGE_POOL = partial(nn.MaxPool2d, 3, 2, 1), partial(nn.AvgPool2d, 3, 2, 1)


def layers(dropout: float) -> tuple[ConvLayer, ...]:
    """The eight convs before the classifying 1x1 conv; dropout at the start of the second and third stage."""
    return (
        ConvLayer(192, 5),
        ConvLayer(160, 1),
        ConvLayer(96, 1, pool=MAX_POOL),
        ConvLayer(192, 5, dropout),
        ConvLayer(192, 1),
        ConvLayer(192, 1, pool=AVERAGE_POOL),
        ConvLayer(192, 3, dropout),
        ConvLayer(192, 1),
    )


class NIN(nn.Module):
    """`features` (a chain, see `models/chain.py`), `classifier` (conv1x1 -> ReLU -> average over the map).

    [N, C, H, W] -> logits [N, num_classes].
    """

    def __init__(self, features: nn.Sequential, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Conv2d(192, num_classes, 1)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.avgpool(self.relu(self.classifier(self.features(x)))), 1)


def nin(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """NIN with 0.966M conv weights; 7 inner convs with 1216 filters are binary in form fbin.

    Options: `dropout` 0.5 (the code of both papers) | 0; form fbin only: `order` conv_first | norm_first,
    `sign_gradient` hardtanh | approx.
    """
    check_form("nin", form)
    check_image_size("nin", image_size, minimum=8)
    dropout = {"dropout": (0.5, 0.0)}
    if form != "fbin":
        chosen = choose("nin in this form", options, dropout)
        return NIN(float_chain(layers(chosen["dropout"]), in_channels), num_classes)
    chosen = choose("nin", options, {"sign_gradient": ("hardtanh", "approx"), "order": ORDERS, **dropout})
    chain = binary_chain(layers(chosen["dropout"]), in_channels, chosen["sign_gradient"], chosen["order"])
    return NIN(chain, num_classes)
