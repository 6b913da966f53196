"""AlexNet in the batch-normed, ungrouped form of the ternary-network papers: 96-256-384-384-256, fc 4096-4096."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsign.models.checks import check_form, check_image_size, choose
from sparsign.models.initialisation import initialise

SMALL_IMAGE = 64


class AlexNet(nn.Module):
    """`features`, `classifier`: [N, in_channels, H, W] -> logits [N, num_classes].

    Above 64 px the first conv is 11x11 stride 4; up to 64 px it is 5x5 stride 1 (our choice), which keeps the three
    3x3 stride-2 pools. With `batch_norm` BN follows every hidden layer, which then has no bias, and there is no dropout
    (our choice); without it, layers have biases and the linear ones dropout 0.5.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int, batch_norm: bool) -> None:
        super().__init__()
        small = image_size <= SMALL_IMAGE
        side = image_size if small else (image_size + 4 - 11) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        kernel, stride = (5, 1) if small else (11, 4)
        stem = nn.Conv2d(in_channels, 96, kernel, stride=stride, padding=2, bias=not batch_norm)

        def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not batch_norm)

        def active(width: int, norm: type[nn.Module] = nn.BatchNorm2d) -> list[nn.Module]:
            return [norm(width), nn.ReLU(inplace=True)] if batch_norm else [nn.ReLU(inplace=True)]

        self.features = nn.Sequential(
            *(stem, *active(96), nn.MaxPool2d(3, 2)),
            *(conv(96, 256, 5), *active(256), nn.MaxPool2d(3, 2)),
            *(conv(256, 384, 3), *active(384)),
            *(conv(384, 384, 3), *active(384)),
            *(conv(384, 256, 3), *active(256), nn.MaxPool2d(3, 2)),
        )
        hidden: list[nn.Module] = []
        for inputs in (256 * side * side, 4096):
            hidden += [] if batch_norm else [nn.Dropout(0.5)]
            hidden += [nn.Linear(inputs, 4096, bias=not batch_norm), *active(4096, nn.BatchNorm1d)]
        self.classifier = nn.Sequential(*hidden, nn.Linear(4096, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def alexnet(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """AlexNet, 62.4M weights at 224 px and 1000 classes. Option: `batch_norm` true | false."""
    check_form("alexnet", form, ("float", "wbin"), "no reproduced table has it")
    check_image_size("alexnet", image_size, minimum=16)
    batch_norm = choose("alexnet", options, {"batch_norm": (True, False)})["batch_norm"]
    return AlexNet(num_classes, in_channels, image_size, batch_norm)
