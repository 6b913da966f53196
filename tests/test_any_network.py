"""Networks as people write them: taken for what they compute, or refused in one line that names the module."""

import types

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from benchmarks.architectures import every_third_gone
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import dumps, loads
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
    """What `model[0].compile()` leaves behind, without the seconds that its import takes."""
    model = net()
    model[0]._compiled_call_impl = model[0].forward
    return model


class Optimised(nn.Module):
    """What torch.compile returns: the network in `_orig_mod`."""

    def __init__(self):
        super().__init__()
        self._orig_mod = net()


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
        (Optimised, "the network: .* is compiled"),
        (compiled, "0: Conv2d is compiled"),
        (lambda: net().half(), "0.weight is float16, expected float32"),
        (on_maps, r"1: Linear reads \[N, 4, 6, 6\], expected \[N, features\]"),
        (Loops, "Loops: its forward cannot be traced"),
        (Pair, "output: output is a tuple, expected logits"),
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


def halves(x):
    left, right = x.chunk(2, 1)
    return torch.cat([right, left.relu()], 1)


def shuffled(x, groups=2):
    n, c, h, w = x.size()
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def squeezed(x):
    return F.hardsigmoid(F.adaptive_avg_pool2d(x, 1)) * x


def in_place(x):
    y = x * 0.5
    y += x
    y.relu_()
    return F.relu(y - 1, inplace=True) + y


def shuffled_twice(x):
    return shuffled(F.channel_shuffle(F.relu(x), 3)[:, 2:10])


class Excitation(nn.Module):
    """As in SENet: two linear layers, and their gates spread over the image."""

    def __init__(self):
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 12))

    def forward(self, x):
        n, c, _, _ = x.size()
        y = self.fc(self.pool(x).view(n, c)).sigmoid().view(n, c, 1, 1)
        return x * y.expand_as(x) + y * x


SPELLINGS = {
    "excitation": Excitation(),
    "relu": F.relu,
    "method": lambda x: x.relu(),
    "clamp": lambda x: x.clamp(0, 6) + x.clamp(min=-1, max=0.5),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "leaky module": nn.LeakyReLU(0.2),
    "sigmoid": lambda x: torch.sigmoid(x) + F.sigmoid(x),
    "swish": lambda x: F.silu(x) + x * x.sigmoid(),
    "hardswish": lambda x: x * F.relu6(x + 3) / 6,
    "gelu": lambda x: F.gelu(x, approximate="tanh") + F.hardswish(x),
    "numbers": lambda x: 1 + 2 * x - 0.5,
    "twice": lambda x: x + x * x,
    "in place": in_place,
    "gate": squeezed,
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "max pool": lambda x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
    "avg pool": lambda x: F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (2, 4)),
    "adaptive identity": nn.AdaptiveAvgPool2d((8, None)),
    "adaptive repeat": lambda x: F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(x, 1), 3),
    "adaptive maximum": nn.AdaptiveMaxPool2d(2),
    "upsample": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "resize": lambda x: F.interpolate(x, size=x.shape[-1] * 3),
    "mean": lambda x: x.mean([2, 3]),
    "mean kept": lambda x: torch.mean(x, dim=(-1, -2), keepdim=True),
    "concat": lambda x: torch.concat((x, F.relu(x)), dim=-3),
    "halves": halves,
    "split": lambda x: torch.cat([torch.split(x, [3, 9], dim=1)[1], x[:, :1]], 1),
    "shuffle": shuffled,
    "shuffle of a slice": shuffled_twice,
    "shuffle module": nn.ChannelShuffle(3),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(-1, x.shape[1] * x.shape[2] * x.shape[3]),
    "flatten": lambda x: x.flatten(1),
    "torch.flatten": lambda x: torch.flatten(x, start_dim=1),
    "squeeze": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
}


