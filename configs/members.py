"""What the shipped members of a config group stand for."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def targets(group: str) -> dict[str, str]:
    """Member -> `_target_` of every YAML file of the group that has one."""
    found = {}
    for path in sorted((Path(__file__).parent / group).glob("*.yaml")):
        line = re.search(r"^_target_:\s*(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if line:
            found[path.stem] = line[1]
    return found


def shipped(group: str, member: str) -> dict[str, Any]:
    """What the member's YAML file says, without what it stands on; {} for a member that is not ours."""
    path = Path(__file__).parent / group / f"{member}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
