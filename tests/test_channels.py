"""Liveness against brute force: channels are perturbed in the running network, rules are iterated on its weights."""

import pytest
import torch
from tiny_nets import INPUT, NETS, build, layers, prune
from torch import nn

from sparsign.models.channels import batchnorm_after, removable
from sparsign.models.graph import trace
from sparsign.models.shortcuts import PadShortcut
from sparsign.models.sign import Sign

IMAGES = torch.randn(6, *INPUT, generator=torch.Generator().manual_seed(1))
EXAMPLE = torch.zeros(1, *INPUT)


def outputs(net):
    with torch.no_grad():
        return net(IMAGES)


class Cut(torch.fx.Interpreter):
    """Runs a net as if the given channels of its layers, and what is made of them alone, were not there.

    Convs that read a missing channel read zero; a sum misses a channel when both operands do, a group goes as a whole.
    """

    def __init__(self, net, channels):
        super().__init__(trace(net))
        self.channels, self.missing = channels, {}

    def run_node(self, node):
        with torch.no_grad():
            out = super().run_node(node)
        inputs = [self.missing[n] for n in node.all_input_nodes]
        module = self.module.get_submodule(node.target) if node.op == "call_module" else None
        gone = torch.zeros(out.shape[1], dtype=torch.bool)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            gone |= self.channels.get(node.target, False)
            if getattr(module, "groups", 1) > 1:
                per_group = inputs[0].view(module.groups, -1).any(1) | gone.view(module.groups, -1).any(1)
                gone = per_group.repeat_interleave(len(gone) // module.groups)
        elif len(inputs) == 2 and len(gone) == len(inputs[0]):
            gone |= inputs[0] & inputs[1]
        elif isinstance(module, PadShortcut):
            gone[module.before : module.before + len(inputs[0])] = inputs[0]
        elif inputs and node.op != "output":
            joined = torch.cat(inputs)
            gone |= joined.repeat_interleave(len(gone) // len(joined))
        self.missing[node] = gone
        return out if node.op == "output" else torch.where(gone.view(1, -1, *[1] * (out.dim() - 2)), 0.0, out)


def matters(net, channels):
    """Do the logits change when the channels are cut?"""
    return not torch.allclose(Cut(net, channels).run(IMAGES), outputs(net), atol=1e-5)


def removed_rows(net):
    return {n: found.rows_removed for n, found in removable(net, EXAMPLE, False).items() if n in layers(net)}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(4))
def test_removable_channels_make_no_difference(name, seed):
    net = prune(build(name, seed))
    removed = removed_rows(net)
    assert not matters(net, removed) and (name == "concat" or any(rows.any() for rows in removed.values()))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(2))
def test_every_other_channel_makes_a_difference(name, seed):
    net = prune(build(name, seed), ratio=0.3, batchnorm=False)
    removed = removed_rows(net)
    suspects = [(n, k) for n, rows in removed.items() for k in (~rows).nonzero().flatten().tolist()]
    for _ in range(20):  # other weights in the same places, lest a ReLU or Sign is stuck by accident
        for layer in layers(net).values():
            layer.weight.data[layer.weight != 0] = 3 * torch.randn(int(layer.weight.count_nonzero()))
        suspects = [(n, k) for n, k in suspects if not matters(net, {**removed, n: removed[n] | one(k, removed[n])})]
    assert not suspects


def one(k, like):
    return torch.arange(len(like)) == k


@pytest.mark.parametrize("name", NETS)
def test_weights_of_removable_columns_do_not_matter(name):
    net = prune(build(name, 5))
    reference = outputs(net)
    for layer, what in removable(net, EXAMPLE, through_sign=False).items():
        module = net.get_submodule(layer)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and getattr(module, "groups", 1) == 1:
            with torch.no_grad():
                module.weight[:, what.cols_removed] = 0
                module.weight[what.rows_removed] = 0
    torch.testing.assert_close(outputs(net), reference, atol=1e-5, rtol=0)


