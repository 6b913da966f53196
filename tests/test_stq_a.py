"""STQ-A: which filters go, that they are gone for good, and the paper's speed-up arithmetic."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from sparsign.compressors.base import Stage
from sparsign.compressors.parts.transforms import encode_layer
from sparsign.compressors.pruning.cut import attach_channel_masks, remove_filters
from sparsign.compressors.pruning.decide import choose_filters
from sparsign.compressors.pruning.score import separation
from sparsign.compressors.stq_a import STQA
from sparsign.evaluation.pruned_ratio import pruned_ratio
from sparsign.evaluation.theory import BINARY, SCALED
from sparsign.kernels.reference import ReferenceEngine
from sparsign.models.lenet import lenet5
from sparsign.models.resnet import resnet20
from sparsign.models.sign import Sign
from sparsign.models.vgg import vgg11
from sparsign.packing.trace import to_packed
from tests.plain_loop import run, run_stage
from tests.tiny_nets import INPUT, build


def test_global_threshold_takes_the_smallest_scales_of_all_layers_together():
    importance = {"a": torch.tensor([0.1, 0.9, 0.8, 0.7]), "b": torch.tensor([0.2, 0.3, 0.6, 0.5])}
    dead = choose_filters(importance, set(), ratio=0.375, cap=1.0, fewest=1)
    assert dead["a"].tolist() == [True, False, False, False]
    assert dead["b"].tolist() == [True, True, False, False]


def test_exempt_layers_count_in_the_ratio_but_lose_nothing():
    importance = {"first": torch.full((4,), 0.01), "b": torch.tensor([0.2, 0.3, 0.6, 0.5])}
    dead = choose_filters(importance, {"first"}, ratio=0.25, cap=1.0, fewest=1)
    assert not dead["first"].any()
    assert dead["b"].tolist() == [True, True, False, False]


def test_what_a_capped_layer_cannot_give_is_taken_from_the_next_scales():
    importance = {"a": torch.tensor([0.01, 0.02, 0.03, 0.04]), "b": torch.tensor([0.5, 0.6, 0.7, 0.8])}
    dead = choose_filters(importance, set(), ratio=0.5, cap=0.5, fewest=1)
    assert dead["a"].tolist() == [True, True, False, False]
    assert dead["b"].tolist() == [True, True, False, False]


def test_a_layer_keeps_at_least_the_stated_number_of_filters():
    dead = choose_filters({"a": torch.rand(20)}, set(), ratio=0.9, cap=1.0, fewest=16)
    assert dead["a"].sum() == 4


def test_ties_at_the_threshold_still_give_the_asked_count_and_go_to_the_earlier_filter():
    dead = choose_filters({"b": torch.ones(4), "a": torch.ones(10)}, set(), ratio=0.5, cap=1.0, fewest=1)
    assert dead["b"].tolist() == [True] * 3 + [False]
    assert dead["a"].tolist() == [True] * 4 + [False] * 6


@pytest.mark.parametrize("filters, most", [(64, 44), (128, 89), (100, 70)])
def test_a_layer_never_loses_more_than_its_cap(filters, most):
    assert choose_filters({"a": torch.rand(filters)}, set(), 0.95, 0.7, 1)["a"].sum() == most


def test_the_ratio_is_of_all_binary_convs_where_some_have_no_scale_of_their_own():
    """STQ-Nets' authors' block has no BN behind its second conv: what is asked is what metric and report count."""
    torch.manual_seed(0)
    net, method = resnet20(10, 3, 16, "fbin", block="preact"), STQA(pfr=0.2, min_filters=1)
    method.prepare(net, torch.randn(1, 3, 16, 16))
    assert 0 < len(method.gammas(net)) < len(method.layers(net))
    method.start(net, Stage("prune"))
    assert method.metrics(net)["pfr"] == pytest.approx(0.2, abs=0.002)
    packed = to_packed(net.eval(), encode_layer, (3, 16, 16))
    assert pruned_ratio(packed, "filter") == pytest.approx(0.2, abs=0.002)


@pytest.mark.parametrize("ratio, wanted", [(0.29, 29), (0.3, 30), (0.57, 57)])  # 0.29 * 100 is 28.999... in floats
def test_the_count_is_the_floor_of_ratio_times_filters(ratio, wanted):
    assert choose_filters({"a": torch.rand(100)}, set(), ratio, 1.0, 1)["a"].sum() == wanted


def _trained(net, **options):
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,))
    compressor = STQA(min_filters=1, **options)
    model, history = run(compressor, net, images, labels, epochs=1)
    return compressor, model, images, history


NETS = {
    "bireal": lambda: (resnet20(10, 3, 16, "fbin", block="bireal"), {}),
    "resnet_e": lambda: (resnet20(10, 3, 16, "fbin", block="resnet_e"), {}),
    "wbin": lambda: (resnet20(10, 3, 16, "wbin"), {"form": "wbin"}),
}


@pytest.mark.parametrize("net", NETS)
def test_cut_network_answers_as_the_masked_one_and_is_smaller(net):
    model, options = NETS[net]()
    compressor, model, images, _ = _trained(model, pfr=0.4, **options)
    packed = to_packed(model, encode_layer, (3, 16, 16))
    with torch.no_grad():
        logits = model(images)
    assert (ReferenceEngine(packed)(images) - logits).abs().max() < 1e-4 * max(1, logits.abs().max() / 100)
    layers = compressor.layers(model)
    full = sum(layer.weight.shape[0] for layer in layers.values())
    kept = sum(node.codes.codes.shape[0] for node in packed.nodes if node.codes is not None and node.name in layers)
    if net != "wbin":
        assert 1 - kept / full == pytest.approx(int(0.4 * full) / full)
    else:
        assert kept < 0.61 * full  # spreading may take further filters with it


def test_removed_filters_stay_dead_through_finetuning():
    _, model, _, history = _trained(NETS["bireal"]()[0], pfr=0.4)
    assert history["finetune"][-1]["pfr"] == pytest.approx(int(0.4 * 688) / 688, abs=0.06)
    dead = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and (m.weight == 0).any()]
    assert dead
    for norm in dead:
        assert (norm.bias[norm.weight == 0] == 0).all()


def test_removal_behind_a_sign_masks_the_reader_too():
    """sign(0) = +1: without a mask on the next layer's column a removed channel would come back as a constant."""
    torch.manual_seed(0)
    model, compressor = vgg11(10, 3, 32, "fbin"), STQA(pfr=0.3)
    compressor.prepare(model, torch.zeros(1, 3, 32, 32))
    compressor.start(model, Stage("prune"))
    convs = list(compressor.layers(model).values())
    for before, after in pairwise(convs):
        gone = (before.weight == 0).flatten(1).all(1)
        assert (after.weight[:, gone] == 0).all()
    assert any((c.weight == 0).flatten(1).all(1).any() for c in convs)


