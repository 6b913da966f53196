"""Where the folders of runs and sweeps are: resolvers for the Hydra config."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import OmegaConf

from sparsign.pipeline import ranks
from sparsign.pipeline.folder import VOLATILE
from sparsign.pipeline.plan import stages_help

LONGEST_NAME = 100
PROCESS = uuid.uuid4().hex[:6]
STARTED = time.time()


def folder_name(overrides: list[str]) -> str:
    """A folder name of letters, digits and `._+-` that the same overrides always get and no others do.

    Whatever else they contain is replaced, and what is too long is cut: then a hash keeps the names apart. Options that
    change only where and how a job runs are left out.
    """
    told = sorted(o for o in overrides if o.split("=")[0] not in VOLATILE and o.split(".")[0] not in VOLATILE)
    plain = all(re.fullmatch(r"[\w.]+=[\w.,-]*", o, re.ASCII) for o in told)
    safe = (re.sub(r"[^\w.+-]+", "_", o.replace("=", "-").replace(",", "+"), flags=re.ASCII).strip("_") for o in told)
    name = "__".join(safe)
    if len(name) > LONGEST_NAME or not plain:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}"
    return name or "default"


def sweep_dir(name: str | None, overrides: list[str]) -> str:
    """Where the same sweep is found again: below multirun/, under its name or one made from the overrides."""
    return str(Path("multirun") / (name or folder_name(overrides)))


def run_dir(resume: str | None, default: str) -> str:
    """Hydra makes this folder: none for a resume= that is not there; only rank 0 its own, for ranks' clocks differ.

    What is named by the second ends in a mark of this process: two that start together get a folder each.
    """
    if resume:
        return resume if Path(resume).is_dir() else "."
    return f"{default}_{PROCESS}" if ranks.is_main() else str(Path(default).parent)


@contextmanager
def no_empty_folders(path: Path) -> Iterator[None]:
    """Removes, when left, the folder that Hydra made and those above it inside the working directory, if empty."""
    here = Path.cwd()
    above = [p for p in path.parents if here in p.parents]
    made = [p for p in (path, *above) if p != here and p.is_dir() and p.stat().st_mtime >= STARTED]
    try:
        yield
    finally:
        for p in made:
            with suppress(OSError):  # not empty
                p.rmdir()


def near(path: str | Path) -> str:
    """The path as seen from here, when it lies below."""
    return os.path.relpath(path) if Path(path).resolve().is_relative_to(Path.cwd()) else str(path)


def register_resolvers() -> None:
    """`${run_dir:resume,default}`, `${sweep_dir:name,overrides}`, and `${job_dir:overrides}` for the config;
    `${stages:}` for the help."""
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("job_dir", folder_name, replace=True)
    OmegaConf.register_new_resolver("stages", stages_help, replace=True)
    # Cached by its unresolved arguments: every job finds the folder of the whole sweep, not one made from its own part.
    OmegaConf.register_new_resolver("sweep_dir", sweep_dir, replace=True, use_cache=True)
