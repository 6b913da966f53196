"""A packed network as a saved torch.export program: aten operations, decoded weights, any batch."""

from __future__ import annotations

import io

import torch

from sparsign.export import Content, Options, facts
from sparsign.export.compare import TOLERANCE, errors, random_images
from sparsign.kernels.module import PackedNetwork
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.spec import PackedModel


def content(packed: PackedModel, options: Options) -> Content:
    """See `export.convert`. `torch.export.load(file).module()` is the network, `facts` are extra files."""
    net = PackedNetwork(packed, b"", "reference").eval()
    images = random_images(packed)
    program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:  # paths and lines of this machine's sources
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            node.meta.pop(key, None)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{part}.json": text for part, text in facts(packed).items()})
    data, made = file.getvalue(), f"torch {torch.__version__}, fp32"
    if not options.check:
        return Content(data, f"{made}, not checked")
    with torch.inference_mode():
        found = torch.export.load(io.BytesIO(data)).module()(images[1:])
    error = errors([found.numpy()], [ReferenceEngine(packed)(images[1:])]).max()
    if not error <= TOLERANCE:
        raise ValueError(f"the exported program answers otherwise: error {error:.1e} of the largest output")
    return Content(data, f"{made}; largest error {error:.1e} of the largest output ({len(images) - 1} random images)")
