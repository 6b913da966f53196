"""Bit rot: every single-bit flip of small packed files, random ones of a checkpoint."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

import torch

from benchmarks.hostile.files import SEEDS, outcome
from sparsign.pipeline.folder import load_plain, save_atomic


def run_flips(options: argparse.Namespace) -> bool:
    """Single-bit flips."""
    tried = noticed = 0
    for path in SEEDS:
        data = path.read_bytes()
        for bit in range(8 * len(data)):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            tried += 1
            noticed += outcome(bytes(damaged)) != "accepted"
    print(f"packed files: {noticed:,} of {tried:,} single-bit flips refused (all bits of {len(SEEDS)} files)")
    checkpoint = _flip_checkpoint(random.Random(options.seed), 2000)
    print(f"checkpoint: of 2,000 single-bit flips {dict(checkpoint)}")
    return noticed == tried and not checkpoint["other numbers"]


def _flip_checkpoint(rng: random.Random, count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    state = {"stage": "prune", "model": {"w": torch.randn(40, 40), "b": torch.randn(40)}, "test_top1": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prune.ckpt"
        save_atomic(state, path)
        data = path.read_bytes()
        for _ in range(count):
            bit = rng.randrange(8 * len(data))
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                content = load_plain(path, "stage", "model")
            except ValueError as error:
                found["refused" if "\n" not in str(error) else "refused in several lines"] += 1
                continue
            same = content["stage"] == state["stage"] and content["test_top1"] == state["test_top1"]
            same &= all(torch.equal(content["model"].get(k, v[:0]), v) for k, v in state["model"].items())
            found["same numbers" if same else "other numbers"] += 1
    return found
