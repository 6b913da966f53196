"""The experiments that reproduce rows of the papers, as their headers tell: `configs/experiment/*.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "configs" / "experiment"
TRAIN_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000, "imagenet": 1_281_167}


@dataclass(frozen=True)
class Experiment:
    """One row to reproduce; `target` is an id of targets.yaml, or empty where no number of the row was recovered."""

    name: str
    paper: str
    row: str
    target: str
    model: str
    dataset: str


def load_experiments(folder: Path = FOLDER) -> list[Experiment]:
    """All of them by name. Raises ValueError, one line, for a header without its words."""
    return [load_experiment(path) for path in sorted(folder.glob("*.yaml"))]


def load_experiment(path: Path) -> Experiment:
    """One of them. Raises ValueError, one line, for a header without its words."""
    text = path.read_text(encoding="utf-8")
    words = dict(reversed(re.findall(r"^# (\w+) +(.*)$", text, re.MULTILINE)))
    chosen = _members(text, path.parent)
    try:
        target = words["target"].split(",")[0].split(":")[0]
        told = "" if target.startswith("none") else target
        return Experiment(path.stem, words["paper"], words["row"], told, chosen["model"], chosen["dataset"])
    except KeyError as error:
        raise ValueError(f"{path.name}: its header has no {error}") from None


def _members(text: str, folder: Path) -> dict[str, str]:
    """Config group -> member, as the defaults say, those of an experiment that this one goes on from too."""
    based = re.search(r"^defaults:\n  - (\w+)$", text, re.MULTILINE)
    inherited = _members((folder / f"{based[1]}.yaml").read_text(encoding="utf-8"), folder) if based else {}
    return inherited | dict(re.findall(r"override /(\w+): (\w+)", text))
