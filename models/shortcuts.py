"""Shortcuts of residual blocks that change size: parameter-free ones, and the 1x1 convs of binary networks."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsign.models.sign import Sign, SignGradient

ShortcutKind = Literal["conv", "sign_conv", "duplicate"]
SHORTCUTS: tuple[ShortcutKind, ...] = ("conv", "sign_conv", "duplicate")
POOLED = ("conv", "duplicate")
"""Kinds whose average pool rounds odd sizes down, where a strided conv rounds up."""


class PadShortcut(nn.Module):
    """ResNet's parameter-free shortcut (option A of the ResNet paper).

    [N, C, H, W] -> [N, before + C + after, ceil(H / stride), ceil(W / stride)]: every `stride`-th pixel,
    and zeros in the new channels.
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, after={self.after}"


class DuplicateShortcut(nn.Module):
    """Average pool, then every channel `copies` times: [N, C, H, W] -> [N, copies * C, H // stride, W // stride].

    The parameter-free shortcut of binary networks (ReActNet: paper, where a doubling layer reads its input twice).
    """

    def __init__(self, stride: int, copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.pool(x)] * self.copies, 1)


def build_shortcut(kind: ShortcutKind, inputs: int, outputs: int, stride: int, gradient: SignGradient) -> nn.Module:
    """The identity where the size stays, else, from [N, inputs, H, W] to [N, outputs, H / stride, W / stride]:

    conv        AvgPool -> conv1x1 -> BN, reading real values (Bi-Real Net: paper)
    sign_conv   Sign -> conv1x1 with the stride -> BN, a binary layer once its weights are (STQ-Nets: paper)
    duplicate   AvgPool -> each channel several times, without weights (see `DuplicateShortcut`)

    Raises ValueError for `duplicate` when `outputs` is no multiple of `inputs`.
    """
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "duplicate":
        if outputs % inputs:
            raise ValueError(f"model.options.shortcut=duplicate: {outputs} channels are no multiple of {inputs}")
        return DuplicateShortcut(stride, outputs // inputs)
    if kind == "sign_conv":
        return nn.Sequential(
            Sign(gradient), nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
        )
    return nn.Sequential(
        nn.AvgPool2d(stride) if stride != 1 else nn.Identity(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )
