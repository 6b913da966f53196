"""A network written as people write them; all that sparsign asks for is the builder at the end."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Narrow(nn.Module):
    """Two convs with a shortcut around the second: [N, in_channels, H, W] -> logits [N, num_classes]."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        return self.head(x.mean([2, 3]))


def narrow(num_classes: int, in_channels: int, image_size: int, form: str, width: int = 16) -> nn.Module:
    """The builder: sizes and form as the config has them, then options of its own. Binary inputs are another network.

    Raises:
        ValueError: form=fbin, or a width below 1.
    """
    if form == "fbin":
        raise ValueError("model.form=fbin is not possible for narrow; expected float, wbin")
    if width < 1:
        raise ValueError(f"model.options.width={width} is not possible for narrow; expected 1 or more")
    return Narrow(num_classes, in_channels, width)
