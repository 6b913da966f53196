"""Small networks of every topology, and random pruning of them, for the tests of channels, packing and engines."""

import numpy as np
import torch
from torch import nn

from sparsign.models.shortcuts import PadShortcut
from sparsign.models.sign import Sign
from sparsign.packing.layouts import Dense
from sparsign.packing.trace import to_packed
from sparsign.packing.values import Floats, OneScale, RowScale
from sparsign.packing.weight import LayerCodes


class Residual(nn.Module):
    """Two-conv blocks: an identity one, an option-A one and one with a conv shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.blocks = nn.ModuleList([self.block(6, 6, 1), self.block(6, 8, 2), self.block(8, 10, 1)])
        self.shortcuts = nn.ModuleList(
            [
                nn.Identity(),
                PadShortcut(2, 1, 1),
                nn.Sequential(nn.Conv2d(8, 10, 1, bias=False), nn.BatchNorm2d(10)),
            ]
        )
        self.relu, self.pool, self.fc = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(10, 4)

    @staticmethod
    def block(inputs, outputs, stride):
        return nn.Sequential(
            nn.Conv2d(inputs, 7, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(7),
            nn.ReLU(),
            nn.Conv2d(7, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        x = self.relu(self.bn(self.stem(x)))
        for block, shortcut in zip(self.blocks, self.shortcuts, strict=True):
            x = self.relu(block(x) + shortcut(x))
        return self.fc(torch.flatten(self.pool(x), 1))


class BiReal(nn.Module):
    """x -> Sign -> conv -> BN -> + shortcut, per conv."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.units = nn.ModuleList([self.unit(6, 6, 1), self.unit(6, 6, 1), self.unit(6, 10, 2)])
        self.down = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(6, 10, 1, bias=False), nn.BatchNorm2d(10))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(10, 4)

    @staticmethod
    def unit(inputs, outputs, stride):
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(Sign(), conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        x = self.bn(self.stem(x))
        x = self.units[0](x) + x
        x = self.units[1](x) + x
        x = self.units[2](x) + self.down(x)
        return self.fc(torch.flatten(self.pool(x), 1))


class Concat(nn.Module):
    """Two branches that meet in a concatenation."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU6(), nn.MaxPool2d(2))
        self.right = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Hardtanh())
        self.mix, self.relu, self.fc = nn.Conv2d(11, 7, 3, padding=1), nn.ReLU(), nn.Linear(7 * 16, 4)

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.fc(torch.flatten(self.relu(self.mix(x)), 1))


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 9, 3, padding=1, bias=False),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.Dropout(0.5),
        nn.Conv2d(9, 7, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(7 * 3 * 3, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )


def binary_chain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        Sign(),
        nn.Conv2d(8, 9, 3, padding=1, bias=False),
        nn.AvgPool2d(3, 2, padding=1),
        nn.BatchNorm2d(9),
        Sign(),
        nn.Conv2d(9, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        Sign(),
        nn.Flatten(),
        nn.Linear(6 * 2 * 2, 4),
    )


def depthwise():
    return nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU6(),
        nn.Conv2d(12, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


NETS = {
    "chain": chain,
    "binary_chain": binary_chain,
    "residual": Residual,
    "bireal": BiReal,
    "concat": Concat,
    "depthwise": depthwise,
}
INPUT = (3, 8, 8)


def build(name, seed):
    """A net in eval mode with generic weights and BN statistics."""
    torch.manual_seed(seed)
    net = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return net.eval()


def layers(net):
    return {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


@torch.no_grad()
def prune(net, ratio=0.4, batchnorm=True):
    """Zeroes random rows, columns and kernels of all but the first and last layer, and random channels of every BN."""
    for layer in list(layers(net).values())[1:-1]:
        shape = layer.weight.shape[:2]
        rows, cols, kernels = (
            torch.rand(n) > r for n, r in ((shape[:1], ratio), (shape[1:], ratio), (shape, ratio / 2))
        )
        kernels &= rows[:, None] & cols if layer.weight.shape[1] > 1 else rows[:, None]
        layer.weight *= kernels.view(*shape, *[1] * (layer.weight.dim() - 2))
        if layer.bias is not None:
            layer.bias *= rows
    for module in net.modules():
        if batchnorm and isinstance(module, nn.BatchNorm2d):
            dead = torch.rand(module.num_features) < ratio / 2
            module.weight[dead] = 0
            module.bias[dead] = 0
    return net


def quantised(name, seed, levels=1, ratio=0.4):
    """A packed net whose inner layers have integer codes in [-levels, levels] and a scale per filter."""
    net = prune(build(name, seed), ratio)
    codes = {}
    for layer in list(layers(net).values())[1:-1]:
        scale = 0.01 + torch.rand(len(layer.weight), *[1] * (layer.weight.dim() - 1))
        codes[layer] = ((layer.weight * 4 * levels).round().clamp(-levels, levels).short(), scale)
        layer.weight.data = codes[layer][0] * scale
    return to_packed(net, codes.get, INPUT, {"dataset": {"class_names": ["a", "b"], "mean": [0.5]}})


def regular():
    """A packed binary net with gathered layers."""
    net = build("binary_chain", 0)
    with torch.no_grad():
        for layer in (net[3], net[7]):
            order = torch.rand(layer.weight.shape[:2]).argsort(1)
            layer.weight.copy_(layer.weight.sign() * (order < 5)[..., None, None])
    binary = (net[3], net[7])
    return to_packed(net, lambda m: (m.weight.short(), torch.ones(())) if m in binary else None, INPUT)


def layer(numbers, scale=None, full=None, rows=None, cols=None):
    """LayerCodes in the dense layout: floats, or codes with one scale (1 if None) or one per row."""
    numbers = np.asarray(numbers)
    rows, cols = (np.arange(n) if kept is None else kept for n, kept in zip(numbers.shape, (rows, cols), strict=False))
    if numbers.dtype == np.float32:
        values = Floats()
    else:
        scale = np.asarray(1 if scale is None else scale, np.float32)
        numbers, values = numbers.astype(np.int8), RowScale(scale) if scale.ndim else OneScale(scale)
    return LayerCodes(full or numbers.shape, rows, cols, numbers, values, Dense(numbers.shape))
