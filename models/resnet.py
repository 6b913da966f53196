"""ResNets: 18, 34, 50 as in torchvision; 20, 32, 44, 56 as in the ResNet paper's CIFAR section; and their binary forms.

Parameter names are torchvision's. Small images (<= 64 px) meet a 3x3 stride-1 stem without max-pool (our choice, as is
usual for CIFAR); larger ones the 7x7 stride-2 stem with max-pool.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from sparsign.models.binary_blocks import BLOCKS, build_block
from sparsign.models.checks import check_form, check_image_size, choose
from sparsign.models.initialisation import initialise
from sparsign.models.shortcuts import POOLED, SHORTCUTS, PadShortcut, ShortcutKind
from sparsign.models.sign import SignGradient

BlockBuilder = Callable[[int, int, int], nn.Module]
SMALL_IMAGE = 64
SHORTCUT_OF: dict[str, ShortcutKind] = {
    "react": "duplicate", "bireal": "conv", "resnet_e": "conv", "plain": "sign_conv", "preact": "sign_conv",
}  # fmt: skip
"""Each block's own shortcut where the size changes: its paper's."""


class StagedResNet(nn.Module):
    """Stem, stages `layer1`, `layer2`, ..., average pool, `fc`: [N, in_channels, H, W] -> logits [N, num_classes].

    `build(inputs, outputs, stride)` makes one residual block; every stage but the first starts with stride 2.
    `stem_relu=False` leaves the ReLU out between stem and first block, as Bi-Real Net does.
    """

    def __init__(
        self,
        build: BlockBuilder,
        widths: Sequence[int],
        depths: Sequence[int],
        num_classes: int,
        in_channels: int,
        small: bool,
        stem_relu: bool,
    ) -> None:
        super().__init__()
        self.conv1 = _stem(in_channels, widths[0], small)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True) if stem_relu else nn.Identity()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = len(widths)
        inputs = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            blocks = []
            for index in range(depth):
                blocks.append(build(inputs, width, 2 if stage > 1 and index == 0 else 1))
                inputs = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """ResNet-18: 16 block convs in stages of 64-128-256-512; 11.16M conv weights with the small stem.

    Options (form fbin only): `block` react | bireal | plain | resnet_e | preact, `shortcut` conv | sign_conv |
    duplicate (default: the block's own), `sign_gradient` hardtanh | approx (default: approx for react and bireal, else
    hardtanh).
    """
    return _basic_resnet("resnet18", (2, 2, 2, 2), num_classes, in_channels, image_size, form, options)


def resnet34(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """ResNet-34: as `resnet18` with 3, 4, 6 and 3 blocks; 21.27M conv weights with the small stem."""
    return _basic_resnet("resnet34", (3, 4, 6, 3), num_classes, in_channels, image_size, form, options)


def resnet50(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """ResNet-50 with torchvision's bottlenecks. No options; no fbin form, see the message."""
    reason = "a shortcut around every conv does not fit bottlenecks, and no reproduced table has it"
    check_form("resnet50", form, ("float", "wbin"), reason)
    check_image_size("resnet50", image_size, minimum=8)
    choose("resnet50", options, {})
    return _torchvision_resnet(torchvision.models.resnet50, num_classes, in_channels, image_size)


def resnet20(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """ResNet-20 of the CIFAR section: stages of 16-32-64, three blocks each, option A shortcuts; 0.27M weights.

    Options (form fbin only): as for `resnet18`.
    """
    return _cifar_resnet("resnet20", 3, num_classes, in_channels, image_size, form, options)


def resnet32(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """ResNet-32 of the CIFAR section: as `resnet20` with five blocks a stage; 0.46M weights."""
    return _cifar_resnet("resnet32", 5, num_classes, in_channels, image_size, form, options)


def resnet44(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """ResNet-44 of the CIFAR section: as `resnet20` with seven blocks a stage; 0.66M weights."""
    return _cifar_resnet("resnet44", 7, num_classes, in_channels, image_size, form, options)


def resnet56(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """ResNet-56 of the CIFAR section: as `resnet20` with nine blocks a stage; 0.85M weights."""
    return _cifar_resnet("resnet56", 9, num_classes, in_channels, image_size, form, options)


def _stem(in_channels: int, width: int, small: bool) -> nn.Conv2d:
    kernel, stride = (3, 1) if small else (7, 2)
    return nn.Conv2d(in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)


def _torchvision_resnet(
    build: Callable[..., nn.Module], num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    model = build(weights=None, num_classes=num_classes)
    small = image_size <= SMALL_IMAGE
    if small or in_channels != 3:
        model.conv1 = _stem(in_channels, 64, small)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if small:
        model.maxpool = nn.Identity()
    return model


def _basic_resnet(
    name: str,
    depths: Sequence[int],
    num_classes: int,
    in_channels: int,
    image_size: int,
    form: str,
    options: dict[str, Any],
) -> nn.Module:
    check_form(name, form)
    check_image_size(name, image_size, minimum=8)
    if form == "fbin":
        return _binary_resnet(name, (64, 128, 256, 512), depths, num_classes, in_channels, image_size, options)
    choose(f"{name} in this form", options, {})
    return _torchvision_resnet(getattr(torchvision.models, name), num_classes, in_channels, image_size)


def _cifar_resnet(
    name: str, depth: int, num_classes: int, in_channels: int, image_size: int, form: str, options: dict[str, Any]
) -> nn.Module:
    check_form(name, form)
    check_image_size(name, image_size, minimum=8)
    widths, depths = (16, 32, 64), (depth,) * 3
    if form == "fbin":
        return _binary_resnet(name, widths, depths, num_classes, in_channels, image_size, options)
    choose(f"{name} in this form", options, {})
    small = image_size <= SMALL_IMAGE
    return StagedResNet(_option_a_block, widths, depths, num_classes, in_channels, small, stem_relu=True)


def _option_a_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return BasicBlock(inputs, outputs)
    before = (outputs - inputs) // 2
    return BasicBlock(inputs, outputs, stride, PadShortcut(stride, before, outputs - inputs - before))


def _binary_resnet(
    name: str,
    widths: Sequence[int],
    depths: Sequence[int],
    num_classes: int,
    in_channels: int,
    image_size: int,
    options: dict[str, Any],
) -> nn.Module:
    choices = {"block": BLOCKS, "sign_gradient": (None, "hardtanh", "approx"), "shortcut": (None, *SHORTCUTS)}
    chosen = choose(name, options, choices)
    block, asked = chosen["block"], chosen["shortcut"]
    if block == "preact" and asked is not None:
        raise ValueError(f"model.options.shortcut={asked} is not possible for {name} with preact blocks; expected null")
    gradient: SignGradient = chosen["sign_gradient"] or ("approx" if block in ("bireal", "react") else "hardtanh")
    shortcut: ShortcutKind = asked or SHORTCUT_OF[block]
    small = image_size <= SMALL_IMAGE
    if shortcut in POOLED:
        check_image_size(f"{name} with pooled shortcuts", image_size, 8, 2 ** (len(widths) - 1) * (1 if small else 4))

    def build(inputs: int, outputs: int, stride: int) -> nn.Module:
        return build_block(block, inputs, outputs, stride, gradient, shortcut)

    return StagedResNet(build, widths, depths, num_classes, in_channels, small, stem_relu=block == "preact")