class Stream(nn.Module):
    """stem -> ReLU -> two blocks of conv1 -> ReLU -> conv2, added to the stream -> classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 1, bias=False), nn.ReLU()
        self.conv1 = nn.ModuleList([nn.Conv2d(8, 5, 3, padding=1, bias=False) for _ in range(2)])
        self.conv2 = nn.ModuleList([nn.Conv2d(5, 8, 3, padding=1, bias=False) for _ in range(2)])
        self.head, self.flatten = nn.Conv2d(8, 4, 8), nn.Flatten()

    def forward(self, x):
        x = self.relu(self.stem(x))
        for conv1, conv2 in zip(self.conv1, self.conv2, strict=True):
            x = conv2(self.relu(conv1(x))) + x
        return self.flatten(self.head(x))


@pytest.mark.parametrize("seed", range(12))
def test_unused_paths_of_a_residual_stream_follow_the_papers_rule(seed):
    """The rule as stated (producers, consumers, before and after), iterated on the weights until nothing changes."""
    torch.manual_seed(seed)
    net = Stream().eval()
    with torch.no_grad():
        for conv in list(layers(net).values()):
            conv.weight *= (torch.rand(conv.weight.shape[:2]) > 0.75)[..., None, None]
    found = removable(net, EXAMPLE, through_sign=False)
    producers = [net.stem, net.conv2[0], net.conv2[1]]  # producer i comes before consumer j where i <= j
    consumers = [net.conv1[0], net.conv1[1], net.head]
    with torch.no_grad():
        for _ in range(20):
            for i, producer in enumerate(producers):
                for k in range(8):
                    if not any(consumer.weight[:, k].any() for consumer in consumers[i:]):
                        producer.weight[k] = 0
            for j, consumer in enumerate(consumers):
                for k in range(8):
                    if not any(producer.weight[k].any() for producer in producers[: j + 1]):
                        consumer.weight[:, k] = 0
            for conv1, conv2 in zip(net.conv1, net.conv2, strict=True):  # inside a block: a plain chain
                for k in range(5):
                    if not conv2.weight[:, k].any() or not conv1.weight[k].any():
                        conv1.weight[k], conv2.weight[:, k] = 0, 0
    for name, conv in layers(net).items():
        if conv is not net.head:
            assert found[name].rows_removed.tolist() == (~conv.weight.flatten(1).any(1)).tolist(), name
        if conv is not net.stem:
            empty = ~conv.weight.transpose(0, 1).flatten(1).any(1)
            assert found[name].cols_removed.tolist() == empty.tolist() or not conv.weight.any(), name


def test_a_declared_filter_is_dead_beyond_its_sign_but_exactly_it_is_plus_one():
    net = build("binary_chain", 0)
    with torch.no_grad():
        net[3].weight[2] = 0
    exact, declared = (removable(net, EXAMPLE, through_sign=t) for t in (False, True))
    assert not exact["3"].rows_removed.any() and not exact["7"].cols_removed.any()
    for what in (declared["3"].rows_removed, declared["5"].rows_removed, declared["7"].cols_removed):
        assert what.nonzero().flatten().tolist() == [2]
    with torch.no_grad():  # once the reader's column is masked as declared, the exact cut may take the filter too
        net[7].weight[:, 2] = 0
    assert removable(net, EXAMPLE, through_sign=False)["3"].rows_removed.nonzero().flatten().tolist() == [2]


def test_a_declared_filter_dies_with_its_bias_where_the_exact_one_lives_on_it():
    net = build("chain", 0)
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 0, 0.5
        net[0].weight[4], net[0].bias[4] = 0, -0.5  # relu(-0.5) is zero: nobody needs it
    exact, declared = (removable(net, EXAMPLE, through_sign=t)["0"].rows_removed for t in (False, True))
    assert exact.nonzero().flatten().tolist() == [4]
    assert declared.nonzero().flatten().tolist() == [3, 4]


def test_in_a_stream_a_channel_dies_only_with_all_its_producers():
    net = build("bireal", 0)
    convs = [net.stem, net.units[0][1], net.units[1][1]]
    for i, conv in enumerate(convs):
        with torch.no_grad():
            conv.weight[1] = 0
        found = removable(net, EXAMPLE, through_sign=True)
        everywhere = i == len(convs) - 1
        assert bool(found["units.2.1"].cols_removed[1]) == everywhere
        assert bool(found["down.1"].cols_removed[1]) == everywhere


def test_a_zero_channel_keeps_its_place_where_a_sign_makes_a_value_of_it():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = (nn.Conv2d(3, 4, 1, bias=False) for _ in range(2))
            self.sign, self.head, self.flatten = Sign(), nn.Conv2d(4, 2, 8), nn.Flatten()

        def forward(self, x):
            return self.flatten(self.head(self.sign(self.left(x) + self.right(x))))

    net = Sum()
    with torch.no_grad():
        net.left.weight[1], net.right.weight[1], net.right.weight[2] = 0, 0, 0
    found = removable(net, EXAMPLE, through_sign=False)
    assert not found["left"].rows_removed.any()  # one operand has to bring channel 1
    assert found["right"].rows_removed.tolist() == [False, True, True, False]


def test_a_filter_whose_batchnorm_is_silent_can_go():
    net = build("chain", 0)
    with torch.no_grad():
        net[3].weight[2], net[3].bias[2] = 0, 0  # constantly zero
        net[3].weight[4], net[3].bias[4] = 0, 1  # constantly one: the next conv reads it
    found = removable(net, EXAMPLE, through_sign=False)
    assert found["2"].rows_removed.nonzero().flatten().tolist() == [2]
    assert found["7"].cols_removed.nonzero().flatten().tolist() == [2]


def test_a_padded_mean_of_a_constant_is_no_constant():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = (nn.Conv2d(3, 2, 1) for _ in range(2))
            self.pool, self.head, self.flatten = nn.AvgPool2d(3, 1, 1), nn.Conv2d(2, 2, 8), nn.Flatten()

        def forward(self, x):
            return self.flatten(self.head(self.pool(self.left(x)) + self.right(x)))

    net = Sum()
    with torch.no_grad():
        for conv, bias in ((net.left, 0.5), (net.right, -0.5)):
            conv.weight[1], conv.bias[1] = 0, bias
    assert not any(found.rows_removed.any() for found in removable(net, EXAMPLE, through_sign=False).values())


def test_flattened_pixels_are_separate_columns_of_one_channel():
    net = build("chain", 0)
    with torch.no_grad():
        net[10].weight.view(6, 7, 9)[:, 4] = 0
        net[10].weight.view(6, 7, 9)[:, 2, :5] = 0
    found = removable(net, EXAMPLE, through_sign=False)
    assert found["7"].rows_removed.nonzero().flatten().tolist() == [4]
    cols = found["10"].cols_removed.view(7, 9)
    assert cols[4].all() and cols[2].tolist() == [True] * 5 + [False] * 4 and cols.sum() == 14


def test_padded_channels_of_an_option_a_shortcut_are_zero():
    net = nn.Sequential(PadShortcut(2, 2, 1), nn.Conv2d(6, 4, 4), nn.Flatten()).eval()
    assert removable(net, EXAMPLE, through_sign=False)["1"].cols_removed.tolist() == [True, True] + [False] * 3 + [True]


def test_analysis_reads_masked_weights_and_leaves_the_model_as_it_was():
    class Mask(nn.Module):
        def forward(self, weight):
            return weight * (torch.arange(len(weight)) != 1).view(-1, 1, 1, 1)

    net = build("chain", 0).train()
    with torch.no_grad():
        net[0].bias[1] = 0
    nn.utils.parametrize.register_parametrization(net[0], "weight", Mask())
    net[4].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert removable(net, EXAMPLE, through_sign=False)["0"].rows_removed.nonzero().flatten().tolist() == [1]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training and net[3].training and not net[4].training


def test_batchnorm_after_looks_through_pools_and_relu_but_not_past_another_reader():
    assert batchnorm_after(build("binary_chain", 0)) == {"0": "1", "3": "5", "7": "8"}
    rectified = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.Flatten())
    assert batchnorm_after(rectified) == {"0": "3"}

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.sign, self.flatten = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Sign(), nn.Flatten()

        def forward(self, x):
            x = self.conv(x)
            return self.flatten(self.bn(x) + self.sign(x))

    assert batchnorm_after(Shared()) == {}


@pytest.mark.parametrize("stranger", [nn.Softplus(), nn.AdaptiveAvgPool2d(3), nn.Conv2d(3, 3, 2, padding="same")])
def test_an_operation_that_no_packed_model_knows_is_named(stranger):
    net = nn.Sequential(stranger, nn.Flatten())
    with pytest.raises(ValueError, match=r"^0: .*(Softplus|AdaptiveAvgPool2d|conv)"):
        removable(net, EXAMPLE, through_sign=False)


def test_a_forward_that_branches_on_values_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="Branching: its forward cannot be traced"):
        trace(Branching())
