"""What zeros are worth: one 3x3 layer at several prune rates, the compiled engine beside torch and ONNX Runtime.

    python benchmarks/sparsity.py [seconds=60] [layers=64x32,128x16,256x8,512x4] [rates=0,.5,.9] [out=FOLDER]

Batch 1, one thread, CPU time, 20th percentile; all of one layer take turns. Kinds of pruning, each at every rate:
  filters    STQ-A: a binary layer over signs loses filters
  columns    STQ-B, gathered: a binary layer over signs loses input channels
  groups     WPC: ternary over fp32, groups of 8 filters lose an input channel's tap
  cut        ADMM, structured: an fp32 layer loses filters and columns, each keeping the root of what is left
  irregular  ADMM, PTQ: an fp32 layer loses single weights
The engine's time is that of a network with 5 copies of the layer, all reading the same values, less that of one with
1, by 4. Rivals compute the layer alone: torch with a prepacked weight, ONNX Runtime where it is there (neither sees
zeros), and torch's product of a CSR matrix with the unfolded image (the unfolding is not counted).
`gain` is over the engine at the first rate, `theory` 1 / (1 - rate), `over fp32` over the fastest dense library. For
`filters` the demand is gain >= 0.9 theory.
Files: sparsity.json and sparsity.png in `out`.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsign.evaluation.latency import Candidate, interleaved
from sparsign.evaluation.report import environment
from sparsign.kernels.engine import native

OPTIONS = {"seconds": "60", "layers": "64x32,128x16,256x8,512x4", "rates": "0,.25,.5,.75,.9,.95", "out": "."}
NO_MAP = np.empty(0, np.int32)
COPIES = 5
KINDS = ("filters", "columns", "groups", "cut", "irregular")
Call = Callable[[Tensor], Tensor]


def kept(channels: int, share: float) -> int:
    return max(1, round(channels * share))


def engine_network(size: int, weight: np.ndarray, bits: bool, copies: int) -> Call:
    """`copies` equal 3x3 layers that read the same image, as signs or in fp32, and a pool of the last one's outputs."""
    module, (outputs, inputs) = native(), weight.shape[:2]
    network, source = module.Network("", (inputs, size, size), False), 0
    if bits:
        source, chain = network.value(True, size, size, inputs), module.Chain()
        chain.sign(source)
        network.gather([module.Source(0, 1, NO_MAP)], (inputs, size, size), chain)
    window = module.Window((3, 3), (1, 1), (1, 1), (1, 1))
    for k in range(copies):
        chain, last = module.Chain(), k == copies - 1
        out = network.value(bits and not last, size, size, outputs)
        (chain.sign if bits and not last else chain.store)(out)
        (network.conv_bits if bits else network.conv_float)(source, window, weight, chain)
    answer, chain = network.value(False, 1, 1, outputs), module.Chain()
    chain.store(answer)
    network.pool(False, out, module.Window((size, size), (1, 1), (0, 0), (1, 1)), (1, 1), False, chain)
    network.finish(answer)
    logits = torch.empty(1, outputs)

    def run(images: Tensor) -> Tensor:
        network.run(images.data_ptr(), 1, logits.data_ptr(), 1)
        return logits

    return run


def binary_weight(kind: str, channels: int, rate: float) -> np.ndarray:
    """int8 signs [outputs, inputs, 3, 3] of what is left."""
    left = kept(channels, 1 - rate)
    shape = (left, channels, 3, 3) if kind == "filters" else (channels, left, 3, 3)
    return np.random.default_rng(0).choice(np.array([-1, 1], np.int8), shape)


