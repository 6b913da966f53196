"""Exported files: each loaded by the tool it is for, which answers as the packed network."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from safetensors.numpy import load
from test_packing_ops import CASES, P, W, X, made
from tiny_nets import INPUT, build, prune, quantised, regular

from benchmarks.architectures import every_third_gone
from sparsign import export
from sparsign.export import FORMATS, Options, convert, onnx_check, onnx_model, onnx_ops
from sparsign.export.__main__ import main
from sparsign.export.compare import TOLERANCE
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import read, write
from sparsign.packing.ops import OPS
from sparsign.packing.spec import Node, PackedModel
from sparsign.packing.trace import to_packed
from sparsign.packing.values import RowGroupScale, SignPair, Table

ZOO = sorted((Path(__file__).parent.parent / "zoo").glob("*.sparsign"))
IMAGES = torch.randn(5, *INPUT, generator=torch.Generator().manual_seed(1))
POOL = {"kernel": (3, 2), "stride": (2, 3), "padding": (1, 1)}
AFFINE = {"scale": np.array([0.5, -2], np.float32), "shift": np.array([1, 0], np.float32)}
INDEXED = {"index0": np.array([0, 2, 3, 4, 6, 7]), "index1": np.array([1, 2, 3, 5, 6, 7])}
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


def nets():
    """One packed net of every kind that the formats tell apart, by name."""
    residual = quantised("residual", 1, levels=5)
    return {
        "float": to_packed(prune(build("depthwise", 0), 0.2), lambda module: None, INPUT),
        "ternary": quantised("bireal", 0),
        "binary": regular(),
        "levels": residual,
        "pair": revalued(quantised("chain", 2, ratio=0.1), lambda codes, rows: SignPair(rows, rows[::-1] + 1)),
        "groups": revalued(residual, lambda codes, rows: RowGroupScale(rows[:, None], 99)),
        "table": revalued(residual, lambda codes, rows: (abs(codes), Table(np.arange(1, 6, dtype=np.float32) / 7))),
    }


def revalued(packed, values):
    """The net with other values for its coded layers."""
    nodes = []
    for node in packed.nodes:
        if node.codes is not None and node.codes.coded:
            rows = np.linspace(0.5, 1, len(node.codes.rows), dtype=np.float32)
            found = values(node.codes.codes, rows)
            codes, way = found if isinstance(found, tuple) else (node.codes.codes, found)
            node = replace(node, codes=replace(node.codes, codes=codes, values=way))
        nodes.append(node)
    return PackedModel(nodes, packed.input_shape, packed.output, packed.meta)


@pytest.fixture(scope="module")
def packed():
    return nets()


def few_nodes():
    """A conv and a sum whose operands lack channels: as little as torch.export can go wrong on."""
    same = {"padding": (1, 1)}
    nodes = [
        Node("input", "x"),
        Node("conv", "stem", ("x",), same, {}, W),
        Node("add", "sum", ("stem", "x"), {"channels": 8}, {**INDEXED, "index0": np.array([0, 2, 4, 6])}),
        Node("globalavgpool", "pool", ("sum",)),
        Node("flatten", "flat", ("pool",)),
    ]
    return PackedModel(nodes, (6, 8, 10), "flat", {"dataset": {"mean": [0.5]}})


def assert_same(found, packed, images, tolerance=1e-5):
    expected = ReferenceEngine(packed)(images).numpy()
    assert found.shape == expected.shape and expected.std() > 0
    np.testing.assert_allclose(found, expected, atol=tolerance * abs(expected).max(), rtol=0)


# -- ONNX --------------------------------------------------------------------------------------------------------------


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


# -- the others --------------------------------------------------------------------------------------------------------

ELSEWHERE = """
import sys
sys.modules["sparsign"] = None  # importing it raises
import numpy as np, onnxruntime, torch
from safetensors.torch import load_file
images = np.load("images.npy")
facts = {"dataset.json": ""}
net = torch.export.load("net.pt2", extra_files=facts).module()
assert facts["dataset.json"] in ('{"mean": [0.5]}', b'{"mean": [0.5]}')
session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
for n in (5, 1):
    np.save(f"torch{n}.npy", net(torch.from_numpy(images[:n])).numpy())
    np.save(f"onnx{n}.npy", session.run(None, {"images": images[:n]})[0])