def test_a_removed_filter_takes_the_depthwise_filters_that_read_it():
    net = build("depthwise", 0)
    attach_channel_masks(net)
    remove_filters(net, torch.zeros(1, *INPUT), {"0": torch.arange(6) == 2})
    assert (~net[3].weight.flatten(1).any(dim=1)).nonzero().flatten().tolist() == [4, 5]
    assert (net[4].weight == 0).nonzero().flatten().tolist() == [4, 5] and not net[4].bias[4:6].any()
    assert (~net[6].weight.flatten(2).any(dim=(0, 2))).nonzero().flatten().tolist() == [4, 5]


def test_first_binary_layer_is_never_pruned():
    compressor, model, _, _ = _trained(NETS["bireal"]()[0], pfr=0.5)
    first = next(iter(compressor.layers(model).values()))
    assert (first.weight != 0).all()


def test_penalty_is_beta_times_the_sum_of_scales_and_gamma_alone_gets_its_gradient():
    model, compressor = resnet20(10, 3, 16, "fbin"), STQA(beta=0.5)
    norms = {n: m.weight for n, m in model.named_modules() if "layer" in n and n.endswith(("bn1", "bn2"))}
    assert len(norms) == 18
    for gamma in norms.values():
        gamma.data.normal_()
    compressor.prepare(model, torch.zeros(1, 3, 16, 16))
    penalty = compressor.penalty(model, Stage("pretrain"))
    expected = 0.5 * sum(gamma.detach().double().abs().sum().item() for gamma in norms.values())
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    for name, gamma in norms.items():
        assert torch.equal(model.get_submodule(name).parametrizations.weight.original.grad, 0.5 * gamma.sign())
    touched = {n for n, p in model.named_parameters() if p.grad is not None}
    assert touched == {f"{name}.parametrizations.weight.original" for name in norms}
    assert compressor.penalty(model, Stage("finetune")) is None


