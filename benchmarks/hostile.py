"""Hostile files, bit rot, kills: what comes of them, with counts, seed and duration.

    python benchmarks/hostile.py [bombs] [flips] [atomic] [full] [fuzz] [kills] [--seed 0] [--seconds 60] [--kills 10]

bombs   files of a few bytes that ask for time or memory, each read in a process of its own under a memory limit
flips   every single-bit flip of small packed files, random ones of a checkpoint
atomic  SIGKILL at random instants of writing a packed file, a checkpoint, a text: old or new content must be there
full    a disk that takes no more bytes (RLIMIT_FSIZE): the line that is printed
fuzz    for --seconds: packed files with raw, checksum-repaired, header-edited and section-edited mutations
kills   train.py over methods, each killed --kills times at random instants and resumed: all files must end equal

Without names: all but kills. Exits with 1 where anything but the one class of error came out, damage was accepted, or a
resumed run differs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.atomic import write_atomic
from sparsign.packing.codecs import deflate, inflate
from sparsign.packing.dictionary import DICTIONARY
from sparsign.packing.file import MAGIC, PREAMBLE, VERSION, PackedFileError, loads, read, write
from sparsign.pipeline.folder import load_plain, save_atomic

ROOT = Path(__file__).parent.parent
SEEDS = sorted((ROOT / "tests" / "golden").glob("*.sparsign"))
MEMORY = 4 << 30
"""Bytes of address space beyond what the process has when it opens a bomb."""

RUN_BYTES = 64 << 20
"""Activations of one image up to which an accepted file is run as well."""


def join(header: Any, payload: bytes = b"") -> bytes:
    """A file with a right checksum around any header."""
    return wrap(json.dumps(header, separators=(",", ":")).encode(), payload)


def wrap(text: bytes, payload: bytes = b"", inflated: int | None = None) -> bytes:
    """The same around any text."""
    deflated = deflate(text, DICTIONARY)
    size = len(text) if inflated is None else inflated
    return repaired(PREAMBLE.pack(MAGIC, VERSION, 0, len(deflated), size) + deflated + payload)


def repaired(data: bytes) -> bytes:
    """The same bytes with a right checksum."""
    return data[:10] + struct.pack("<I", zlib.crc32(data[14:], zlib.crc32(data[:10]))) + data[14:]


def split(data: bytes) -> tuple[Any, bytes]:
    """(header, sections) of a good file."""
    _, _, _, length, inflated = PREAMBLE.unpack_from(data)
    end = PREAMBLE.size + length
    return json.loads(inflate(data[PREAMBLE.size : end], inflated, DICTIONARY)), data[end:]


# -- bombs -------------------------------------------------------------------------------------------------------------


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


def apart(call: Callable[[], str]) -> dict[str, Any]:
    """What a call says in a process of its own under a memory limit, its seconds, and the MiB it took."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if not pid:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, started = _kilobytes("VmRSS"), time.perf_counter()
        try:
            said = call()
        except BaseException as error:  # whatever comes is the finding
            said = f"ESCAPED {type(error).__name__}: {error}"
        taken = (_kilobytes("VmHWM") - before) / 1024
        os.write(outlet, json.dumps({"said": said[:300], "s": time.perf_counter() - started, "MiB": taken}).encode())
        os._exit(0)
    os.close(outlet)
    with open(inlet, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer) if answer else {"said": "ESCAPED the process died", "s": 0.0, "MiB": 0.0}


def _kilobytes(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def outcome(data: bytes) -> str:
    """`accepted`, where the network also ran on an image, or `refused: ` and the line; any other error goes through."""
    try:
        packed = loads(data)
    except PackedFileError as error:
        if "\n" in str(error):
            raise
        return f"refused: {error}"
    if packed.activation_bytes() < RUN_BYTES:
        ReferenceEngine(packed)(torch.zeros(1, *packed.input_shape))
    return "accepted"


def run_bombs(options: argparse.Namespace) -> bool:
    """The table of bombs."""
    print("|bomb|bytes|s|MiB|outcome|\n|---|---|---|---|---|")
    good = True
    for name, data in bombs().items():
        found = apart(lambda data=data: outcome(data))
        good &= found["said"].startswith("refused") and found["s"] < 1 and found["MiB"] < 256
        print(f"|{name}|{len(data):,}|{found['s']:.3f}|{found['MiB']:.0f}|{found['said'][:120]}|", flush=True)
    return good


# -- damage ------------------------------------------------------------------------------------------------------------


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


def run_full(options: argparse.Namespace) -> bool:
    """A disk that is full."""
    good = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.sparsign"

        def full() -> str:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
            try:
                write(read(SEEDS[0]), path)
            except OSError as error:
                return str(error)
            return "written"

        found = apart(full)["said"]
        good &= str(path) in found and "bytes" in found and not list(Path(folder).iterdir())
        print(f"file-size limit: {found}")
    return good


# -- fuzz --------------------------------------------------------------------------------------------------------------

VALUES = [
    *(None, True, -1, 0, 1, 2, 3, 7, 255, 1 << 15, 1 << 29, 1 << 31, 1 << 63, 10**30, 1.5, -0.0, 1e300),
    *("", "x", "deflate", "pack", "fields", "mixing", "planes", "raw", "fp32", "bf16", "irregular", "groups", "table"),
    *([], [0], [[]], [1 << 20, 1 << 20], [0, 1 << 30], ["pack", 0], ["pack", 1, [-1, 1]], {}, {"shape": [1, 1]}),
]


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


def mutated_header(rng: random.Random, header: Any) -> Any:
    """A few values of the JSON replaced, removed, repeated or swapped."""
    header = copy.deepcopy(header)
    for _ in range(rng.randint(1, 3)):
        holders = [h for h in _holders(header) if h]
        if not holders:
            break
        holder = rng.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key, other = rng.choice(keys), rng.choice(keys)
        kind = rng.randrange(5)
        if kind < 2:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 2 and isinstance(holder[key], int):
            holder[key] = holder[key] + rng.choice([-1, 1, 2, 255])
        elif kind == 3:
            holder[key], holder[other] = holder[other], holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[other])) if rng.random() < 0.5 else holder.pop(key)
        else:
            del holder[key]
    return header


