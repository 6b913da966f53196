"""MobileNetV2, from torchvision's blocks."""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from sparsign.models.checks import check_form, check_image_size, choose

SMALL_IMAGE = 64


class MobileNetV2(torchvision.models.MobileNetV2):
    """torchvision's network with its functional pooling as a module: [N, 3, H, W] -> logits [N, num_classes]."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def mobilenet_v2(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """MobileNetV2 at width 1. Up to 64 px the stem and the 24-channel stage keep the resolution, as is usual for CIFAR
    (our choice): 32 px end in 4x4. No options; no fbin form.
    """
    check_form("mobilenet_v2", form, ("float", "wbin"), "its depthwise convs are too thin for binary activations")
    check_image_size("mobilenet_v2", image_size, minimum=8)
    choose("mobilenet_v2", options, {})
    small = image_size <= SMALL_IMAGE
    stages = [  # expansion, channels, blocks, stride of the first block
        [1, 16, 1, 1],
        [6, 24, 2, 1 if small else 2],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    model = MobileNetV2(num_classes=num_classes, inverted_residual_setting=stages)
    if small or in_channels != 3:
        stem = nn.Conv2d(in_channels, 32, 3, stride=1 if small else 2, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out")
        model.features[0][0] = stem
    return model
