"""Binary residual blocks: their formulas, what they read, and that they survive cutting, packing and reloading."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsign.compressors.base import Stage
from sparsign.compressors.parts.transforms import encode_layer
from sparsign.compressors.stq_a import STQA
from sparsign.evaluation.pruned_ratio import pruned_ratio
from sparsign.kernels.reference import ReferenceEngine
from sparsign.models.binary_blocks import BiRealBlock, PlainBlock, PreactBlock, ReactBlock, build_block
from sparsign.models.react import ChannelShift, rprelu, rsign
from sparsign.models.resnet import StagedResNet
from sparsign.models.shortcuts import SHORTCUTS, DuplicateShortcut, build_shortcut
from sparsign.packing.file import dumps, loads
from sparsign.packing.trace import to_packed


def generic(net):
    """In eval mode, with statistics, shifts and slopes that make every term of a formula count."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
        elif isinstance(module, ChannelShift):
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 0.5)
    return net.eval()


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


def conv_shortcut(b, x):
    pool, conv, norm = b.downsample
    return norm(conv(F.avg_pool2d(x, pool.stride)))


def sign_shortcut(b, x):
    _, conv, norm = b.downsample
    return norm(F.conv2d(sign(x), conv.weight, stride=2))


def bireal_formula(b, x):
    y = b.bn1(b.conv1(sign(x))) + conv_shortcut(b, x)
    return b.bn2(b.conv2(sign(y))) + y


def plain_formula(b, x):
    return b.bn2(b.conv2(sign(b.bn1(b.conv1(sign(x)))))) + sign_shortcut(b, x)


def react_formula(b, x):
    def column(v):
        return v.view(1, -1, 1, 1)

    def act(parts, y):
        gamma, slope, zeta = -column(parts[0].bias), column(parts[1].weight), column(parts[2].bias)
        return torch.where(y > gamma, y - gamma, slope * (y - gamma)) + zeta

    y = act(b.act1, b.bn1(b.conv1(sign(x + column(b.sign1[0].bias)))) + conv_shortcut(b, x))
    return act(b.act2, b.bn2(b.conv2(sign(y + column(b.sign2[0].bias)))) + y)


def preact_formula(b, x):
    norm, _, conv = b.downsample
    y = F.relu(b.conv1(sign(b.bn1(x))))
    return F.relu(b.conv2(sign(b.bn2(y))) + conv(sign(norm(x))))


@pytest.mark.parametrize(
    ("block", "formula"),
    [
        (BiRealBlock, bireal_formula),
        (PlainBlock, plain_formula),
        (ReactBlock, react_formula),
        (PreactBlock, preact_formula),
    ],
)
def test_blocks_compute_their_papers_formula(block, formula):
    torch.manual_seed(0)
    net, x = generic(block(4, 6, 2, "hardtanh")), torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        out = net(x)
        torch.testing.assert_close(out, formula(net, x))
    assert out.shape == (3, 6, 4, 4)


def test_duplicate_shortcut_repeats_the_pooled_channels():
    x = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    y = DuplicateShortcut(2, 3)(x)
    assert y.shape == (1, 6, 2, 2)
    assert y[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert torch.equal(y[:, :2], y[:, 2:4]) and torch.equal(y[:, :2], y[:, 4:])


def test_shortcuts_keep_what_keeps_its_size_and_refuse_what_cannot_be_doubled():
    for kind in SHORTCUTS:
        assert isinstance(build_shortcut(kind, 4, 4, 1, "approx"), nn.Identity)
    with pytest.raises(ValueError, match=r"shortcut=duplicate: 6 channels"):
        build_shortcut("duplicate", 4, 6, 2, "approx")


def test_react_activations_start_as_sign_and_prelu():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(rsign(3, "approx")(x), sign(x))
    assert torch.equal(rprelu(3)(x), F.prelu(x, torch.tensor(0.25)))


def test_a_learned_shift_gets_its_gradient_through_the_sign_and_keeps_the_dtype():
    x = torch.tensor([[-0.5, 0.25], [2.0, -3.0]])
    act = rsign(2, "hardtanh")
    act(x).sum().backward()
    assert act[0].bias.grad.tolist() == [1, 1]  # of each channel one image lies within [-1, 1]
    assert act[0](x.bfloat16()).dtype == torch.bfloat16


def small_net(block, shortcut):
    def build(inputs, outputs, stride):
        return build_block(block, inputs, outputs, stride, "approx", shortcut)

    torch.manual_seed(0)
    return generic(StagedResNet(build, (8, 16), (2, 2), 5, 3, True, False))


def pruned_and_packed(net, float_layers):
    method = STQA(float_layers=float_layers, min_filters=2, layer_cap=0.9, pfr=0.5)
    method.prepare(net, torch.zeros(1, 3, 16, 16))
    method.start(net, Stage("prune"))
    return loads(dumps(to_packed(net, encode_layer, (3, 16, 16))))


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
KINDS = list(itertools.product(("bireal", "plain", "react"), SHORTCUTS))


@pytest.mark.parametrize(("block", "shortcut"), KINDS)
def test_a_pruned_block_is_reloaded_bit_for_bit(block, shortcut):
    """Only 3x3 convs are pruned: sums over +1 / -1 are exact, and every float sum keeps its order."""
    net = small_net(block, shortcut)
    packed = pruned_and_packed(net, ["first", "last", "downsample"])
    assert pruned_ratio(packed, "filter") == 0.5
    with torch.no_grad():
        assert torch.equal(ReferenceEngine(packed)(IMAGES), net(IMAGES))


@pytest.mark.parametrize(("block", "shortcut"), KINDS)
def test_every_inner_conv_that_can_read_signs_does(block, shortcut):
    net = small_net(block, shortcut)
    packed = pruned_and_packed(net, ["first", "last"])
    engine = ReferenceEngine(packed)
    shortcut_convs = {"conv": [], "sign_conv": ["layer2.0.downsample.1"], "duplicate": []}[shortcut]
    expected = [f"layer{s}.{b}.conv{c}" for s, b, c in itertools.product((1, 2), (0, 1), (1, 2))]
    assert sorted(engine.accumulators(IMAGES)) == sorted(expected + shortcut_convs)
    with torch.no_grad():  # the stream may lose channels: the classifier sums in another order
        torch.testing.assert_close(engine(IMAGES), net(IMAGES), rtol=1e-4, atol=1e-4)
