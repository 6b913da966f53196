"""Projections onto sparse sets against a search over all supports; purification against its rule in numpy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsign.compressors.pruning.decide import removed
from sparsign.compressors.pruning.projections import STRUCTURES, group_norms, keep_mask, project
from sparsign.compressors.pruning.purify import purified

SHAPE = (3, 2, 2, 1)


def groups_of(structure, shape=SHAPE):
    """Every group as a list of numpy indices, spelt out element by element."""
    key = {
        "irregular": lambda i: i,
        "filter": lambda i: i[0],
        "column": lambda i: i[1:],
        "channel": lambda i: i[1],
    }[structure]
    groups = {}
    for index in itertools.product(*map(range, shape)):
        groups.setdefault(key(index), []).append(index)
    return list(groups.values())


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), ratio=st.sampled_from([0.0, 0.3, 0.5, 0.75, 0.9]), ties=st.booleans())
def test_projection_is_the_nearest_point_over_all_supports(structure, seed, ratio, ties):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-1, 2, SHAPE).astype(float) if ties else rng.normal(size=SHAPE)
    groups = groups_of(structure)
    keep = len(groups) - int(np.floor(ratio * len(groups) + 1e-6))
    best = np.inf
    for support in itertools.combinations(groups, keep):
        candidate = np.zeros(SHAPE)
        for index in itertools.chain(*support):
            candidate[index] = weight[index]
        best = min(best, ((weight - candidate) ** 2).sum())

    found = project(torch.tensor(weight), ratio, structure)

    mask = keep_mask(torch.tensor(weight), ratio, structure).expand(SHAPE).numpy()
    assert sum(all(mask[i] for i in group) for group in groups) == keep
    assert sum(any(mask[i] for i in group) for group in groups) == keep
    assert np.array_equal(found.numpy(), weight * mask)
    assert ((weight - found.numpy()) ** 2).sum() == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_projection_is_idempotent(structure):
    once = project(torch.randn(6, 4, 3, 3), 0.4, structure)
    assert torch.equal(project(once, 0.4, structure), once)


def test_a_linear_layer_is_a_1x1_conv():
    weight = torch.randn(6, 4)
    for structure in STRUCTURES:
        assert torch.equal(project(weight, 0.5, structure), project(weight[..., None, None], 0.5, structure)[..., 0, 0])


@given(percent=st.integers(0, 9999), count=st.integers(0, 50_000_000))
def test_how_many_go_is_the_floor_in_exact_arithmetic(percent, count):
    """0.29 of 100 is 29, although the float product is 28.999999999999996."""
    assert removed(count, percent / 10_000) == percent * count // 10_000


def test_unknown_structure_is_one_clear_line():
    with pytest.raises(ValueError, match=r"structure=row: expected one of irregular \| filter"):
        group_norms(torch.ones(2, 2), "row")


def test_purification_takes_weak_filters_and_columns_and_nearly_empty_channels():
    weight = torch.ones(8, 4, 3, 3)
    weight[5] = 1e-3  # a weak filter
    weight[:, 1, 2, 2] = 1e-3  # a weak column
    weight[:, 2] = 0  # a channel with 8 of 9 columns empty ...
    weight[:, 2, 0, 0] = 0.5  # ... whose last column is no weak column, but little for a whole channel
    weight[:, 3] = 0  # a channel with 6 of 9 columns empty stays, however little is left
    weight[:, 3, 0] = 0.5
    expected = torch.ones_like(weight)
    expected[5] = 0
    expected[:, 1, 2, 2] = 0
    expected[:, 2] = 0
    expected[:, 3, 1:] = 0

    assert torch.equal(purified(weight, emptiness=7 / 9, share=0.1), expected)


def test_purification_leaves_an_even_weight_alone_and_an_empty_one_empty():
    assert purified(torch.ones(4, 3, 3, 3), 7 / 9, 0.01).all()
    assert not purified(torch.zeros(4, 3, 3, 3), 7 / 9, 0.01).isnan().any()
