"""SIGKILL at random instants of training, packing and measuring, over all methods; then resume, and compare.

Runs are forked from this process, which has imported everything, and their report page has no pictures: instants fall
into the work, not into imports and drawing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from sparsign import train
from sparsign.compressors import registry
from sparsign.reports import files

FLOAT_INPUT, BINARY_INPUT = ("model=lenet5", "dataset.image_size=28"), ("model=resnet20", "dataset.image_size=24")
RUNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["ptq", "wpc", "bwn", "twn", "ttq", "ec2t"], FLOAT_INPUT),
    "admm": (*FLOAT_INPUT, "compressor.rhos=[0.1]"),
    **dict.fromkeys(["bnn", "xnor", "stq_a", "stq_b", "subsidiary", "msf"], BINARY_INPUT),
}
"""Every method on the smallest network that it takes."""
KINDS = ("pretrain", "prune", "quantize", "finetune")
COMMON = ["schedule=smoke", *(f"schedule.{kind}.epochs=2" for kind in KINDS)]
COMMON += ["dataset=digits", "latency.seconds=0", "trainer.threads=1", "trainer.progress=false"]
IMPORTED_LATE = (
    *("pytorch_lightning", "sparsign.pipeline.fit", "sparsign.pipeline.pack"),
    *("sparsign.evaluation.report", "sparsign.evaluation.proof", "sparsign.datamodules.digits"),
)
START, PACKING, MEASURING, END = "before its config", "packing", "measuring", "at its end"


def launch(overrides: list[str], log: Path) -> int:
    """The process id of `train.py overrides` in a fork, its output in `log`."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with open(log, "wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.setsid()
            sys.argv = [str(Path(train.__file__)), *overrides]
            train.command()
            code = 0
        except SystemExit as end:
            code = int(bool(end.code))
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def finish(overrides: list[str], log: Path) -> float:
    """Run to the end; its seconds. RuntimeError where it fails."""
    started = time.monotonic()
    if os.waitpid(launch(overrides, log), 0)[1]:
        raise RuntimeError(f"train.py {' '.join(overrides)}: {log.read_text()[-500:]}")
    return time.monotonic() - started


def killed(overrides: list[str], log: Path, after: float) -> float | None:
    """Start, kill after so many seconds; where the run ended before that: its seconds."""
    pid, started = launch(overrides, log), time.monotonic()
    while time.monotonic() - started < after:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return time.monotonic() - started
        time.sleep(min(0.005, after))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def where(folder: Path) -> str:
    """What a run that was killed was at, from what it left."""
    if not (folder / "stages.yaml").is_file():
        return START
    if (folder / "model.sparsign").is_file():
        return END if (folder / "report.json").is_file() else MEASURING
    stages = [stage["name"] for stage in yaml.safe_load((folder / "stages.yaml").read_text())["stages"]]
    return next((name for name in stages if not (folder / "checkpoints" / f"{name}.ckpt").is_file()), PACKING)


def results(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """What has to be equal: the packed file and all rows of metrics but times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "model.sparsign").read_bytes(), [
        {k: v for k, v in row.items() if "images_per_s" not in k and "seconds" not in k} for row in rows
    ]


def run_kills(options: argparse.Namespace) -> bool:
    """One kill after the other, the methods in turns."""
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    registry.register()
    files.render = lambda *_: ""
    rng, equal, begun = random.Random(options.seed), Counter(), time.monotonic()
    places: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as base:
        whole: dict[str, tuple[float, Any]] = {}
        for k in range(options.kills):
            name = list(RUNS)[k % len(RUNS)]
            command, log = [f"compressor={name}", *RUNS[name], *COMMON], Path(base) / f"{name}.log"
            if name not in whole:
                folder = Path(base) / name
                whole[name] = finish([*command, f"hydra.run.dir={folder}"], log), results(folder)
            length, expected = whole[name]
            folder = Path(base) / f"{name}_{k}"
            while took := killed([*command, f"hydra.run.dir={folder}"], log, rng.uniform(0, length)):
                length, folder = took, folder.with_name(f"{folder.name}_again")  # quicker than the first one was
            places[where(folder)] += 1
            known = (folder / "config.yaml").is_file()
            finish([*command, f"{'resume' if known else 'hydra.run.dir'}={folder}"], log)
            left = [path.name for path in folder.rglob("*.part")]
            same = results(folder) == expected and not left
            equal[name] += same
            if not same:
                print(f"{name}: kill {k} ended otherwise; left: {left}")
    rounds = ", ".join(f"{name} {count}" for name, count in equal.items())
    print(f"{sum(equal.values())} of {options.kills} runs ended bit-equal: {rounds}")
    print(f"killed at: {', '.join(f'{name} {count}' for name, count in places.most_common())}")
    print(f"seed {options.seed}, {time.monotonic() - begun:.0f} s")
    return sum(equal.values()) == options.kills
