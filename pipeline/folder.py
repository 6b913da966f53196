"""The run folder: one place for all that a run leaves behind, written so that a kill at any moment loses nothing."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from sparsign.models.pretrained import read_tensors
from sparsign.packing.atomic import write_atomic
from sparsign.pipeline import origin
from sparsign.pipeline.lock import exclusive

VOLATILE = {"resume", "baseline", "sweep", "search", "objective", "cache", "logger", "latency",
            "trainer.progress", "trainer.threads", "trainer.kernels",
            "dataset.root", "dataset.download", "dataset.workers", "dataset.prefetch_factor"}  # fmt: skip
"""Options that may differ between a run and its resumption: they change where and how it runs, not what it computes."""


def save_atomic(obj: Any, path: Path) -> None:
    """`torch.save` that leaves a whole file or none. Every part of the file has a checksum."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    write_atomic(path, buffer.getbuffer())


def load_plain(path: Path, *keys: str) -> Any:
    """A checkpoint's plain containers and tensors, a mapping with `keys`; ValueError in one line when it is damaged."""
    try:
        content = read_tensors(path)
        if missing := [k for k in keys if not isinstance(content, dict) or k not in content]:
            raise ValueError(f"holds no {missing[0]}")
        return content
    except (ValueError, OSError) as e:
        raise ValueError(f"{path}: not a readable checkpoint ({e}); delete it to train its stage again") from e


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in VOLATILE:
            continue
        if key == "_target_":  # older runs say it without the package
            value = str(value).removeprefix("sparsign.")
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


FORMERLY = {"leftovers": "fp32", "dataset.pad_mode": "zero", "dataset.crop_part": 0.6}
"""What runs did before there was the option."""


