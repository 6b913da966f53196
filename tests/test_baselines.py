"""The methods without the four papers' own machinery, and STQ-A, as training methods on a tiny network."""

import pytest
import torch
from plain_loop import run, run_stage
from resume import assert_resumes
from torch import nn

from sparsign.compressors.base import Stage
from sparsign.compressors.bnn import BNN
from sparsign.compressors.bwn import BWN
from sparsign.compressors.ec2t import EC2T
from sparsign.compressors.msf import MSF
from sparsign.compressors.parts.trained_ternary import TrainedTernary
from sparsign.compressors.parts.transforms import encode_layer, find, latent, scaled, transforms
from sparsign.compressors.pruning.decide import least
from sparsign.compressors.stq_a import STQA
from sparsign.compressors.stq_b import STQB
from sparsign.compressors.subsidiary import FilterSearch, Subsidiary
from sparsign.compressors.ttq import TTQ
from sparsign.compressors.twn import TWN, Ternary
from sparsign.models.sign import Sign

METHODS = {
    "bnn": BNN,
    "bwn": BWN,
    "stq_a": lambda: STQA(pfr=0.3, min_filters=1),
    "twn": TWN,
    "ttq": TTQ,
    "ttq_zeros": lambda: TTQ(zeros=0.5, init="one"),
    "ec2t": EC2T,
    "msf": lambda: MSF(pfr=0.4),
    "subsidiary": lambda: Subsidiary(alpha_s=1e-3),
}
INNER = (3, 6)


def make_model():
    """conv 1-6 (float) | 6-10 3x3 | 10-8 1x1 | linear (float)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        Sign(),
        nn.Conv2d(6, 10, 3, padding=1, bias=False),
        nn.BatchNorm2d(10),
        Sign(),
        nn.Conv2d(10, 8, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.fixture
def data():
    """Three classes that differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    return torch.randn(48, 1, 5, 5, generator=generator) + labels.view(-1, 1, 1, 1) - 1.0, labels


@pytest.fixture(params=METHODS)
def make_compressor(request):
    return METHODS[request.param]


def test_trains_through_all_stages_to_exact_codes(make_compressor, data):
    torch.manual_seed(0)
    images, labels = data
    model, history = run(make_compressor(), make_model(), images, labels, epochs=6, lr=0.05)
    assert all(len(rows) == 6 for rows in history.values())
    assert (model(images).argmax(1) == labels).float().mean() > 0.6
    for index in (0, 10):
        assert encode_layer(model[index]) is None
    for index in INNER:
        codes, scale = encode_layer(model[index])
        assert torch.equal(scaled(codes, scale), model[index].weight)
        assert codes.abs().max() == 1


def test_resumes_in_mid_stage(make_compressor, data):
    assert_resumes(make_compressor, make_model, *data)


@pytest.mark.parametrize("make", [BNN, BWN, MSF, STQA, lambda: STQB(min_channels=1), Subsidiary])
def test_binary_methods_clip_latent_weights(make, data):
    torch.manual_seed(0)
    compressor, model = make(), make_model()
    compressor.prepare(model, data[0][:1])
    run_stage(compressor, model, compressor.stages(model)[0], *data, epochs=2, lr=50.0)
    assert latent(model[3]).abs().max() == 1
    assert latent(model[0]).abs().max() > 1  # a float layer is not clipped


@pytest.mark.parametrize("method", [BNN, BWN, MSF, STQA, STQB])
def test_binary_networks_train_as_the_paper_says(method):
    """Adam, no weight decay, cosine over 300 epochs; the prune stage of STQ-A and MSF only decides."""
    for kind in method.STAGES:
        recipe = method().recipe(Stage(kind))
        assert (recipe.optimizer, recipe.weight_decay, recipe.decay) == ("adam", 0.0, "cosine")
        assert recipe.epochs == (0 if kind == "prune" else 300)


@pytest.mark.parametrize(("method", "decay"), [(TWN, 1e-4), (TTQ, 2e-4)])
def test_ternary_networks_train_as_their_papers_say(method, decay):
    for kind in method.STAGES:
        recipe = method().recipe(Stage(kind))
        assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, decay)


