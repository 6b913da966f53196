"""Networks as people write them: taken for what they compute, or refused in one line that names the module."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsign.packing.trace import to_packed

SHAPE = (3, 8, 8)


class WeightStandardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, (weight - weight.mean((1, 2, 3), keepdim=True)), bias)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class NormActivation(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Leaky(nn.ReLU):
    def forward(self, x):
        return F.leaky_relu(x, 0.1)


class Centred(nn.Conv2d):
    """A subclass that changes how it is built, not what it computes."""

    def __init__(self, inputs, outputs, kernel):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)


def net(conv=None, norm=None, activation=None):
    parts = (conv or nn.Conv2d(3, 4, 3, padding=1), norm or nn.BatchNorm2d(4), activation or nn.ReLU())
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def pack(model):
    return to_packed(model, lambda module: None, SHAPE)


def hooked(register):
    model = net()
    getattr(model[2], register)(lambda *_: None)
    return model


def replaced():
    model = net()
    model[2].forward = types.MethodType(lambda self, x: -x, model[2])
    return model


def on_maps():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(6, 2), nn.Flatten())


def compiled():
    model = net()
    model[0].compile()
    return model


class Loops(nn.Module):
    def forward(self, x):
        for row in range(x.shape[2]):
            x = x + row
        return x.flatten(1)


class Pair(nn.Module):
    def forward(self, x):
        x = x.flatten(1)
        return x, x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: net(conv=Scaled(3, 4, 3)), "0: Scaled has a forward of its own, expected that of Conv2d"),
        (lambda: net(conv=WeightStandardised(3, 4, 3)), "0: WeightStandardised has a _conv_forward of its own"),
        (lambda: net(norm=NormActivation(4)), "1: NormActivation has a forward of its own, expected that of BatchNorm"),
        (lambda: net(activation=Leaky()), "2: Leaky has a forward of its own, expected that of ReLU"),
        (replaced, "2: ReLU has a forward of its own"),
        (lambda: hooked("register_forward_hook"), "2: ReLU has forward hooks"),
        (lambda: hooked("register_forward_pre_hook"), "2: ReLU has forward hooks"),
        (lambda: torch.jit.trace(net().eval(), torch.zeros(1, *SHAPE)), "the network: .* is scripted"),
        (lambda: torch.compile(net()), "the network: .* is compiled"),
        (compiled, "0: Conv2d is compiled"),
        (lambda: net().half(), "0.weight is float16, expected float32"),
        (on_maps, r"1: Linear reads \[N, 4, 6, 6\], expected \[N, features\]"),
        (Loops, "Loops: its forward cannot be traced"),
        (Pair, "Pair returns a tuple, expected logits"),
        (lambda: nn.Sequential(nn.Conv2d(5, 4, 3), nn.Flatten()), "0: cannot run: .*expected input"),
    ],
)
def test_what_would_be_packed_as_another_network_is_refused_in_one_line(model, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        pack(model())
    assert "\n" not in str(error.value)


def test_a_subclass_that_computes_what_its_base_does_is_its_base_and_modes_stay():
    model = net(conv=Centred(3, 4, 3))
    model[2].eval()
    assert [node.op for node in pack(model).nodes][:3] == ["input", "conv", "affine"]
    assert [module.training for module in model[:3]] == [True, True, False]
