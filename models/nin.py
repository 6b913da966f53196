"""Network in network for CIFAR, with the layer list of XNOR-Net's and the subsidiary-component paper's code."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsign.models.checks import check_form, check_image_size, choose
from sparsign.models.initialisation import initialise
from sparsign.models.sign import Sign

# (filters, kernel, dropout before the conv, pool after it); the classifying 1x1 conv comes on top
LAYERS = (
    (192, 5, False, None),
    (160, 1, False, None),
    (96, 1, False, "max"),
    (192, 5, True, None),
    (192, 1, False, None),
    (192, 1, False, "average"),
    (192, 3, True, None),
    (192, 1, False, None),
)


class NIN(nn.Module):
    """`features` and `classifier` (conv1x1 -> ReLU -> average over the map): [N, C, H, W] -> logits [N, num_classes].

    float, wbin: [dropout] -> conv -> BN -> ReLU (-> pool).
    fbin: [dropout] -> conv (-> pool) -> BN -> Sign. The code of both papers puts BN before the Sign and ReLU after the
    conv; here BN follows its conv, so that its scale belongs to the filter that STQ-A prunes by it (our choice).
    The last BN is followed by ReLU, as the classifier is a full-precision layer.
    """

    def __init__(self, num_classes: int, in_channels: int, gradient: Any) -> None:
        super().__init__()
        features: list[nn.Module] = []
        inputs = in_channels
        for index, (filters, kernel, dropout, pool) in enumerate(LAYERS):
            if dropout:
                features.append(nn.Dropout(0.5))
            pooled = {"max": [nn.MaxPool2d(3, 2, 1)], "average": [nn.AvgPool2d(3, 2, 1)], None: []}[pool]
            binary = gradient is not None and index != len(LAYERS) - 1
            activation: nn.Module = Sign(gradient) if binary else nn.ReLU(inplace=True)
            features.append(nn.Conv2d(inputs, filters, kernel, padding=kernel // 2, bias=False))
            if gradient is None:
                features += [nn.BatchNorm2d(filters), activation, *pooled]
            else:
                features += [*pooled, nn.BatchNorm2d(filters), activation]
            inputs = filters
        self.features = nn.Sequential(*features)
        self.classifier = nn.Conv2d(inputs, num_classes, 1)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.avgpool(self.relu(self.classifier(self.features(x)))), 1)


def nin(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """NIN with 0.966M conv weights; 7 inner convs with 1216 filters are binary in form fbin.

    Option (form fbin only): `sign_gradient` hardtanh | approx.
    """
    check_form("nin", form)
    check_image_size("nin", image_size, minimum=8)
    if form == "fbin":
        gradient = choose("nin", options, {"sign_gradient": ("hardtanh", "approx")})["sign_gradient"]
        return NIN(num_classes, in_channels, gradient)
    choose("nin in this form", options, {})
    return NIN(num_classes, in_channels, None)
