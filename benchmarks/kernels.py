"""Binary 3x3 layers of known networks, one by one: the compiled engine beside torch in fp32.

    python benchmarks/kernels.py [seconds=60] [out=FOLDER]

Batch 1, one thread. The engine's time is that of 9 equal layers in a row less that of 1, by 8: from signs to sums to
signs. torch convolves fp32 with a weight that oneDNN prepacked (channels_last). The three take turns; times are 20th
percentiles of CPU time, which other processes disturb least. Weights stay in the cache where they fit, for all.
`of peak` sets the engine's rate beside what its instructions do in registers (AVX2: a table look-up and an addition of
bytes), and torch's beside fused multiply-adds, both measured in the same run.
Files: kernels.json and kernels.png, the shares of the peaks, in `out`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsign.evaluation.latency import Candidate, interleaved
from sparsign.evaluation.report import environment
from sparsign.kernels.engine import native

LAYERS = {
    "ResNet-18, CIFAR": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "ResNet-18, ImageNet": [(64, 56), (128, 28), (256, 14), (512, 7)],
    "VGG-11, CIFAR": [(256, 8), (512, 4), (512, 2)],
    "NIN, CIFAR": [(192, 16), (192, 8)],
}
DEPTH = 9
NO_MAP = np.empty(0, np.int32)


def binary_layers(channels: int, size: int, depth: int) -> Callable[[Tensor], Tensor]:
    """`depth` binary 3x3 layers, sign to sign, between a sign and a pool."""
    module, rng = native(), np.random.default_rng(0)
    network = module.Network("", (channels, size, size), False)
    bits, chain = network.value(True, size, size, channels), module.Chain()
    chain.sign(bits)
    network.gather([module.Source(0, 1, NO_MAP)], (channels, size, size), chain)
    window = module.Window((3, 3), (1, 1), (1, 1), (1, 1))
    for k in range(depth):
        chain, last = module.Chain(), k == depth - 1
        out = network.value(not last, size, size, channels)
        (chain.store if last else chain.sign)(out)
        codes = rng.choice(np.array([-1, 1], np.int8), (channels, channels, 3, 3))
        network.conv_bits(bits, window, codes, chain)
        bits = out
    answer, chain = network.value(False, 1, 1, channels), module.Chain()
    chain.store(answer)
    network.pool(False, bits, module.Window((size, size), (1, 1), (0, 0), (1, 1)), (1, 1), False, chain)
    network.finish(answer)
    logits = torch.empty(1, channels)

    def run(images: Tensor) -> Tensor:
        network.run(images.data_ptr(), 1, logits.data_ptr(), 1)
        return logits

    return run


def torch_layer(channels: int) -> Callable[[Tensor], Tensor]:
    """A 3x3 convolution in fp32 with a prepacked weight."""
    weight = torch.randn(channels, channels, 3, 3)
    ops = torch.ops.mkldnn_prepacked
    packed = ops.conv2d_prepack(weight, None, [1, 1], [1, 1], [1, 1], 1, [1, channels, 8, 8], "none")
    return lambda x: ops.conv2d_run(x, packed)


def p20(times: list[float]) -> float:
    return float(np.percentile(times, 20))


@torch.inference_mode()
def measure(network: str, channels: int, size: int, seconds: float) -> dict[str, Any]:
    """One layer's row; times in microseconds, rates in GMAC/s."""
    timed = [Candidate(str(d), native().isas()[0], binary_layers(channels, size, d)) for d in (DEPTH, 1)]
    timed.append(Candidate("torch", "", torch_layer(channels), channels_last=True))
    deep, one, fp32 = map(p20, interleaved(timed, torch.randn(1, channels, size, size), seconds, time.process_time))
    binary, macs = (deep - one) / (DEPTH - 1), 9 * channels**2 * size**2
    row = {"network": network, "channels": channels, "size": size, "binary_us": 1e6 * binary, "torch_us": 1e6 * fp32}
    return {**row, "binary_gmacs": 1e-9 * macs / binary, "torch_gmacs": 1e-9 * macs / fp32, "ratio": fp32 / binary}


def peak(bits: bool) -> float:
    """GMAC/s of the instructions alone, in registers: sums over signs, or fp32."""
    rounds, rates = 2_000_000, []
    for _ in range(20):
        start = time.process_time()
        macs = native().peak("", bits, rounds)
        rates.append(1e-9 * macs / (time.process_time() - start))
    return max(rates)


def draw(rows: list[dict[str, Any]], peaks: tuple[float, float], path: Path, title: str) -> None:
    """Bars: share of its peak that each layer reaches, in the engine and in torch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [f"{r['channels']}x{r['size']}x{r['size']} ({r['network']})" for r in rows]
    figure, axis = plt.subplots(figsize=(8, 0.4 * len(rows) + 1.5))
    places = np.arange(len(rows))[::-1]
    for key, limit, shift, label in (
        ("binary", peaks[0], 0.2, "engine, binary"),
        ("torch", peaks[1], -0.2, "torch fp32"),
    ):
        shares = [r[f"{key}_gmacs"] / limit for r in rows]
        bars = axis.barh(places + shift, shares, 0.4, label=f"{label}: peak {limit:.0f} GMAC/s")
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
    here, bits_peak, fma_peak = environment(), peak(True), peak(False)
    shapes = [(network, *shape) for network, found in LAYERS.items() for shape in found]
    print(f"{here['cpu']}, engine {native().isas()[0]}, torch {here['torch']}")
    print(f"peaks: {bits_peak:.0f} GMAC/s over signs, {fma_peak:.0f} in fp32")
    mine = f"{'binary us':>11}{'GMAC/s':>8}{'of peak':>9}"
    print(f"{'':21}{'shape':>10}{mine}{'torch us':>10}{'GMAC/s':>8}{'of peak':>9}{'faster':>8}")
    rows = []
    for network, channels, size in shapes:
        rows.append(r := measure(network, channels, size, float(chosen["seconds"]) / len(shapes)))
        print(f"{network:21}{f'{channels}x{size}x{size}':>10}{r['binary_us']:>11.1f}{r['binary_gmacs']:>8.0f}", end="")
        print(f"{r['binary_gmacs'] / bits_peak:>9.0%}", end="")
        print(f"{r['torch_us']:>10.1f}{r['torch_gmacs']:>8.0f}{r['torch_gmacs'] / fma_peak:>9.0%}{r['ratio']:>8.2f}x")
    out = Path(chosen["out"])
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "environment": here,
        "isa": native().isas()[0],
        "peak_gmacs": {"signs": bits_peak, "fp32": fma_peak},
        "rows": rows,
    }
    (out / "kernels.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    title = f"{here['cpu']}, {native().isas()[0]}, batch 1, one thread"
    draw(rows, (bits_peak, fma_peak), out / "kernels.png", title)


if __name__ == "__main__":
    main()
