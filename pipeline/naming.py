"""Where the folders of runs and sweeps are: resolvers for the Hydra config."""

from __future__ import annotations

import hashlib

from omegaconf import OmegaConf

LONGEST_NAME = 100


def sweep_name(name: str | None, overrides: list[str]) -> str:
    """A folder name that the same sweep gets again: the given one, else made from the overrides."""
    if name:
        return name
    local = [o for o in overrides if not o.startswith(("dataset.root=", "logger=", "resume=", "sweep=", "trainer."))]
    text = "__".join(o.replace("=", "-").replace("/", "_") for o in local) or "default"
    if len(text) > LONGEST_NAME:
        text = text[: LONGEST_NAME - 9] + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return text


def register_resolvers() -> None:
    """`${run_dir:resume,default}` and `${sweep_name:name,overrides}` for the config."""
    OmegaConf.register_new_resolver("run_dir", lambda resume, default: resume or default, replace=True)
    # Cached by its unresolved arguments: every job finds the name of the whole sweep, not one made from its own part.
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True, use_cache=True)
