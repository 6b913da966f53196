"""Cutting a network in place: the same answers, the same packed file, and only what can go by itself."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sparsign.compressors.parts.quantizers import ScaledBinary
from sparsign.compressors.parts.transforms import ChannelMask, Mask, attach, latent
from sparsign.evaluation.pruned_ratio import pruned_ratio
from sparsign.models.cutting import cut, cuts, cuttable, uncut
from sparsign.packing.size import total_size
from sparsign.packing.trace import to_packed
from tests.tiny_nets import INPUT, NETS, build, layers, prune

EXAMPLE = torch.zeros(1, *INPUT)


def images():
    return torch.randn(8, *INPUT, generator=torch.Generator().manual_seed(5))


def floats(net):
    return to_packed(net, lambda _: None, INPUT)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_network_answers_and_packs_as_before(name, seed):
    net = prune(build(name, seed), 0.5)
    small = copy.deepcopy(net)
    cut(small, cuttable(small, EXAMPLE))
    with torch.no_grad():
        torch.testing.assert_close(small(images()), net(images()), rtol=1e-4, atol=1e-4)
    before, after = floats(net), floats(small)
    assert [(n.op, n.name, n.inputs, n.attrs) for n in before.nodes] == [
        (n.op, n.name, n.inputs, n.attrs) for n in after.nodes
    ]
    for mine, theirs in zip(before.nodes, after.nodes, strict=True):
        assert mine.tensors.keys() == theirs.tensors.keys()
        assert all(np.array_equal(mine.tensors[k], theirs.tensors[k]) for k in mine.tensors), mine.name
        if mine.codes is not None:
            assert mine.codes.full_shape == theirs.codes.full_shape
            for field in ("rows", "cols", "codes"):
                assert np.array_equal(getattr(mine.codes, field), getattr(theirs.codes, field)), (mine.name, field)
    assert before.meta == after.meta
    assert total_size(before) == total_size(after)
    assert pruned_ratio(before, "filter") == pruned_ratio(after, "filter")


@pytest.mark.parametrize("name", ["chain", "binary_chain", "residual", "concat", "depthwise"])
def test_something_is_really_cut(name):
    net = prune(build(name, 0), 0.5)
    before = sum(p.numel() for p in net.parameters())
    cut(net, cuttable(net, EXAMPLE))
    assert sum(p.numel() for p in net.parameters()) < 0.8 * before
    assert cuttable(net, EXAMPLE) == {}  # all that could go has gone


def test_signs_are_summed_to_the_same_bits():
    net = build("binary_chain", 1)
    with torch.no_grad():
        for conv, norm in ((net[3], net[5]), (net[7], net[8])):
            conv.weight.copy_(conv.weight.sign())
            conv.weight[::2] = 0
            norm.weight[::2] = norm.bias[::2] = 0
        net[7].weight[:, ::2] = 0
        net[11].weight.view(4, 6, 4)[:, ::2] = 0
        expected = net(images())
        cut(net, cuttable(net, EXAMPLE))
        assert net[3].weight.shape[:2] == (4, 8) and net[7].weight.shape[:2] == (3, 4)
        assert torch.equal(net(images()), expected)


def test_a_stream_that_lives_is_not_cut():
    """Each unit's conv adds to the stem's stream: without an index its dead filters have to stay."""
    net = build("bireal", 0)
    with torch.no_grad():
        for unit in net.units[:2]:
            unit[1].weight[::2] = unit[2].weight[::2] = unit[2].bias[::2] = 0
    assert cuttable(net, EXAMPLE) == {}


def test_a_dead_branch_keeps_one_channel():
    net = build("residual", 0)
    with torch.no_grad():
        for layer in net.blocks[0]:
            for tensor in layer.parameters():
                tensor.zero_()
        expected = net(images())
        cut(net, cuttable(net, EXAMPLE))
        assert len(net.blocks[0][0].weight) == 1
        torch.testing.assert_close(net(images()), expected, rtol=1e-5, atol=1e-5)
    assert ["blocks.0.0", [7, 6, 3, 3], False] in floats(net).meta["original"]["dropped"]


def test_transforms_are_cut_with_the_weight_they_act_on():
    net = build("chain", 0)
    for layer in layers(net).values():
        shape = layer.weight.shape
        attach(layer, Mask(tuple(shape)), ChannelMask((*shape[:2], *[1] * (len(shape) - 2))))
        attach(layer, Mask((shape[0], *[1] * (len(shape) - 1))), Mask(tuple(shape), active=False))
    with torch.no_grad():
        torch.nn.init.uniform_(net[2].parametrizations.weight[0].mask).round_()
        net[2].parametrizations.weight[1].mask[[1, 4]] = 0
        net[7].parametrizations.weight[2].mask[[0, 3]] = 0
        net[3].weight[[1, 4]] = net[3].bias[[1, 4]] = 0
        net[7].bias[[0, 3]] = 0
        expected, parameter = net(images()), latent(net[2])
        cut(net, cuttable(net, EXAMPLE))
        assert latent(net[2]) is parameter and parameter.shape == (7, 8, 3, 3)
        assert [list(t.mask.shape) for t in net[7].parametrizations.weight] == [
            *([5, 7, 3, 3], [5, 7, 1, 1], [5, 1, 1, 1], [5, 7, 3, 3])
        ]
        torch.testing.assert_close(net(images()), expected, rtol=1e-5, atol=1e-5)
    assert net[2].out_channels == net[3].num_features == net[7].in_channels == 7
    net(images()).sum().backward()
    assert parameter.grad.shape == parameter.shape


def test_a_fresh_network_is_cut_as_the_first_was():
    net, other = prune(build("residual", 2), 0.5), build("residual", 3)
    cut(net, cuttable(net, EXAMPLE))
    with torch.no_grad():
        net.blocks[2][0].weight[0] = net.blocks[2][1].weight[0] = net.blocks[2][1].bias[0] = 0
        net.blocks[2][3].weight[:, 0] = 0
    cut(net, cuttable(net, EXAMPLE))  # again: still told by the uncut network's indices
    cut(other, cuts(net))
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(other(images()), net(images()))
    assert uncut(other.blocks[2][0]).shape == (7, 8, 3, 3)
    assert len(uncut(other.blocks[2][0]).rows) == len(other.blocks[2][0].weight)


def test_a_scale_over_what_goes_is_refused():
    """alpha is the mean of |w| over a filter: without some of its channels it is another, unless they were zero."""
    net = build("chain", 0)
    attach(net[7], ScaledBinary(), Mask((1, 9, 1, 1)))
    with torch.no_grad():
        net[7].parametrizations.weight[1].mask[:, ::2] = 0
        with pytest.raises(ValueError, match=r"7: what is left of its weight would change by .* %"):
            cut(net, cuttable(net, EXAMPLE))


class PerGroup(nn.Module):
    """A transform with a number for each of two groups of input channels."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(9, 2, 1, 1))

    def forward(self, weight):
        return weight


def test_what_cannot_be_cut_by_channel_is_refused():
    net = prune(build("chain", 0), 0.5)
    parametrize.register_parametrization(net[2], "weight", PerGroup())
    with pytest.raises(ValueError, match=r"2: \[9, 2, 1, 1\] beside a weight \[9, 8, 3, 3\] cannot be cut"):
        cut(net, cuttable(net, EXAMPLE))
    with pytest.raises(ValueError, match="the channels to keep are not all there"):
        cut(build("chain", 0), {"0": (torch.tensor([3, 8]), torch.arange(3))})
    with pytest.raises(ValueError, match="no such layer"):
        cut(build("chain", 0), {"99": (torch.tensor([3]), torch.arange(3))})
