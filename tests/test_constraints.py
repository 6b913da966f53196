"""ADMM's constraint sets as sets: the projection is a nearest member, and the mask holds its support."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsign.compressors.parts.constraints import FewGroups, FewLevels
from sparsign.compressors.parts.levels import Levels
from sparsign.compressors.pruning.projections import STRUCTURES, group_norms

SHAPE = (6, 4, 3, 3)
LEVELS = [Levels(1, False), Levels(1, True), Levels(3, True), Levels(7, False)]


def sets(seed):
    kept = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.6
    yield from (FewGroups(structure, ratio) for structure in STRUCTURES for ratio in (0.0, 0.29, 0.75))
    yield from (FewLevels(levels, kept.double()) for levels in LEVELS)
    yield from (FewLevels(levels, kept.double(), torch.tensor(0.2, dtype=torch.float64)) for levels in LEVELS)


def members(s, count, generator):
    """Random members of S."""
    for _ in range(count):
        values = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
        if isinstance(s, FewGroups):
            norms = group_norms(torch.rand(SHAPE, dtype=torch.float64, generator=generator), s.structure)
            alive = norms.numel() - int(s.ratio * norms.numel() + 1e-6)
            yield values * (norms >= norms.flatten().topk(alive).values[-1])
        else:
            scale = 0.2 if s.interval is not None else float(values.abs().mean())
            codes = (values * s.levels.largest).round().clamp(-s.levels.largest, s.levels.largest)
            yield scale * s.kept * (codes if s.levels.zero else torch.where(codes == 0, 1.0, codes))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_projection_is_a_member_its_support_is_in_the_mask_and_no_random_member_is_nearer(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
    for s in sets(seed):
        z = s.project(values).double()
        assert not z[(s.mask(values) == 0).expand(SHAPE)].any()
        if isinstance(s, FewGroups):
            assert torch.equal(z, values * s.mask(values))
            assert torch.equal(s.project(z), z)
        error = (values - z).square().sum()
        assert all(error <= (values - other).square().sum() * (1 + 1e-6) for other in members(s, 10, generator)), s


@pytest.mark.parametrize("levels", LEVELS)
def test_a_fixed_interval_is_kept(levels):
    interval = torch.tensor(0.125)
    codes, scale = FewLevels(levels, torch.ones(SHAPE), interval).encode(torch.randn(SHAPE))
    assert scale is interval and codes.abs().max() <= levels.largest
