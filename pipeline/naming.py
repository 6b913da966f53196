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

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from sparsign.pipeline import cli, ranks
from sparsign.pipeline.folder import VOLATILE
from sparsign.pipeline.plan import stages_help

LONGEST_NAME = 100
PROCESS = uuid.uuid4().hex[:6]
STARTED = time.time()


def folder_name(overrides: list[str], swept: str = "") -> str:
    """A folder name of letters, digits and `._+-` that the same overrides always get and no others do.

    Whatever else they contain is replaced, and what is too long is cut: then a hash keeps the names apart. Options that
    change only where and how a job runs are left out, but for the `swept`, by commas, which tell jobs apart.
    """
    told = sorted(o for o in overrides if o.split("=")[0] in swept.split(",") or not _volatile(o))
    plain = all(re.fullmatch(r"[\w.]+=[\w.,-]*", o, re.ASCII) for o in told)
    safe = (re.sub(r"[^\w.+-]+", "_", o.replace("=", "-").replace(",", "+"), flags=re.ASCII).strip("_") for o in told)
    name = "__".join(safe)
    if len(name) > LONGEST_NAME or not plain:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}"
    return name or "default"


def _volatile(override: str) -> bool:
    return override.split("=")[0] in VOLATILE or override.split(".")[0] in VOLATILE


def names_of_jobs(words: list[str]) -> list[str]:
    """What to add to the words of a sweep over options that job folders are not named by: its own are."""
    if not cli.MULTIRUN & set(words) or any(word.startswith("hydra.sweep.subdir=") for word in words):
        return []
    parser = OverridesParser.create()
    swept = []
    for word in filter(_volatile, words):
        with suppress(HydraException):  # a word that is none is Hydra's to refuse
            swept += [word.split("=")[0]] if parser.parse_override(word).is_sweep_override() else []
    listed = ",".join(swept)
    return [f"hydra.sweep.subdir='${{job_dir:${{hydra.overrides.task}},\"{listed}\"}}'"] if swept else []


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
