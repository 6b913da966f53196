"""SIGKILL at random instants of writing a packed file, a checkpoint, a text: old or new content must be there."""

from __future__ import annotations

import argparse
import copy
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.hostile.files import SEEDS
from sparsign.packing.atomic import write_atomic
from sparsign.packing.file import read, write
from sparsign.pipeline.folder import load_plain, save_atomic


def run_atomic(options: argparse.Namespace) -> bool:
    """Kills inside atomic writes."""
    rng, packed = random.Random(options.seed), read(SEEDS[0])
    texts = [bytes([k]) * 300_000 for k in (65, 66)]
    tensors = [{"stage": "s", "x": torch.full((70_000,), float(k))} for k in (0, 1)]
    others = [copy.copy(packed), copy.copy(packed)]
    for k, other in enumerate(others):
        other.meta = packed.meta | {"seed": k}
    kinds: dict[str, tuple[Callable[[Path, int], object], Callable[[Path], bool]]] = {
        "text": (lambda path, k: write_atomic(path, texts[k]), lambda path: path.read_bytes() in texts),
        "checkpoint": (
            lambda path, k: save_atomic(tensors[k], path),
            lambda path: len(load_plain(path, "stage", "x")["x"].unique()) == 1,
        ),
        "packed file": (lambda path, k: write(others[k], path), lambda path: read(path).meta["seed"] in (0, 1)),
    }
    good = True
    for name, (save, whole) in kinds.items():
        kept = 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            save(path, 0)
            for _ in range(100):
                pid = os.fork()
                if not pid:
                    k = 0
                    while True:
                        k = 1 - k
                        save(path, k)
                time.sleep(rng.uniform(0.001, 0.03))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kept += whole(path)
        good &= kept == 100
        print(f"{name}: whole after {kept} of 100 SIGKILLs while it was written over and over", flush=True)
    return good
