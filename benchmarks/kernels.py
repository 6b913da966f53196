"""Binary 3x3 layers of known networks, one by one: the compiled engine beside torch in fp32.

    python benchmarks/kernels.py [seconds=60] [out=FOLDER]

Batch 1, one thread. The engine's time is that of 9 equal layers in a row less that of 1, by 8: from signs to sums to
signs. torch convolves fp32 with a weight that oneDNN prepacked (channels_last). The three take turns; times are 20th
percentiles of CPU time, which other processes disturb least. Weights stay in the cache where they fit, for all.
`of peak` sets the engine's rate beside what its instructions do in registers (AVX2: a table look-up and an addition of
bytes), and torch's beside fused multiply-adds: the fastest of some loops, timed before, between and after the layers.
Beside the peak stands the kernel's inner loop alone, out of the first-level cache.
Files: kernels.json and kernels.png, the shares of the peaks, in `out`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsign.evaluation.latency import Candidate, interleaved
from sparsign.evaluation.report import environment
from sparsign.kernels.engine import native

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `benchmarks` is not installed
from benchmarks.timing import Call, gmacs, layers, p20, per_layer, prepacked

LAYERS = {
    "ResNet-18, CIFAR": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "ResNet-18, ImageNet": [(64, 56), (128, 28), (256, 14), (512, 7)],
    "VGG-11, CIFAR": [(256, 8), (512, 4), (512, 2)],
    "NIN, CIFAR": [(192, 16), (192, 8)],
}
DEPTH = 9


def binary_layers(channels: int, size: int, depth: int) -> Call:
    """`depth` binary 3x3 layers, sign to sign, between a sign and a pool."""
    rng = np.random.default_rng(0)
    weights = [rng.choice(np.array([-1, 1], np.int8), (channels, channels, 3, 3)) for _ in range(depth)]
    return layers(size, weights, in_a_row=True)


@torch.inference_mode()
def measure(network: str, channels: int, size: int, seconds: float) -> dict[str, Any]:
    """One layer's row."""
    timed = [Candidate(str(d), native().isas()[0], binary_layers(channels, size, d)) for d in (DEPTH, 1)]
    timed.append(Candidate("torch", "", prepacked(torch.randn(channels, channels, 3, 3), size), channels_last=True))
    return row(
        network, channels, size, *interleaved(timed, torch.randn(1, channels, size, size), seconds, time.process_time)
    )


def row(
    network: str, channels: int, size: int, deep: list[float], one: list[float], fp32: list[float]
) -> dict[str, Any]:
    """Times in microseconds, rates in GMAC/s, from samples in seconds of DEPTH layers, of one and of torch's."""
    times = {"binary": per_layer(deep, one, DEPTH), "torch": p20(fp32)}
    found = {"network": network, "channels": channels, "size": size, "ratio": times["torch"] / times["binary"]}
    found |= {f"{name}_us": 1e6 * t for name, t in times.items()}
    return found | {f"{name}_gmacs": gmacs(channels, channels, size, t) for name, t in times.items()}


class Peaks:
    """GMAC/s of loops of the instructions alone: sums over signs, and fp32; the best of all that was timed so far."""

    def __init__(self) -> None:
        self.signs: list[float] = []
        """By form of loop: AVX2: in registers; two tiles of the kernel out of the first-level cache."""
        self.fp32 = 0.0

    def measure(self, times: int = 40) -> None:
        """A few milliseconds of each."""
        forms = [form for form in range(8) if native().peak("", True, form, 1) > 0]
        self.signs = self.signs or [0.0] * len(forms)
        for _ in range(times):
            self.signs = [max(best, _rate(True, form)) for best, form in zip(self.signs, forms, strict=True)]
            self.fp32 = max(self.fp32, _rate(False, 0))


def _rate(bits: bool, form: int, rounds: int = 200_000) -> float:
    start = time.process_time()
    macs = native().peak("", bits, form, rounds)
    return 1e-9 * macs / (time.process_time() - start)


def shares(found: dict[str, Any], signs: float, fp32: float) -> tuple[float, float]:
    """What a row's rates are of the peaks."""
    return found["binary_gmacs"] / signs, found["torch_gmacs"] / fp32


def draw(rows: list[dict[str, Any]], peaks: tuple[float, float], path: Path, title: str) -> None:
    """Bars: share of its peak that each layer reaches, in the engine and in torch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [f"{r['channels']}x{r['size']}x{r['size']} ({r['network']})" for r in rows]
    figure, axis = plt.subplots(figsize=(8, 0.4 * len(rows) + 1.5))
    places = np.arange(len(rows))[::-1]
    for key, k, shift, label in (("binary", 0, 0.2, "engine, binary"), ("torch", 1, -0.2, "torch fp32")):
        limit = peaks[k]
        bars = axis.barh(
            places + shift, [shares(r, *peaks)[k] for r in rows], 0.4, label=f"{label}: peak {limit:.0f} GMAC/s"
        )
        axis.bar_label(bars, [f"{r[f'{key}_gmacs']:.0f} GMAC/s" for r in rows], padding=3, fontsize=7)
    axis.set_yticks(places, names)
    axis.set(xlabel="share of the peak of the instructions used", xlim=(0, 1.2), title=title)
    axis.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Measures, prints, writes."""
    chosen = {"seconds": "60", "out": "."} | dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if len(chosen) > 2:
        sys.exit("expected seconds=NUMBER, out=FOLDER")
    if native() is None:
        sys.exit("the compiled engine was not built: nothing to measure")
    torch.set_num_threads(1)
    here, peaks, rows = environment(), Peaks(), []
    shapes = [(network, *shape) for network, found in LAYERS.items() for shape in found]
    print(f"{here['cpu']}, engine {native().isas()[0]}, torch {here['torch']}, batch 1, one thread")
    for shape in shapes:
        peaks.measure()
        rows.append(measure(*shape, float(chosen["seconds"]) / len(shapes)))
    peaks.measure()
    best = max(peaks.signs), peaks.fp32
    loop = f", the kernel's inner loop {max(peaks.signs[1:]):.0f}" if peaks.signs[1:] else ""
    print(f"peaks: {best[0]:.0f} GMAC/s over signs{loop}; {best[1]:.0f} in fp32")
    mine = f"{'binary us':>11}{'GMAC/s':>8}{'of peak':>9}"
    print(f"{'':21}{'shape':>10}{mine}{'torch us':>10}{'GMAC/s':>8}{'of peak':>9}{'faster':>8}")
    for r in rows:
        shape, (binary, fp32) = "{0}x{1}x{1}".format(r["channels"], r["size"]), shares(r, *best)
        print(f"{r['network']:21}{shape:>10}{r['binary_us']:>11.1f}{r['binary_gmacs']:>8.0f}{binary:>9.0%}", end="")
        print(f"{r['torch_us']:>10.1f}{r['torch_gmacs']:>8.0f}{fp32:>9.0%}{r['ratio']:>8.2f}x")
    out = Path(chosen["out"])
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "environment": here,
        "isa": native().isas()[0],
        "peak_gmacs": {"signs": best[0], "signs_by_form": peaks.signs, "fp32": best[1]},
        "rows": rows,
    }
    (out / "kernels.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    title = f"{here['cpu']}, {native().isas()[0]}, batch 1, one thread"
    draw(rows, best, out / "kernels.png", title)


if __name__ == "__main__":
    main()
