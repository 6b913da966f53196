"""The cut network computes what the masked one computed, and its integer accumulators are the exact sums."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_nets import INPUT, NETS, build, layers, prune
from torch import nn

from sparsign.kernels.reference import ReferenceEngine
from sparsign.models.sign import Sign
from sparsign.packing.trace import to_packed

IMAGES = torch.randn(5, *INPUT, generator=torch.Generator().manual_seed(1))


def floats(layer):
    return None


def unit_codes(layer):
    """Encodes layers whose weights are all -1, 0 and 1."""
    weight = layer.weight.detach()
    return (weight.to(torch.int16), torch.ones(())) if bool((weight == weight.sign()).all()) else None


@torch.no_grad()
def ternarise(net):
    for layer in list(layers(net).values())[1:-1]:
        layer.weight.copy_(layer.weight.sign())
    return net


def logits(net):
    with torch.no_grad():
        return net(IMAGES)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(6))
def test_cut_net_equals_masked_net(name, seed):
    net = prune(build(name, seed), ratio=0.1 * seed)
    packed = to_packed(net, floats, INPUT)
    torch.testing.assert_close(ReferenceEngine(packed)(IMAGES), logits(net), atol=1e-4, rtol=0)
    kept = sum(np.prod(node.codes.shape) for node in packed.layers().values())
    if seed > 2:
        assert kept < 0.8 * sum(layer.weight.numel() for layer in layers(net).values())


@pytest.mark.parametrize("name", NETS)
def test_nothing_is_cut_from_a_dense_net_and_its_logits_keep_every_bit(name):
    net = build(name, 0)
    packed = to_packed(net, floats, INPUT)
    assert torch.equal(ReferenceEngine(packed)(IMAGES), logits(net))
    assert {n: node.codes.shape for n, node in packed.layers().items()} == {
        n: tuple(layer.weight.shape) for n, layer in layers(net).items()
    }
    assert not any(node.op == "select" for node in packed.nodes)


@pytest.mark.parametrize("name", ["bireal", "binary_chain"])
@pytest.mark.parametrize("seed", range(6))
def test_binary_net_cut_in_its_middle_keeps_every_bit(name, seed):
    """Sums of +-1 are exact in any order, so cutting may not move a single bit of the logits."""
    net = ternarise(prune(build(name, seed), ratio=0.4, batchnorm=False))
    packed = to_packed(net, unit_codes, INPUT)
    assert torch.equal(ReferenceEngine(packed)(IMAGES), logits(net))


def test_removed_rows_and_columns_are_really_gone():
    net = build("chain", 0)
    with torch.no_grad():
        net[2].weight[[1, 4]] = 0
        net[3].weight[[1, 4]] = 0
        net[3].bias[[1, 4]] = 0
        net[7].weight[:, 6] = 0
        net[10].weight.view(6, 7, 9)[:, 3, 2:5] = 0
    layers = to_packed(net, floats, INPUT).layers()
    assert layers["2"].codes.rows.tolist() == layers["7"].codes.cols.tolist() == [0, 2, 3, 5, 7, 8]
    assert layers["7"].codes.weight().shape == (7, 6, 3, 3)
    assert layers["10"].codes.weight().shape == (6, 60)


def test_a_wholly_dead_branch_leaves_no_node():
    net = build("residual", 0)
    with torch.no_grad():
        net.blocks[0][4].weight.zero_()
        net.blocks[0][4].bias.zero_()
    packed = to_packed(net, floats, INPUT)
    assert not any(node.name.startswith("blocks.0.") for node in packed.nodes)
    assert packed.meta["original"]["dropped"] == [
        ["blocks.0.0", [7, 6, 3, 3], False],
        ["blocks.0.3", [6, 7, 3, 3], False],
    ]
    torch.testing.assert_close(ReferenceEngine(packed)(IMAGES), logits(net), atol=1e-5, rtol=0)


def test_a_sum_of_dead_operands_still_has_a_sign():
    net = build("bireal", 0)
    with torch.no_grad():
        for norm, dead in ((net.bn, [1, 4]), (net.units[0][2], slice(None))):
            norm.weight[dead] = 0
            norm.bias[dead] = 0
    packed = to_packed(net, floats, INPUT)
    torch.testing.assert_close(ReferenceEngine(packed)(IMAGES), logits(net), atol=1e-5, rtol=0)
    assert len(packed.layers()["units.0.1"].codes.rows) == 2


def test_a_layer_of_bare_biases_still_runs():
    net = build("chain", 0)
    with torch.no_grad():
        net[7].weight.zero_()
        net[7].bias.fill_(0.5)
    torch.testing.assert_close(ReferenceEngine(to_packed(net, floats, INPUT))(IMAGES), logits(net), atol=1e-5, rtol=0)


def test_dead_and_constant_classes_keep_their_logits():
    net = build("chain", 0)
    with torch.no_grad():
        net[12].weight[1:3] = 0
        net[12].bias[1] = 0
    out = ReferenceEngine(to_packed(net, floats, INPUT))(IMAGES)
    torch.testing.assert_close(out, logits(net), atol=1e-5, rtol=0)
    assert out.shape == (5, 4) and not out[:, 1].any()


@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_keeps_every_bit(affine):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, eps=1e-3, affine=affine)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 9)
    norm1d = nn.BatchNorm1d(4)
    norm1d.running_mean.normal_()
    net = nn.Sequential(norm, nn.Conv2d(3, 4, 8), nn.Flatten(), norm1d).eval()
    assert torch.equal(ReferenceEngine(to_packed(net, floats, INPUT))(IMAGES), logits(net))


@pytest.mark.parametrize("per_filter", [False, True])
@pytest.mark.parametrize("two_signs", [False, True])
def test_weights_are_exactly_scale_times_codes(per_filter, two_signs):
    torch.manual_seed(0)
    net = build("chain", 0)
    codes = torch.randint(-300, 300, net[2].weight.shape, dtype=torch.int16)
    codes[3] = 0
    size = (9, 1, 1, 1) if per_filter else ()
    positive, negative = torch.rand(size), torch.rand(size)
    weight = torch.where(codes > 0, positive, negative if two_signs else positive) * codes
    net[2].weight.data = weight
    scale = (positive, negative) if two_signs else positive
    packed = to_packed(net, lambda layer: (codes, scale) if layer is net[2] else None, INPUT)
    layer = packed.layers()["2"].codes
    sizes = {array.shape for array in layer.values.arrays().values()}
    assert layer.codes.dtype == np.int16 and sizes == {(len(layer.rows),) if per_filter else ()}
    assert np.array_equal(layer.weight(), weight.numpy()[np.ix_(layer.rows, layer.cols)])
    torch.testing.assert_close(ReferenceEngine(packed)(IMAGES), logits(net), atol=1e-3, rtol=1e-5)


def test_codes_that_are_not_the_weight_are_refused_by_name():
    net = build("chain", 0)
    with pytest.raises(ValueError, match=r"layer 2: its weight is not scale \* codes \(off by up to"):
        to_packed(net, lambda m: (m.weight.sign().short(), torch.ones(())) if m is net[2] else None, INPUT)
    with pytest.raises(ValueError, match="layer 2: scale of shape"):
        to_packed(net, lambda m: (m.weight.sign().short(), torch.ones(3)) if m is net[2] else None, INPUT)


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_equal_fan_in_becomes_a_gather(seed, ternary):
    net = build("binary_chain", seed)
    torch.manual_seed(seed)
    mask = torch.stack([torch.randperm(8) < 5 for _ in range(9)])
    with torch.no_grad():
        net[3].weight.copy_(torch.where(net[3].weight >= 0, 1.0, -1.0) * mask[..., None, None])
        net[3].weight[:, :, 0, 0] *= not ternary
    packed = to_packed(net, unit_codes, INPUT)
    layer = packed.layers()["3"].codes
    assert layer.codes.shape == (9, 5, 3, 3) and set(np.unique(layer.codes)) == ({-1, 0, 1} if ternary else {-1, 1})
    assert [row.nonzero().flatten().tolist() for row in mask] == layer.layout.columns.tolist()
    assert np.array_equal(layer.weight(), net[3].weight.detach().numpy())
    assert torch.equal(ReferenceEngine(packed)(IMAGES), logits(net))


@pytest.mark.parametrize("name", ["bireal", "binary_chain"])
def test_accumulators_are_the_exact_integer_sums(name):
    net = ternarise(prune(build(name, 1), ratio=0.3, batchnorm=False))
    packed = to_packed(net, unit_codes, INPUT)
    seen = {}
    binary = [n for n, m in layers(net).items() if unit_codes(m) is not None and n != "down.1"]
    for n in binary:
        net.get_submodule(n).register_forward_hook(lambda m, args, out, n=n: seen.__setitem__(n, args[0]))
    logits(net)
    found = ReferenceEngine(packed).accumulators(IMAGES)
    assert set(found) == set(binary) & set(packed.layers()) and found
    for n, sums in found.items():
        conv, rows = net.get_submodule(n), torch.from_numpy(packed.layers()[n].codes.rows)
        exact = F.conv2d(seen[n].double(), conv.weight.double(), None, conv.stride, conv.padding)
        assert sums.dtype == torch.int32 and torch.equal(sums.double(), exact[:, rows])


def test_sign_of_zero_is_plus_one():
    net = nn.Sequential(Sign(), nn.Conv2d(3, 2, 8, bias=False), nn.Flatten()).eval()
    zeros = torch.zeros(1, *INPUT)
    out = ReferenceEngine(to_packed(net, floats, INPUT))(zeros)
    torch.testing.assert_close(out[0], net[1].weight.detach().sum((1, 2, 3)))


def test_images_of_another_shape_are_refused():
    engine = ReferenceEngine(to_packed(build("chain", 0), floats, INPUT))
    with pytest.raises(ValueError, match=r"images of shape \[2, 1, 8, 8\], expected \[N, 3, 8, 8\]"):
        engine(torch.zeros(2, 1, 8, 8))


def test_a_packed_model_does_not_depend_on_training_mode_or_share_memory():
    net = build("residual", 0)
    expected = logits(net)
    packed = to_packed(net.train(), floats, INPUT)
    assert net.training and net.bn.training
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(ReferenceEngine(packed)(IMAGES), expected)
