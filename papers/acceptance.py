"""What a faithful implementation of each method shows, and where: `acceptance.yaml`, judged by the ledger."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CLAIMS = Path(__file__).with_name("acceptance.yaml")
RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Claim:
    """One line of the list.

    `tests` are `file::test` under tests/. `runs` are comparisons `left relation right` of numbers, each written out or
    looked up in the ledger as `run metric` or `run stage metric`; of `run,run` the mean is taken (seeds).
    """

    method: str
    claim: str
    tests: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """All claims, in order. Raises TypeError for an unknown or missing key."""
    return [Claim(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def look_up(side: str, ledger: list[dict[str, Any]]) -> tuple[str, float]:
    """A side of a comparison as it is printed and its number. Raises ValueError, one line, where there is none."""
    try:
        return side, float(side)
    except ValueError:
        names, *stage, metric = side.split()
    found = []
    for name in names.split(","):
        row = next((row for row in ledger if row.get("run") == name), None)
        if row is None:
            raise ValueError(f"{side}: the ledger has no run {name}")
        source = row.get("stages", {}).get(stage[0], {}) if stage else row
        if not isinstance(source.get(metric), (int, float)):
            raise ValueError(f"{side}: run {name} has no such number")
        found.append(source[metric])
    mean = sum(found) / len(found)
    return f"{side} {mean:.4g}", mean


def judge(comparison: str, ledger: list[dict[str, Any]]) -> str:
    """`a prune cosine 0.96 < a quantize cosine 0.98: yes`. Raises ValueError, one line."""
    relation = next((word for word in comparison.split() if word in RELATIONS), None)
    if relation is None:
        raise ValueError(f"{comparison}: expected one of {' '.join(RELATIONS)} between two numbers")
    (left, a), (right, b) = (look_up(side.strip(), ledger) for side in comparison.split(f" {relation} "))
    return f"{left} {relation} {right}: {'yes' if RELATIONS[relation](a, b) else '**no**'}"
