"""Networks an eighth as wide: the same code, layers and options, a 64th of the weights to write and to read."""

import functools

import pytest
from torch import nn

from sparsign.models import react

WIDE = 64
"""Numbers of channels from here on are divided; all of them are multiples of eight in the networks that are thinned."""

TOO_THIN = ("lenet5", "nin", "resnet20", "resnet32", "resnet44", "resnet56")
"""Networks that are small already."""


def eighth(channels: int) -> int:
    return channels if channels < WIDE else channels // 8


def narrow(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Has layers built narrower from here to the end of the test, unless that network is small anyway."""
    if model in TOO_THIN:
        return
    for layer, widths in ((nn.Conv2d, 2), (nn.Linear, 2), (nn.BatchNorm2d, 1), (nn.BatchNorm1d, 1), (nn.PReLU, 1)):
        monkeypatch.setattr(layer, "__init__", _narrow(layer.__init__, widths))
    monkeypatch.setattr(react.ChannelShift, "__init__", _narrow(react.ChannelShift.__init__, 1))


def _narrow(init, widths: int):
    @functools.wraps(init)
    def build(self, *args, **kwargs):
        args = [eighth(a) for a in args[:widths]] + list(args[widths:])
        if "groups" in kwargs:
            kwargs["groups"] = eighth(kwargs["groups"])
        init(self, *args, **kwargs)

    return build
