"""STQ-B: the expander mask's graph properties, and that it holds through training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import run
from resume import assert_resumes
from torch import nn

from sparsign.compressors.parts.transforms import Mask, encode_layer, find, latent, scaled, transforms
from sparsign.compressors.stq_b import STQB, expander
from sparsign.models.sign import Sign


def make_model():
    """conv 1-72 (float) | 72-64 3x3 | 64-40 1x1 | 40-48 1x1 (narrow input) | linear (float)."""
    return nn.Sequential(
        nn.Conv2d(1, 72, 3, padding=1, bias=False),
        nn.BatchNorm2d(72),
        Sign(),
        nn.Conv2d(72, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        Sign(),
        nn.Conv2d(64, 40, 1, bias=False),
        nn.BatchNorm2d(40),
        Sign(),
        nn.Conv2d(40, 48, 1, bias=False),
        nn.BatchNorm2d(48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 3),
    )


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 1, 6, 6, generator=generator), torch.arange(48) % 3


def prepared(**options):
    torch.manual_seed(0)
    model, compressor = make_model(), STQB(**options)
    compressor.prepare(model, torch.zeros(1, 1, 6, 6))
    return model


@settings(max_examples=60, deadline=None)
@given(inputs=st.integers(1, 60), data=st.data(), seed=st.integers(0, 1000))
def test_expander_is_regular_and_reads_every_input(inputs, data, seed):
    degree = data.draw(st.integers(1, inputs))
    filters = data.draw(st.integers(-(-inputs // degree), 60))  # down to the fewest kernels that can cover the inputs
    mask = expander(filters, inputs, degree, torch.Generator().manual_seed(seed))
    assert mask.shape == (filters, inputs) and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (mask.sum(dim=1) == degree).all()
    assert (mask.sum(dim=0) >= 1).all()


def test_expander_draws_kernels_uniformly():
    """Every kernel is kept with probability D / c_in: 4-sigma bound on the counts of 400 draws."""
    generator = torch.Generator().manual_seed(0)
    kept = sum(expander(10, 8, 4, generator) for _ in range(400)) / 400
    assert (kept - 0.5).abs().max() < 4 * (0.25 / 400) ** 0.5
    assert kept.unique().numel() > 10


def test_masks_have_exactly_d_kernels_and_leave_the_rest_alone():
    model = prepared(pfr=0.39)
    for index, inputs in ((3, 72), (6, 64)):
        mask = find(model[index], Mask).mask.flatten(1)
        assert mask.shape[1] == inputs
        assert (mask.sum(dim=1) == round(0.61 * inputs)).all()
        kernels = model[index].weight.flatten(2).abs().sum(dim=2)
        assert torch.equal(kernels > 0, mask.bool())
    assert not any(isinstance(t, Mask) for t in transforms(model[9]))  # 40 < min_channels
    assert model[9].weight.unique().tolist() == [-1, 1]
    assert not transforms(model[0]) and not transforms(model[13])


def test_float_shortcut_is_untouched():
    model = nn.ModuleDict({n: nn.Conv2d(64, 64, 1) for n in ("conv1", "conv2", "downsample", "fc")})
    assert list(STQB().layers(model)) == ["conv2"]


def test_mask_depends_on_its_own_seed_only():
    first = find(prepared(mask_seed=3)[3], Mask).mask
    torch.manual_seed(2)
    model = make_model()
    before = torch.get_rng_state()
    STQB(mask_seed=3).prepare(model, torch.zeros(1, 1, 6, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, find(model[3], Mask).mask)
    assert not torch.equal(first, find(prepared(mask_seed=4)[3], Mask).mask)


def test_groups_are_drawn_one_by_one():
    """8 filters with one kernel each read 8 inputs: a permutation in each of the two groups."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 3, groups=2), nn.Linear(1, 1))
    STQB(pfr=0.875, min_channels=4).prepare(model, torch.zeros(1, 1, 6, 6))
    groups = find(model[1], Mask).mask.view(2, 8, 8)
    assert (groups.sum(dim=2) == 1).all() and (groups.sum(dim=1) == 1).all()


def test_too_sparse_is_one_clear_line():
    model = nn.Sequential(nn.Conv2d(1, 80, 1), nn.Conv2d(80, 4, 1), nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"^compressor.pfr=0.9: 1 would read 4 x 8 kernels, expected .* 80 input"):
        STQB(pfr=0.9).prepare(model, torch.zeros(1, 1, 6, 6))
    with pytest.raises(ValueError, match=r"^compressor.min_channels=65: no layer .* expected at most 64, the input"):
        STQB(min_channels=65, float_layers=["first", "last", "3"]).prepare(make_model(), torch.zeros(1, 1, 6, 6))
    with pytest.raises(ValueError, match=r"compressor.pfr=1: expected a value in \[0, 1\)"):
        STQB(pfr=1)


@pytest.mark.parametrize("scale", [False, True])
def test_training_keeps_the_mask_and_moves_only_kept_weights(data, scale):
    torch.manual_seed(0)
    model, compressor = make_model(), STQB(pfr=0.5, scale=scale)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    masks = {i: find(m, Mask).mask.clone() for i, m in enumerate(prepared(pfr=0.5, scale=scale)) if i in (3, 6)}
    model, history = run(compressor, model, *data, epochs=2, lr=0.05)
    assert list(history) == ["pretrain"]
    for index, mask in masks.items():
        layer, off = model[index], ~masks[index].bool().expand_as(latent(model[index]))
        assert torch.equal(find(layer, Mask).mask, mask)
        assert not layer.weight[off].any() and (layer.weight[~off] != 0).all()
        moved = latent(layer) != initial[f"{index}.weight"].clamp(-1, 1)
        assert moved[~off].any() and not moved[off].any()
        assert latent(layer).abs().max() <= 1
        codes, factor = encode_layer(layer)
        assert torch.equal(scaled(codes, factor), layer.weight)
        assert sorted(codes.unique().tolist()) == [-1, 0, 1]


def test_scale_is_the_mean_over_kept_weights():
    model = prepared(pfr=0.5, scale=True)
    weight, mask = latent(model[3]).detach().double(), find(model[3], Mask).mask.double()
    for k in range(64):
        kept = weight[k][mask[k].expand_as(weight[k]).bool()]
        assert model[3].weight[k].abs().max().item() == pytest.approx(kept.abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("scale", [False, True])
def test_resumes_in_mid_stage(data, scale):
    assert_resumes(lambda: STQB(pfr=0.4, scale=scale), make_model, *data)


def test_learns(data):
    images, _ = data
    labels = (images.mean(dim=(1, 2, 3)) > 0).long() + (images.mean(dim=(1, 2, 3)) > 0.1).long()
    images = images + labels.view(-1, 1, 1, 1)
    torch.manual_seed(0)
    model, _ = run(STQB(pfr=0.3), make_model(), images, labels, epochs=12, lr=0.05)
    assert (model(images).argmax(1) == labels).float().mean() > 0.8
