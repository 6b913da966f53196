"""OpenVINO as a user would take it instead of the packed engine: the float network, in int8 after training."""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[Tensor], Tensor]


class Int8:
    """The float network in OpenVINO's int8, made when images of a batch size or a number of threads first come."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.made = net, {}

    @staticmethod
    def installed() -> bool:
        """Whether OpenVINO and NNCF are there."""
        return all(importlib.util.find_spec(name) for name in ("openvino", "nncf"))

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised fp32 images [N, C, H, W]."""
        key = images.shape, torch.get_num_threads()
        if key not in self.made:
            self.made[key] = openvino_int8(self.net, images, key[1])
        return self.made[key](images)


def openvino_int8(net: nn.Module, images: Tensor, threads: int) -> Call:
    """The float network with int8 weights and activations, by NNCF's quantisation after training.

    Ranges come from `images` [N, C, H, W], whose batch is the only one it then takes:
    right for timing, not for accuracy.

    Raises:
        ImportError: OpenVINO or NNCF is not installed.
    """
    import nncf
    import openvino as ov

    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = ov.convert_model(torch.export.export(net, (images,)))
    with redirect_stdout(io.StringIO()):  # its progress bars
        quantised = nncf.quantize(model, nncf.Dataset([images.numpy()]), subset_size=1)
    return openvino_call(quantised, threads, "f32")


def openvino_call(model: Any, threads: int, precision: str) -> Call:
    """A model of OpenVINO compiled for this CPU, with what is not int8 in `precision` (f32 or bf16).

    Raises:
        ValueError: this CPU computes in another precision than the one asked for.
    """
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    compiled = ov.compile_model(model, "CPU", settings)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != precision:
        raise ValueError(f"asked for {precision}, this CPU computes in {used}")
    request = compiled.create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()])[0])