def _holders(value: Any) -> list[Any]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return [] if inner is None else [value, *(holder for v in inner for holder in _holders(v))]


def mutant(rng: random.Random, kind: str, data: bytes) -> bytes:
    """One mutation of this kind of a good file."""
    if kind == "raw":
        return mutated_bytes(rng, data)
    if kind == "repaired":
        found = mutated_bytes(rng, data)
        return repaired(found) if len(found) >= 14 else found
    header, payload = split(data)
    if kind == "header":
        return join(mutated_header(rng, header), payload)
    return join(header, mutated_bytes(rng, payload))


def fuzz(seed: int, seconds: float, count: int | None = None) -> tuple[Counter[str], list[str]]:
    """(outcomes by kind, mutants that got through as anything but refused or valid), for so long or so many."""
    rng, files, found, escaped = random.Random(seed), [path.read_bytes() for path in SEEDS], Counter(), []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and (count is None or sum(found.values()) < count):
        kind, data = rng.choice(["raw", "repaired", "header", "section"]), rng.choice(files)
        damaged, started = mutant(rng, kind, data), time.monotonic()
        try:
            said = outcome(damaged).split(":")[0]
        except Exception as error:  # whatever comes is the finding
            said = type(error).__name__
        if said == "accepted" and damaged == data:
            said = "unchanged"
        found[f"{kind} {said}"] += 1
        if said not in ("refused", "accepted", "unchanged") or (kind, said) == ("raw", "accepted"):
            escaped.append(f"{kind} {said} {damaged.hex()}")
        if time.monotonic() - started > 2:
            escaped.append(f"{kind} slow {damaged.hex()}")
    return found, escaped


def run_fuzz(options: argparse.Namespace) -> bool:
    """Mutations for some time."""
    started = time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + (8 << 30), resource.getrlimit(resource.RLIMIT_AS)[1]))
    found, escaped = fuzz(options.seed, options.seconds)
    spent = time.monotonic() - started
    print(f"{sum(found.values()):,} mutations in {spent:.0f} s, seed {options.seed}: ", end="")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(found.items())))
    print(f"neither refused by the one error class nor valid: {len(escaped)}")
    print("\n".join(line[:300] for line in escaped[:5]))
    return not escaped


# -- kills -------------------------------------------------------------------------------------------------------------

RUNS = {
    "ptq lenet5": ["compressor=ptq", "model=lenet5"],
    "admm lenet5": ["compressor=admm", "model=lenet5"],
    "stq_a resnet20": ["compressor=stq_a", "model=resnet20"],
    "wpc resnet20": ["compressor=wpc", "model=resnet20"],
}


def results(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """What has to be equal: the packed file and all rows of metrics but times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "model.sparsign").read_bytes(), [
        {k: v for k, v in row.items() if "images_per_s" not in k and "seconds" not in k} for row in rows
    ]


def run_kills(options: argparse.Namespace) -> bool:
    """SIGKILL at random instants, then resume."""
    rng, good = random.Random(options.seed), True
    with tempfile.TemporaryDirectory() as base:
        for name, overrides in RUNS.items():
            command = [sys.executable, str(ROOT / "train.py"), *overrides, "schedule=smoke", "latency.seconds=0"]
            command += ["trainer.threads=1", "trainer.progress=false"]
            whole = Path(base) / name.replace(" ", "_")
            started = time.monotonic()
            _trained([*command, f"hydra.run.dir={whole}"])
            length, expected = time.monotonic() - started, results(whole)
            equal = 0
            for k in range(options.kills):
                folder, after = Path(f"{whole}_{k}"), rng.uniform(0.3, 1.0) * length
                process = subprocess.Popen([*command, f"hydra.run.dir={folder}"], stdout=-3, stderr=-3)
                try:
                    process.wait(after)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                known = (folder / "config.yaml").is_file()
                _trained([*command, f"resume={folder}" if known else f"hydra.run.dir={folder}"])
                equal += results(folder) == expected
            print(f"{name}: {equal} of {options.kills} runs, killed within {length:.0f} s, ended bit-equal", flush=True)
            good &= equal == options.kills
    return good


def _trained(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-500:]}")


PARTS = {
    "bombs": run_bombs,
    "flips": run_flips,
    "atomic": run_atomic,
    "full": run_full,
    "fuzz": run_fuzz,
    "kills": run_kills,
}


def main() -> None:
    """Run the parts named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of fuzzing")
    parser.add_argument("--kills", type=int, default=10, help="for each method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    good = True
    for name in options.parts or [name for name in PARTS if name != "kills"]:
        print(f"\n{name}", flush=True)
        good &= PARTS[name](options)
    sys.exit(not good)


if __name__ == "__main__":
    main()
