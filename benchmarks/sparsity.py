"""What zeros are worth: one 3x3 layer at several prune rates, the compiled engine beside torch and ONNX Runtime.

    python benchmarks/sparsity.py [seconds=60] [layers=64x32,128x16,256x8,512x4] [rates=0,.5,.9] [out=FOLDER]

Batch 1, one thread, CPU time, 20th percentile; all rates and rivals of one layer take turns. Kinds of pruning:
  filters    STQ-A: a binary layer over signs loses filters, as in residual networks, where all inputs live on
  both       STQ-A: it loses filters, and inputs alike, as in a chain whose layers are all pruned so
  columns    STQ-B, gathered: a binary layer over signs loses input channels
  groups     WPC: ternary over fp32, groups of 8 filters lose an input channel's tap
  cut        ADMM, structured: an fp32 layer loses filters and columns, each keeping the root of what is left
  irregular  ADMM, PTQ: an fp32 layer loses single weights
The engine's time is that of a network with 5 copies of the layer, all reading the same values, less that of one with
1, by 4. Rivals compute the layer alone: torch with a prepacked weight, ONNX Runtime where it is there (neither sees
zeros), and torch's product of a CSR matrix with the unfolded image (the unfolding is not counted).
`gain` is over the engine at the first rate, `theory` the products of the whole layer over those that are left,
`over_fp32` over the fastest dense library. `demand` for `filters` and `both` is a gain of 0.9 / (1 - p), p the share of
filters that went.
Files: sparsity.json and sparsity.png in `out`.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsign.evaluation.latency import Candidate, interleaved
from sparsign.evaluation.report import environment
from sparsign.kernels.engine import native

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `benchmarks` is not installed
from benchmarks.options import key_values, positive, shapes, shares
from benchmarks.timing import Call, layers, p20, per_layer, prepacked

OPTIONS = {"seconds": "60", "layers": "64x32,128x16,256x8,512x4", "rates": "0,.25,.5,.75,.9,.95", "out": "."}
COPIES = 5
BINARY = ("filters", "both", "columns")
KINDS = (*BINARY, "groups", "cut", "irregular")
DEMANDED = ("filters", "both")


def kept(channels: int, share: float) -> int:
    return max(1, round(channels * share))


def binary_weight(kind: str, channels: int, rate: float) -> np.ndarray:
    """int8 signs [outputs, inputs, 3, 3] of what is left."""
    left = kept(channels, 1 - rate)
    shape = {"filters": (left, channels, 3, 3), "both": (left, left, 3, 3), "columns": (channels, left, 3, 3)}[kind]
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


def rivals(weight: Tensor, size: int) -> dict[str, Callable[[], Tensor]]:
    matrix, images = weight.flatten(1).to_sparse_csr(), torch.randn(1, weight.shape[1], size, size)
    unfolded = torch.nn.functional.unfold(images, 3, padding=1)[0]
    dense = partial(prepacked(weight, size), images.contiguous(memory_format=torch.channels_last))
    found = {"torch dense": dense, "torch CSR": lambda: matrix @ unfolded}
    with suppress(ImportError):
        found["ONNX Runtime"] = partial(onnx_layer(weight, size), images)
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
    weights = [(binary_weight if kind in BINARY else float_weight)(kind, channels, rate) for rate in rates]
    calls: dict[tuple[float, str | int], Callable[[], Tensor]] = {}
    for rate, weight in zip(rates, weights, strict=True):
        images = torch.randn(1, weight.shape[1], size, size)
        calls |= {(rate, n): partial(layers(size, [weight] * n), images) for n in (COPIES, 1)}
        if kind not in BINARY:
            calls |= {(rate, name): call for name, call in rivals(torch.from_numpy(weight), size).items()}
    timed = [Candidate("", "", lambda _, call=call: call()) for call in calls.values()]
    samples = dict(zip(calls, interleaved(timed, torch.empty(0), seconds, time.process_time), strict=True))
    rows: list[dict[str, Any]] = []
    for rate, weight in zip(rates, weights, strict=True):
        row = {"kind": kind, "channels": channels, "size": size, "rate": rate}
        row |= {"kept": len(weight) / channels, "theory": theory(weight, channels)}
        row["engine_us"] = 1e6 * per_layer(samples[rate, COPIES], samples[rate, 1], COPIES)
        row |= {name: 1e6 * p20(t) for (at, name), t in samples.items() if at == rate and isinstance(name, str)}
        rows.append(row | ratios(row, rows[0] if rows else row))
    return rows


def theory(weight: np.ndarray, channels: int) -> float:
    """Products of the whole layer over those of what is left; signs are never 0."""
    return 9 * channels**2 / max(1, int(np.count_nonzero(weight)))


def ratios(row: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """The columns that compare a row with that of the first rate, and with libraries."""
    found = {"gain": whole["engine_us"] / row["engine_us"]}
    dense = [row[name] for name in ("torch dense", "ONNX Runtime") if name in row]
    if dense:
        found["over_fp32"] = min(dense) / row["engine_us"]
    if row["kind"] in DEMANDED and row is not whole:
        found["demand"] = 0.9 / row["kept"]
    return found


def held(rows: list[dict[str, Any]], kind: str) -> tuple[int, int]:
    """In how many of how many pruned layers the demand is met."""
    met = [r["gain"] >= r["demand"] for r in rows if r["kind"] == kind and "demand" in r]
    return sum(met), len(met)


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
        bound = sorted({r["theory"] for r in mine} | {1.0})
        axis.plot(bound, bound, "k--", lw=0.8)
        axis.set(xscale="log", yscale="log", xlabel="theoretical", title=kind)
    axes[0].set_ylabel("measured gain (dotted: torch CSR over torch dense)")
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Measures, prints, writes."""
    chosen = key_values(__doc__, OPTIONS)
    every, rates, seconds = shapes(chosen, "layers"), shares(chosen, "rates"), positive(chosen, "seconds")
    if native() is None:
        sys.exit("the compiled engine was not built: nothing to measure")
    torch.set_num_threads(1)
    here, rows = environment(), []
    print(f"{here['cpu']}, engine {native().isas()[0]}, torch {here['torch']}, batch 1, one thread")
    columns = ("engine_us", "torch dense", "torch CSR", "ONNX Runtime", "over_fp32", "theory", "gain", "demand")
    print(f"{'':11}{'layer':>9}{'rate':>6}" + "".join(f"{c:>13}" for c in columns))
    for kind in KINDS:
        for channels, size in every:
            for r in measure(kind, channels, size, rates, seconds / len(every) / len(KINDS)):
                cells = "".join(f"{r[c]:>13.2f}" if c in r else f"{'':13}" for c in columns)
                short = "  below" if r["gain"] < r.get("demand", 0) else ""
                print(f"{kind:11}{f'{channels}x{size}':>9}{r['rate']:>6}{cells}{short}")
                rows.append(r)
    for kind in DEMANDED:
        print("{}: gain >= 0.9 / (1 - p) in {} of {} pruned layers".format(kind, *held(rows, kind)))
    out = Path(chosen["out"])
    out.mkdir(parents=True, exist_ok=True)
    written = {"environment": here, "isa": native().isas()[0], "batch": 1, "threads": 1, "rows": rows}
    (out / "sparsity.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    draw(rows, out / "sparsity.png", f"{here['cpu']}, {native().isas()[0]}, batch 1, one thread")


if __name__ == "__main__":
    main()
