"""Binary convs in training: the engine's sums are the exact ones, torch's to the bit, and so are the gradients."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsign.kernels.engine import native
from sparsign.kernels.training import SignConvs, signs_convolved
from sparsign.models.sign import binarize

if native() is None:
    pytest.skip("the compiled engine was not built", allow_module_level=True)

ISAS = native().isas()
ONE = (1, 1)
SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 140), st.integers(1, 140), st.sampled_from([1, 2, 3, 5]),
    st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9), st.integers(1, 2), st.integers(1, 2),
    st.integers(0, 2), st.integers(0, 2), st.integers(1, 2),
)  # fmt: skip
LAYOUTS = st.sampled_from([torch.channels_last, torch.contiguous_format])
KINDS = st.sampled_from(["binary", "scaled", "masked", "ternary"])


def signs(generator, *shape):
    return binarize(torch.randn(*shape, generator=generator))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(SHAPES, KINDS, st.booleans(), LAYOUTS, st.integers(0, 99))
def test_sums_are_torchs_in_float64(isa, sizes, kind, dropped, layout, seed):
    n, inputs, outputs, kh, kw, h, w, sh, sw, ph, pw, dilation = sizes
    h, w = max(h, (kh - 1) * dilation + 1 - 2 * ph), max(w, (kw - 1) * dilation + 1 - 2 * pw)
    generator = torch.Generator().manual_seed(seed)
    x, weight = signs(generator, n, inputs, h, w), signs(generator, outputs, inputs, kh, kw)
    if dropped:
        x *= 2 * (torch.rand(x.shape, generator=generator) < 0.5)
    if kind == "masked":
        weight *= torch.rand(1, inputs, 1, 1, generator=generator) < 0.6
        weight *= torch.rand(outputs, 1, 1, 1, generator=generator) < 0.6
    if kind == "ternary":
        weight *= torch.rand(weight.shape, generator=generator) < 0.5
    if kind == "scaled":
        weight *= torch.rand(outputs, 1, 1, 1, generator=generator)
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    geometry = (sh, sw), (ph, pw), (dilation, dilation)
    found = signs_convolved(x, weight, *geometry, isa=isa)
    exact = F.conv2d(x.double(), weight.double(), None, *geometry)
    tolerance = 2e-7 * exact.abs() if kind == "scaled" else 0.0
    assert ((found - exact).abs() <= tolerance).all()
    assert not found[found == 0].signbit().any()
    assert found.is_contiguous(memory_format=layout) or (x.is_contiguous() and weight.is_contiguous())


@pytest.mark.parametrize("what", ["input", "weight", "late"])
def test_other_numbers_are_left_to_torch(what):
    x, weight = signs(None, 8, 70, 9, 9), signs(None, 5, 70, 3, 3)
    if what == "late":
        x[7, 3, 8, 8] = 0.5
    else:
        (x if what == "input" else weight).view(-1)[-1] *= 1.5
    assert signs_convolved(x, weight, ONE, ONE, ONE) is None
    with SignConvs():
        assert torch.equal(F.conv2d(x, weight), torch.ops.aten.conv2d(x, weight))


@pytest.mark.parametrize("what", ["input", "weight"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_is_left_to_torch(what, value):
    x, weight = signs(None, 2, 5, 4, 4), signs(None, 3, 5, 3, 3)
    (x if what == "input" else weight).mul_(value)
    with SignConvs():
        torch.testing.assert_close(F.conv2d(x, weight), torch.ops.aten.conv2d(x, weight), equal_nan=True)


@pytest.mark.parametrize("padding", [[1], (1,), 32])
def test_convs_as_torch_takes_them_beyond_the_engines_sizes_too(padding):
    kernel = 65 if padding == 32 else 3
    x, weight = signs(None, 1, 3, 65, 65), signs(None, 2, 3, kernel, kernel)
    expected = F.conv2d(x, weight, padding=padding)
    with SignConvs():
        assert torch.equal(F.conv2d(x, weight, padding=padding), expected)


def test_an_unknown_instruction_set_is_named():
    with pytest.raises(ValueError, match=r"isa=mmx: expected one of .*generic"):
        SignConvs("mmx")


@pytest.mark.parametrize("geometry", [(1, 1, 1), (2, 1, 1), ((2, 1), (0, 2), (1, 2))])
@pytest.mark.parametrize("size", [6, 20])
def test_outputs_are_torchs_to_the_bit_and_gradients_up_to_rounding(size, geometry):
    generator = torch.Generator().manual_seed(0)
    tensors = signs(generator, 4, 20, size, size), signs(generator, 9, 20, 3, 2), torch.randn(9, generator=generator)
    found = []
    for context, dtype in ((SignConvs(), torch.float32), (nullcontext(), torch.float64)):
        x, weight, bias = (t.detach().to(dtype, copy=True).requires_grad_() for t in tensors)
        with context:
            y = F.conv2d(x, weight, bias, *geometry)
        y.backward(torch.arange(float(y.numel()), dtype=dtype).view_as(y).sin())
        found.append((y - bias.view(-1, 1, 1), x.grad, weight.grad, bias.grad))
    for mine, exact in zip(*found, strict=True):
        torch.testing.assert_close(
            mine.detach().double(), exact.detach(), rtol=1e-5, atol=1e-5 * float(exact.detach().abs().max())
        )


BF16 = st.tuples(st.integers(1, 3), st.integers(1, 140), st.integers(1, 70), st.integers(3, 9), st.integers(1, 2))
"""Images, inputs, outputs, size, stride; on maps of one pixel torch's bf16 gradient of a strided conv is arbitrary."""


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(BF16, LAYOUTS, st.integers(0, 99))
def test_under_bf16_autocast_outputs_and_gradients_are_torchs_to_the_bit(isa, sizes, layout, seed):
    n, inputs, outputs, size, stride = sizes
    generator = torch.Generator().manual_seed(seed)
    tensors = signs(generator, n, inputs, size, size), signs(generator, outputs, inputs, 3, 3), torch.randn(outputs)
    found = []
    for context in (SignConvs(isa), nullcontext()):
        x, weight, bias = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors)
        with context, torch.autocast("cpu", torch.bfloat16):
            y = F.conv2d(x.to(memory_format=layout), weight, None, stride, 1)
            shifted = F.conv2d(x.to(memory_format=layout), weight, bias, stride, 1)
        assert y.dtype == shifted.dtype == torch.bfloat16
        y.backward(torch.arange(float(y.numel())).view_as(y).sin().bfloat16())
        found.append((shifted, x.grad, weight.grad))
        exact = F.conv2d(tensors[0].double(), tensors[1].double(), None, stride, 1).to(torch.bfloat16)
        assert torch.equal(y, exact)
    for mine, its in zip(*found, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("what", ["input", "weight", "fp16"])
def test_under_autocast_other_numbers_are_left_to_torch(what):
    x, weight = signs(None, 8, 70, 9, 9), signs(None, 5, 70, 3, 3)
    if what != "fp16":
        (x if what == "input" else weight).view(-1)[-1] *= 1.5
    with torch.autocast("cpu", torch.float16 if what == "fp16" else torch.bfloat16):
        with SignConvs():
            mine = F.conv2d(x, weight)
        assert mine.dtype == torch.get_autocast_dtype("cpu") and torch.equal(mine, F.conv2d(x, weight))


def test_threads_do_not_change_a_bit():
    x, weight = signs(None, 7, 20, 6, 6), 0.3 * signs(None, 9, 20, 3, 3)
    one = signs_convolved(x, weight, ONE, ONE, ONE)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(signs_convolved(x, weight, ONE, ONE, ONE), one)
    finally:
        torch.set_num_threads(before)