@pytest.mark.parametrize(("make", "kind"), [(TWN, Ternary), (TTQ, TrainedTernary)])
def test_pretrain_is_float_and_quantize_starts_from_its_weights(make, kind, data):
    torch.manual_seed(0)
    compressor, model = make(), make_model()
    compressor.prepare(model, data[0][:1])
    pretrain, quantize = compressor.stages(model)
    assert (pretrain.name, quantize.name) == ("pretrain", "quantize")
    run_stage(compressor, model, pretrain, *data, epochs=1, lr=0.05)
    weight = latent(model[3]).detach().clone()
    assert torch.equal(model[3].weight, weight) and weight.unique().numel() > 3
    compressor.start(model, quantize)
    assert torch.equal(latent(model[3]), weight)
    assert model[3].weight.unique().numel() == 3
    assert find(model[3], kind).active
    assert not transforms(model[0])


@pytest.mark.parametrize(("init", "expected"), [("mean", None), ("one", 1.0)])
def test_ttq_first_scales(init, expected):
    torch.manual_seed(0)
    compressor, model = TTQ(t=0.2, init=init), make_model()
    compressor.prepare(model, torch.zeros(1, 1, 5, 5))
    compressor.start(model, compressor.stages(model)[1])
    weight = latent(model[3]).detach().double()
    delta = 0.2 * weight.abs().max()
    positive = expected or weight[weight > delta].mean().item()
    negative = expected or -weight[weight < -delta].mean().item()
    assert model[3].weight.max().item() == pytest.approx(positive, rel=1e-5)
    assert model[3].weight.min().item() == pytest.approx(-negative, rel=1e-5)


def test_ttq_trains_its_scales(data):
    torch.manual_seed(0)
    _, history = run(TTQ(), make_model(), *data, epochs=3, lr=0.05)
    assert history["pretrain"] == [{}] * 3
    scales = [row["ttq_positive_scale"] for row in history["quantize"]]
    assert len(scales[0]) == len(INNER) and scales[0] != scales[2]


def test_least_counts_and_ties():
    assert least(torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0]), 0.4).tolist() == [False, True, False, True, False]
    assert least(torch.tensor([3.0, 1.0, 2.0]), 0.99).tolist() == [False, True, True]
    assert not least(torch.ones(4), 0.0).any()


def test_msf_removes_the_filters_of_least_mean_for_good(data):
    torch.manual_seed(0)
    compressor, model = MSF(pfr=0.5), make_model()
    compressor.prepare(model, data[0][:1])
    pretrain, prune, finetune = compressor.stages(model)
    run_stage(compressor, model, pretrain, *data, epochs=1, lr=0.05)
    order = latent(model[3]).detach().double().abs().mean(dim=(1, 2, 3)).argsort()
    dead, alive = order[:5], order[5:]
    run_stage(compressor, model, prune, *data, epochs=0, lr=0.05)
    rows = run_stage(compressor, model, finetune, *data, epochs=2, lr=0.05)
    assert not model[3].weight[dead].any() and model[3].weight[alive].ne(0).all()
    assert not model[4].weight[dead].any() and not model[4].bias[dead].any()  # BN emits exactly zero there
    assert not model[6].weight[:, dead].any()  # and nobody reads sign(0) = +1
    assert rows[-1]["pfr"] == pytest.approx(0.5) and rows[-1]["kept_filters"] == [0.5, 0.5]


@pytest.mark.parametrize(
    "make", [lambda: MSF(pfr=0.5, float_layers=["first"]), lambda: Subsidiary(float_layers=["first"])]
)
def test_the_last_layers_filters_are_the_classes_and_stay(make, data):
    torch.manual_seed(0)
    compressor, model = make(), make_model()
    compressor.prepare(model, data[0][:1])
    for stage in compressor.stages(model):
        run_stage(compressor, model, stage, *data, epochs=0, lr=0.05)
    assert not model[3].weight.flatten(1).any(dim=1).all()
    assert model[10].weight.any(dim=1).all()


@pytest.mark.parametrize("make", [MSF, Subsidiary])
def test_a_network_whose_last_layer_alone_is_binary_has_nothing_to_prune(make, data):
    compressor = make(float_layers=["first", "3", "6"])
    with pytest.raises(ValueError, match="leaves no layer but the last, 10"):
        compressor.prepare(make_model(), data[0][:1])


