"""Milliseconds of a packed network beside what its user could pick instead, all in one process and in turns.

    python benchmarks/network.py packed=FILE.sparsign [batches=1,64] [threads=1] [seconds=30] [out=FOLDER]
        [without=bf16,cut]

Rivals run the dense float network: `uncut`, as it was before pruning, from the registry; and `cut`, what the file has
left of it, with ReLU for signs. Weights do not change their speed: the uncut one has random weights. ONNX Runtime and
OpenVINO come with `pip install sparsign[rivals]`, LiteRT with `[litert]` (benchmarks/rivals.py). What is absent, or
cannot run a network, is skipped with a word, and so is what has a word of `without` in its name.
`bits` is the file in torch, the reference engine.

Times per batch are CPU time for one thread, else wall-clock: the 20th percentile, which other processes disturb least,
and the median. Ratios are of 20th percentiles: how many times faster the packed engine is. `seconds` are those of the
turns, after all is made; every candidate has three at the least.
Files: network.json and network.png in `out`.
Making takes longer: torch a minute per network and kind to compile, LiteRT as long to convert.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from sparsign.evaluation.latency import Candidate, interleaved
from sparsign.evaluation.rebuild import float_network
from sparsign.evaluation.report import environment
from sparsign.kernels.engine import NativeEngine
from sparsign.kernels.module import PackedNetwork
from sparsign.packing.file import read
from sparsign.packing.spec import PackedModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `benchmarks` is not installed
from benchmarks.options import key_values, numbers, positive
from benchmarks.rivals import rivals
from benchmarks.timing import p20

OPTIONS = {"packed": "", "batches": "1,64", "threads": "1", "seconds": "30", "out": ".", "without": ""}


def cut_float(packed: PackedModel) -> nn.Module:
    """The dense float network of the cut sizes: ReLU in place of every sign."""
    nodes = [replace(node, op="relu") if node.op == "sign" else node for node in packed.nodes]
    return PackedNetwork(PackedModel(nodes, packed.input_shape, packed.output), b"", "reference").eval()


def is_cut(packed: PackedModel) -> bool:
    """Whether a layer has lost rows or columns."""
    codes = [node.codes for node in packed.layers().values()]
    return any((len(c.rows), len(c.cols)) != tuple(c.full_shape[:2]) for c in codes)


@torch.inference_mode()
def candidates(packed: PackedModel, images: torch.Tensor, threads: int, without: list[str]) -> list[Candidate]:
    """The packed engine first, then every rival that runs here and has no word of `without` in its name."""
    isa = torch.backends.cpu.get_cpu_capability()
    engine = NativeEngine(packed, threads=threads)
    found = [Candidate("sparsign", engine.isa, engine)]
    if wanted("bits torch fp32", without):
        found.append(Candidate("bits torch fp32", isa, PackedNetwork(packed, b"", "reference").eval()))
    for form, net in (("uncut", float_network(packed)), ("cut", cut_float(packed) if is_cut(packed) else None)):
        if net is None:
            why = "the file names no network of the registry" if form == "uncut" else "nothing was cut"
            print(f"{form}: skipped, {why}")
            continue
        for name, make in rivals(net, images, threads):
            if not wanted(f"{form} {name}", without):
                continue
            try:
                call = make()
                with torch.inference_mode(name.startswith("torch")):
                    call(images)
            except ImportError as error:
                print(f"{form} {name}: skipped, {error.name} is not installed")
            except Exception as error:  # a rival's own limits must not end the others' measurement
                print(f"{form} {name}: skipped, {type(error).__name__}: {str(error).splitlines()[0]:.100}")
            else:
                found.append(Candidate(f"{form} {name}", isa, call, channels_last=name.startswith("torch")))
    return found


def wanted(name: str, without: list[str]) -> bool:
    """Whether none of `without` is a word of the name, or some in a row."""
    return not any(f" {words} " in f" {name} " for words in without)


def measure(packed: PackedModel, batch: int, threads: int, seconds: float, without: list[str]) -> list[dict[str, Any]]:
    """One row per candidate, the packed engine first."""
    torch.set_num_threads(threads)
    images = torch.randn(batch, *packed.input_shape, generator=torch.Generator().manual_seed(0))
    timed = candidates(packed, images, threads, without)
    print(f"{len(timed)} in turns for {seconds:.0f} seconds", flush=True)
    with torch.inference_mode():
        samples = interleaved(timed, images, seconds, time.process_time if threads == 1 else time.perf_counter)
    return rows_of(timed, samples, batch, threads)


def rows_of(timed: list[Candidate], samples: list[list[float]], batch: int, threads: int) -> list[dict[str, Any]]:
    """Milliseconds from samples in seconds, and how many times faster the first one is."""
    lows = [p20(times) for times in samples]
    return [
        {
            "engine": candidate.engine,
            "isa": candidate.isa,
            "batch": batch,
            "threads": threads,
            "p20_ms": 1e3 * low,
            "median_ms": 1e3 * median(times),
            "times_faster": low / lows[0],
            "samples": len(times),
        }
        for candidate, low, times in zip(timed, lows, samples, strict=True)
    ]


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Bars of the 20th percentile, one panel per batch and thread count."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((r["batch"], r["threads"]) for r in rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(6.5 * len(panels), 5), squeeze=False)
    for axis, (batch, threads) in zip(axes[0], panels, strict=True):
        shown = [r for r in rows if (r["batch"], r["threads"]) == (batch, threads)][::-1]
        bars = axis.barh([r["engine"] for r in shown], [r["p20_ms"] for r in shown], color="tab:gray")
        bars[-1].set_color("tab:blue")
        axis.bar_label(bars, [f"{r['p20_ms']:.3g} ms, {r['times_faster']:.1f}x" for r in shown], padding=3)
        axis.set(xscale="log", xlabel="milliseconds", title=f"batch {batch}, {threads} thread(s)")
        axis.set_xlim(right=6 * max(r["p20_ms"] for r in shown))
    figure.suptitle(title)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Measures, prints, writes."""
    chosen = key_values(__doc__, OPTIONS)
    if not chosen["packed"]:
        sys.exit("packed: expected a packed file, packed=FILE.sparsign")
    seconds = positive(chosen, "seconds")
    try:
        packed = read(chosen["packed"])
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    here = environment()
    combinations = [(b, t) for b in numbers(chosen, "batches") for t in numbers(chosen, "threads")]
    rows, without = [], [word for word in chosen["without"].split(",") if word]
    for batch, count in combinations:
        torch.compiler.reset()
        print(f"\nbatch {batch}, {count} thread(s), {here['cpu']}, torch {here['torch']}")
        rows += (found := measure(packed, batch, count, seconds / len(combinations), without))
        print(f"{'':28}{'isa':>8}{'p20 ms':>10}{'median':>10}{'faster':>9}{'samples':>9}")
        for r in found:
            times = f"{r['p20_ms']:>10.3f}{r['median_ms']:>10.3f}{r['times_faster']:>8.1f}x{r['samples']:>9}"
            print(f"{r['engine']:28}{r['isa']:>8}{times}")
    out = Path(chosen["out"])
    out.mkdir(parents=True, exist_ok=True)
    written = {"packed": chosen["packed"], "environment": here, "rows": rows}
    (out / "network.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    draw(rows, out / "network.png", f"{Path(chosen['packed']).name} on {here['cpu']}")


if __name__ == "__main__":
    main()
