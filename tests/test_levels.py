"""Quantization levels against float64 grids and exhaustive searches."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsign.compressors.parts.fixed_levels import FixedLevels
from sparsign.compressors.parts.levels import Levels, alternate, encode, levels_of, nearest, search_interval
from sparsign.compressors.parts.transforms import Mask, attach, encode_layer, scaled

CASES = [Levels(1, False), Levels(1, True), Levels(2, False), Levels(3, True), Levels(8, False), Levels(7, True)]


def grid(levels):
    return [c for c in range(-levels.largest, levels.largest + 1) if c or levels.zero]


def sample(seed, size=40):
    rng = np.random.default_rng(seed)
    kept = rng.random(size) < 0.7
    kept[0] = True
    return rng.normal(size=size) * 0.1, kept.astype(float)


def error(values, kept, codes, alpha):
    return float((kept * (values - alpha * codes) ** 2).sum())


@pytest.mark.parametrize("levels", CASES)
def test_nearest_is_the_nearest_level(levels):
    values, _ = sample(1)
    codes = nearest(torch.tensor(values), torch.tensor(0.05, dtype=torch.float64), levels).numpy()
    distance = np.abs(values[:, None] - 0.05 * np.array(grid(levels)))
    assert set(codes) <= set(grid(levels))
    assert np.allclose(np.abs(values - 0.05 * codes), distance.min(axis=1), atol=1e-12)


@pytest.mark.parametrize("levels", CASES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_alternating_search_ends_in_a_fixed_point_and_never_increases_the_error(levels, seed):
    values, kept = sample(seed)
    v, k = torch.tensor(values), torch.tensor(kept)
    errors = []
    for iterations in (1, 2, 3, 5, 8, 50):
        codes, alpha = alternate(v, k, levels, iterations)
        errors.append(error(values, kept, codes.numpy(), float(alpha)))
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(errors))

    codes, alpha = codes.numpy(), float(alpha)
    table = alpha * np.array(grid(levels))
    assert np.allclose(
        kept * (values - alpha * codes) ** 2, kept * np.abs(values[:, None] - table).min(1) ** 2, atol=1e-12
    )
    assert alpha == pytest.approx((values * codes).sum() / (codes**2).sum())
    assert not codes[kept == 0].any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_binary_levels_are_sign_and_mean_absolute_value(seed):
    """The optimum among all sign patterns, one scale (8 values: all 256 patterns)."""
    values, kept = sample(seed, 8)
    codes, alpha = encode(torch.tensor(values), torch.tensor(kept), levels_of("binary", 4, False))
    assert np.array_equal(codes.numpy(), np.where(values >= 0, 1, -1) * kept)
    assert float(alpha) == pytest.approx((np.abs(values) * kept).sum() / kept.sum())
    best = min(
        error(values, kept, np.array(q), (values * kept * q).sum() / kept.sum())
        for q in itertools.product((-1, 1), repeat=8)
    )
    assert error(values, kept, codes.numpy(), float(alpha)) == pytest.approx(best)


def test_ternary_search_is_near_the_best_of_all_scales():
    values, kept = sample(3, 400)
    codes, alpha = alternate(torch.tensor(values), torch.tensor(kept), Levels(1, True))
    found = error(values, kept, codes.numpy(), float(alpha))
    scan = np.linspace(0.01, 1, 2000) * np.abs(values).max()
    best = min(error(values, kept, np.clip(np.round(values / a), -1, 1), a) for a in scan)
    assert found == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize("levels", [Levels(3, False), Levels(7, False), Levels(31, False)])
def test_interval_search_is_the_exhaustive_scan_over_the_survivors(levels):
    values, kept = sample(5, 300)
    survivors = values[kept > 0]
    table = np.array(grid(levels))
    q0 = np.abs(survivors).max() / levels.largest
    scan = [q0 * (0.9 + 0.001 * i) for i in range(201)]
    errors = [(np.abs(survivors[:, None] - q * table).min(axis=1) ** 2).sum() for q in scan]
    assert float(search_interval(torch.tensor(values), torch.tensor(kept), levels)) == pytest.approx(
        scan[int(np.argmin(errors))], rel=1e-9
    )


def test_levels_of_the_papers_table():
    assert [levels_of("interval", b, False) for b in (7, 6, 4, 6)] == [Levels(m, False) for m in (63, 31, 7, 31)]
    assert levels_of("bits", 3, False) == Levels(3, True)
    assert levels_of("bits", 3, True) == Levels(4, False)
    assert levels_of("ternary", 8, True) == Levels(1, True)
    with pytest.raises(ValueError, match="bits=1: bits levels need at least 2 bits"):
        levels_of("bits", 1, False)
    with pytest.raises(ValueError, match="quantize=octal"):
        levels_of("octal", 3, False)


@pytest.mark.parametrize("values", [torch.zeros(4), torch.tensor([0.0, -3e-39, 1e-40, 0.0])])
@pytest.mark.parametrize("levels", CASES)
def test_a_vanishing_layer_gives_finite_codes(values, levels):
    codes, alpha = alternate(values, torch.ones(4), levels)
    assert torch.isfinite(codes).all() and torch.isfinite(alpha)
    assert (scaled(codes, alpha) - values).abs().max() < 1e-38


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), case=st.sampled_from(range(len(CASES))), linear=st.booleans())
def test_encode_layer_is_exact(seed, case, linear):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(7, 5) if linear else torch.nn.Conv2d(3, 5, 3)
    shape = layer.weight.shape
    mask, fixed, later = Mask(shape), FixedLevels(shape), Mask((*shape[:2], *[1] * (len(shape) - 2)))
    mask.mask.bernoulli_(0.6)
    later.mask.bernoulli_(0.8)
    attach(layer, mask, fixed, later)
    assert encode_layer(layer) is None
    fixed.fix(*encode(layer.weight.detach(), mask.mask, CASES[case]))

    codes, scale = encode_layer(layer)

    assert torch.equal(scaled(codes, scale), layer.weight)
    assert set(codes.unique().tolist()) <= {0, *grid(CASES[case])}
    assert not layer.weight[(mask.mask * later.mask) == 0].any()


def test_a_step_on_the_scale_is_the_weight_step_projected_to_the_line_of_codes():
    layer = torch.nn.Linear(4, 3, bias=False)
    fixed = FixedLevels(layer.weight.shape)
    attach(layer, fixed)
    codes = torch.randint(-2, 3, (3, 4)).float()
    fixed.fix(codes, torch.tensor(0.3))
    x, g = torch.randn(5, 4), torch.randn(5, 3)
    layer(x).backward(g)
    stepped = 0.3 * codes - 0.1 * g.T @ x
    best = torch.linalg.lstsq(codes.flatten()[:, None].double(), stepped.flatten().double()[:, None]).solution
    assert float(0.3 - 0.1 * fixed.scale.grad) == pytest.approx(float(best), rel=1e-4)
    assert layer.parametrizations.weight.original.grad is None
