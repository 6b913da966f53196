"""Mutated packed files: raw, checksum-repaired, header-edited and section-edited."""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.hostile.bombs import chain, conv
from benchmarks.hostile.files import MEMORY, SEEDS, join, outcome, repaired, split

KINDS = {"raw": 1, "repaired": 3, "header": 3, "section": 3}
"""How often each kind of mutation comes; raw ones seldom get past the checksum."""
SLOW = 2.0
"""CPU seconds of reading and running that are a finding."""

VALUES = [
    *(None, True, -1, 0, 1, 2, 3, 7, 255, 1 << 15, 1 << 29, 1 << 31, 1 << 63, 10**30, 1.5, -0.0, 1e300),
    *("", "x", "deflate", "pack", "fields", "mixing", "planes", "raw", "fp32", "bf16", "irregular", "groups", "table"),
    *([], [0], [[]], [1 << 20, 1 << 20], [0, 1 << 30], ["pack", 0], ["pack", 1, [-1, 1]], {}, {"shape": [1, 1]}),
]
TEXTS = [json.dumps(value) for value in VALUES]


@dataclass
class Seed:
    """A good file, taken apart once: `paths` lead to every list and object of its header that holds anything."""

    data: bytes
    text: str
    payload: bytes
    paths: list[tuple[Any, ...]]


def seeds() -> list[Seed]:
    """The golden files, which hold every layout, way to values and codec, and one file with every operation."""
    return [taken_apart(data) for data in (*(path.read_bytes() for path in SEEDS), every_operation())]


def taken_apart(data: bytes) -> Seed:
    """A seed of a good file."""
    header, payload = split(data)
    return Seed(data, json.dumps(header), payload, list(_paths(header)))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if value and isinstance(value, list | dict):
        yield path
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(inner, (*path, key))


def every_operation() -> bytes:
    """A file of one node of each operation that the golden files lack, with fp32 arrays of the number 1."""
    four, one = ["fp32", 4], {"factor": [1, 1]}
    plain = ("relu", "relu6", "sigmoid", "silu", "hardswish", "hardsigmoid", "gelu", "hardtanh", "sign")
    nodes = [
        conv([4, 3, 1, 1], "fp32"),
        *([op, op] for op in plain),
        ["affine", "a", [], {}, {"scale": four, "shift": four}],
        ["prelu", "s", [], {}, {"slope": four}],
        ["add_scalar", "as", [], {"value": 0.5}],
        ["mul_scalar", "ms", [], {"value": 0.5}],
        ["maxpool", "mp", [], {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]}],
        ["avgpool", "ap", [], {"kernel": [2, 2], "stride": [2, 2]}],
        ["upsample", "u", [], one],
        ["conv_transpose", "t", [], {"stride": [2, 2]}, {}, {"shape": [4, 4, 1, 1], "codes": "fp32"}],
        ["permute", "pe", [], {}, {"order": [3, 1, 0, 2]}],
        ["mul", "m", [1, 2]],
        ["pad_shortcut", "ps", [], {"before": 1, "after": 1}],
        ["select", "se", [], {}, {"index": [6, ["pack", 1]]}],
        ["add", "ad", [2, 3], {"channels": 6}, {"index1": [6, ["pack", 1]]}],
        ["cat", "ca", [1, 2]],
    ]
    floats = struct.pack("<40f", *[1.0] * 40)
    return join(chain(*nodes, inputs=(3, 4, 4), pools=[["fp32", "raw", len(floats), 40]]), floats + b"\xfc\x3c")


# -- mutations ---------------------------------------------------------------------------------------------------------


def mutant(rng: random.Random, kind: str, seed: Seed) -> bytes:
    """One mutation of this kind of a good file."""
    if kind == "raw":
        return mutated_bytes(rng, seed.data)
    if kind == "repaired":
        found = mutated_bytes(rng, seed.data)
        return repaired(found) if len(found) >= 14 else found
    if kind == "header":
        return join(mutated_header(rng, seed), seed.payload)
    return repaired(seed.data[: -len(seed.payload)] + mutated_bytes(rng, seed.payload))


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, inserted, removed, repeated, or the end cut."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(found) or 1)
        kind = rng.randrange(6)
        if kind < 3 and found:
            found[place] = rng.randrange(256) if kind else found[place] ^ 1 << rng.randrange(8)
        elif kind == 3:
            found[place:place] = rng.randbytes(rng.randint(1, 8))
        elif kind == 4:
            del found[place : place + rng.randint(1, 16)]
        else:
            del found[place + 1 :]
    return bytes(found)


def mutated_header(rng: random.Random, seed: Seed) -> Any:
    """The header with a few values replaced, removed, repeated or swapped."""
    header = json.loads(seed.text)
    for _ in range(rng.randint(1, 3)):
        holder = header
        for key in rng.choice(seed.paths):  # as far as earlier mutations left the way
            try:
                inner = holder[key]
            except (KeyError, IndexError, TypeError):
                break
            if not inner or not isinstance(inner, list | dict):
                break
            holder = inner
        if holder:
            _mutate(rng, holder)
    return header


def _mutate(rng: random.Random, holder: list | dict) -> None:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    key, other = rng.choice(keys), rng.choice(keys)
    kind = rng.randrange(5)
    if kind < 2:
        holder[key] = json.loads(rng.choice(TEXTS))
    elif kind == 2 and isinstance(holder[key], int):
        holder[key] = holder[key] + rng.choice([-1, 1, 2, 255])
    elif kind == 3:
        holder[key], holder[other] = holder[other], holder[key]
    elif isinstance(holder, list):
        holder.insert(key, json.loads(json.dumps(holder[other]))) if rng.random() < 0.5 else holder.pop(key)
    else:
        del holder[key]


# -- the run -----------------------------------------------------------------------------------------------------------


def fuzz(seed: int, seconds: float, count: int | None = None) -> tuple[Counter[str], list[str]]:
    """(outcomes by kind, mutants that got through as anything but refused or valid); ends by CPU time or count."""
    rng, files, found, escaped = random.Random(seed), seeds(), Counter(), []
    started = before = time.process_time()
    while before - started < seconds and (count is None or sum(found.values()) < count):
        kind, file = rng.choices(list(KINDS), KINDS.values())[0], rng.choice(files)
        damaged = mutant(rng, kind, file)
        try:
            said = outcome(damaged).split(":")[0]
        except Exception as error:  # whatever comes is the finding
            said = type(error).__name__
        if said == "accepted" and damaged == file.data:
            said = "unchanged"
        found[f"{kind} {said}"] += 1
        if said not in ("refused", "accepted", "unchanged") or (kind, said) == ("raw", "accepted"):
            escaped.append(f"{kind} {said} {damaged.hex()}")
        after = time.process_time()
        if after - before > SLOW:
            escaped.append(f"{kind} slow {damaged.hex()}")
        before = after
    return found, escaped


def run_fuzz(options: argparse.Namespace) -> bool:
    """Mutations for some time."""
    started = time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + (8 << 30), resource.getrlimit(resource.RLIMIT_AS)[1]))
    found, escaped = fuzz(options.seed, options.seconds)
    spent = f"{time.monotonic() - started:.0f} s, {options.seconds:g} of them on a core"
    print(f"{sum(found.values()):,} mutants in {spent}, seed {options.seed}: ", end="")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(found.items())))
    print(f"neither refused by the one error class nor valid: {len(escaped)}")
    print("\n".join(line[:300] for line in escaped[:5]))
    return not escaped