def _differing(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Keys with other values; an option that one of the two lacks is the same as null, false or 0, or as `FORMERLY`."""

    def same(key: str) -> bool:
        if key in mine and key in theirs:
            return mine[key] == theirs[key]
        one = mine.get(key, theirs.get(key))
        return not one or one == FORMERLY.get(key)

    return [key for key in sorted(mine.keys() | theirs.keys()) if not same(key)]


class RunFolder:
    """Paths and bookkeeping of one run.

    Layout: config.yaml, stages.yaml (the stages as they run, and the code that ran them), metrics.jsonl, timing.json,
    checkpoints/<stage>.ckpt (one per finished stage), checkpoints/mid_stage.ckpt (the stage under way),
    model.sparsign, report.json, report.html; pretrain_from.json where another run trained the pretrain stage.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.stages = self.path / "stages.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.json"
        self.pretrain_from = self.path / "pretrain_from.json"
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

    # -- whose it is ---------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out; a folder made for it that stays empty is gone again afterwards.

        Raises:
            InUseError: another process is in the folder.
        """
        made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            with exclusive(self.path / ".lock", f"run folder {self.path}"):
                yield
        finally:
            for path in made:
                with suppress(OSError):
                    path.rmdir()

    def check(self, config: dict, resume: bool) -> None:
        """Raises ValueError with one line unless the folder may be this run's own.

        A folder that holds a run is only entered to resume, and only by the same configuration.
        """
        if not self.config.is_file() and self.started:
            raise ValueError(f"run folder {self.path} holds results of a run but no config.yaml: use another folder")
        if not self.config.is_file() and resume:
            raise ValueError(f"resume={self.path}: holds no config.yaml, so it is not a run folder")
        if not resume and not self.started:
            return
        differing = _differing(mine := _flat(config), theirs := _flat(read_mapping(self.config)))
        if differing:
            key = differing[0]
            more = f" and {len(differing) - 1} more options differ" if len(differing) > 1 else ""
            raise ValueError(
                f"run folder {self.path} belongs to another config: {key}={theirs.get(key)} there, "
                f"{mine.get(key)} asked{more}; use another folder"
            )
        if not resume:
            raise ValueError(f"run folder {self.path} already holds this run: add resume={self.path} to go on with it")

    def claim(self, config: dict, resume: bool) -> None:
        """Makes the folder this run's own, or raises what `check` raises and leaves it as it was."""
        self.check(config, resume)
        if not resume and not self.started:
            self.stages.unlink(missing_ok=True)
            write_atomic(self.config, yaml.safe_dump(config, sort_keys=False))

    def record(self, stages: list[dict[str, Any]], code: dict[str, Any]) -> str | None:
        """Writes stages.yaml; on resuming compares with it. Returns a warning where other code goes on with the run.

        Raises:
            ValueError: the stages there are not these, as a default has changed; one line that names the difference.
        """
        present = read_mapping(self.stages) if self.stages.is_file() else {}
        if "stages" in present:
            self._check_stages(stages, present["stages"])
        former = present.get("code") or []
        changed = origin.differences(code, {k: v for k, v in former[-1].items() if k != "since"}) if former else ""
        if changed or not former:
            entry = {"since": time.strftime("%Y-%m-%d %H:%M:%S %z"), **code}
            write_atomic(self.stages, yaml.safe_dump({"stages": stages, "code": [*former, entry]}, sort_keys=False))
        return f"{self.path} was begun by other code ({changed}); kept in {self.stages.name}" if changed else None

    def _check_stages(self, mine: list[dict[str, Any]], theirs: Any) -> None:
        try:
            former = {stage["name"]: stage for stage in theirs}
        except (TypeError, KeyError):
            raise ValueError(f"{self.stages}: expected a list of stages with names; delete it to go on") from None
        other = f"run folder {self.path} was made by another recipe"
        if list(former) != [stage["name"] for stage in mine]:
            now = ", ".join(stage["name"] for stage in mine)
            raise ValueError(f"{other}: stages {', '.join(former)} there, {now} now; use another folder")
        for stage in mine:
            was = former[stage["name"]]
            for key in _differing(stage, was):
                raise ValueError(
                    f"{other}: {stage['name']}.{key}={was.get(key)} there, {stage.get(key)} now; "
                    "set it back, or use another folder"
                )

    # -- metrics and times ---------------------------------------------------------------------------------------------

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        with self.metrics.open("a") as f:
            f.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl; `bad_metrics` counts the lines that are none."""
        rows = [_row(line) for line in self._lines()]
        return [row for row in rows if row is not None]

    @property
    def bad_metrics(self) -> int:
        """Lines of metrics.jsonl that are no rows, but for a part of the last one, which a kill may leave."""
        lines = self._lines()
        return sum(_row(line) is None for line in lines[:-1] + [line for line in lines[-1:] if line.endswith("\n")])

    def _lines(self) -> list[str]:
        if not self.metrics.is_file():
            return []
        return self.metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)

    def drop_metrics(self, stages: list[str], stage: str | None, epoch: int) -> None:
        """Forgets rows of what will run again: stages outside `stages`, and of `stage` those from `epoch` on."""
        kept = [
            r
            for r in self.read_metrics()
            if r["stage"] in stages or (r["stage"] == stage and "epoch" in r and r["epoch"] < epoch)
        ]
        write_atomic(self.metrics, "".join(json.dumps(r) + "\n" for r in kept))

    def seconds(self) -> dict[str, float]:
        """Stage -> wall-clock seconds of its training, from timing.json; a damaged one costs no more than its times."""
        try:
            return {str(k): float(v) for k, v in json.loads(self.timing.read_text()).items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Adds wall-clock to timing.json (a resumed stage adds to what it had)."""
        times = self.seconds()
        times[stage] = round(times.get(stage, 0.0) + seconds, 2)
        write_atomic(self.timing, json.dumps(times, indent=2) + "\n")


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; ValueError, in one line, for anything else."""
    try:
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("no mapping")
        return content
    except (yaml.YAMLError, ValueError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not a readable config ({type(e).__name__})") from e


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    sound = isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("epoch", 0), int)
    return row if sound else None
