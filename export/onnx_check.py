"""Whether an ONNX file answers as the packed network, by onnxruntime beside the reference engine."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from sparsign.export.compare import IMAGES, TOLERANCE, errors, random_images
from sparsign.export.onnx_model import build
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.spec import PackedModel


def check(data: bytes, packed: PackedModel, weights: str) -> str:
    """What was found; ValueError where the file answers otherwise.

    A number that two programs round to different sides of 0 has two signs, and everything after it differs. Where a
    network with signs answers differently, it is compared once more with the reference's signs fed in: then every
    number that a sign reads, and the logits, are compared.
    """
    images = random_images(packed)
    found = errors(run(data, images), [ReferenceEngine(packed)(images)])
    by = f"onnxruntime {onnxruntime.__version__}, {IMAGES} random images"
    if found.max() <= TOLERANCE:
        return f"largest error {found.max():.1e} of the largest output ({by})"
    if all(node.op != "sign" for node in packed.nodes):
        raise ValueError(f"the ONNX file answers otherwise: error {found.max():.1e} of the largest output ({by})")
    signs, expected = _steps(packed, images)
    given = errors(run(build(packed, weights, given_signs=True), images, *signs), expected).max()
    if not given <= TOLERANCE:
        raise ValueError(f"the ONNX file answers otherwise: error {given:.1e} of the largest with equal signs ({by})")
    moved = f"{(found > TOLERANCE).sum()} of {IMAGES} answers by up to {found.max():.1e}"
    return (
        f"largest error {given:.1e} of the largest number with equal signs; "
        f"numbers next to 0 that are rounded to the other side move {moved} ({by})"
    )


def run(data: bytes, *inputs: Tensor) -> list[np.ndarray]:
    """What onnxruntime makes of an ONNX file, on the CPU; inputs and outputs in the file's order.

    ValueError where it takes no such file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    except Exception as error:  # its own kinds have no base of theirs
        raise ValueError(f"onnxruntime does not run the ONNX file: {error}") from None


def _steps(packed: PackedModel, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """(every sign, the logits and what each sign reads), as `build(..., given_signs=True)` takes and gives them."""
    signs, expected = [], []
    for node, inputs, output in ReferenceEngine(packed).steps(images):
        if node.name == packed.output:
            expected.insert(0, output)
        elif node.op == "sign":
            signs.append(output)
            expected.append(inputs[0])
    return signs, expected
