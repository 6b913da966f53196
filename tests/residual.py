"""A small residual network and images that it can learn, for the tests of ADMM."""

import torch
from torch import nn


class Residual(nn.Module):
    """A stem and two basic blocks on one residual stream."""

    def __init__(self, width=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        for i in (1, 2):
            self.add_module(f"conv{i}a", nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.add_module(f"bn{i}a", nn.BatchNorm2d(width))
            self.add_module(f"conv{i}b", nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.add_module(f"bn{i}b", nn.BatchNorm2d(width))
        self.relu, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.bn1b(self.conv1b(self.relu(self.bn1a(self.conv1a(x))))))
        x = self.relu(x + self.bn2b(self.conv2b(self.relu(self.bn2a(self.conv2a(x))))))
        return self.fc(torch.flatten(self.pool(x), 1))


LAYERS = ("conv1", "conv1a", "conv1b", "conv2a", "conv2b", "fc")
INNER = LAYERS[1:-1]
EXAMPLE = torch.zeros(1, 1, 6, 6)


def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def images_and_labels():
    labels = torch.arange(96) % 4
    patterns = torch.randn(4, 1, 6, 6)
    return patterns[labels] + 0.5 * torch.randn(96, 1, 6, 6), labels