assert {node.target.namespace for node in net.graph.nodes if hasattr(node.target, "namespace")} == {"aten"}
assert load_file("net.safetensors")["stem.weight"].dtype == torch.float32
"""


def test_files_are_used_where_there_is_nothing_of_ours(tmp_path, capsys):
    packed, images = few_nodes(), X.repeat(3, 1, 1, 1)[:5]
    write(packed, tmp_path / "net.sparsign")
    for to in ("torch", "onnx", "safetensors"):
        assert main([str(tmp_path / "net.sparsign"), "--to", to]) == 0
        out = tmp_path / f"net{FORMATS[to].suffix}"
        line = capsys.readouterr().out
        sizes = [f"{path.stat().st_size:,}" for path in (out, tmp_path / "net.sparsign")]
        assert line.startswith(f"{out}: {sizes[0]} bytes beside the packed file's {sizes[1]}; ") and "error " in line
    np.save(tmp_path / "images.npy", images.numpy())
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, check=True)
    for n in (5, 1):
        assert_same(np.load(tmp_path / f"torch{n}.npy"), packed, images[:n], 1e-6)
        assert_same(np.load(tmp_path / f"onnx{n}.npy"), packed, images[:n])
    for secret in (str(Path(__file__).parent.parent), "run_packed"):
        assert secret.encode() not in (tmp_path / "net.pt2").read_bytes()


def test_safetensors_hold_the_decoded_network(packed):
    model = packed["levels"]
    data = convert(model, "safetensors").data
    arrays = load(data)
    for node in model.nodes:
        if node.codes is not None:
            assert np.array_equal(arrays.pop(f"{node.name}.weight"), node.codes.weight())
        for key, array in node.tensors.items():
            name = {"scale": "weight", "shift": "bias"}.get(key, key)
            assert np.array_equal(arrays.pop(f"{node.name}.{name}"), array)
    assert not arrays
    facts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert [node["op"] for node in json.loads(facts["graph"])] == [node.op for node in model.nodes]
    assert json.loads(facts["input"]) == list(INPUT) and json.loads(facts["dataset"])["mean"] == [0.5]
    cut = json.loads(facts["layers"])
    for name, node in model.layers().items():
        fact, codes = cut[f"{name}.weight"], node.codes
        rows, cols = (fact.get(key, list(range(n))) for key, n in zip(("rows", "cols"), codes.full_shape, strict=False))
        assert (fact["full_shape"], rows, cols) == (list(codes.full_shape), codes.rows.tolist(), codes.cols.tolist())
    assert any("rows" in fact for fact in cut.values())


C_PROGRAM = """
#include <stdio.h>
#include "net.h"
int main(void) {
    for (size_t k = 0; k < sizeof sparsign_layers / sizeof *sparsign_layers; ++k) {
        const sparsign_layer *l = &sparsign_layers[k];
        for (int r = 0; r < l->shape[0]; ++r)
            for (int c = 0; c < l->shape[1] * l->shape[2] * l->shape[3]; ++c) {
                float weight = sparsign_weight(l, r, c);
                fwrite(&weight, sizeof weight, 1, stdout);
            }
    }
    fwrite(n_stem_codes_, sizeof(float), sizeof n_stem_codes_ / sizeof(float), stdout);
}
"""


@pytest.mark.parametrize("kind", ["ternary", "binary", "levels", "pair", "groups"])
def test_a_c_compiler_decodes_the_header_to_the_same_weights(packed, kind, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    model = packed[kind]
    bias = next(node for node in model.nodes if node.op in ("affine", "linear", "conv") and node.tensors)
    key = next(iter(bias.tensors))
    name = "n_" + "".join(c if c.isalnum() else "_" for c in bias.name) + f"_{key}"
    (tmp_path / "net.h").write_bytes(convert(model, "c-header").data)
    (tmp_path / "main.c").write_text(C_PROGRAM.replace("n_stem_codes_", name))
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-variable"]
    subprocess.run([compiler, *strict, "main.c", "-o", "main"], cwd=tmp_path, check=True)
    out = subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout
    weights = [node.codes.weight().ravel() for node in model.layers().values()]
    assert np.array_equal(np.frombuffer(out, np.float32), np.concatenate([*weights, bias.tensors[key]]))


def test_bits_of_the_header_are_as_few_as_its_comment_says(packed):
    layer = packed["binary"].layers()["7"].codes
    size, text = (
        layer.shape[0] * -(-layer.dense_codes()[0].size // 8),
        convert(packed["binary"], "c-header").data.decode(),
    )
    assert f"n_7_negative[{size}]" in text and f"n_7_nonzero[{size}]" in text
    binary = read(next(path for path in ZOO if "binary" in path.stem))
    layers = [node.codes for node in binary.layers().values()]
    bits = sum(len(c.rows) * -(-(c.codes.size // len(c.rows)) // 8) for c in layers)
    said = convert(binary, "c-header")
    assert "_nonzero[" not in said.data.decode()
    assert bits < int(said.note.split(" bytes")[0].replace(",", "")) < 1.1 * bits


def test_names_of_a_stranger_do_not_leave_their_comment():
    nodes = [Node("input", 'x"\n'), Node("flatten", "*/ int x; /*", ('x"\n',)), Node("relu", "ü\\", ("*/ int x; /*",))]
    text = convert(PackedModel(nodes, (1, 2, 2), "ü\\"), "c-header").data.decode()
    comment, code = text.split(" */\n#ifndef", 1)
    assert "*/" not in comment and comment.count("/*") == 1 and "int x" not in code


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(packed, tmp_path):
    write(packed["pair"], tmp_path / "net.sparsign")
    return tmp_path / "net.sparsign"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.sparsign", "--to", "onnx"], "none.sparsign: no such packed model"),
        (["damaged.sparsign", "--to", "onnx"], "damaged or cut short"),
        (["other.onnx", "--to", "torch"], "not a packed model"),
        (["net.sparsign", "--to", "tflite"], "--to tflite: expected one of onnx, torch, safetensors, c-header"),
        (["net.sparsign"], "the following arguments are required: --to"),
        (["net.sparsign", "--to", "onnx", "--opset", "9"], "unrecognized arguments: --opset 9"),
        (["net.sparsign", "--to", "onnx", "--weights", "int3"], "--weights int3: expected one of float, int8-dequ"),
        (["net.sparsign", "--to", "onnx", "--weights", "int8-dequantize"], "layer 2: its values (sign_pair)"),
        (["net.sparsign", "--to", "torch", "--weights", "int8-dequantize"], "only --to onnx has a choice"),
        (
            ["net.sparsign", "--to", "c-header", "--out", "net.sparsign"],
            "--out net.sparsign: is the packed file itself",
        ),
        (["net.sparsign", "--to", "c-header", "--out", "other.onnx/net.h"], "--out other.onnx/net.h: Not a dir"),
        (["net.sparsign", "--to", "c-header", "--out", "folder"], "--out folder: Is a directory"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(file, arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(file.parent)
    data = file.read_bytes()
    Path("damaged.sparsign").write_bytes(data[:-3] + b"\0\1\2")
    Path("other.onnx").write_bytes(b"\x08\x08\x12\x04some")
    Path("folder").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and said in err and len(err.splitlines()) == 1
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before


def test_an_operation_without_a_spelling_is_named(file, capsys, monkeypatch):
    monkeypatch.delitem(onnx_ops.SPELLINGS, "maxpool")
    assert main([str(file), "--to", "onnx"]) == 1
    assert capsys.readouterr().err == "error: node '5': operation 'maxpool' has no ONNX spelling yet\n"
    assert not file.with_suffix(".onnx").exists()


def test_missing_packages_are_named_and_onnxruntime_can_be_done_without(file, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "sparsign.export.onnx_check")
    monkeypatch.delattr(export, "onnx_check")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main([str(file), "--to", "onnx"]) == 1
    said = "error: onnxruntime is not installed: pip install 'sparsign[export]', or --no-check\n"
    assert capsys.readouterr().err == said and not file.with_suffix(".onnx").exists()
    assert main([str(file), "--to", "onnx", "--no-check"]) == 0
    assert "opset 17, weights float, not checked" in capsys.readouterr().out
    onnx.checker.check_model(file.with_suffix(".onnx").read_bytes())


def test_help_names_every_format(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in FORMATS) and "--to onnx --weights int2-dequantize" in text
