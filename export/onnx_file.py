"""A packed network as an ONNX file, compared with onnxruntime before it is handed out."""

from __future__ import annotations

from sparsign.export import Content, Options
from sparsign.export.onnx_model import build
from sparsign.export.weights import WEIGHTS
from sparsign.packing.spec import PackedModel


def content(packed: PackedModel, options: Options) -> Content:
    """See `export.convert`."""
    if options.weights != "float" and not any(node.codes.coded for node in packed.layers().values()):
        raise ValueError(f"--weights {options.weights}: all layers are float, expected float")
    data = build(packed, options.weights)
    made = f"opset {WEIGHTS[options.weights].opset}, weights {options.weights}"
    if not options.check:
        return Content(data, f"{made}, not checked")
    from sparsign.export.onnx_check import check

    return Content(data, f"{made}; {check(data, packed, options.weights)}")