@pytest.mark.parametrize(
    "options, pruned",
    [
        ({"min_filters": 1}, [0, 7, 7]),  # 15 of 30 asked; the first layer is exempt, the cap is 70 %
        ({"min_filters": 1, "exempt_layers": 0}, [7, 7, 1]),
        ({"min_filters": 1, "exempt_layers": 0, "layer_cap": 1.0}, [9, 6, 0]),
        ({"min_filters": 6, "exempt_layers": 0}, [4, 4, 4]),
        ({"min_filters": 1, "exempt_layers": 2}, [0, 0, 7]),
    ],
)
def test_limits_of_a_layer_are_options(options, pruned):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Sign())
    for index, inputs in enumerate((4, 10, 10)):
        net.extend([nn.Conv2d(inputs, 10, 3, padding=1), nn.BatchNorm2d(10), Sign()])
        net[-2].weight.data.uniform_(-1, 1).add_(3 * index + 2)  # every layer's scales above those of the one before
    net.extend([nn.Flatten(), nn.Linear(40, 3)])
    compressor = STQA(pfr=0.5, **options)
    compressor.prepare(net, torch.zeros(1, 3, 2, 2))
    compressor.start(net, Stage("prune"))
    assert [(~net[i].weight.flatten(1).any(dim=1)).sum().item() for i in (3, 6, 9)] == pruned
    assert compressor.metrics(net)["pfr"] == pytest.approx(sum(pruned) / 30)


def test_scale_gives_every_filter_its_mean():
    model = resnet20(10, 3, 16, "fbin")
    expected = model.layer1[0].conv1.weight.detach().flatten(1).abs().mean(dim=1)
    STQA(scale=True).prepare(model, torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(model.layer1[0].conv1.weight.abs().amax(dim=(1, 2, 3)), expected)


def test_refuses_a_network_whose_convs_have_no_scale_behind_them():
    with pytest.raises(ValueError, match=r"^compressor=stq_a prunes by BN scales: no binary conv .*BN that has one$"):
        STQA().prepare(lenet5(10, 3, 16, "wbin"), torch.zeros(1, 3, 16, 16))


def test_a_norm_without_a_scale_scores_no_filter():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Sign(), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8, affine=False), Sign(),
        nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    stqa = STQA(exempt_layers=0)
    stqa.prepare(model, torch.zeros(1, 1, 8, 8))
    assert list(stqa.gammas(model)) == ["6"]
    model[7] = nn.BatchNorm2d(8, affine=False)
    with pytest.raises(ValueError, match=r"^compressor=stq_a prunes by BN scales"):
        STQA(exempt_layers=0).prepare(model, torch.zeros(1, 1, 8, 8))


def test_penalty_drives_some_scales_to_zero_and_leaves_others():
    """Bimodal scales: with the penalty a part of the scales collapses while the largest stay (stand-in data)."""
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 8, 8), torch.randint(0, 4, (64,))
    images += labels.view(-1, 1, 1, 1) * 0.5
    spread = {}
    for beta in (0.0, 2e-2):
        torch.manual_seed(0)
        model, compressor = resnet20(10, 3, 8, "fbin"), STQA(beta=beta)
        compressor.prepare(model, images[:1])
        run_stage(compressor, model.train(), Stage("pretrain"), images, labels, epochs=30, lr=0.1)
        pooled = torch.cat(list(compressor.gammas(model).values())).detach()
        spread[beta] = (pooled < 0.1).float().mean().item(), pooled.max().item()
    assert spread[2e-2][0] > 0.05 > spread[0.0][0]
    assert spread[2e-2][1] > 0.5


def test_separation_is_known_for_known_spreads():
    grid = (torch.arange(100_000) + 0.5) / 100_000
    assert separation(torch.erfinv(2 * grid - 1)) == pytest.approx(2 / math.pi, abs=1e-3)
    assert separation(grid[torch.randperm(100_000)]) == pytest.approx(0.75, abs=1e-3)
    assert separation(torch.tensor([0.1] * 30 + [0.9] * 70)) == pytest.approx(1.0)
    assert separation(torch.ones(5)) == 0.0


@pytest.mark.parametrize(
    "s1, pfr, printed", [(BINARY, 0.19, 79), (SCALED, 0.30, 83), (BINARY, 0.28, 89), (BINARY, 0.30, 91)]
)
def test_theoretical_speedups_of_the_paper(s1, pfr, printed):
    assert printed in (int(s1 / (1 - pfr)), round(s1 / (1 - pfr)))


def test_refuses_options_out_of_range():
    with pytest.raises(ValueError, match=r"compressor\.pfr=1\.7: expected a value in \[0, 1\)"):
        STQA(pfr=1.7)
