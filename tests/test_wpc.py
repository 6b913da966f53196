"""WPC against float64 references: groups, penalties and their gradients, both ternarisers, metrics, and the orders."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import run_stage
from resume import assert_resumes
from sklearn.datasets import load_digits
from torch import nn

from sparsign.compressors.base import Recipe, Stage
from sparsign.compressors.parts.threshold_ternary import FixedTernary, TGATernary
from sparsign.compressors.parts.transforms import (
    Mask,
    Quantizer,
    attach,
    encode_layer,
    find,
    latent,
    scaled,
    transformed,
)
from sparsign.compressors.pruning import groups
from sparsign.compressors.wpc import WPC
from sparsign.evaluation.pruned_ratio import pruned_ratio
from sparsign.models.resnet import resnet18
from sparsign.packing.trace import to_packed
from sparsign.pipeline import optim


def make_model():
    """conv 1-8 (float) | 8-12 | 12-10 1x1 | linear (float)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 10, 1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 10),
    )


def digits(count):
    data = load_digits()
    images = torch.tensor(data.images[:count], dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(data.target[:count])


def prepared(**options):
    torch.manual_seed(0)
    model, compressor = make_model(), WPC(**{"group": 4} | options)
    compressor.prepare(model, torch.zeros(1, 1, 8, 8))
    return model, compressor


@pytest.mark.parametrize("channels, g, expected", [(64, 16, 16), (96, 64, 48), (3, 16, 3), (17, 16, 1), (20, 16, 10)])
def test_a_layer_takes_the_largest_divisor(channels, g, expected):
    assert groups.group_channels(channels, g) == expected


@pytest.mark.parametrize("shape, g", [((2, 6, 3, 3), 4), ((3, 7, 1, 1), 4), ((2, 10), 4), ((4, 1, 3, 3), 16)])
def test_group_norms_match_a_loop(shape, g):
    weight = torch.randn(shape, dtype=torch.float64)
    width = groups.group_channels(shape[1], g)
    expected = np.zeros((shape[0], shape[1] // width))
    for index, value in np.ndenumerate(weight.numpy()):
        expected[index[0], index[1] // width] += value**2
    np.testing.assert_allclose(groups.group_norms(weight, g, eps=0.0).numpy(), np.sqrt(expected), rtol=1e-12)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("ratio", [0.3, 0.7, 1.0])
def test_clip_gradient_is_the_formula(detach, ratio):
    weight = torch.randn(6, 8, 3, 3, dtype=torch.float64)
    weight[:3] *= 0.2
    weight[4, :4] = 0
    weight.requires_grad_()
    norms = groups.group_norms(weight, 4)
    groups.penalty(norms, "clip_detached" if detach else "clip", ratio).backward()

    w = weight.detach().numpy().reshape(6, 2, -1)
    n = np.sqrt((w**2).sum(2) + 1e-12)
    delta = ratio * n.mean()
    factor = (n < delta) + (0 if detach else ratio * (n >= delta).sum() / n.size)
    expected = factor[..., None] * w / n[..., None]
    np.testing.assert_allclose(weight.grad.numpy().reshape(6, 2, -1), expected, rtol=1e-9, atol=1e-15)


def test_clip_value_and_lasso_value():
    norms = torch.tensor([[1.0, 2.0], [3.0, 10.0]])  # mean 4, delta 2
    assert groups.penalty(norms, "clip", 0.5).item() == 1 + 2 + 2 + 2
    assert groups.penalty(norms, "lasso", 0.5).item() == 16


# int(16 a) int(G / 16) of the lab's code; below 16 groups floor(a G), and never beyond the last
RANKS = [(64, 0.7, 44), (32, 0.7, 22), (128, 0.7, 88), (16, 0.7, 11), (100, 0.7, 66), (64, 0.35, 20), (10, 0.7, 7)]
RANKS += [(16, 1.0, 15), (1, 0.7, 0)]


@pytest.mark.parametrize("count, ratio, below", RANKS)
def test_rank_threshold_is_at_the_labs_index(count, ratio, below):
    norms = torch.rand(count)
    assert groups.rank_threshold(norms, ratio) == norms.sort().values[below]
    norms.requires_grad_()
    groups.penalty(norms, "rank", ratio).backward()
    assert int(norms.grad.sum()) == below  # so many groups are pulled, the others not at all


def test_mix_takes_the_smaller_of_the_plain_mean_and_the_rank():
    norms = torch.arange(1.0, 33.0, requires_grad=True)  # 35 % rank of 32 norms: index 5 * 2, which is 11; mean 16.5
    value = groups.penalty(norms, "mix", 0.1)  # delta = 11, a constant; a plays no part
    value.backward()
    assert value.item() == sum(range(1, 11)) + 22 * 11
    assert norms.grad.tolist() == [1] * 10 + [0] * 22
    few_small = torch.tensor([0.0] * 8 + [1.0] * 24, requires_grad=True)  # rank: 1; mean 0.75, with its gradient H / G
    value = groups.penalty(few_small, "mix", 0.1)
    value.backward()
    assert value.item() == 24 * 0.75
    assert few_small.grad.tolist() == [1.75] * 8 + [0.75] * 24


def test_fixed_ternary_matches_numpy_and_passes_gradients_inside_one():
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    weight[0, 0, 0, 0] = 2.5
    weight[0, 0, 0, 1] = -0.05 * weight.abs().max()  # on the threshold: part of the support
    layer = FixedTernary().double()
    w = weight.numpy()
    support = np.abs(w) >= 0.05 * np.abs(w).max()
    codes, alpha = layer.encode(weight)
    assert np.array_equal(codes.numpy(), np.sign(w) * support) and codes[0, 0, 0, 1] == -1
    assert alpha.item() == pytest.approx(np.abs(w)[support].mean(), rel=1e-12)

    weight.requires_grad_()
    G = torch.randn_like(weight)
    (layer(weight) * G).sum().backward()
    assert torch.allclose(weight.grad, G * (weight.detach().abs() < 1), rtol=1e-6)


@pytest.mark.parametrize("x", [0.05, 0.5, 1.5, 3.0])
def test_tga_scale_is_the_mean_of_a_gaussian_tail(x):
    weight = torch.randn(40, 50, dtype=torch.float64)
    weight = 0.3 * (weight - weight.mean()) / weight.std(correction=0)
    quantizer = TGATernary().double()
    quantizer.threshold.data.fill_(0.3 * x)
    grid = np.linspace(0.3 * x, 0.3 * (x + 12), 200_001)
    density = np.exp(-((grid / 0.3) ** 2) / 2)
    assert quantizer.encode(weight)[1].item() == pytest.approx((grid * density).sum() / density.sum(), rel=2e-4)


def test_tga_gradients():
    weight = (0.2 * torch.randn(8, 9, dtype=torch.float64)).requires_grad_()
    quantizer = TGATernary().double()
    quantizer.initialise(weight, 0.3)
    assert quantizer.threshold.item() == pytest.approx(0.3 * weight.abs().max().item())
    G = torch.randn(8, 9, dtype=torch.float64)
    (quantizer(weight) * G).sum().backward()
    assert torch.equal(weight.grad, G)

    def alpha(shift):
        mu, sigma = weight.mean().item(), weight.std(correction=0).item()
        x = (quantizer.threshold.item() + shift) / sigma
        tail = 0.5 * math.erfc(x / math.sqrt(2))
        return mu + sigma * math.exp(-x * x / 2) / math.sqrt(2 * math.pi) / tail

    codes, _ = quantizer.encode(weight)
    slope = (alpha(1e-6) - alpha(-1e-6)) / 2e-6
    assert quantizer.threshold.grad.item() == pytest.approx((G * codes).sum().item() * slope, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(1, 1), (3, 5), (4, 7, 3, 3), (5, 2, 1, 1)]),
    ternariser=st.sampled_from([FixedTernary, TGATernary]),
    spread=st.floats(1e-6, 1e3),
    empty=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_weight_equals_scale_times_codes_exactly(shape, ternariser, spread, empty, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:])
    attach(layer, ternariser(), Mask((*shape[:2], *[1] * (len(shape) - 2))))
    latent(layer).data.mul_(spread)
    if ternariser is TGATernary:
        find(layer, Quantizer).initialise(latent(layer), 0.05)
    if empty:
        find(layer, Mask).mask[0] = 0
    codes, scale = encode_layer(layer)
    assert codes.abs().max() <= 1 and torch.equal(scaled(codes, scale), layer.weight)
    assert not empty or not codes[0].any()


def test_an_all_zero_layer_stays_zero_and_finite():
    layer = nn.Conv2d(4, 4, 3)
    nn.init.zeros_(layer.weight)
    attach(layer, FixedTernary())
    assert not layer.weight.any()
    groups.group_norms(latent(layer), 4).sum().backward()
    assert latent(layer).grad.isfinite().all()


# (density, s_min) -> rate, from the lab's notebooks and the headline's arithmetic
@pytest.mark.parametrize(
    "density, s_min, rate", [(0.7648, 0, 20.92), (0.9334, 0.2168, 21.89), (0.6907, 0, 23.16), (0.762, 0, 21.0)]
)
def test_compression_rate(density, s_min, rate):
    assert groups.compression_rate(density, s_min) == pytest.approx(rate, abs=0.01)


def test_no_surviving_group_has_an_infinite_rate_that_is_not_logged():
    assert groups.compression_rate(0.0, 0.0) == math.inf
    model, compressor = prepared()
    for _, layer in transformed(model):
        latent(layer).data.zero_()
    metrics = compressor.metrics(model)
    assert metrics["group_density"] == 0 and "compression_rate" not in metrics


def test_metrics_count_groups_filters_and_zeros():
    codes = torch.zeros(4, 6, 1, 1)  # groups of 3 channels: 8 groups, 4 filters
    codes[0, :3] = 1
    codes[1, 0] = -1
    codes[1, 3:5] = 1
    assert groups.group_density([codes], 3) == 3 / 8
    assert groups.filter_density([codes]) == 2 / 4
    assert groups.smallest_sparsity([codes], 3) == 0
    codes[0, 0] = 0
    assert groups.smallest_sparsity([codes], 3) == pytest.approx(1 / 3)
    model, compressor = prepared()
    metrics = compressor.metrics(model)
    expected = 16 / (metrics["group_density"] * (1 - metrics["s_min"]))
    assert metrics["compression_rate"] == pytest.approx(expected)
    assert metrics["max_weight"] == pytest.approx(sum(latent(model[i]).abs().max().item() for i in (3, 7)) / 2)


@pytest.mark.parametrize(
    "order, names, penalised, ternary",
    [
        ("joint", "pretrain quantize finetune", ["quantize"], ["quantize", "finetune"]),
        ("prune_then_ternarise", "pretrain prune quantize finetune", ["prune"], ["quantize", "finetune"]),
        ("ternarise_then_prune", "pretrain quantize prune finetune", ["prune"], ["quantize", "prune", "finetune"]),
    ],
)
def test_orders(order, names, penalised, ternary):
    model, compressor = prepared(order=order, finetune=True)
    stages = compressor.stages(model)
    assert [s.name for s in stages] == names.split()
    for stage in stages:
        compressor.start(model, stage)
        assert (compressor.penalty(model, stage) is not None) == (stage.name in penalised)
        assert (encode_layer(model[3]) is not None) == (stage.name in ternary)
        compressor.finish(model, stage)
    assert encode_layer(model[0]) is None and encode_layer(model[12]) is None


def test_penalty_counts_compressed_layers_only():
    model, compressor = prepared(penalty_kind="lasso", lambda_=0.5)
    expected = 0.0
    for index, width in ((3, 4), (7, 4)):
        w = latent(model[index]).detach().double()
        expected += w.view(w.shape[0], -1, width * w[0, 0].numel()).norm(dim=2).sum().item()
    assert compressor.penalty(model, Stage("quantize")).item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_an_unpenalised_layer_is_ternary_but_not_pulled():
    model, compressor = prepared(penalty_kind="lasso", unpenalised=["^7$"])
    compressor.start(model, Stage("quantize"))
    compressor.penalty(model, Stage("quantize")).backward()
    assert latent(model[3]).grad.any() and latent(model[7]).grad is None
    assert encode_layer(model[7]) is not None
    with pytest.raises(ValueError, match=r"compressor.unpenalised=\['.'\]: leaves no layer"):
        prepared(unpenalised=["."])


def test_the_report_counts_groups_and_filters_as_training_does():
    model, compressor = prepared()  # 12 x 2 and 10 x 3 groups of four channels, 22 filters
    latent(model[3]).data[2] = 0
    latent(model[3]).data[5, 4:] = 0
    compressor.start(model, Stage("quantize"))
    packed, metrics = to_packed(model.eval(), encode_layer, (1, 8, 8)), compressor.metrics(model)
    pruned = pruned_ratio(packed, compressor.PFR_UNIT, compressor.group)
    assert 1 - pruned == pytest.approx(metrics["group_density"]) == pytest.approx(1 - 3 / 54)
    assert 1 - pruned_ratio(packed, "filter") == pytest.approx(metrics["filter_density"]) == pytest.approx(1 - 1 / 22)


def test_the_labs_alternative_exempts_downsample_and_first_convs_of_resnet18():
    with torch.device("meta"):
        model = resnet18(1000, 3, 224, "float")
        convs = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        compressor = WPC(group=64, unpenalised=["downsample", "layer[234].0.conv1"])
        compressor.prepare(model, torch.zeros(1, 3, 224, 224))
        compressor.penalty(model, Stage("quantize")).backward()
    exempt = [k for k, name in enumerate(convs) if latent(model.get_submodule(name)).grad is None]
    assert exempt == [0, 5, 7, 10, 12, 15, 17]  # the indices in the lab's code; 0 is float


def test_clipping_keeps_large_weights_that_the_naive_lasso_shrinks():
    images, labels = digits(96)
    last = {}
    for kind in ("clip_detached", "lasso"):
        model, compressor = prepared(penalty_kind=kind, lambda_=0.2)
        last[kind] = run_stage(compressor, model.train(), Stage("quantize"), images, labels, epochs=6, lr=0.02)[-1]
    assert last["clip_detached"]["max_weight"] > 1.2 * last["lasso"]["max_weight"]
    assert last["clip_detached"]["norm_spread"] > 1.5 * last["lasso"]["norm_spread"]


def test_joint_training_zeroes_whole_groups_and_finetuning_keeps_them():
    images, labels = digits(96)
    model, compressor = prepared(lambda_=0.05, finetune=True)
    latent(model[3]).data[2, 4:] *= 0.2
    assert compressor.metrics(model)["group_density"] == 1
    history = {
        stage.name: run_stage(compressor, model.train(), stage, images, labels, epochs=5, lr=0.02)
        for stage in compressor.stages(model)
    }
    density = history["quantize"][-1]["group_density"]
    assert density < 1
    for _, layer in transformed(model):
        gone = find(layer, Mask).mask.expand_as(layer.weight) == 0
        assert not layer.weight[gone].any() and not latent(layer)[gone].any()
    assert history["finetune"][-1]["group_density"] <= density


def test_sequential_pruning_drops_the_groups_below_the_tolerance_for_good():
    images, labels = digits(64)
    model, compressor = prepared(order="prune_then_ternarise")
    latent(model[3]).data[2, 4:] = 1e-7
    latent(model[3]).data[5, 0, 0, 0] = 1e-7
    compressor.start(model, Stage("prune"))
    compressor.finish(model, Stage("prune"))
    run_stage(compressor, model.train(), Stage("quantize"), images, labels, epochs=2, lr=0.1)
    mask = find(model[3], Mask).mask.flatten(1)
    assert not model[3].weight[2, 4:].any() and model[3].weight[2, :4].any()
    assert mask.sum() == mask.numel() - 4


@pytest.mark.parametrize("optimizer_name", ["sgd", "adam"])
def test_tga_threshold_has_its_own_sgd_and_stays_within_three_sigma(optimizer_name):
    model, compressor = prepared(ternariser="tga", threshold_lr=0.5)
    assert len(compressor.parameters(model, Stage("pretrain"))) == 1
    stage = Stage("quantize")
    compressor.start(model, stage)
    weights, own = compressor.parameters(model, stage)
    assert (own["lr"], own["momentum"], own["weight_decay"]) == (0.5, 0.0, 0.0) and len(own["params"]) == 2
    assert len(weights["params"]) + 2 == len(list(model.parameters()))
    own["params"][0].grad = torch.tensor(7.0)
    compressor.before_step(model, stage)
    assert own["params"][0].grad.item() == pytest.approx(1e-3)
    before, others = own["params"][0].item(), [p.detach().clone() for p in weights["params"]]
    for p in weights["params"]:
        p.grad = torch.full_like(p, 3.0)
    recipe = Recipe(epochs=1, optimizer=optimizer_name, lr=1e-4, weight_decay=0, momentum=0.0, nesterov=False)
    optim.optimizer(recipe, [weights, own]).step()
    assert before - own["params"][0].item() == pytest.approx(0.5 * 1e-3, rel=1e-3)
    moved = 1e-4 * (1 if optimizer_name == "adam" else 3)  # Adam's first step is the rate, whatever the gradient
    assert all(
        torch.allclose(b - p, torch.tensor(moved), rtol=1e-2) for p, b in zip(weights["params"], others, strict=True)
    )
    own["params"][0].data.fill_(100.0)
    compressor.after_step(model, stage)
    assert own["params"][0].item() == pytest.approx(3 * latent(model[3]).std(correction=0).item())


def test_recipe_follows_the_labs_steps():
    recipe = WPC().recipe(Stage("quantize"))
    assert (recipe.epochs, recipe.lr, recipe.weight_decay) == (200, 0.01, 5e-4)
    assert [m * recipe.epochs for m in recipe.milestones] == [80, 120, 160] and recipe.gamma == (0.1, 0.1, 0.5)
    recipe = WPC(protocol="imagenet").recipe(Stage("quantize"))
    assert (recipe.optimizer, recipe.epochs, recipe.lr) == ("adam", 50, 1e-4)
    assert [m * recipe.epochs for m in recipe.milestones] == [30, 40, 45]


@pytest.mark.parametrize(
    "options",
    [
        {"finetune": True},
        {"order": "prune_then_ternarise", "tolerance": 0.05},
        {"ternariser": "tga", "penalty_kind": "rank"},
    ],
)
def test_resumes_in_mid_stage(options):
    assert_resumes(lambda: WPC(group=4, **options), make_model, *digits(48))


@pytest.mark.parametrize("option", ["float_layers", "unpenalised"])
def test_a_broken_pattern_names_its_option(option):
    with pytest.raises(ValueError, match=rf"compressor\.{option}=\['\(layer'\]: expected regular expressions") as error:
        prepared(**{option: ["(layer"]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"group": 0}, {"penalty_kind": "l1"}, {"clip_ratio": 0.0}, {"order": "both"}])
def test_wrong_options_name_the_option_and_the_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"compressor.{name}=.*expected"):
        WPC(**options)
