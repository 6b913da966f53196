"""Where metrics go besides metrics.jsonl: a CSV file, or one Weights & Biases run per job."""

from __future__ import annotations

import csv
import io
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

from sparsign.packing.atomic import write_atomic


class Tracker(Protocol):
    """What the pipeline tells a tracker."""

    def open(self, folder: Path, config: dict[str, Any], group: str | None) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def summary(self, report: dict[str, Any], packed: Path) -> None: ...
    def close(self, failed: bool) -> None: ...


class NoTracker(Tracker):
    """Tells nobody: for all ranks but the first."""


def numbers(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numeric leaves of nested dicts, with dotted names."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{key}"] = value
    return flat


class CsvTracker:
    """metrics.csv: the rows of metrics.jsonl as a table, lists left out."""

    def __init__(self, **_: Any) -> None:
        self._rows: list[dict[str, Any]] = []

    def open(self, folder: Path, config: dict[str, Any], group: str | None) -> None:
        self._path = folder / "metrics.csv"

    def row(self, row: dict[str, Any]) -> None:
        self._rows.append({k: v for k, v in row.items() if not isinstance(v, list)})
        columns = list(dict.fromkeys(k for r in self._rows for k in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self._path, text.getvalue())

    def summary(self, report: dict[str, Any], packed: Path) -> None:
        pass

    def close(self, failed: bool) -> None:
        pass


class WandbTracker:
    """One W&B run per job; its id is kept in the run folder, so that a resumed job goes on in the same run.

    Args:
        mode: online, offline, or auto = online when an API key is configured.
    """

    def __init__(self, project: str, entity: str | None, mode: str, tags: list[str]) -> None:
        self.project, self.entity, self.mode, self.tags = project, entity, mode, list(tags)
        self._run: Any = None
        self._rows = 0

    def open(self, folder: Path, config: dict[str, Any], group: str | None) -> None:
        import wandb

        mode = self.mode
        if mode == "auto":
            key = os.environ.get("WANDB_API_KEY") or getattr(wandb.api, "api_key", None)
            mode = "online" if key else "offline"
        id_file = folder / "wandb_id"
        if not id_file.is_file():
            write_atomic(id_file, uuid.uuid4().hex[:8])
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            tags=self.tags,
            dir=folder,
            id=id_file.read_text().strip(),
            resume="allow" if mode == "online" else None,
            name=folder.name,
            group=group,
            config=config,
            settings=wandb.Settings(silent=True),
        )

    def row(self, row: dict[str, Any]) -> None:
        import wandb

        self._rows += 1
        if self._rows <= self._run.starting_step:  # a resumed job tells all rows again, and its run has these
            return
        values = {k: wandb.Histogram(v) if isinstance(v, list) else v for k, v in row.items() if k != "stage"}
        self._run.log({f"{row['stage']}/{k}": v for k, v in values.items()})

    def summary(self, report: dict[str, Any], packed: Path) -> None:
        import wandb

        self._run.summary.update(numbers({k: v for k, v in report.items() if isinstance(v, dict)}))
        artifact = wandb.Artifact(f"packed-{self._run.id}", type="model")
        artifact.add_file(str(packed))
        self._run.log_artifact(artifact)

    def close(self, failed: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1 if failed else 0)
