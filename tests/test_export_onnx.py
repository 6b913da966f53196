"""Networks as ONNX: every operation and whole nets answer as the reference, with their codes to the bit."""

import json

import numpy as np
import onnx
import pytest
import torch
import torchvision
from exported import INDEXED, ZOO, assert_same, nets
from test_packing_ops import CASES, P, X, made
from tiny_nets import INPUT, build

from benchmarks.architectures import every_third_gone
from sparsign.export import Options, convert, onnx_check, onnx_model, onnx_ops
from sparsign.export.compare import TOLERANCE
from sparsign.packing.file import read
from sparsign.packing.ops import OPS
from sparsign.packing.spec import Node, PackedModel
from sparsign.packing.trace import to_packed

IMAGES = torch.randn(5, *INPUT, generator=torch.Generator().manual_seed(1))
POOL = {"kernel": (3, 2), "stride": (2, 3), "padding": (1, 1)}
AFFINE = {"scale": np.array([0.5, -2], np.float32), "shift": np.array([1, 0], np.float32)}
RELU = (Node("relu", "r", ("x",)),)
MORE = {
    "add with channels of both": ("add", {"channels": 8}, INDEXED, ("x", "r"), RELU),
    "add with channels of one": ("add", {"channels": 6}, {"index1": np.arange(2)}, ("x", "s"), None),
    "mul with a vector": (
        "mul",
        {},
        {},
        ("x", "f"),
        (Node("globalavgpool", "g", ("x",)), Node("flatten", "f", ("g",))),
    ),
    "prelu with one slope": ("prelu", {}, {"slope": P[:1]}, ("x",), ()),
    "gelu with erf": ("gelu", {"tanh": False}, {}, ("x",), ()),
    "upsample nearest": ("upsample", {"factor": (3, 2), "bilinear": False}, {}, ("x",), ()),
    "maxpool dilated": ("maxpool", {**POOL, "kernel": (2, 3), "dilation": (2, 2), "ceil_mode": True}, {}, ("x",), ()),
    **{
        f"avgpool ceil_mode={ceil} count_include_pad={counts}": (
            ("avgpool", {**POOL, "ceil_mode": ceil, "count_include_pad": counts}, {}, ("x",), ())
        )
        for ceil in (False, True)
        for counts in (False, True)
    },
}
packed = pytest.fixture(nets, scope="module")


def test_every_operation_has_a_spelling():
    assert set(onnx_ops.SPELLINGS) | {"input"} == set(OPS)


@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_an_operation_in_onnx_is_the_references(case):
    if case in CASES:
        model, _ = made(case, **CASES[case][0])
    else:
        op, attrs, tensors, inputs, before = MORE[case]
        before = (Node("select", "s", ("x",), {}, {"index": np.array([1, 4])}),) if before is None else before
        model, _ = made(op, attrs, tensors, inputs=inputs, before=before)
    for weights in ("float", "int2-dequantize"):  # the oldest opset and the newest
        data = onnx_model.build(model, weights)
        onnx.checker.check_model(data, full_check=True)
        assert_same(onnx_check.run(data, X)[0], model, X)


def test_affine_of_a_vector_and_names_that_are_taken():
    nodes = [
        Node("input", "logits"),
        Node("select", "images", ("logits",), {}, {"index": np.array([0, 1])}),
        Node("globalavgpool", "constant.0", ("images",)),
        Node("flatten", "a/Mul", ("constant.0",)),
        Node("affine", "a", ("a/Mul",), {}, AFFINE),
        Node("silu", "a.scale", ("a",)),
    ]
    model = PackedModel(nodes, (3, 8, 8), "a.scale")
    data = onnx_model.build(model)
    onnx.checker.check_model(data, full_check=True)
    assert_same(onnx_check.run(data, IMAGES)[0], model, IMAGES)


def test_nets_are_standard_onnx_of_any_batch_under_their_own_names(packed):
    for model in packed.values():
        data = onnx_model.build(model)
        onnx.checker.check_model(data, full_check=True)
        parsed = onnx.load_from_string(data)
        assert {node.domain for node in parsed.graph.node} == {""}
        assert [(o.domain, o.version) for o in parsed.opset_import] == [("", 17)] and parsed.ir_version == 8
        for images in (IMAGES, IMAGES[:1]):
            assert_same(onnx_check.run(data, images)[0], model, images)
        names = {tensor.name for tensor in parsed.graph.initializer}
        assert {f"{name}.weight" for name in model.layers()} <= names
    props = {p.key: p.value for p in onnx.load_from_string(onnx_model.build(packed["ternary"])).metadata_props}
    assert json.loads(props["dataset"]) == {"class_names": ["a", "b"], "mean": [0.5]}


