"""What a run folder says of how its network was made: stages.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def ran(folder: Path) -> dict[str, list[dict[str, Any]] | None]:
    """`recipe`: the stages as they ran, with every rate and length; `code`: commit and versions of all code that ran
    them, the last at the end. None for a packed file that lies in no run's folder."""
    try:
        told = yaml.safe_load((folder / "stages.yaml").read_text(encoding="utf-8"))
        recipe, code = told["stages"], told["code"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        recipe = code = None
    sound = all(isinstance(part, list) and all(isinstance(entry, dict) for entry in part) for part in (recipe, code))
    return {"recipe": recipe, "code": code} if sound else {"recipe": None, "code": None}
