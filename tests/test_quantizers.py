"""Binary and ternary quantizers against float64 references and the papers' pseudo-gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsign.compressors.parts.fixed_levels import FixedLevels
from sparsign.compressors.parts.quantizers import Binary, ScaledBinary
from sparsign.compressors.parts.threshold_ternary import FixedTernary, TGATernary
from sparsign.compressors.parts.trained_ternary import TrainedTernary
from sparsign.compressors.parts.transforms import Mask, attach, encode_layer, scaled
from sparsign.compressors.parts.unit_ternary import UnitTernary
from sparsign.compressors.twn import Ternary
from sparsign.models.sign import binarize

QUANTIZERS = {
    "binary": Binary,
    "scaled_binary": ScaledBinary,
    "twn": Ternary,
    "twn_filter": lambda: Ternary(per_filter=True),
    "ttq": TrainedTernary,
    "ttq_zeros": lambda: TrainedTernary(zeros=0.4),
    "ptq": lambda: UnitTernary(active=True),
    "ptq_twn_gain": lambda: UnitTernary("twn", gain=True, active=True),
    "wpc_fixed": FixedTernary,
    "wpc_tga": TGATernary,
}

shapes = st.sampled_from([(3, 4), (5, 2, 3, 3), (1, 1, 1, 1), (2, 70, 1, 1), (4, 1, 5, 5)])


@st.composite
def weights(draw):
    """Weights with exact zeros, ties, subnormal and large values, and filters that are all zero."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(shapes)
    weight = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-30, 10))
    if draw(st.booleans()):
        weight = weight * (torch.rand(shape, generator=generator) < 0.6)
    if draw(st.booleans()):
        weight[0] = 0
    if draw(st.booleans()):
        weight = weight.sign()
    return weight


@pytest.mark.parametrize("name", QUANTIZERS)
@settings(max_examples=40, deadline=None)
@given(weight=weights())
def test_forward_is_exactly_scale_times_codes_and_codes_are_levels(name, weight):
    quantizer = QUANTIZERS[name]()
    if name.startswith("ttq"):
        quantizer.fit(weight)
    if name == "ptq_twn_gain":
        quantizer.gain.data.fill_(1.7)
    if name == "wpc_tga":
        quantizer.initialise(weight, 0.3)
        quantizer.bound(weight)  # as after every step: the tail beyond 3 sigma is not representable
    codes, scale = quantizer.encode(weight)
    assert codes.shape == weight.shape
    levels = {-1.0, 1.0} if "binary" in name else {-1.0, 0.0, 1.0}
    assert set(codes.unique().tolist()) <= levels
    value = quantizer(weight)
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    assert torch.equal(value, scaled(codes, scale))


@pytest.mark.parametrize("name", QUANTIZERS)
@settings(max_examples=20, deadline=None)
@given(weight=weights(), seed=st.integers(0, 1000))
def test_encode_layer_is_exact_under_a_later_mask(name, weight, seed):
    if weight.dim() == 2:
        weight = weight[..., None, None]
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False)
    layer.weight.data.copy_(weight)
    mask = Mask((*weight.shape[:2], 1, 1))
    mask.mask.copy_(torch.rand(mask.mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)
    attach(layer, QUANTIZERS[name](), mask)
    codes, scale = encode_layer(layer)
    assert codes.dtype == torch.int16
    assert torch.equal(layer.weight, scaled(codes, scale))
    assert not codes[(mask.mask == 0).expand_as(codes)].any()


@settings(max_examples=20, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000), scale=st.floats(-4, 4, width=32))
def test_fixed_levels_stay_where_they_were_put(shape, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, shape, generator=generator)
    quantizer = FixedLevels(torch.Size(shape))
    weight, grad = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    assert torch.equal(quantizer(weight), weight)  # not yet fixed
    quantizer.fix(codes, torch.tensor(scale))
    value = quantizer(weight)
    assert torch.equal(value, codes * torch.tensor(scale))
    assert torch.equal(scaled(*quantizer.encode(weight)), value)
    value.backward(grad)
    expected = (grad.double() * codes).sum() / codes.double().square().sum().clamp_min(1)  # the step along Q
    assert quantizer.scale.grad.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["binary", "scaled_binary", "twn", "twn_filter", "ptq", "wpc_fixed"])
@settings(max_examples=30, deadline=None)
@given(weight=weights())
def test_projections_are_idempotent(name, weight):
    if name == "scaled_binary":  # exact zeros are structural there: they take part in no projection
        weight = torch.where(weight == 0, 1.0, weight)
    quantizer = QUANTIZERS[name]()
    once = quantizer(weight)
    torch.testing.assert_close(quantizer(once), once, rtol=1e-6, atol=0)
    assert torch.equal(quantizer.encode(once)[0], quantizer.encode(weight)[0])


def test_sign_of_zero_is_plus_one():
    assert binarize(torch.tensor([-1e-30, -0.0, 0.0, 2.0])).tolist() == [-1, 1, 1, 1]


def _gradient(quantizer, weight, grad):
    weight = weight.clone().requires_grad_()
    quantizer(weight).backward(grad.to(quantizer(weight).dtype))
    return weight.grad


