"""LeNet-5 in the size that weight-pruning papers count with (Caffe's): 20-50-500-10."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsign.models.checks import check_form, check_image_size, choose
from sparsign.models.initialisation import initialise


class LeNet5(nn.Module):
    """conv5x5(20) - pool - conv5x5(50) - pool - fc(500) - fc: [N, in_channels, H, W] -> logits [N, num_classes].

    Convs are unpadded. ReLU follows every hidden layer, as in the PyTorch and TensorFlow versions of the ADMM code
    (lab code); Caffe's own has it after fc1 only.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.relu3 = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(500, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(torch.flatten(x, 1))))


def lenet5(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """LeNet-5: 430.5K weights at 28 px and one channel (500 + 25,000 + 400,000 + 5,000). No options."""
    check_form("lenet5", form, ("float", "wbin"), "it has no batch norm to feed a sign")
    check_image_size("lenet5", image_size, minimum=16)
    choose("lenet5", options, {})
    return LeNet5(num_classes, in_channels, image_size)
