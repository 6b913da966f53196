"""The ONNX model of a packed network: every operation as `onnx_ops` spells it, every weight as `weights` has it."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from sparsign.export import facts
from sparsign.export.graph import Graph
from sparsign.export.onnx_ops import SPELLINGS
from sparsign.export.weights import WEIGHTS, weight
from sparsign.packing.spec import PackedModel


def build(packed: PackedModel, weights: str = "float", given_signs: bool = False) -> bytes:
    """The ONNX file's bytes: `images` [batch, C, H, W] -> `logits` [batch, classes].

    given_signs: outputs of sign operations become inputs of the graph and what they read outputs, for the check.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"--weights {weights}: expected one of {', '.join(WEIGHTS)}")
    shapes, g = packed.shapes, Graph()
    g.name("images"), g.name("logits")
    values = {packed.nodes[0].name: "images"}
    inputs, outputs = [_info("images", packed.input_shape)], []
    for node in packed.nodes[1:]:
        read = [values[name] for name in node.inputs]
        g.prefix = node.name
        if given_signs and node.op == "sign" and node.name != packed.output:
            outputs.append(_info(g.add("Identity", *read), shapes[node.name]))
            values[node.name] = g.name(node.name)
            inputs.append(_info(values[node.name], shapes[node.name]))
            continue
        if node.op not in SPELLINGS:
            raise ValueError(f"node {node.name!r}: operation {node.op!r} has no ONNX spelling yet")
        read += [weight(g, node, weights)] if node.codes is not None else []
        SPELLINGS[node.op](g, node, [shapes[name] for name in node.inputs], *read)
        values[node.name] = g.nodes[-1].output[0] = "logits" if node.name == packed.output else g.name(node.name)
    outputs.insert(0, _info("logits", shapes[packed.output]))
    graph = helper.make_graph(g.nodes, "sparsign", inputs, outputs, g.initializers)
    kind = WEIGHTS[weights]
    opset = helper.make_opsetid("", kind.opset)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=kind.ir_version, producer_name="sparsign")
    helper.set_model_props(model, facts(packed))
    return model.SerializeToString(deterministic=True)


def _info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
