"""3x3 layers of known networks with weights of two and three levels, one by one: the compiled engine beside libraries.

    python benchmarks/kernels.py [seconds=120] [layers=64x32,128x16,...] [out=FOLDER]

Kinds of layer: `signs`, binary weights over signs; over fp32 activations `binary` weights, `ternary` ones of which a
third is 0, and ones of which 90 % are 0 (`sparse`). Libraries compute the layer's dense float or int8 form, whatever
its weights: torch with a weight that oneDNN prepacked (channels_last), ONNX Runtime and OpenVINO in fp32 and int8.
What is not installed is skipped with a word.

Batch 1, one thread. A time is that of 5 equal layers in a row less that of 1, by 4: over signs from signs to signs, in
int8 from int8 to int8. All of a layer take turns; times are 20th percentiles of CPU time, which other processes disturb
least. Weights stay in the cache where they fit, for all. `faster` is over the best fp32 library, and for `signs` over
the best in int8 beside.
`of peak` sets a rate beside what the instructions do in registers: table look-ups and additions, or fused multiply-adds
(torch, and kinds without look-ups on this CPU): the fastest of some loops, timed before, between and after the layers.
Beside the peak over signs stands the kernel's inner loop alone, out of the first-level cache.
Files: kernels.json and kernels.png, the shares of the peaks, in `out`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsign.evaluation.latency import Candidate, interleaved
from sparsign.evaluation.report import environment
from sparsign.kernels.engine import native

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `benchmarks` is not installed
from benchmarks.options import key_values, positive, shapes
from benchmarks.rivals import onnx_runtime, openvino
from benchmarks.timing import Call, gmacs, layers, per_layer, prepacked

OPTIONS = {"seconds": "120", "layers": "", "out": "."}
LAYERS = {
    "ResNet-18, CIFAR": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "ResNet-18, ImageNet": [(64, 56), (128, 28), (256, 14), (512, 7)],
    "VGG-11, CIFAR": [(256, 8), (512, 4), (512, 2)],
    "NIN, CIFAR": [(192, 16), (192, 8)],
}
ZEROS = {"signs": 0.0, "binary": 0.0, "ternary": 1 / 3, "sparse": 0.9}
"""Share of weights that are 0, by kind."""
DEPTH = 5


def weight(kind: str, channels: int) -> np.ndarray:
    """[channels, channels, 3, 3] of -1, 1 and 0: int8 over signs, else fp32 with a scale per filter."""
    rng, shape = np.random.default_rng(0), (channels, channels, 3, 3)
    signs = rng.choice(np.array([-1, 1], np.int8), shape)
    if kind == "signs":
        return signs
    scales = rng.uniform(0.01, 0.02, (channels, 1, 1, 1))  # values stay about as large from layer to layer
    return (signs * scales * (rng.random(shape) >= ZEROS[kind])).astype(np.float32)


def in_a_row(call: Call, times: int) -> Call:
    """`call` on its own output, so many times."""

    def run(x: Tensor) -> Tensor:
        for _ in range(times):
            x = call(x)
        return x

    return run


def libraries(channels: int, size: int) -> dict[str, dict[int, Call]]:
    """Calls of one layer and of DEPTH, by library; a word for what does not run here."""
    dense, images = torch.from_numpy(weight("binary", channels)), torch.randn(1, channels, size, size)
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
    conv.weight.copy_(dense)
    one = prepacked(dense, size)
    found: dict[str, dict[int, Call]] = {"torch fp32": {n: in_a_row(one, n) for n in (DEPTH, 1)}}
    for n in (DEPTH, 1):
        net = nn.Sequential(*[conv] * n).eval()
        for name, make in (*onnx_runtime(net, images, 1), *openvino(net, images, 1)):
            try:
                found.setdefault(name, {})[n] = make()
            except (ImportError, ValueError) as error:  # (a precision that this CPU lacks)
                if n == 1:
                    why = f"{error.name} is not installed" if isinstance(error, ImportError) else error
                    print(f"{name}: skipped, {why}")
    return {name: calls for name, calls in found.items() if len(calls) == 2}


@torch.inference_mode()
def measure(network: str, channels: int, size: int, seconds: float) -> dict[str, Any]:
    """One layer's row."""
    with torch.inference_mode(False), torch.no_grad():
        calls = libraries(channels, size)
    timed = [Candidate("", "", call, name == "torch fp32") for name, c in calls.items() for call in c.values()]
    weights = {kind: weight(kind, channels) for kind in ZEROS}
    timed += [Candidate("", "", layers(size, [w] * n, in_a_row=True)) for w in weights.values() for n in (DEPTH, 1)]
    samples = interleaved(timed, torch.randn(1, channels, size, size), seconds, time.process_time)
    pairs = zip(samples[::2], samples[1::2], strict=True)
    return row(network, channels, size, dict(zip([*calls, *weights], pairs, strict=True)))


def row(network: str, channels: int, size: int, samples: dict[str, tuple[list[float], list[float]]]) -> dict[str, Any]:
    """Microseconds and GMAC/s by kind and library, from samples in seconds of DEPTH layers and of one; ratios."""
    times = {name: per_layer(*both, DEPTH) for name, both in samples.items()}
    found = {"network": network, "channels": channels, "size": size}
    found["us"] = {name: 1e6 * t for name, t in times.items()}
    found["gmacs"] = {name: gmacs(channels, channels, size, t) for name, t in times.items()}
    for precision in ("fp32", "int8"):
        best = min((name for name in times if name.endswith(precision)), key=times.get, default=None)
        found[precision] = best
        found[f"over_{precision}"] = {kind: times[best] / times[kind] for kind in ZEROS} if best else {}
    return found


