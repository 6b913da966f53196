"""Exported files used without us: by torch and ONNX Runtime alone, as safetensors, by a C compiler."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exported import INDEXED, ZOO, assert_same, nets
from safetensors.numpy import load
from test_packing_ops import W, X
from tiny_nets import INPUT

from sparsign.export import FORMATS, convert
from sparsign.export.__main__ import main
from sparsign.packing.file import read, write
from sparsign.packing.spec import Node, PackedModel

packed = pytest.fixture(nets, scope="module")


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
