"""Where the folders of runs and sweeps are: resolvers for the Hydra config."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from omegaconf import OmegaConf

from sparsign.pipeline import ranks
from sparsign.pipeline.folder import VOLATILE

LONGEST_NAME = 100


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
    """Hydra makes this folder: only rank 0 its own, for the clocks of the ranks differ."""
    return resume or (default if ranks.is_main() else str(Path(default).parent))


def register_resolvers() -> None:
    """`${run_dir:resume,default}`, `${sweep_dir:name,overrides}`, and `${job_dir:overrides}` for the config."""
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("job_dir", folder_name, replace=True)
    # Cached by its unresolved arguments: every job finds the folder of the whole sweep, not one made from its own part.
    OmegaConf.register_new_resolver("sweep_dir", sweep_dir, replace=True, use_cache=True)
