"""The table of operations: shapes, attributes and execution of each against torch, and what does not fit refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_nets import layer

from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import dumps, loads
from sparsign.packing.ops import OPS
from sparsign.packing.spec import Node, PackedModel

X = torch.randn(2, 6, 8, 10, generator=torch.Generator().manual_seed(0))
RNG = np.random.default_rng(0)


def channels(n=6):
    return RNG.standard_normal(n).astype(np.float32)


def floats(*shape):
    return layer(RNG.standard_normal(shape).astype(np.float32))


def made(op, attrs=None, tensors=None, codes=None, inputs=("x",), before=()):
    """A packed model that runs one operation on [6, 8, 10] images, and the node."""
    node = Node(op, "op", tuple(inputs), attrs or {}, tensors or {}, codes)
    nodes = [Node("input", "x"), *before, node]
    nodes += [Node("flatten", "out", ("op",))] if op != "flatten" else []
    return PackedModel(nodes, (6, 8, 10), nodes[-1].name), node


S, T, P = channels(), channels(), channels()
W, B, DW, UP = floats(4, 6, 3, 3), channels(4), floats(6, 2, 3, 3), floats(6, 5, 3, 3)
ORDER = np.array([2, 0, 1, 5, 3, 4])
GATE = Node("globalavgpool", "g", ("x",))


def weight(codes):
    return torch.from_numpy(codes.weight())


CASES = {
    "affine": (
        {"tensors": {"scale": S, "shift": T}},
        lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6), torch.from_numpy(S), torch.from_numpy(T), False, 0, 0),
    ),
    "prelu": ({"tensors": {"slope": P}}, lambda x: F.prelu(x, torch.from_numpy(P))),
    "relu": ({}, F.relu),
    "relu6": ({}, F.relu6),
    "hardtanh": ({"attrs": {"min": -0.5, "max": 0.25}}, lambda x: F.hardtanh(x, -0.5, 0.25)),
    "sigmoid": ({}, torch.sigmoid),
    "silu": ({}, F.silu),
    "hardswish": ({}, F.hardswish),
    "hardsigmoid": ({}, F.hardsigmoid),
    "gelu": ({"attrs": {"tanh": True}}, lambda x: F.gelu(x, approximate="tanh")),
    "sign": ({}, lambda x: torch.where(x >= 0, 1.0, -1.0)),
    "add_scalar": ({"attrs": {"value": 0.5}}, lambda x: x + 0.5),
    "mul_scalar": ({"attrs": {"value": -2.5}}, lambda x: x * -2.5),
    "maxpool": (
        {"attrs": {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "ceil_mode": True}},
        lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0), ceil_mode=True),
    ),
    "avgpool": (
        {"attrs": {"kernel": (3, 3), "padding": (1, 1), "count_include_pad": False}},
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "globalavgpool": ({}, lambda x: F.adaptive_avg_pool2d(x, 1)),
    "upsample": (
        {"attrs": {"factor": (2, 3), "bilinear": True}},
        lambda x: F.interpolate(x, (16, 30), mode="bilinear"),
    ),
    "conv": (
        {"attrs": {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}, "tensors": {"bias": B}, "codes": W},
        lambda x: F.conv2d(x, weight(W), torch.from_numpy(B), (2, 1), (1, 2), (1, 2)),
    ),
    "conv_transpose": (
        {"attrs": {"stride": (2, 2), "padding": (1, 0), "output_padding": (1, 0)}, "codes": UP},
        lambda x: F.conv_transpose2d(x, weight(UP), None, 2, (1, 0), (1, 0)),
    ),
    "add": ({"inputs": ("x", "r"), "before": (Node("relu", "r", ("x",)),)}, lambda x: x + x.relu()),
    "mul": ({"inputs": ("x", "g"), "before": (GATE,)}, lambda x: x * x.mean((2, 3), keepdim=True)),
    "cat": (
        {"inputs": ("x", "r", "x"), "before": (Node("relu", "r", ("x",)),)},
        lambda x: torch.cat([x, x.relu(), x], 1),
    ),
    "select": ({"tensors": {"index": np.array([1, 2, 5])}}, lambda x: x[:, [1, 2, 5]]),
    "permute": ({"tensors": {"order": ORDER}}, lambda x: x[:, ORDER]),
    "flatten": ({}, lambda x: x.flatten(1)),
    "pad_shortcut": (
        {"attrs": {"stride": 2, "before": 1, "after": 2}},
        lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)),
    ),
}


def test_every_operation_has_a_case():
    assert set(OPS) == set(CASES) | {"input", "linear"}


@pytest.mark.parametrize("op", CASES)
def test_an_operation_is_torchs_in_shape_and_value_and_survives_the_file(op):
    arguments, torchs = CASES[op]
    packed, node = made(op, **arguments)
    expected = torchs(X)
    assert packed.validate()["op"] == tuple(expected.shape[1:])
    again = loads(dumps(packed))
    for model in (packed, again):
        torch.testing.assert_close(ReferenceEngine(model)(X), expected.flatten(1), atol=1e-6, rtol=1e-6)
    assert again.nodes[-1 if op == "flatten" else -2].attrs == node.attrs
    if OPS[op].keeps_signs and OPS[op].arity == (1, 1):
        assert set(torchs(torch.where(X >= 0, 1.0, -1.0)).unique().tolist()) <= {-1, 1}
    if OPS[op].channelwise:
        changed = X.clone()
        changed[:, 3] += 1
        same = (torchs(changed) == expected).flatten(2).all(2).all(0)
        assert same[[0, 1, 2, 4, 5]].all()


def test_multiply_accumulates():
    packed, _ = made("conv", {"stride": (2, 1), "padding": (1, 1)}, codes=W)
    assert packed.macs()["op"] == 4 * 6 * 9 * 4 * 10
    packed, _ = made("conv", {"groups": 3, "padding": (1, 1)}, codes=DW)
    assert packed.macs()["op"] == 6 * 2 * 9 * 80
    assert sum(packed.macs().values()) == packed.macs()["op"]


def test_activations_are_counted_while_they_are_needed():
    packed, _ = made("add", inputs=("x", "r"), before=(Node("relu", "r", ("x",)),))
    assert packed.activation_bytes() == 4 * 3 * 480  # x and its relu while they are added up


def test_readers_of_signs():
    nodes = [
        Node("input", "x"),
        Node("sign", "s", ("x",)),
        Node("maxpool", "p", ("s",)),
        Node("conv", "c", ("p",), codes=W),
        Node("avgpool", "a", ("p",)),
        Node("conv", "d", ("a",), codes=W),
        Node("add", "t", ("c", "d")),
        Node("flatten", "f", ("t",)),
    ]
    found = PackedModel(nodes, (6, 16, 20), "f").reads_signs()
    assert found == {"p", "c", "a"}


def one(op, *inputs, **attrs):
    return Node(op, "bad", inputs, attrs)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (one("exec", "x"), "unknown operation 'exec'"),
        (one("relu", "later"), "reads .'later'. which no earlier node makes"),
        (one("relu"), "has 0 inputs"),
        (one("relu", "x", "x"), "has 2 inputs"),
        (one("add", "x", "flat"), "differ beyond their channels"),
        (one("mul", "x", "flat"), "do not multiply"),
        (one("maxpool", "x", kernel=(3, 3), padding=(2, 2)), "more than half"),
        (one("maxpool", "x", kernel=(99, 99)), "would have shape"),
        (one("maxpool", "x", stride=(0, 1)), r"stride=\(0, 1\)"),
        (one("maxpool", "x", ceil_mode=1), "ceil_mode=1"),
        (one("hardtanh", "x", min=2.0), "min is above max"),
        (one("relu", "x", slope=0.1), "attributes .'slope'."),
        (one("conv", "x"), "a weight belongs to weighted operations"),
        (one("avgpool", "flat"), "expected .C, H, W."),
        (Node("relu", "bad", ("x",), codes=W), "a weight belongs to weighted operations"),
        (Node("relu", "bad", ("x",), {}, {"bias": B}), "tensors .'bias'."),
        (Node("select", "bad", ("x",), {}, {"index": np.array([0, 7])}), "index goes up to 7"),
        (Node("select", "bad", ("x",), {}, {"index": np.array([1, 0])}), "not an increasing list"),
        (Node("permute", "bad", ("x",), {}, {"order": np.array([0, 0, 1, 2, 3, 4])}), "no permutation of 6"),
        (Node("affine", "bad", ("x",), {}, {"scale": S}), "expected .'scale', 'shift'."),
        (Node("affine", "bad", ("x",), {}, {"scale": S, "shift": B}), r"shift has shape \[4\], expected \[6\]"),
        (Node("prelu", "bad", ("x",), {}, {"slope": B}), "slope has shape"),
        (Node("conv", "bad", ("x",), {}, {}, floats(4, 2, 1, 1)), "reads 6 channels, expected 2"),
        (Node("conv", "bad", ("x",), {"groups": 3}, {}, floats(4, 2, 1, 1)), "4 rows do not divide into 3 groups"),
        (Node("conv", "bad", ("x",), {}, {}, floats(4, 6, 9, 9)), "would have shape"),
        (Node("conv", "bad", ("x",), {}, {"bias": S}, W), r"bias has shape \[6\], expected \[4\]"),
        (Node("flatten", "flat", ("x",)), "its name is taken"),
        (Node("input", "bad"), "exactly one input"),
    ],
)
def test_a_model_that_does_not_hang_together_is_refused(bad, message):
    packed = PackedModel([Node("input", "x"), Node("flatten", "flat", ("x",)), bad], (6, 8, 8), "flat")
    with pytest.raises(ValueError, match=message):
        packed.validate()


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", range(3, 12))
def test_pooled_sizes_are_torchs(size, ceil_mode):
    for kernel, stride, padding in ((3, 2, 1), (2, 2, 0), (3, 3, 1), (2, 3, 1), (3, 1, 0)):
        attrs = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "padding": (padding,) * 2, "ceil_mode": ceil_mode}
        pool, flat = Node("maxpool", "pool", ("x",), attrs), Node("flatten", "flat", ("pool",))
        shapes = PackedModel([Node("input", "x"), pool, flat], (1, size, size), "flat").validate()
        torchs = torch.nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)(torch.zeros(1, 1, size, size))
        assert shapes["pool"] == tuple(torchs.shape[1:])
