"""One Weights & Biases run per job."""

from __future__ import annotations

import math
import os
import uuid
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from sparsign.packing.atomic import write_atomic
from sparsign.pipeline.tracking import histograms, measured, title


def logged_in() -> bool:
    """Whether there is an API key: in WANDB_API_KEY, or in ~/.netrc, where `wandb login` puts it."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(wandb.Settings().base_url).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


class WandbTracker:
    """Rows under `<stage>/`, the report in the summary; packed file, report and page as artifacts.

    The run's id is kept in the run folder, so that a resumed job goes on in the same run. What is offline can be sent
    later, by the command that the end prints.

    Args:
        mode: online, offline, disabled, or auto: what WANDB_MODE says, else online where there is an API key.
    """

    def __init__(self, project: str, entity: str | None, mode: str, tags: list[str], **_: Any) -> None:
        self.project, self.entity, self.mode, self.tags = project, entity, mode, list(tags)
        self._run: Any = None
        self._rows = 0

    def open(self, folder: Path, config: dict[str, Any], group: str | None) -> None:
        import wandb

        mode = self.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
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
            name=title(folder, config, group),
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
        for name, counts, edges in histograms(row):
            values[name] = wandb.Histogram(np_histogram=(counts, edges))
            del values[f"{name}_range"]
        self._run.log({f"{row['stage']}/{k}": v for k, v in values.items()})

    def summary(self, report: dict[str, Any], packed: Path) -> None:
        import wandb

        self._run.summary.update(measured(report))
        columns = ["layer", "filters", "filters kept, %", "weights not zero, %", "bytes"]
        layers = wandb.Table(columns=columns, data=[_layer(row) for row in report["layers"]])
        final = {"pfr": report["structure"]["pfr"], **{k: report["accuracy"][k] for k in ("top1", "val_top1")}}
        page = packed.with_name("report.html")
        told = {f"final/{k}": v for k, v in final.items() if v is not None} | {"layers": layers}
        self._run.log(told | {"report": wandb.Html(str(page))} if page.is_file() else told)
        for kind, files in {"model": [packed], "report": [page, page.with_suffix(".json")]}.items():
            artifact = wandb.Artifact(f"{kind}-{self._run.id}", type=kind)
            for file in files:
                if file.is_file():
                    artifact.add_file(str(file))
            self._run.log_artifact(artifact)

    def close(self, failed: bool) -> None:
        if self._run is None:
            return
        place = Path(self._run.dir).parent if self._run.offline else None
        self._run.finish(exit_code=1 if failed else 0)
        if place is not None:
            print(f"W&B was offline; send this run by: wandb sync {place}")


def _layer(row: dict[str, Any]) -> list[Any]:
    whole = row["full_shape"]
    kept, nonzero = 100 * row["shape"][0] / whole[0], 100 * row["nonzero_weights"] / max(1, math.prod(whole))
    return [row["name"], whole[0], round(kept, 2), round(nonzero, 2), row["packed_bytes"]]
