"""One MLflow run per job."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sparsign.packing.atomic import write_atomic
from sparsign.pipeline.tracking import leaves, measured, needed, title


class MlflowTracker:
    """Rows as metrics `<stage>/<name>`, steps count them; options as parameters, packed file and report as artifacts.

    A resumed job goes on in the run whose id its folder keeps. MLflow has no histograms: lists are left out.

    Args:
        project: the experiment.
        uri: of the tracking server; None: MLFLOW_TRACKING_URI, else the file mlflow.db here.
    """

    def __init__(self, project: str, tags: list[str], uri: str | None = None, **_: Any) -> None:
        self.mlflow = needed("mlflow", "mlflow")
        self.project, self.tags = project, dict.fromkeys(tags, "")
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        self._run: Any = None
        self._rows = 0

    def open(self, folder: Path, config: dict[str, Any], group: str | None) -> None:
        self.mlflow.set_tracking_uri(self.uri)
        self.mlflow.set_experiment(self.project)
        id_file = folder / "mlflow_id"
        former = id_file.read_text().strip() if id_file.is_file() else None
        tags = self.tags | ({"sweep": group} if group else {})
        self._run = self.mlflow.start_run(former, run_name=title(folder, config, group), tags=tags)
        write_atomic(id_file, self._run.info.run_id)
        if former is None:
            told = leaves({k: v for k, v in config.items() if k != "stages"})
            self.mlflow.log_params({_allowed(k): str(v)[:500] for k, v in told.items()})

    def row(self, row: dict[str, Any]) -> None:
        told = {f"{row['stage']}/{k}": v for k, v in row.items() if isinstance(v, (int, float))}
        self.mlflow.log_metrics({_allowed(k): float(v) for k, v in told.items()}, step=self._rows)
        self._rows += 1

    def summary(self, report: dict[str, Any], packed: Path) -> None:
        told = measured(report)
        numbers = {_allowed(k): float(v) for k, v in told.items() if not isinstance(v, str)}
        self.mlflow.log_metrics(numbers, step=self._rows)
        self.mlflow.set_tags({k: v for k, v in told.items() if isinstance(v, str)})
        for file in (packed, packed.with_name("report.json"), packed.with_name("report.html")):
            if file.is_file():
                self.mlflow.log_artifact(str(file))

    def close(self, failed: bool) -> None:
        if self._run is not None:
            self.mlflow.end_run("FAILED" if failed else "FINISHED")


def _allowed(name: str) -> str:
    """MLflow takes letters, digits, and a few signs."""
    return re.sub(r"[^\w./ -]", "_", name)
