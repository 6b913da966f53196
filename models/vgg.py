"""VGG-11 and VGG-16 for small images: 3x3 convs with batch norm and a single Linear(512, num_classes)."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsign.models.checks import check_form, check_image_size, choose
from sparsign.models.initialisation import initialise
from sparsign.models.sign import Sign

POOL = 0  # stands for a 2x2 max-pool in the lists below
LAYERS = {
    "vgg11": (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL),
    "vgg16": (64, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(512,) * 3, POOL, *(512,) * 3, POOL),
}


class VGG(nn.Module):
    """`features`, global average pool, `classifier`: [N, in_channels, H, W] -> logits [N, num_classes].

    float, wbin: conv -> BN -> ReLU (-> pool).  fbin: conv (-> pool) -> BN -> Sign, because pooling +1 / -1 maps loses
    information (XNOR-Net: paper); first conv and classifier read and have ordinary values, and the last BN is followed
    by ReLU, since what the classifier reads need not be binary (our choice).
    """

    def __init__(self, layers: tuple[int, ...], num_classes: int, in_channels: int, gradient: Any) -> None:
        super().__init__()
        features: list[nn.Module] = []
        last = max(index for index, width in enumerate(layers) if width != POOL)
        inputs = in_channels
        for index, width in enumerate(layers):
            if width == POOL:
                continue
            pooled = [nn.MaxPool2d(2)] if layers[index + 1 : index + 2] == (POOL,) else []
            binary = gradient is not None and index != last
            activation: nn.Module = Sign(gradient) if binary else nn.ReLU(inplace=True)
            features.append(nn.Conv2d(inputs, width, 3, padding=1, bias=False))
            if gradient is None:
                features += [nn.BatchNorm2d(width), activation, *pooled]
            else:
                features += [*pooled, nn.BatchNorm2d(width), activation]
            inputs = width
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def vgg11(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """VGG-11 (configuration A): 9.22M conv weights; 7 inner convs with 2688 filters are binary in form fbin.

    Option (form fbin only): `sign_gradient` hardtanh | approx.
    """
    return _vgg("vgg11", num_classes, in_channels, image_size, form, options)


def vgg16(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """VGG-16 (configuration D): 14.71M conv weights. Option as for `vgg11`."""
    return _vgg("vgg16", num_classes, in_channels, image_size, form, options)


def _vgg(
    name: str, num_classes: int, in_channels: int, image_size: int, form: str, options: dict[str, Any]
) -> nn.Module:
    check_form(name, form)
    check_image_size(name, image_size, minimum=16)
    gradient = None
    if form == "fbin":
        gradient = choose(name, options, {"sign_gradient": ("hardtanh", "approx")})["sign_gradient"]
    else:
        choose(f"{name} in this form", options, {})
    layers = LAYERS[name] if image_size >= 32 else LAYERS[name][:-1]  # below 32 px nothing is left for the fifth pool
    return VGG(layers, num_classes, in_channels, gradient)
