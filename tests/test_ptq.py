"""PTQ against float64 references: codes and scales, the four estimators, ramp, projection, and what training does."""

import json
import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import run_stage
from resume import assert_resumes
from sklearn.datasets import load_digits
from torch import nn

from sparsign import train
from sparsign.compressors.base import Stage
from sparsign.compressors.parts.sphere import cosine, kept, project, prune
from sparsign.compressors.parts.transforms import (
    Mask,
    UnitNorm,
    attach,
    encode_layer,
    find,
    latent,
    scaled,
    transformed,
)
from sparsign.compressors.parts.unit_ternary import UnitTernary
from sparsign.compressors.ptq import PTQ
from sparsign.models.resnet import resnet18
from sparsign.packing.size import compressed_code_bytes, total_size
from sparsign.packing.trace import to_packed


def make_model():
    """conv 1-8 (float) | 8-16 with BN | depthwise 16 with BN | 16-12 without BN | linear."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 12, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


def digits(count):
    data = load_digits()
    images = torch.tensor(data.images[:count], dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(data.target[:count])


def prepared(seed=0, **options):
    torch.manual_seed(seed)
    model, compressor = make_model(), PTQ(**options)
    compressor.prepare(model, torch.zeros(1, 1, 8, 8))
    return model, compressor


def at(model, compressor, *stages):
    """Walks through the stages without a training step."""
    for name in stages:
        compressor.start(model, Stage(name))
        compressor.finish(model, Stage(name))
    return model


def test_codes_and_scale_match_a_numpy_reference():
    model, compressor = prepared(pfr=0.7)
    at(model, compressor, "prune").double()
    compressor.start(model, Stage("quantize"))
    for _, layer in transformed(model):
        codes, scale = encode_layer(layer)
        u = latent(layer).detach().numpy() * find(layer, Mask).mask.numpy()
        gain = find(layer, UnitTernary).gain
        for f in range(len(u)):
            k = np.count_nonzero(u[f])
            assert np.array_equal(codes[f].numpy(), np.sign(u[f]))
            expected = (1.0 if gain is None else gain.item()) / math.sqrt(k) if k else scale[f].item()
            assert scale[f].item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("estimator", ["R0", "R1", "R2", "R3"])
def test_latent_gradient_is_the_papers(estimator):
    model, compressor = prepared(pfr=0.6, estimator=estimator, lambda_=0.3)
    at(model.double(), compressor, "prune")
    compressor.start(model, Stage("quantize"))
    layer = model[3]
    G = torch.randn(layer.weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ((layer.weight * G).sum() + compressor.penalty(model, Stage("quantize"))).backward()

    m, u = find(layer, Mask).mask.double().numpy(), latent(layer).detach().numpy()
    lam, expected = 0.3, np.zeros_like(u)
    for f in range(len(u)):
        g, uf, mf = G[f].numpy().ravel(), u[f].ravel(), m[f].ravel()
        k = np.count_nonzero(mf)
        hat = np.sign(uf) / math.sqrt(k)
        pull = uf if estimator == "R0" else uf - hat
        if estimator == "R2":
            g = mf * g - uf * (uf @ g)
        if estimator == "R3":
            g = g * np.abs(uf) * math.sqrt(k)
        expected[f] = (mf * (g + lam * pull)).reshape(u[f].shape)
    np.testing.assert_allclose(latent(layer).grad.numpy(), expected, atol=1e-7)  # eps of the norm: 1e-8


def test_the_pull_rises_to_lambda_by_the_end_of_the_stage():
    model, compressor = prepared(pfr=0.6, lambda_=0.3, lambda_ramp=3)
    at(model, compressor, "prune")
    compressor.start(model, Stage("quantize"))
    penalties = []
    for epoch in range(4):
        compressor.before_epoch(model, Stage("quantize"), epoch, 4)
        penalties.append(compressor.penalty(model, Stage("quantize")).item())
    u, hat = zip(
        *((latent(m) * find(m, Mask).mask, scaled(*encode_layer(m))) for _, m in transformed(model)), strict=True
    )
    gains = [find(m, UnitTernary).gain for _, m in transformed(model)]
    squares = sum(((a - b / (1 if g is None else g)) ** 2).sum().item() for a, b, g in zip(u, hat, gains, strict=True))
    np.testing.assert_allclose(penalties, [0.15 * squares * x for x in (1 / 64, 1 / 8, 27 / 64, 1)], rtol=1e-5)


def test_gain_is_exact_and_scales_the_weight_gradient():
    weight = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    quantizer = UnitTernary(gain=True, active=True).double()
    quantizer.gain.data.fill_(2.5)
    G = torch.randn(4, 9, dtype=torch.float64)
    (quantizer(weight) * G).sum().backward()
    assert torch.allclose(weight.grad, 2.5 * G)
    assert torch.allclose(quantizer.gain.grad, (G * weight.detach().sign() / 3).sum())


def test_only_layers_without_batchnorm_have_a_gain():
    model, _ = prepared(depthwise="ternary")
    gains = {name: find(layer, UnitTernary).gain is not None for name, layer in transformed(model)}
    assert gains == {"3": False, "7": False, "10": True, "14": True}


def test_depthwise_option_and_float_first():
    model, _ = prepared()
    assert [name for name, _ in transformed(model)] == ["3", "10", "14"]
    assert encode_layer(model[0]) is None and encode_layer(model[7]) is None


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(1, 1), (3, 5), (4, 3, 3, 3), (5, 2, 1, 1), (2, 7, 3, 1)]),
    ratio=st.floats(0, 0.99),
    delta=st.sampled_from(["support", "twn"]),
    gain=st.booleans(),
    empty=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_weight_equals_scale_times_codes_exactly(shape, ratio, delta, gain, empty, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:])
    attach(layer, Mask(shape), UnitNorm(), UnitTernary(delta, gain=gain, active=True))
    prune(layer, ratio)
    if empty:
        find(layer, Mask).mask[0] = 0
    if gain:
        find(layer, UnitTernary).gain.data.fill_(0.123)
    project(layer)
    codes, scale = encode_layer(layer)
    assert codes.abs().max() <= 1 and torch.equal(scaled(codes, scale), layer.weight)
    assert not empty or not layer.weight[0].any()
    assert layer.weight.isfinite().all()
    layer.weight.sum().backward()
    assert latent(layer).grad.isfinite().all()


def test_twn_delta_zeroes_the_small_survivors():
    u = torch.tensor([[0.9, 0.1, -0.4, 0.0], [0.0, -0.5, 0.2, 0.8]])
    survivors = u[u != 0].abs()
    codes, scale = UnitTernary("twn").encode(u)
    assert torch.equal(codes, u.sign() * (u.abs() > 0.7 * survivors.mean()))
    assert torch.allclose(scale.flatten(), torch.tensor([2.0, 2.0]).rsqrt())


def test_ramp_is_cubic():
    compressor = PTQ(pfr=0.9)  # 60 % of 10 epochs: T = 6
    assert compressor.ratio(0, 10) == pytest.approx(0.3)
    assert compressor.ratio(3, 10) == pytest.approx(0.9 - 0.6 * 0.125)
    assert [compressor.ratio(e, 10) for e in (6, 7, 9)] == [0.9, 0.9, 0.9]
    assert PTQ(pfr=0.2).ratio(0, 10) == pytest.approx(0.2)


@settings(deadline=None, max_examples=50)
@given(epochs=st.integers(1, 300), pfr=st.floats(0, 0.99), ramp=st.floats(0, 1))
def test_ramp_rises_and_ends_at_the_ratio(epochs, pfr, ramp):
    ratios = [PTQ(pfr=pfr, ramp=ramp).ratio(e, epochs) for e in range(epochs)]
    assert ratios[-1] == pfr and all(a <= b + 1e-12 for a, b in pairwise(ratios))


def test_masked_weights_regrow_during_the_ramp_and_stay_masked_after():
    model, compressor = prepared(pfr=0.5, start_ratio=0.5)
    stage, layer = Stage("prune"), model[3]
    compressor.start(model, stage)
    compressor.before_epoch(model, stage, 0, 10)
    find_mask = find(layer, Mask).mask
    gone = (find_mask.flatten() == 0).nonzero()[0]

    compressor.pfr = 0.6  # the ramp goes on: the mask is decided again
    latent(layer).data.view(-1)[gone] = 10.0
    compressor.before_epoch(model, stage, 1, 10)
    assert find_mask.view(-1)[gone] == 1
    compressor.before_epoch(model, stage, 6, 10)
    frozen = find_mask.clone()
    latent(layer).data.copy_(torch.randn_like(latent(layer)))
    compressor.before_epoch(model, stage, 7, 10)
    assert torch.equal(find_mask, frozen)
    compressor.finish(model, stage)
    assert torch.equal(latent(layer) != 0, frozen.bool())


@given(count=st.integers(1, 10_000), permille=st.integers(0, 999))
def test_kept_is_exact(count, permille):
    assert kept(count, permille / 1000) == max(1, count - permille * count // 1000)


def test_a_prune_stage_without_epochs_still_prunes():
    model, compressor = prepared(pfr=0.8)
    at(model, compressor, "prune")
    for _, layer in transformed(model):
        assert int(layer.weight.count_nonzero()) == kept(layer.weight.numel(), 0.8)


# cos(w, tern(w)) of Gaussian weights at prune ratio r: closed form of the notes
@pytest.mark.parametrize("r, dense, pruned", [(0.3, 0.885, 0.892), (0.6, 0.885, 0.949), (0.9, 0.652, 0.984)])
def test_cosine_of_gaussian_weights_has_the_closed_form(r, dense, pruned):
    t, survivors = NormalDist().inv_cdf((1 + r) / 2), 1 - r
    m1, m2 = 2 * NormalDist().pdf(t), survivors + 2 * t * NormalDist().pdf(t)
    assert (m1 / math.sqrt(survivors), m1 / math.sqrt(survivors * m2)) == pytest.approx((dense, pruned), abs=6e-4)

    layer = nn.Linear(60_000, 4, bias=False)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(3))
    attach(layer, Mask((4, 60_000)), UnitNorm(), UnitTernary())
    prune(layer, r)
    u = latent(layer).detach() * find(layer, Mask).mask
    codes, _ = UnitTernary().unit(u)
    assert cosine(u, codes).mean().item() == pytest.approx(pruned, abs=3e-3)
    assert cosine(latent(layer).detach(), codes).mean().item() == pytest.approx(dense, abs=3e-3)


@pytest.mark.parametrize("ratio", [0.0, 0.7])
def test_projection_is_idempotent_and_keeps_directions(ratio):
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 6, 3)
    attach(layer, Mask((6, 5, 3, 3)))
    prune(layer, ratio)
    find(layer, Mask).mask[2] = 0
    before = latent(layer).detach().clone()
    project(layer)
    once = latent(layer).detach().clone()
    project(layer)
    assert torch.allclose(latent(layer), once, atol=1e-7)
    norms = (once * find(layer, Mask).mask).flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.tensor([1.0, 1, 0, 1, 1, 1]), atol=1e-6)
    assert torch.allclose(torch.cosine_similarity(before.flatten(1), once.flatten(1)), torch.ones(6))


def test_reinit_starts_at_the_ternary_point():
    model, compressor = prepared(pfr=0.8, reinit=True)
    at(model, compressor, "prune")
    before = [layer.weight.sign() for _, layer in transformed(model)]
    compressor.start(model, Stage("quantize"))
    assert compressor.metrics(model)["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert all(torch.equal(s, layer.weight.sign()) for s, (_, layer) in zip(before, transformed(model), strict=True))


def test_every_parameter_is_trained_once_and_gains_wait_for_the_prune_stage():
    model, compressor = prepared()
    gains = {id(find(layer, UnitTernary).gain) for _, layer in transformed(model)} - {id(None)}
    for name in compressor.STAGES:
        decayed, free = compressor.parameters(model, Stage(name))
        ids = [id(p) for p in decayed["params"] + free["params"]]
        assert len(ids) == len(set(ids)) and free["weight_decay"] == 0
        assert set(ids) == {id(p) for p in model.parameters()} - (gains if name == "pretrain" else set())
        ternary = {id(latent(layer)) for _, layer in transformed(model)}
        assert ternary <= {id(p) for p in (free if name == "quantize" else decayed)["params"]}
    assert id(model[0].weight) in {id(p) for p in decayed["params"]}


def test_pretrain_leaves_the_network_as_it_was():
    images, _ = digits(16)
    torch.manual_seed(0)
    plain = make_model().eval()
    model, _ = prepared()
    assert torch.equal(plain(images), model.eval()(images))


def test_training_raises_the_cosine_keeps_the_ratio_and_learns():
    images, labels = digits(256)
    model, compressor = prepared(pfr=0.6, lambda_=1.0)
    cosines = {}
    for stage, lr in zip(compressor.stages(model), (0.05, 0.05, 0.005), strict=True):
        last = run_stage(compressor, model.train(), stage, images, labels, epochs=6, lr=lr)[-1]
        cosines[stage.kind] = last["cosine"]
    assert cosines["quantize"] > cosines["prune"] + 0.02 > cosines["pretrain"] + 0.04
    assert last["code_sparsity"] == pytest.approx(0.6, abs=0.01)
    for _, layer in transformed(model):
        codes, scale = encode_layer(layer)
        assert torch.equal(scaled(codes, scale), layer.weight)
        norms = latent(layer).flatten(1).norm(dim=1)
        assert torch.allclose(norms[norms > 0], torch.ones(int((norms > 0).sum())), atol=1e-5)
    model.train()  # batch statistics: the running ones lag in so short a run
    assert (model(images).argmax(1) == labels).float().mean() > 0.8


def test_the_refined_estimator_ends_nearer_to_the_ternary_point_than_the_plain_one():
    images, labels = digits(160)
    discrepancy = {}
    for estimator, pull in (("R0", 0.0), ("R1", 0.5)):
        model, compressor = prepared(pfr=0.5, estimator=estimator, lambda_=pull)
        at(model, compressor, "prune")
        last = run_stage(compressor, model.train(), Stage("quantize"), images, labels, 6, 0.05)[-1]
        discrepancy[estimator] = 1 - last["cosine"]
    assert discrepancy["R1"] < discrepancy["R0"] / 2


def test_metrics_of_one_run_show_the_rise_from_prune_to_quantize(configuration, tmp_path, plain_page):
    config = configuration(
        "compressor=ptq", "compressor.pfr=0.6", "compressor.lambda_=1", "compressor.lambda_ramp=0", "model=lenet5",
        "dataset=digits",
        "dataset.limit=256", "dataset.batch_size=32", "schedule.pretrain.epochs=1", "schedule.prune.epochs=3",
        "schedule.quantize.epochs=3", "latency.seconds=0", "trainer.progress=false", "trainer.precision=fp32",
    )  # fmt: skip
    train.run(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    cosines = {s: [r["cosine"] for r in rows if r["stage"] == s and "epoch" in r] for s in ("prune", "quantize")}
    assert [len(c) for c in cosines.values()] == [3, 3]
    assert cosines["quantize"][-1] > max(cosines["prune"]) + 0.01


def test_size_of_imagenet_resnet18_follows_the_table():
    torch.manual_seed(0)
    model, compressor = resnet18(1000, 3, 224, "float"), PTQ(pfr=0.8)
    compressor.prepare(model, torch.zeros(1, 3, 224, 224))
    for _, layer in transformed(model):
        nn.init.normal_(latent(layer))
    at(model, compressor, "prune", "quantize")
    packed = to_packed(model.eval(), encode_layer, (3, 224, 224))
    found = compressed_code_bytes(packed)
    layers = [node.codes for node in packed.layers().values()]
    floats = sum(t.size for node in packed.nodes for t in node.tensors.values())
    floats += sum(c.values.count() if c.coded else c.codes.size for c in layers)
    found["entropy"] = total_size(packed).entropy_bound_bytes - 4 * floats
    # kB of random codes of all layers but conv1, without floats; at two bits 11,669,504 / 4 bytes
    expected = {"packed": 2917.376, "gzip": 1581, "xz": 1399, "entropy": 1345}
    assert {k: v / 1e3 for k, v in found.items()} == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("options", [{"pfr": 0.7}, {"estimator": "R2", "reinit": True, "depthwise": "ternary"}])
def test_resumes_in_mid_stage(options):
    assert_resumes(lambda: PTQ(**options), make_model, *digits(48))


@pytest.mark.parametrize("options", [{"pfr": 1.0}, {"estimator": "R4"}, {"form": "fbin"}, {"lambda_": -1.0}])
def test_wrong_options_name_the_option_and_the_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"compressor.{name}=.*expected"):
        PTQ(**options)
