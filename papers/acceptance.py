"""What a faithful implementation of each method shows, and where: `acceptance.yaml`, judged by the ledger."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from sparsign.papers.ledger import Row
from sparsign.papers.measured import by_setting

CLAIMS = Path(__file__).with_name("acceptance.yaml")
RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Claim:
    """One line of the list.

    `tests` are `file::test` under tests/. `runs` are comparisons `left relation right` of numbers, each written out or
    looked up in the ledger as `run metric` or `run stage metric`; `run,run` are seeds of one setting. `beside` is what
    must be said along with it: comparisons too, shown as numbers without a verdict. `note` is a sentence.
    """

    method: str
    claim: str
    tests: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: as written, and its number for every seed. A number written out is not measured.

    `like` is the widest spread over seeds that the ledger has of this number on the same network and data: what a
    single seed may be off by.
    """

    text: str
    values: tuple[float, ...]
    measured: bool = False
    like: float = 0.0

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> float:
        """Largest minus smallest over the seeds, or `like`."""
        return max(self.values) - min(self.values) if len(self.values) > 1 else self.like

    def __str__(self) -> str:
        number = f"{self.mean:,.0f}" if abs(self.mean) >= 1000 else f"{self.mean:.4g}"
        return f"{self.text} {number}" if self.measured else self.text


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """All claims, in order. Raises TypeError for an unknown or missing key."""
    return [Claim(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def look_up(side: str, ledger: list[Row]) -> Side:
    """A side of a comparison. Raises ValueError, one line, where there is no such number."""
    try:
        return Side(side, (float(side),))
    except ValueError:
        names, *stage, metric = side.split()
    rows = []
    for name in names.split(","):
        row = next((row for row in ledger if row.get("run") == name), None)
        if row is None:
            raise ValueError(f"{side}: the ledger has no run {name}")
        if _value(row, stage, metric) is None:
            raise ValueError(f"{side}: run {name} has no such number")
        rows.append(row)
    values = tuple(_value(row, stage, metric) for row in rows)
    return Side(side, values, measured=True, like=_like_spread(rows[0], stage, metric, ledger))


def _value(row: Row, stage: list[str], metric: str) -> float | None:
    value = (row.get("stages", {}).get(stage[0], {}) if stage else row).get(metric)
    return value if isinstance(value, (int, float)) else None


def _like_spread(row: Row, stage: list[str], metric: str, ledger: list[Row]) -> float:
    alike = [r for r in ledger if all(r.get(k) == row.get(k) for k in ("model", "dataset", "form"))]
    spreads = [0.0]
    for group in by_setting(r for r in alike if "command" in r):
        values = [v for r in group if (v := _value(r, stage, metric)) is not None]
        spreads.append(max(values) - min(values) if len(values) > 1 else 0.0)
    return max(spreads)


def sides(comparison: str, ledger: list[Row]) -> tuple[Side, str, Side]:
    """(left, relation, right). Raises ValueError, one line."""
    relation = next((word for word in comparison.split() if word in RELATIONS), None)
    if relation is None:
        raise ValueError(f"{comparison}: expected one of {' '.join(RELATIONS)} between two numbers")
    left, right = (look_up(side.strip(), ledger) for side in comparison.split(f" {relation} "))
    return left, relation, right


def judge(comparison: str, ledger: list[Row]) -> str:
    """`a prune cosine 0.96 < a quantize cosine 0.98: yes (1 seed)`. Raises ValueError, one line.

    `yes` and `no` need a difference of the means beyond the larger spread over seeds; otherwise it is `within noise`. A
    single seed has the spread of like runs that were repeated, none where there are none.
    """
    left, relation, right = sides(comparison, ledger)
    counts = sorted({len(side.values) for side in (left, right) if side.measured} or {1})
    many = " and ".join(map(str, counts)) + (" seed" if counts == [1] else " seeds")
    spread = max(left.spread, right.spread)
    if spread and abs(left.mean - right.mean) <= spread:
        return f"{left} {relation} {right}: within noise ({many}; spread {spread:.2g})"
    verdict = "yes" if RELATIONS[relation](left.mean, right.mean) else "**no**"
    return f"{left} {relation} {right}: {verdict} ({many})"


def shown(comparison: str, ledger: list[Row]) -> str:
    """The two numbers of a comparison side by side, without a verdict."""
    left, _, right = sides(comparison, ledger)
    return f"{left}, {right}"
