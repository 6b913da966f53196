"""Rows of the papers, run for real: which there are, what they cost on this machine, and the missing ones one by one.

The cost is forecast from twenty timed steps of a row's own first stage, started as the run itself would be, and from
the lengths of all its stages; later stages are taken to cost the same per image.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml

from sparsign.papers.experiments import TRAIN_IMAGES, Experiment
from sparsign.papers.ledger import Row

STEPS = 20
PATIENCE = 600.0
"""Seconds that twenty steps may take before a forecast gives up."""


@dataclass(frozen=True)
class Forecast:
    """images_per_s: of the first stage on this machine; hours: of all epochs of all stages at that speed."""

    images_per_s: float
    epochs: int
    hours: float


def choose(experiments: Sequence[Experiment], wanted: str, dataset: str | None = None) -> list[Experiment]:
    """Those whose name or target matches a shell pattern, or begins with it. Raises ValueError for none."""
    found = [e for e in experiments if any(fnmatch(key, f"{wanted}*") for key in (e.name, e.target) if key)]
    if not found:
        names = ", ".join(sorted({e.name.split("_")[0] for e in experiments}))
        raise ValueError(f"{wanted}: no experiment begins so; expected a name or a pattern, they begin with {names}")
    sets = sorted({e.dataset for e in found})
    if dataset is not None and dataset not in sets:
        raise ValueError(f"--dataset {dataset}: {wanted} has none on it; expected {' | '.join(sets)}")
    return [e for e in found if dataset in (None, e.dataset)]


def state(experiment: Experiment, ledger: Sequence[Row], runs: Path) -> str:
    """`in the ledger: 99.17 %`, `finished: FOLDER`, `begun: FOLDER` or `missing`; a finished run is of full length."""
    full = [row for row in ledger if row["command"].split() and _is_of(row["command"], experiment.name)]
    folder = runs / experiment.name
    if full:
        return f"in the ledger: {max(row['top1'] for row in full):.2f} % ({full[-1]['run']})"
    if (folder / "report.json").is_file():
        return f"finished: {folder}"
    return f"begun: {folder}" if (folder / "config.yaml").is_file() else "missing"


def _is_of(command: str, name: str) -> bool:
    """Whether a ledger's command ran this experiment at its own lengths: no option of its schedule was changed."""
    words = command.split()
    return f"experiment={name}" in words and not any(word.startswith("schedule") for word in words)


def command(experiment: Experiment, runs: Path, overrides: Sequence[str] = ()) -> list[str]:
    """What runs the row, or goes on with it, in its own folder."""
    folder = runs / experiment.name
    place = f"resume={folder}" if (folder / "config.yaml").is_file() else f"hydra.run.dir={folder}"
    return [sys.executable, "-m", "sparsign.train", f"experiment={experiment.name}", place, *overrides]


def forecast(experiment: Experiment, overrides: Sequence[str] = ()) -> Forecast:
    """Times the first steps of the row's first stage in a folder of its own, which goes again.

    Raises:
        ValueError: the run ended, or told no speed in time; with its last line.
    """
    with tempfile.TemporaryDirectory(prefix="sparsign-forecast-") as place:
        folder = Path(place) / "run"
        short = [f"schedule.max_batches={STEPS}", "trainer.progress=false", f"hydra.run.dir={folder}"]
        words = [sys.executable, "-m", "sparsign.train", f"experiment={experiment.name}", *short, *overrides]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                row = _first_row(process, folder / "metrics.jsonl")
            finally:
                process.kill()
            if row is None:
                said = (process.stdout.read() if process.stdout else "").strip().splitlines()
                raise ValueError(f"experiment={experiment.name}: {said[-1] if said else 'no speed was told in time'}")
        stages = yaml.safe_load((folder / "stages.yaml").read_text(encoding="utf-8"))["stages"]
        return of(stages, row["images_per_s"], TRAIN_IMAGES[experiment.dataset])


def of(stages: Sequence[dict], images_per_s: float, images: int) -> Forecast:
    """The forecast of resolved stages (`stages.yaml`) at a speed, over a training set of so many images."""
    epochs = sum(stage["epochs"] for stage in stages)
    return Forecast(images_per_s, epochs, epochs * images / images_per_s / 3600)


def _first_row(process: subprocess.Popen, metrics: Path) -> dict | None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if metrics.is_file() and (text := metrics.read_text(encoding="utf-8")).endswith("\n"):
            return json.loads(text.splitlines()[0])
        time.sleep(0.2)
    return None
