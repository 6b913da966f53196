"""What becomes of a sweep in which a job fails: the others run, the end tells which failed and why."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sparsign.packing.atomic import write_atomic
from sparsign.pipeline import cli
from sparsign.pipeline.lock import InUseError

FAILURE = "failure.json"
CLOCKS = 2.0
"""Seconds by which the clock of a disk may differ from ours."""
T = TypeVar("T")


def goes_on(job: Callable[[], T], folder: Path) -> T | None:
    """The job's result; None, and failure.json in its folder, where it fails: {"reason": one line, "date": ...}.

    None is what Optuna takes for a failed trial; NaN would end the search.
    """
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        return job()
    except Exception as error:
        if cli.WANTS_TRACEBACK:
            raise
        line = cli.one_line(error)
        print(f"error: {folder.name}: {line}", file=sys.stderr)
        if isinstance(error, InUseError):  # the folder is another process's
            cli.FAILED.append(folder.name)
        else:
            told = {"reason": line, "date": time.strftime("%Y-%m-%d %H:%M:%S %z")}
            write_atomic(folder / FAILURE, json.dumps(told) + "\n")
        return None


def failures(sweep: Path, since: float = 0.0) -> dict[str, str]:
    """Job folder below the sweep's -> why it failed, of all jobs that failed last time they ran, then or later."""
    found = {}
    for path in sorted(path for path in sweep.rglob(FAILURE) if path.stat().st_mtime >= since):
        try:
            found[str(path.parent.relative_to(sweep))] = str(json.loads(path.read_text())["reason"])
        except (ValueError, KeyError, TypeError):
            found[str(path.parent.relative_to(sweep))] = f"{path} is not readable"
    return found


class SweepFailures(Callback):
    """At the end of a multirun: one line per job of it that failed, and an exit code that is not 0.

    What jobs of an earlier sweep in the same folder said is not this one's: their options may have been mended.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self.since = time.time() - CLOCKS

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        failed = failures(Path(config.hydra.sweep.dir), self.since)
        for job, reason in failed.items():
            print(f"failed: {job}: {reason}", file=sys.stderr)
        cli.FAILED.extend(failed)