class Peaks:
    """GMAC/s of loops of the instructions alone: the best of all that was timed so far."""

    def __init__(self) -> None:
        self.signs: list[float] = []
        """By form of loop: AVX2: in registers; two tiles of the kernel out of the first-level cache."""
        self.floats: list[float] = []
        """Fused multiply-adds; look-ups of binary weights; of ternary ones; as far as there are such."""

    def measure(self, times: int = 40) -> None:
        """A few milliseconds of each."""
        self.signs, self.floats = (
            _better(best, bits, times) for best, bits in ((self.signs, True), (self.floats, False))
        )

    def of(self, kind: str) -> float | None:
        """The peak that a kind's or library's rate is a share of; None where zeros are skipped, and of int8."""
        if kind == "sparse" or kind.endswith("int8"):
            return None
        if kind == "signs":
            return max(self.signs)
        return dict(enumerate(self.floats)).get({"binary": 1, "ternary": 2}.get(kind, 0), self.floats[0])


def _better(best: list[float], bits: bool, times: int) -> list[float]:
    forms = [form for form in range(8) if native().peak("", bits, form, 1) > 0]
    best = best or [0.0] * len(forms)
    for _ in range(times):
        best = [max(old, _rate(bits, form)) for old, form in zip(best, forms, strict=True)]
    return best


def _rate(bits: bool, form: int, rounds: int = 200_000) -> float:
    start = time.process_time()
    macs = native().peak("", bits, form, rounds)
    return 1e-9 * macs / (time.process_time() - start)


def share(found: dict[str, Any], name: str, peaks: Peaks) -> float | None:
    """What a row's rate is of its peak."""
    peak = peaks.of(name)
    return found["gmacs"][name] / peak if peak else None


def draw(rows: list[dict[str, Any]], peaks: Peaks, path: Path, title: str) -> None:
    """Bars: share of its peak that each layer reaches, in the engine and in torch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [f"{r['channels']}x{r['size']}x{r['size']} ({r['network']})" for r in rows]
    shown = [kind for kind in (*ZEROS, "torch fp32") if peaks.of(kind)]
    figure, axis = plt.subplots(figsize=(8, 0.7 * len(rows) + 1.5))
    places = np.arange(len(rows))[::-1]
    for k, kind in enumerate(shown):
        length, limit = [share(r, kind, peaks) for r in rows], peaks.of(kind)
        bars = axis.barh(places + 0.3 - 0.2 * k, length, 0.2, label=f"{kind}: peak {limit:.0f} GMAC/s")
        axis.bar_label(bars, [f"{r['gmacs'][kind]:.0f}" for r in rows], padding=3, fontsize=7)
    axis.set_yticks(places, names)
    axis.set(xlabel="share of the peak of the instructions used (GMAC/s at the bars)", xlim=(0, 1.2), title=title)
    axis.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def show(found: dict[str, Any], peaks: Peaks) -> None:
    """A row's lines."""
    shape = "{0}x{1}x{1}".format(found["channels"], found["size"])
    for kind in (*ZEROS, "torch fp32", *(found[p] for p in ("fp32", "int8") if found[p] not in ("torch fp32", None))):
        part = share(found, kind, peaks)
        cells = f"{found['us'][kind]:>10.1f}{found['gmacs'][kind]:>9.0f}{f'{part:.0%}' if part else '':>9}"
        faster = f"{found['over_fp32'][kind]:>8.2f}x" if kind in ZEROS else ""
        int8 = f"{found['over_int8'][kind]:>12.2f}x" if kind == "signs" and found["int8"] else ""
        print(f"{found['network']:21}{shape:>10} {kind:18}{cells}{faster}{int8}")


def main() -> None:
    """Measures, prints, writes."""
    chosen = key_values(__doc__, OPTIONS)
    seconds = positive(chosen, "seconds")
    given = shapes(chosen, "layers") if chosen["layers"] else []
    if native() is None:
        sys.exit("the compiled engine was not built: nothing to measure")
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)  # what libraries advise
    here, peaks, rows = environment(), Peaks(), []
    every = [(network, *shape) for network, found in ({"": given} if given else LAYERS).items() for shape in found]
    print(f"{here['cpu']}, engine {native().isas()[0]}, torch {here['torch']}, batch 1, one thread")
    for shape in every:
        peaks.measure()
        rows.append(measure(*shape, seconds / len(every)))
    peaks.measure()
    loop = f" (the kernel's inner loop {max(peaks.signs[1:]):.0f})" if peaks.signs[1:] else ""
    floats = zip(("multiply-adds in fp32", "binary look-ups", "ternary look-ups"), peaks.floats, strict=False)
    named = ", ".join(f"{name} {peak:.0f}" for name, peak in floats)
    print(f"peaks in GMAC/s: over signs {max(peaks.signs):.0f}{loop}, {named}")
    print(f"{'':21}{'shape':>10} {'':18}{'us':>10}{'GMAC/s':>9}{'of peak':>9}{'faster':>9}{'than int8':>13}")
    for r in rows:
        show(r, peaks)
    out = Path(chosen["out"])
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "environment": here,
        "isa": native().isas()[0],
        "peak_gmacs": {"signs": peaks.signs, "floats": peaks.floats},
        "rows": rows,
    }
    (out / "kernels.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    draw(rows, peaks, out / "kernels.png", f"{here['cpu']}, {native().isas()[0]}, batch 1, one thread")


if __name__ == "__main__":
    main()
