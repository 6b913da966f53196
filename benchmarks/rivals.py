"""What a user could run a float network with instead: one function per library, yielding (name, how to make it).

Making one may raise ImportError (the library is not there) or whatever else the library stops at. int8 quantises every
conv and linear layer, with signed weights per channel and ranges from random images: right for timing, not for
accuracy. What is made takes images [N, C, H, W] of the batch it was made for and gives logits [N, classes].
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsign.evaluation.libraries import Call, openvino_call, openvino_int8

Rival = tuple[str, Callable[[], Call]]
CALIBRATION = 2
"""Batches that ranges are taken from."""


def rivals(net: nn.Module, images: Tensor, threads: int) -> Iterator[Rival]:
    """Every rival of the float network `net`, torch's last: it changes the memory format."""
    for library in (onnx_runtime, openvino, litert):
        yield from library(net, images, threads)
    yield from in_torch(net)


def in_torch(net: nn.Module) -> Iterator[Rival]:
    """torch eager and compiled, in fp32 and under bf16 autocast."""

    def eager() -> Call:
        return net.to(memory_format=torch.channels_last)

    def bf16(call: Call) -> Call:
        def run(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return call(x)

        return run

    yield "torch fp32", eager
    yield "torch.compile fp32", lambda: torch.compile(eager(), dynamic=False)
    yield "torch bf16", lambda: bf16(eager())
    yield "torch.compile bf16", lambda: bf16(torch.compile(eager(), dynamic=False))


def onnx_runtime(net: nn.Module, images: Tensor, threads: int) -> Iterator[Rival]:
    """ONNX Runtime in fp32 and int8 (QDQ)."""

    def session(quantise: bool) -> Call:
        import onnxruntime as ort
        from onnxruntime import quantization as q

        class Reader(q.CalibrationDataReader):
            def __init__(self) -> None:
                self.left = [{"images": images.numpy()} for _ in range(CALIBRATION)]

            def get_next(self) -> dict[str, np.ndarray] | None:
                return self.left.pop() if self.left else None

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            torch.onnx.export(net, (images,), path, dynamo=True, input_names=["images"], verbose=False)
            if quantise:
                ready, path = path, Path(folder) / "int8.onnx"
                q.quantize_static(ready, path, Reader(), per_channel=True, weight_type=q.QuantType.QInt8)
            run = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(run.run(None, {"images": x.numpy()})[0])

    yield "ONNX Runtime fp32", lambda: session(False)
    yield "ONNX Runtime int8", lambda: session(True)


def openvino(net: nn.Module, images: Tensor, threads: int) -> Iterator[Rival]:
    """OpenVINO in fp32, bf16 (refused where it would run fp32 instead) and int8 (NNCF, after training)."""

    def plain(precision: str) -> Call:
        import openvino as ov

        return openvino_call(ov.convert_model(torch.export.export(net, (images,))), threads, precision)

    yield "OpenVINO fp32", lambda: plain("f32")
    yield "OpenVINO bf16", lambda: plain("bf16")
    yield "OpenVINO int8", lambda: openvino_int8(net, images, threads)


def litert(net: nn.Module, images: Tensor, threads: int) -> Iterator[Rival]:
    """LiteRT (XNNPACK) in fp32 and int8 (AI Edge Quantizer); channels last, as it computes."""
    file: dict[str, bytes] = {}  # the conversion takes longest: once for both

    def interpreter(quantise: bool) -> Call:
        import litert_torch
        from ai_edge_litert.interpreter import Interpreter

        sample = images.permute(0, 2, 3, 1).contiguous()
        if not file:
            converted = litert_torch.convert(litert_torch.to_channel_last_io(net, args=[0]), (sample,))
            with tempfile.TemporaryDirectory() as folder:
                converted.export(str(path := Path(folder) / "net.tflite"))
                file["fp32"] = path.read_bytes()
        content = _litert_int8(file["fp32"], sample.numpy()) if quantise else file["fp32"]
        run = Interpreter(model_content=content, num_threads=threads)
        run.allocate_tensors()
        source, answer = run.get_input_details()[0], run.get_output_details()[0]

        def call(x: Tensor) -> Tensor:
            given = x.permute(0, 2, 3, 1).numpy()
            run.set_tensor(source["index"], _to_int8(given, *source["quantization"]) if quantise else given)
            run.invoke()
            scale, zero = answer["quantization"] if quantise else (1, 0)
            return torch.from_numpy((run.get_tensor(answer["index"]).astype(np.float32) - zero) * np.float32(scale))

        return call

    yield "LiteRT fp32", lambda: interpreter(False)
    yield "LiteRT int8", lambda: interpreter(True)


def _litert_int8(content: bytes, images: np.ndarray) -> bytes:
    """A .tflite with int8 weights per channel and int8 activations of the ranges that `images` [N, H, W, C] give."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(content, recipe.static_wi8_ai8())
    ((name, signature),) = Interpreter(model_content=content).get_signature_list().items()
    ranges = made.calibrate({name: [{signature["inputs"][0]: images}] * CALIBRATION})
    return bytes(made.quantize(ranges).quantized_model)


def _to_int8(values: np.ndarray, scale: float, zero: int) -> np.ndarray:
    return np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8)