@pytest.fixture
def case():
    """A weight [4, 3, 2, 2] on both sides of the clip and on it, where clipped weights lie; an upstream gradient."""
    generator = torch.Generator().manual_seed(3)
    weight, grad = (torch.randn(4, 3, 2, 2, generator=generator).double() for _ in range(2))
    weight[3, 2, 0] = torch.tensor([1.0, -1.0])
    return weight, grad


def test_binary_gradient_is_clipped_straight_through(case):
    weight, grad = case
    assert 0 < (weight.abs() > 1).sum() < weight.numel()
    torch.testing.assert_close(_gradient(Binary(), weight, grad), grad * (weight.abs() <= 1), rtol=1e-6, atol=1e-7)


def test_scaled_binary_gradient_is_the_coupled_formula(case):
    """g alpha 1[|w| <= 1] + sign(w) / n * sum_j g_j sign(w_j), filter by filter, over the nonzero weights."""
    weight, grad = case
    weight = weight.clone()
    weight[1, 0] = 0  # a masked kernel: no part in alpha, n, or the coupling's effect
    expected = torch.zeros_like(weight)
    for k in range(4):
        w, g = weight[k], grad[k]
        n = int((w != 0).sum())
        alpha = w.abs().sum() / n
        coupling = sum(float(gj) * (1 if wj >= 0 else -1) for gj, wj in zip(g.flatten(), w.flatten(), strict=True))
        expected[k] = g * alpha * (w.abs() <= 1) + w.sign() / n * coupling
    torch.testing.assert_close(_gradient(ScaledBinary(), weight, grad), expected, rtol=1e-6, atol=1e-6)


def test_scaled_binary_scale_is_the_least_squares_scale(case):
    weight, _ = case
    codes, alpha = ScaledBinary().encode(weight)
    for k in range(4):
        b, w = codes[k].flatten().double(), weight[k].flatten()
        torch.testing.assert_close(alpha[k].item(), float((b @ w) / (b @ b)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("per_filter", [False, True])
def test_twn_threshold_scale_and_identity_gradient(case, per_filter):
    weight, grad = case
    codes, alpha = Ternary(per_filter).encode(weight)
    rows = weight if per_filter else weight[None]
    for k, w in enumerate(rows):
        delta = 0.7 * w.abs().mean()
        support = w.abs() > delta
        assert torch.equal((codes if not per_filter else codes[k]).bool().view_as(w), support)
        scale = alpha[k].item() if per_filter else alpha.item()
        assert scale == pytest.approx(w.abs()[support].mean().item(), rel=1e-12)
    assert torch.equal(_gradient(Ternary(per_filter), weight, grad), grad)


def test_twn_threshold_is_near_the_best_one_for_normal_weights():
    """0.7 mean|w| costs at most 2 % more squared error than the best threshold of a fine grid."""
    weight = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = weight.abs()

    def error(delta):
        support = size > delta
        alpha = size[support].mean()
        return ((size - alpha * support) ** 2).sum()

    codes, alpha = Ternary().encode(weight)
    best = min(error(delta) for delta in torch.linspace(0, 2, 101).double())
    assert ((weight - alpha * codes) ** 2).sum() <= 1.02 * best


def test_ttq_gradients(case):
    """dL/dWp = sum of g above, dL/dWn = -sum of g below, dL/dw = (Wp, Wn, 1) g; the minus by calculus."""
    weight, grad = case
    quantizer = TrainedTernary(t=0.3)
    with torch.no_grad():
        quantizer.positive.fill_(0.7)
        quantizer.negative.fill_(1.9)
    delta = 0.3 * weight.abs().max()
    above, below = weight > delta, weight < -delta
    assert above.any() and below.any() and not (above | below).all()
    latent = weight.clone().requires_grad_()
    value = quantizer(latent)
    torch.testing.assert_close(value.double(), 0.7 * above.double() - 1.9 * below.double(), rtol=1e-6, atol=0)
    value.backward(grad.float())
    slope = 0.7 * above + 1.9 * below + 1.0 * ~(above | below)
    torch.testing.assert_close(latent.grad, grad * slope, rtol=1e-5, atol=1e-6)
    assert quantizer.positive.grad.item() == pytest.approx(grad[above].sum().item(), rel=1e-5)
    assert quantizer.negative.grad.item() == pytest.approx(-grad[below].sum().item(), rel=1e-5)


@pytest.mark.parametrize("zeros", [0.0, 0.25, 0.5, 0.9])
def test_ttq_zero_fraction(zeros):
    weight = torch.randn(10, 20, generator=torch.Generator().manual_seed(1))
    codes, _ = TrainedTernary(zeros=zeros).encode(weight)
    assert int((codes == 0).sum()) == int(zeros * 200)
    if zeros > 0:
        assert weight.abs()[codes == 0].max() < weight.abs()[codes != 0].min()


def test_ttq_fit_is_least_squares_over_each_support():
    weight = torch.randn(6, 30, generator=torch.Generator().manual_seed(2))
    quantizer = TrainedTernary(t=0.2)
    quantizer.fit(weight)
    codes, (positive, negative) = quantizer.encode(weight)
    best = ((weight - scaled(codes, (positive, negative))) ** 2).sum()
    for dp, dn in ((1e-2, 0), (-1e-2, 0), (0, 1e-2), (0, -1e-2)):
        assert ((weight - scaled(codes, (positive + dp, negative + dn))) ** 2).sum() > best
