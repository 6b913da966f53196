"""PReLU's gradient in training is torch's, to the bit."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsign.kernels.prelu import Prelus
from sparsign.kernels.training import training_kernels

LAYOUTS = st.sampled_from([torch.channels_last, torch.contiguous_format])


def prelu_with_gradients(images, slopes, upstream, bf16):
    """prelu's output and gradients, its slopes fp32 as in a module; `bf16`: under autocast."""
    x, w = images.clone().requires_grad_(), slopes.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        y = F.prelu(x, w)
    y.backward(upstream)
    return y.detach(), x.grad, w.grad


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.booleans(), st.booleans(), LAYOUTS, st.integers(0, 99))
def test_prelu_is_torchs_to_the_bit(shape, bf16, one, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    x, upstream = (torch.randn(*shape, generator=generator) for _ in range(2))
    x *= torch.rand(shape, generator=generator) < 0.8  # zeros, of both signs
    if len(shape) == 4:
        x, upstream = (t.contiguous(memory_format=layout) for t in (x, upstream))
    if bf16:
        x, upstream = x.bfloat16(), upstream.bfloat16()
    slopes = torch.randn(1 if one else shape[1], generator=generator)
    expected = prelu_with_gradients(x, slopes, upstream, bf16)
    with Prelus():
        found = prelu_with_gradients(x, slopes, upstream, bf16)
        y = F.prelu(x.clone().requires_grad_(), slopes.to(x.dtype))
    assert y.grad_fn.name() == "_PreluBackward"  # and not torch's PreluKernelBackward0
    for mine, torchs in zip(found, expected, strict=True):
        assert mine.dtype == torchs.dtype and mine.stride() == torchs.stride() and torch.equal(mine, torchs)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 4)])
def test_prelus_that_cast_or_have_no_channels_are_left_to_torch(shape):
    """fp32 numbers under autocast are torch's to cast."""
    x = torch.randn(shape).requires_grad_()
    with Prelus(), torch.autocast("cpu", torch.bfloat16, enabled=len(shape) > 1):
        y = F.prelu(x, torch.ones(1))
    assert "PreluKernel" in y.grad_fn.name() or y.grad_fn.name().startswith("ToCopy")


@pytest.mark.parametrize("wanted", [True, False])
def test_training_takes_it_where_its_kernels_are_wanted(wanted):
    with training_kernels(wanted):
        y = torch.nn.PReLU(3)(torch.randn(2, 3, 4, 4))
    assert (y.grad_fn.name() == "_PreluBackward") == wanted
