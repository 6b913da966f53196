"""EC2T's assignment against a search over all codes in float64, and its stages."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain_loop import run_stage
from resume import assert_resumes
from torch import nn

from sparsign.compressors.base import Stage
from sparsign.compressors.ec2t import EC2T, EntropyTernary, entropy
from sparsign.compressors.parts.transforms import encode_layer, find, latent, scaled


def brute_force(weight, positive, negative, strength):
    """(codes, costs [n, 3]) by trying -1, 0 and 1 for every weight, in the order of the definitions."""
    values = np.array([-negative, 0.0, positive])
    distance = (weight[:, None] - values) ** 2
    p = np.bincount(distance.argmin(axis=1), minlength=3) / len(weight)
    if p[1] < 0.5:
        p = np.array([0.5 * p[0] / (p[0] + p[2]), 0.5, 0.5 * p[2] / (p[0] + p[2])])
    bits = -np.log2(np.maximum(p, 1 / len(weight)))
    bits[1] = -np.log2(p[1])
    dies = []
    for top, scale, code in ((weight.max(), positive, 2), (-weight.min(), negative, 0)):
        if bits[code] > bits[1]:
            dies.append((top**2 - (scale - top) ** 2) / (bits[code] - bits[1]))
    cost = distance + strength * max(min(dies), 0.0) * bits
    return cost.argmin(axis=1) - 1.0, cost


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(6, 400),
    strength=st.floats(0, 0.99),
    scales=st.tuples(st.floats(0.05, 3), st.floats(0.05, 3)),
    shift=st.floats(-0.5, 0.5),
)
def test_assignment_is_the_cheapest_of_all_codes(seed, size, strength, scales, shift):
    weight = np.random.default_rng(seed).normal(shift, 1, size)
    assume(weight.min() < 0 < weight.max())
    ternary = EntropyTernary((size,), strength).double()
    ternary.positive.data.fill_(scales[0])
    ternary.negative.data.fill_(scales[1])

    codes = ternary.codes(torch.tensor(weight)).numpy()

    expected, cost = brute_force(weight, *scales, strength)
    chosen = np.take_along_axis(cost, (codes + 1).astype(int)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, cost.min(axis=1), rtol=1e-9, atol=1e-12)
    gap = np.sort(cost, axis=1)
    clear = gap[:, 1] - gap[:, 0] > 1e-9  # elsewhere two codes cost the same
    assert np.array_equal(codes[clear], expected[clear])


def test_without_strength_every_weight_takes_its_nearest_scale():
    weight = torch.tensor([-2.0, -0.31, -0.29, 0.0, 0.49, 0.51, 3.0])
    ternary = EntropyTernary((7,), 0.0)
    ternary.negative.data.fill_(0.6)
    assert ternary.codes(weight).tolist() == [-1, -1, 0, 0, 0, 1, 1]


def test_more_strength_means_more_zeros_fewer_bits_and_both_signs_to_the_last():
    weight = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    found = []
    for strength in (0.0, 0.1, 0.3, 0.6, 0.99):
        ternary = EntropyTernary((20_000,), strength)
        ternary.begin(weight, 0.45)
        codes = ternary.codes(weight)
        assert set(codes.unique().tolist()) == {-1, 0, 1}
        found.append((entropy(codes), float((codes == 0).float().mean())))
    bits, zeros = zip(*found, strict=True)
    assert list(bits) == sorted(bits, reverse=True) and list(zeros) == sorted(zeros)
    assert bits[-1] < 0.02 < 0.3 < bits[0]


def test_entropy_is_that_of_numpy():
    codes = torch.tensor([0.0] * 5 + [1.0] * 2 + [-1.0])
    p = np.array([5, 2, 1]) / 8
    assert entropy(codes) == pytest.approx(-(p * np.log2(p)).sum())
    assert entropy(torch.zeros(9)) == 0


def test_scales_start_at_the_extremes_and_never_swallow_the_zeros():
    weight = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    ternary = EntropyTernary((5000,), 0.1)
    ternary.begin(weight, 0.45)
    assert ternary.positive.item() == pytest.approx(0.45 * weight.max().item())
    assert ternary.negative.item() == pytest.approx(-0.45 * weight.min().item())
    ternary.negative.data.fill_(-1.0)
    ternary.bound(weight)
    assert ternary.negative.item() == pytest.approx(0.675 * weight.std(correction=0).item())


@pytest.mark.parametrize(
    "weight", [torch.zeros(8), torch.ones(8), -torch.ones(8), torch.tensor([1e-30] * 7 + [-1e-30])]
)
def test_degenerate_layers_stay_finite(weight):
    ternary = EntropyTernary((8,), 0.5)
    ternary.begin(weight, 0.45)
    codes, scale = ternary.encode(weight)
    assert codes.isfinite().all() and scaled(codes, scale).isfinite().all()
    assert torch.equal(ternary(weight), scaled(codes, scale))


def make_model():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(),
        nn.Conv2d(10, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def test_the_assignment_lives_in_quantize_and_is_fixed_in_finetune():
    torch.manual_seed(0)
    images, labels = torch.randn(48, 1, 5, 5), torch.arange(48) % 3
    model, method = make_model(), EC2T(lambda_=0.3)
    method.prepare(model, images[:1])
    share = (6 * 10 * 9, 10 * 8)
    strengths = [find(model[i], EntropyTernary).strength for i in (3, 6)]
    assert strengths == pytest.approx([0.3, 0.3 * (share[1] / share[0] + 0.05) / 1.05])
    pretrain, quantize, finetune = method.stages(model)
    assert encode_layer(model[3]) is None
    run_stage(method, model, pretrain, images, labels, epochs=1, lr=0.05)
    run_stage(method, model, quantize, images, labels, epochs=3, lr=0.05)
    codes, before = encode_layer(model[3])[0], find(model[3], EntropyTernary).positive.item()
    rows = run_stage(method, model, finetune, images, labels, epochs=3, lr=0.05)
    assert torch.equal(codes, encode_layer(model[3])[0])
    assert find(model[3], EntropyTernary).positive.item() != before
    assert torch.equal(scaled(*encode_layer(model[3])), model[3].weight)
    found = torch.cat([encode_layer(model[i])[0].flatten() for i in (3, 6)])
    assert rows[-1]["code_sparsity"] == pytest.approx((found == 0).float().mean().item())
    assert len(rows[-1]["code_entropy_by_layer"]) == 2


def test_resumes_in_mid_stage():
    torch.manual_seed(0)
    assert_resumes(lambda: EC2T(lambda_=0.3), make_model, torch.randn(48, 1, 5, 5), torch.arange(48) % 3)


def test_only_what_a_stage_moves_is_trained():
    model, method = make_model(), EC2T()
    method.prepare(model, torch.zeros(1, 1, 5, 5))
    ternary, weight = find(model[3], EntropyTernary), latent(model[3])

    def trained(stage):
        method.start(model, Stage(stage))
        return {id(p) for group in method.parameters(model, Stage(stage)) for p in group["params"]}

    for stage, scales, weights in (("pretrain", False, True), ("quantize", True, True), ("finetune", True, False)):
        ids = trained(stage)
        assert (id(ternary.positive) in ids, id(weight) in ids) == (scales, weights)
        assert id(model[0].weight) in ids