def test_filter_search_forward_and_gradient():
    """h(m) = 1[m >= 0]; dL/dm_k = 1[|m_k| <= 1] sum over the filter of g w; dL/dw = g h."""
    torch.manual_seed(0)
    search = FilterSearch((4, 2, 3, 3))
    assert search.m.shape == (4, 1, 1, 1) and search.m.abs().max() <= 1e-4
    m = torch.tensor([0.0, -0.5, 2.0, -2.0])
    search.m.data.copy_(m.view(4, 1, 1, 1))
    weight, grad = torch.randn(4, 2, 3, 3, requires_grad=True), torch.randn(4, 2, 3, 3)
    value = search(weight)
    alive = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(4, 1, 1, 1)
    assert torch.equal(value, weight * alive)
    value.backward(grad)
    assert torch.equal(weight.grad, grad * alive)
    expected = (grad.double() * weight.detach().double()).sum(dim=(1, 2, 3)) * torch.tensor([1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(search.m.grad.flatten().double(), expected, rtol=1e-4, atol=1e-5)


def _searching(alpha_s=1e-8, **options):
    torch.manual_seed(0)
    compressor, model = Subsidiary(alpha_s=alpha_s, **options), make_model()
    compressor.prepare(model, torch.zeros(1, 1, 5, 5))
    return compressor, model


def test_subsidiary_stages_go_bottom_up_through_the_layers():
    compressor, model = _searching()
    names = [stage.name for stage in compressor.stages(model)]
    assert names == ["pretrain", "prune-1", "finetune-1", "prune-2", "finetune-2"]


def test_subsidiary_l0_term_counts_live_filters_and_has_a_gradient():
    compressor, model = _searching(alpha_s=0.25)
    stage = compressor.stages(model)[1]
    assert compressor.penalty(model, compressor.stages(model)[0]) is None
    m = find(model[3], FilterSearch).m
    m.data.copy_(torch.tensor([0.1] * 4 + [-0.1] * 5 + [-3.0]).view(10, 1, 1, 1))
    penalty = compressor.penalty(model, stage)
    assert penalty.item() == pytest.approx(0.25 * 4)
    penalty.backward()
    assert m.grad.flatten().tolist() == [0.25] * 9 + [0.0]


def test_subsidiary_freezes_what_each_stage_must_not_train(data):
    compressor, model = _searching()
    stages = compressor.stages(model)
    masks = [find(model[i], FilterSearch).m for i in INNER]
    trained = [{id(p) for g in compressor.parameters(model, s) for p in g["params"]} for s in stages]
    parameters = dict(model.named_parameters())
    names = [sorted(n for n, p in parameters.items() if id(p) in ids) for ids in trained]
    assert trained[0] == {id(p) for p in parameters.values()} - {id(m) for m in masks}
    assert trained[1] == {id(masks[0])} and trained[3] == {id(masks[1])}
    assert {n.split(".")[0] for n in names[2]} == {"3", "4", "6", "7", "10"}
    assert {n.split(".")[0] for n in names[4]} == {"6", "7", "10"}
    assert not any(n.endswith(".m") for n in names[2] + names[4])


def test_subsidiary_removes_what_the_search_switched_off(data):
    compressor, model = _searching()
    stages = compressor.stages(model)
    model.train()
    run_stage(compressor, model, stages[0], *data, epochs=1, lr=0.05)
    weights = latent(model[3]).detach().clone()
    compressor.start(model, stages[1])
    search = find(model[3], FilterSearch)
    assert 0 < (search.m < 0).sum() < 10  # half of the filters start switched off
    run_stage(compressor, model, stages[1], *data, epochs=3, lr=0.1)
    assert torch.equal(latent(model[3]), weights)
    dead = search.m.flatten() < 0
    assert dead.any() and not search.active
    run_stage(compressor, model, stages[2], *data, epochs=2, lr=0.05)
    assert torch.equal(model[3].weight.flatten(1).any(dim=1), ~dead)
    assert not model[4].bias[dead].any() and not model[6].weight[:, dead].any()
    assert not torch.equal(latent(model[3])[~dead], weights[~dead])


def test_subsidiary_keeps_the_best_filters_of_a_layer_that_would_vanish():
    compressor, model = _searching(min_filters=2)
    stage = compressor.stages(model)[1]
    compressor.start(model, stage)
    find(model[3], FilterSearch).m.data.copy_(-torch.arange(1.0, 11.0).view(10, 1, 1, 1))
    compressor.finish(model, stage)
    assert model[3].weight.flatten(1).any(dim=1).tolist() == [True] * 2 + [False] * 8


def test_subsidiary_schedule_falls_by_a_thousand():
    compressor, model = _searching()
    pretrain, search, finetune = (compressor.recipe(s) for s in compressor.stages(model)[:3])
    assert (search.lr, finetune.lr, search.epochs, search.weight_decay) == (1e-3, 1e-4, 200, 1e-5)
    for epoch in (0, 50, 137, 199):
        passed = sum(epoch / 200 >= m for m in search.milestones)
        assert search.gamma**passed == pytest.approx(1000 ** (-epoch / 200), rel=1e-9)
    assert pretrain.decay == "cosine"