class Spelled(nn.Module):
    """conv -> BN -> what is spelled -> [conv] -> flatten -> linear."""

    def __init__(self, spelled):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 12, 3, padding="same"), nn.BatchNorm2d(12)
        self.spelled = spelled
        with torch.no_grad():
            shape = spelled(torch.zeros(1, 12, 8, 8)).shape
            self.mix = nn.Conv2d(shape[1], 9, 1) if len(shape) == 4 else nn.Identity()
            self.fc = nn.Linear(self.mix(torch.zeros(shape)).numel(), 5)

    def forward(self, x):
        return self.fc(self.mix(self.spelled(self.bn(self.conv(x)))).flatten(1))


@torch.no_grad()
def assert_packs(model, shape):
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    packed = to_packed(model, lambda module: None, shape)
    again = ReferenceEngine(loads(dumps(packed)))(images)
    torch.testing.assert_close(again, model(images), atol=1e-5, rtol=1e-4)
    return packed


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_is_packed_as_what_it_computes_without_its_dead_channels(spelling):
    torch.manual_seed(0)
    packed = assert_packs(every_third_gone(Spelled(SPELLINGS[spelling])), SHAPE)
    kept = {"sigmoid": 12, "numbers": 12, "shuffle of a slice": 5, "split": 6}.get(spelling, 8)
    assert len(packed.layers()["conv"].codes.rows) == kept


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        (lambda x: F.dropout(x), "dropout is random in eval mode"),
        (lambda x: F.softplus(x), "softplus is not a known operation"),
        (lambda x: x.mean((1, 2)), r"mean over dimensions \(1, 2\)"),
        (lambda x: x / 0, "truediv"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "avg_pool2d: avgpool with divisor_override=3"),
        (lambda x: x - x.relu(), "sub with more than a number"),
        (lambda x: torch.cat([x, x], 2), "cat along dimension 2"),
        (lambda x: F.adaptive_avg_pool2d(x, 3), r"adaptive_avg_pool2d of \[8, 8\] pixels to \[3, 3\]"),
        (lambda x: x.transpose(2, 3) * 2, "mul reads numbers that transpose moved"),
        (lambda x: x[:, [0, 0, 1]].relu(), "relu reads numbers that getitem moved"),
        (lambda x: x * x.relu().max().item(), "max is not a known operation"),
        (
            lambda x: x.flatten(1).mul_(2).view(-1, 3, 8, 8) + x,
            "add: reads what bn made after a view of it was changed",
        ),
        (lambda x: x * x.mean(1, keepdim=True), "mean over dimensions 1"),
        (lambda x: F.adaptive_avg_pool2d(x, 1).expand_as(x) + x, "add reads numbers that expand_as moved"),
        (lambda x: x * x.flatten(1)[:, :3, None, None], "mul reads numbers that getitem moved"),
        (lambda x: x.view(1, -1).relu(), "relu reads numbers that view moved"),
    ],
)
def test_what_cannot_be_spelled_is_named(spelled, message):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return spelled(self.bn(x)).flatten(1)

    with pytest.raises(ValueError, match=message) as error:
        pack(Net())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda num_classes: torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 64], num_classes),
        lambda num_classes: torchvision.models.mobilenet_v3_small(width_mult=0.25, num_classes=num_classes),
        lambda num_classes: torchvision.models.SqueezeNet("1_1", num_classes),
        lambda num_classes: torchvision.models.DenseNet(8, (2, 3), 12, num_classes=num_classes),
    ],
    ids=["shufflenet", "mobilenet", "squeezenet", "densenet"],
)
def test_torchvisions_networks_are_cut_and_come_back(build):
    torch.manual_seed(0)
    model = every_third_gone(build(num_classes=5))
    before = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    packed = assert_packs(model, (3, 32, 32))
    assert sum(node.codes.codes.size for node in packed.layers().values()) < 0.8 * before


def test_a_transformer_is_refused_by_its_module_and_operation():
    with pytest.raises(ValueError, match=r"^encoder.layers.encoder_layer_0.ln_1: LayerNorm is not a known operation$"):
        to_packed(torchvision.models.VisionTransformer(32, 8, 1, 2, 8, 8), lambda module: None, (3, 32, 32))
