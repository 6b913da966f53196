"""Packed nets of every kind that the formats of export tell apart, and whether an exported one answers alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny_nets import INPUT, build, prune, quantised, regular

from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.spec import PackedModel
from sparsign.packing.trace import to_packed
from sparsign.packing.values import RowGroupScale, SignPair, Table

ZOO = sorted((Path(__file__).parent.parent / "zoo").glob("*.sparsign"))
INDEXED = {"index0": np.array([0, 2, 3, 4, 6, 7]), "index1": np.array([1, 2, 3, 5, 6, 7])}


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


def assert_same(found, packed, images, tolerance=1e-5):
    expected = ReferenceEngine(packed)(images).numpy()
    assert found.shape == expected.shape and expected.std() > 0
    np.testing.assert_allclose(found, expected, atol=tolerance * abs(expected).max(), rtol=0)
