"""What the members of a config group stand for: our own, and those of plugins."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDERS = [Path(__file__).parent]
"""Ours, then those of plugins (`pipeline.plugins`), each laid out as ours."""


@cache
def targets(group: str) -> dict[str, str]:
    """Member -> `_target_` of every YAML file of the group that has one."""
    return {name: target for folder in FOLDERS for name, target in targets_in(folder, group).items()}


def targets_in(folder: Path, group: str) -> dict[str, str]:
    """The same for the files of one folder."""
    found = {}
    for path in sorted((folder / group).glob("*.yaml")):
        line = re.search(r"^_target_:\s*(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if line:
            found[path.stem] = line[1]
    return found


def names(group: str) -> list[str]:
    """The members of a group, in alphabetical order."""
    return sorted(path.stem for folder in FOLDERS for path in (folder / group).glob("*.yaml"))


def shipped(group: str, member: str) -> dict[str, Any]:
    """What the member's YAML file says, without what it stands on; {} for a member that is in no folder."""
    paths = [folder / group / f"{member}.yaml" for folder in FOLDERS]
    path = next((path for path in paths if path.is_file()), None)
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
