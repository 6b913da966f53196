"""Published networks by accuracy and size: `published.yaml`, the grey marks of our figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from sparsign.papers.targets import CERTAINTIES

PUBLISHED = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """`top1` in per cent, `bytes` on disk as published."""

    method: str
    year: int
    network: str
    dataset: str
    top1: float
    bytes: int
    certainty: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.certainty not in CERTAINTIES or not 0 < self.top1 < 100 or self.bytes < 1:
            raise ValueError(f"published.yaml: {self.method}, {self.network}: wrong certainty, top1 or bytes")


def load_published(path: Path = PUBLISHED) -> list[Published]:
    """All of them, in order. Raises TypeError for an unknown or missing key, ValueError for a wrong value."""
    return [Published(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]