def float_weight(kind: str, channels: int, rate: float) -> np.ndarray:
    """fp32 [outputs, inputs, 3, 3] with the zeros of the kind in it, or without what was cut."""
    rng = np.random.default_rng(0)
    if kind == "cut":
        left = kept(channels, (1 - rate) ** 0.5)
        return rng.normal(size=(left, left, 3, 3)).astype(np.float32)
    shape = (channels, channels, 3, 3)
    if kind == "irregular":
        return (rng.normal(size=shape) * (rng.random(shape) >= rate)).astype(np.float32)
    groups = rng.random((channels // 8, 1, channels, 3, 3)) >= rate
    return (rng.choice([-1, 1], shape).reshape(-1, 8, channels, 3, 3) * groups).reshape(shape).astype(np.float32)


def rivals(weight: Tensor, size: int) -> list[Candidate]:
    inputs = weight.shape[1]
    ops, matrix = torch.ops.mkldnn_prepacked, weight.flatten(1).to_sparse_csr()
    packed = ops.conv2d_prepack(weight, None, [1, 1], [1, 1], [1, 1], 1, [1, inputs, size, size], "none")
    unfolded = torch.nn.functional.unfold(torch.randn(1, inputs, size, size), 3, padding=1)[0]
    found = [
        Candidate("torch dense", "", lambda x: ops.conv2d_run(x, packed), channels_last=True),
        Candidate("torch CSR", "", lambda _: matrix @ unfolded),
    ]
    with suppress(ImportError):
        found.append(Candidate("ONNX Runtime", "", onnx_layer(weight, size)))
    return found


def onnx_layer(weight: Tensor, size: int) -> Call:
    import onnxruntime as ort

    conv, file = torch.nn.Conv2d(*weight.shape[1::-1], 3, padding=1, bias=False), io.BytesIO()
    conv.weight.data = weight
    torch.onnx.export(conv, (torch.zeros(1, weight.shape[1], size, size),), file, dynamo=False, input_names=["x"])
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@torch.inference_mode()
def measure(kind: str, channels: int, size: int, rates: list[float], seconds: float) -> list[dict[str, Any]]:
    """One row per rate; times in microseconds."""
    rows, bits = [], kind in ("filters", "columns")
    for rate in rates:
        weight = binary_weight(kind, channels, rate) if bits else float_weight(kind, channels, rate)
        timed = [Candidate(str(n), "", engine_network(size, weight, bits, n)) for n in (COPIES, 1)]
        others = [] if bits else rivals(torch.from_numpy(weight), size)
        images = torch.randn(1, weight.shape[1], size, size)
        samples = interleaved([*timed, *others], images, seconds / len(rates), time.process_time)
        many, one, *rest = (1e6 * float(np.percentile(t, 20)) for t in samples)
        row = {"kind": kind, "channels": channels, "size": size, "rate": rate, "theory": 1 / (1 - rate)}
        row["engine_us"] = (many - one) / (COPIES - 1)
        row |= {c.engine: t for c, t in zip(others, rest, strict=True)}
        row["gain"] = (rows[0] if rows else row)["engine_us"] / row["engine_us"]
        dense = [row[name] for name in ("torch dense", "ONNX Runtime") if name in row]
        if dense:
            row["over_fp32"] = min(dense) / row["engine_us"]
        rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Measured gain over theoretical, one panel per kind, one line per layer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(KINDS), figsize=(4 * len(KINDS), 4), sharey=True)
    for axis, kind in zip(axes, KINDS, strict=True):
        mine = [r for r in rows if r["kind"] == kind]
        for layer in dict.fromkeys((r["channels"], r["size"]) for r in mine):
            line = [r for r in mine if (r["channels"], r["size"]) == layer]
            axis.plot([r["theory"] for r in line], [r["gain"] for r in line], "o-", label="{}x{}".format(*layer))
            if "torch CSR" in line[0]:
                csr = [line[0]["torch dense"] / r["torch CSR"] for r in line]
                axis.plot([r["theory"] for r in line], csr, ":", color=axis.lines[-1].get_color())
        bound = sorted({r["theory"] for r in mine})
        axis.plot(bound, bound, "k--", lw=0.8)
        axis.set(xscale="log", yscale="log", xlabel="theoretical", title=kind)
    axes[0].set_ylabel("measured gain (dotted: torch CSR over torch dense)")
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Measures, prints, writes."""
    chosen = OPTIONS | dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if len(chosen) > len(OPTIONS):
        sys.exit(f"expected {', '.join(OPTIONS)}")
    if native() is None:
        sys.exit("the compiled engine was not built: nothing to measure")
    layers = [tuple(map(int, layer.split("x"))) for layer in chosen["layers"].split(",")]
    rates, seconds = [float(r) for r in chosen["rates"].split(",")], float(chosen["seconds"])
    torch.set_num_threads(1)
    here, rows = environment(), []
    print(f"{here['cpu']}, engine {native().isas()[0]}, torch {here['torch']}, batch 1, one thread")
    columns = ("engine_us", "torch dense", "torch CSR", "ONNX Runtime", "gain", "theory", "over_fp32")
    print(f"{'':11}{'layer':>9}{'rate':>6}" + "".join(f"{c:>13}" for c in columns))
    for kind in KINDS:
        for channels, size in layers:
            for r in measure(kind, channels, size, rates, seconds / len(layers) / len(KINDS)):
                cells = "".join(f"{r[c]:>13.2f}" if c in r else f"{'':13}" for c in columns)
                short = kind == "filters" and r["gain"] < 0.9 * r["theory"]
                print(f"{kind:11}{f'{channels}x{size}':>9}{r['rate']:>6}{cells}{'  below 0.9' if short else ''}")
                rows.append(r)
    held = [r["gain"] >= 0.9 * r["theory"] for r in rows if r["kind"] == "filters"]
    print(f"filters: gain >= 0.9 theory in {sum(held)} of {len(held)}")
    out = Path(chosen["out"])
    out.mkdir(parents=True, exist_ok=True)
    written = {"environment": here, "isa": native().isas()[0], "batch": 1, "threads": 1, "rows": rows}
    (out / "sparsity.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    draw(rows, out / "sparsity.png", f"{here['cpu']}, {native().isas()[0]}, batch 1, one thread")


if __name__ == "__main__":
    main()