@pytest.mark.parametrize(("kind", "bits"), [("ternary", 2), ("binary", 2), ("levels", 4), ("levels", 8)])
def test_codes_in_onnx_are_the_weights_to_the_bit_in_fewer_bytes(packed, kind, bits):
    model = packed[kind]
    data = onnx_model.build(model, f"int{bits}-dequantize")
    assert_same(onnx_check.run(data, IMAGES)[0], model, IMAGES)
    parsed = onnx.load_from_string(data)
    assert [op.version for op in parsed.opset_import] == [{8: 17, 4: 21, 2: 25}[bits]]
    decoded = {n.input[0].removesuffix(".codes"): n.output[0] for n in parsed.graph.node if n.op_type[:2] == "De"}
    parsed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in decoded.values())
    weights = dict(zip(decoded, onnx_check.run(parsed.SerializeToString(), IMAGES)[1:], strict=True))
    sizes = {tensor.name: len(tensor.raw_data) for tensor in parsed.graph.initializer}
    for name, node in model.layers().items():
        count = node.codes.weight().size
        if node.codes.coded:
            assert np.array_equal(weights.pop(name), node.codes.weight())
            assert sizes[f"{name}.codes"] == -(-count * bits // 8)
            assert sizes[f"{name}.scale"] in (4, 4 * len(node.codes.rows)) and f"{name}.weight" not in sizes
        else:
            assert sizes[f"{name}.weight"] == 4 * count
    assert not weights


@pytest.mark.parametrize(
    ("kind", "bits", "said"),
    [
        ("pair", 8, r"layer \S+: its values \(sign_pair\) are no scale per row times a code, try float"),
        ("table", 8, r"layer \S+: its values \(table\) are no scale per row"),
        ("groups", 4, r"layer \S+: its values \(row_group_scale\) are no scale per row"),
        ("levels", 2, r"layer \S+: its codes from -\d to \d lie outside \[-2, 1\], try float"),
    ],
)
def test_values_that_dequantize_linear_has_not_are_refused(packed, kind, bits, said):
    with pytest.raises(ValueError, match=f"--weights int{bits}-dequantize: {said}"):
        convert(packed[kind], "onnx", Options(f"int{bits}-dequantize"))
    assert "weights float; largest error" in convert(packed[kind], "onnx").note


def test_integers_for_a_network_without_codes_are_refused():
    model = to_packed(build("chain", 0), lambda layer: None, INPUT)
    with pytest.raises(ValueError, match="--weights int2-dequantize: all layers are float, expected float"):
        convert(model, "onnx", Options("int2-dequantize"))


@pytest.mark.parametrize("file", ZOO, ids=lambda path: path.stem)
def test_the_zoo_in_onnx(file):
    model = read(file)
    images = torch.rand(3, *model.input_shape, generator=torch.Generator().manual_seed(0))
    assert_same(onnx_check.run(onnx_model.build(model), images)[0], model, images, TOLERANCE)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "resnet18"])
def test_torchvisions_networks_thinned_in_onnx(name):
    torch.manual_seed(0)
    net = every_third_gone(torchvision.models.get_model(name, num_classes=10))
    model, images = to_packed(net, lambda module: None, (3, 32, 32)), torch.randn(2, 3, 32, 32)
    answer = onnx_check.run(onnx_model.build(model), images)[0]
    assert_same(answer, model, images)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answer), net(images), atol=1e-4, rtol=1e-4)


def test_a_file_that_answers_otherwise_is_found(packed, monkeypatch):
    run = onnx_check.run

    def wrong(data, images, *signs):
        first, *rest = run(data, images, *signs)
        return [first + wrong_at[bool(signs)], *rest]

    monkeypatch.setattr(onnx_check, "run", wrong)
    wrong_at = [1.0, 0.0]
    with pytest.raises(ValueError, match=r"answers otherwise: error \S+ of the largest output"):
        convert(packed["levels"], "onnx")
    assert "with equal signs; numbers next to 0" in (note := convert(packed["ternary"], "onnx").note)
    assert "move 4 of 4 answers" in note
    wrong_at = [1.0, 1.0]
    with pytest.raises(ValueError, match=r"answers otherwise: error \S+ of the largest with equal signs"):
        convert(packed["ternary"], "onnx")


def test_what_signs_read_is_compared_one_by_one(packed):
    signs, expected = onnx_check._steps(packed["ternary"], IMAGES)
    found = onnx_check.run(onnx_model.build(packed["ternary"], given_signs=True), IMAGES, *signs)
    assert len(found) == len(expected) == 1 + sum(node.op == "sign" for node in packed["ternary"].nodes)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    flipped = onnx_check.run(onnx_model.build(packed["ternary"], given_signs=True), IMAGES, *[-s for s in signs])
    assert not np.allclose(flipped[0], expected[0], atol=1e-3)
