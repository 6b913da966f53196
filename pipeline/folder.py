"""The run folder: one place for all that a run leaves behind, written so that a kill at any moment loses nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
import yaml

from sparsign.packing.atomic import write_atomic

VOLATILE = {"resume", "baseline", "sweep", "logger", "latency", "trainer.progress", "trainer.threads", "dataset.root",
            "dataset.download", "dataset.workers"}  # fmt: skip
"""Options that may differ between a run and its resumption: they change where and how it runs, not what it computes."""


def save_atomic(obj: Any, path: Path) -> None:
    """`torch.save` that leaves a whole file or none."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    write_atomic(path, buffer.getbuffer())


def load_plain(path: Path) -> Any:
    """`torch.load` of plain containers and tensors; ValueError with one line when the file is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise ValueError(
            f"{path}: not a readable checkpoint ({type(e).__name__}); delete it to train its stage again"
        ) from e


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in VOLATILE:
            continue
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


class RunFolder:
    """Paths and bookkeeping of one run.

    Layout: config.yaml, metrics.jsonl, timing.json, checkpoints/<stage>.ckpt (one per finished stage),
    checkpoints/mid_stage.ckpt (the stage under way), model.sparsign, report.json, report.html.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.json"
        self.packed = self.path / "model.sparsign"
        self.report = self.path / "report.json"
        self.mid_stage = self.path / "checkpoints" / "mid_stage.ckpt"

    def boundary(self, stage: str) -> Path:
        """The checkpoint written when `stage` is finished."""
        return self.path / "checkpoints" / f"{stage}.ckpt"

    @property
    def finished(self) -> bool:
        return self.report.is_file() and self.packed.is_file()

    @property
    def started(self) -> bool:
        """True when there is something to lose: a checkpoint, a finished epoch, a packed file or a report."""
        files = self.packed.is_file() or self.report.is_file()
        return files or self.mid_stage.parent.is_dir() or bool(self.read_metrics())

    def claim(self, config: dict, resume: bool) -> None:
        """Makes the folder this run's own, or raises ValueError with one line and leaves it as it was.

        A folder that holds a run is only entered to resume, and only by the same configuration.
        """
        if not self.config.is_file() and self.started:
            raise ValueError(f"run folder {self.path} holds results of a run but no config.yaml: use another folder")
        if not self.config.is_file() and resume:
            raise ValueError(f"resume={self.path}: holds no config.yaml, so it is not a run folder")
        if not resume and not self.started:
            write_atomic(self.config, yaml.safe_dump(config, sort_keys=False))
            return
        try:
            present = yaml.safe_load(self.config.read_text())
            if not isinstance(present, dict):
                raise ValueError("no mapping")
        except (yaml.YAMLError, ValueError, UnicodeDecodeError) as e:
            raise ValueError(f"{self.config}: not a readable config ({type(e).__name__})") from e
        mine, theirs = _flat(config), _flat(present)
        differing = [k for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k)]
        if differing:
            key = differing[0]
            more = f" and {len(differing) - 1} more options differ" if len(differing) > 1 else ""
            raise ValueError(
                f"run folder {self.path} belongs to another config: {key}={theirs.get(key)} there, "
                f"{mine.get(key)} asked{more}; use another folder"
            )
        if not resume:
            raise ValueError(f"run folder {self.path} already holds this run: add resume={self.path} to go on with it")

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        with self.metrics.open("a") as f:
            f.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl (a kill can leave a part of the last one)."""
        rows = []
        for line in self.metrics.read_text().splitlines() if self.metrics.is_file() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def drop_metrics(self, stages: list[str], stage: str | None, epoch: int) -> None:
        """Forgets rows of what will run again: stages outside `stages`, and of `stage` those from `epoch` on."""
        kept = [
            r
            for r in self.read_metrics()
            if r["stage"] in stages or (r["stage"] == stage and "epoch" in r and r["epoch"] < epoch)
        ]
        write_atomic(self.metrics, "".join(json.dumps(r) + "\n" for r in kept))

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Adds wall-clock to timing.json (a resumed stage adds to what it had)."""
        try:
            times = json.loads(self.timing.read_text())
        except (FileNotFoundError, ValueError):  # a damaged file costs a run no more than its times
            times = {}
        times[stage] = round(times.get(stage, 0.0) + seconds, 2)
        write_atomic(self.timing, json.dumps(times, indent=2) + "\n")
