"""Files of a few bytes that ask for time or memory, each read in a process of its own under a memory limit."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.hostile.files import apart, join, outcome, wrap
from sparsign.packing.codecs import deflate


def chain(*nodes: Any, inputs: Any = (3, 32, 32), meta: Any = None, pools: Any = (), streams: Any = ((), ())) -> dict:
    """A header of these nodes between an input and a classifier's end."""
    records = [["input", "x"], *nodes, ["globalavgpool", "p"], ["flatten", "f"]]
    return {"input": inputs, "nodes": records, "meta": meta or {}, "pools": pools, "streams": streams}


def conv(shape: list[int], codes: Any, **more: Any) -> list[Any]:
    """A node with a weight."""
    return ["conv", "c", [], {}, {}, {"shape": shape, "codes": codes, **more}]


def bombs() -> dict[str, bytes]:
    """One file of each kind, by what it asks for."""
    huge, scale = [1 << 14, 1 << 14, 1, 1], {"values": ["scale", ["bf16"]]}
    one, zeros = [["bf16", "raw", 2, 1]], deflate(bytes((1 << 28) // 5))
    ups = [["upsample", f"u{k}", [], {"factor": [2, 2]}] for k in range(9)]
    gone = {"original": {"dropped": [["gone", [1 << 30, 1 << 30], True]]}}
    return {
        "a shape of 400,000 sizes": join(chain(conv([1] * 400_000, "bf16"))),
        "a million names": join(chain(*[["relu", f"r{k}"] for k in range(90_000)])),
        "a name of a megabyte": join(chain(["relu", "r" * 1_000_000])),
        "bits: 2^28 flags": join(chain(conv(huge, "bf16", layout="irregular", mask=[]), streams=[["mixing", 0], []])),
        "codes: 2^28 in a stream": join(chain(conv(huge, [], **scale), pools=one, streams=[[], ["mixing", 1]]), b"123"),
        "codes: a section that inflates": join(
            chain(conv(huge, ["deflate", len(zeros), [-1, 0, 1]], **scale), pools=one), b"12" + zeros
        ),
        "floats: 2^30 in a pool": join(chain(pools=[["fp32", "fields", 4, 1 << 30]]), b"1234"),
        "floats: planes that inflate": join(chain(pools=[["fp32", "planes", len(zeros), 1 << 26]]), zeros),
        "JSON: a header of 1 GiB": wrap(b"[" * 1000, b"", 1 << 30),
        "JSON: inflates to more than it says": wrap(b" " * 50_000_000, b"", 1000),
        "JSON: 300,000 brackets deep": wrap(b"[" * 300_000 + b"]" * 300_000),
        "JSON: a number of 900,000 digits": wrap(b'{"input":' + b"9" * 900_000 + b"}"),
        "activations: 4.5 GB at batch 256": join(chain(["upsample", "u", [], {"factor": [38, 38]}])),
        "activations: 69 GB at batch 256": join(chain(*ups[:6], inputs=[16, 32, 32])),
        "activations: an image of 2^32 pixels": join(chain(inputs=[1, 1 << 16, 1 << 16])),
        "activations: channels that double 40 times": join(chain(*[["cat", f"c{k}", [1, 1]] for k in range(40)])),
        "layers that are gone: 2^60 weights": join(chain(meta=gone)),
    }


def run_bombs(options: argparse.Namespace) -> bool:
    """The table of bombs."""
    print("|bomb|bytes|s|MiB|outcome|\n|---|---|---|---|---|")
    good = True
    for name, data in bombs().items():
        found = apart(lambda data=data: outcome(data))
        good &= found["said"].startswith("refused") and found["s"] < 1 and found["MiB"] < 256
        print(f"|{name}|{len(data):,}|{found['s']:.3f}|{found['MiB']:.0f}|{found['said'][:120]}|", flush=True)
    return good
