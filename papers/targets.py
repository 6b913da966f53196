"""The numbers the papers report, as data: `targets.yaml`, loaded and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

TARGETS = Path(__file__).with_name("targets.yaml")
CERTAINTIES = ("paper", "lab code", "secondary source", "inferred")
WEIGHTS = ("float", "binary", "ternary", "8 bit", "a few levels")
TERNARY_METHODS = ("ptq", "wpc", "ternary", "tga", "ttq", "twn")

METRICS: dict[str, tuple[str, str]] = {
    # name: (label, unit as printed after the number)
    "top1_before": ("top-1 before", "%"),
    "top1": ("top-1", "%"),
    "top5_before": ("top-5 before", "%"),
    "top5": ("top-5", "%"),
    "drop": ("top-1 drop", "points"),
    "drop_top5": ("top-5 drop", "points"),
    "ap_drop": ("AP drop", "points"),
    "pfr": ("PFR", "%"),
    "group_density": ("nonzero groups", "%"),
    "pruning_rate": ("weights / kept weights", "x"),
    "conv_pruning_rate": ("conv weights / kept conv weights", "x"),
    "weights_left": ("weights left", ""),
    "pruning_rate_after": ("weights / kept weights, dead paths gone", "x"),
    "conv_pruning_rate_after": ("conv weights / kept conv weights, dead paths gone", "x"),
    "weights_left_after": ("weights left, dead paths gone", ""),
    "packed_bytes": ("size", "bytes"),
    "ratio": ("fp32 size / size", "x"),
    "data_rate": ("fp32 weight bits / kept weight bits, no indices", "x"),
    "structured_bytes": ("weights without empty rows and columns", "bytes"),
    "irregular_bytes": ("nonzero weights with their indices", "bytes"),
    "wpc_rate": ("16 / (density (1 - s_min))", "x"),
    "speedup_theory": ("theoretical layer speed-up", "x"),
    "speedup_network": ("theoretical network speed-up", "x"),
}
"""Every metric a target or a ledger row may hold. Per cent and points, not fractions: as the papers print them.

A kept weight lies in a kept row and a kept column (or kernel, or group) where those are what is pruned, and is not zero
where single weights are; the zeros of a ternary quantizer are kept weights unless it is the quantizer that prunes.
"""


@dataclass(frozen=True)
class Target:
    """One row of a paper's table: `values` as reported with `certainty`; `secondary`, `inferred`: others, with theirs.

    `weights`, one of WEIGHTS, is what the row's weights are; empty in the file where form and method tell.
    """

    id: str
    paper: str
    table: str
    row: str
    model: str
    dataset: str
    form: str
    method: str
    certainty: str
    values: dict[str, float] = field(default_factory=dict)
    secondary: dict[str, float] = field(default_factory=dict)
    inferred: dict[str, float] = field(default_factory=dict)
    note: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        told = "binary" if self.form != "float" else "ternary" if self.method in TERNARY_METHODS else "float"
        object.__setattr__(self, "weights", self.weights or told)

    def numbers(self) -> list[tuple[str, float, str]]:
        """(metric, value, certainty) of every number of the row, in the order of `METRICS`."""
        found = [(m, v, self.certainty) for m, v in self.values.items()]
        found += [(m, v, "secondary source") for m, v in self.secondary.items()]
        found += [(m, v, "inferred") for m, v in self.inferred.items()]
        return sorted(found, key=lambda number: list(METRICS).index(number[0]))


def is_accuracy(metric: str) -> bool:
    """Whether a metric is one of what the network answers, not of what it is made of."""
    return METRICS[metric][1] == "points" or metric.startswith(("top1", "top5"))


def number(value: float, metric: str, signed: bool = False) -> str:
    """`86.56 %`, `348 x`, `939,000 bytes`; a difference has a sign, and one of per cent is in points."""
    unit = METRICS[metric][1]
    text = f"{abs(value):,.0f}" if unit in ("", "bytes") else f"{abs(value):.2f}".rstrip("0").rstrip(".")
    sign = ("-" if value < 0 and text.strip("0.") else "+") if signed else "-" if value < 0 else ""
    return f"{sign}{text} {'points' if signed and unit == '%' else unit}".rstrip()


def reported(target: Target) -> str:
    """`top-1 before 85.32 %; top-1 82.55 %; PFR 31 %`, each number with its certainty where it is not the row's."""
    parts = []
    for metric, value, certainty in target.numbers():
        extra = f" ({certainty})" if certainty != target.certainty else ""
        parts.append(f"{METRICS[metric][0]} {number(value, metric)}{extra}")
    return "; ".join(parts)


@cache
def load_targets(path: Path = TARGETS) -> tuple[dict[str, str], dict[str, Target]]:
    """(paper key -> title, target id -> Target), in the file's order.

    Raises:
        ValueError: one line naming the file, the target and the offending key or value.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    papers, targets = document["papers"], {}
    for entry in document["targets"]:
        where = f"{path.name}: target {entry.get('id', '(no id)')}"
        try:
            target = Target(**entry)
        except TypeError as error:
            raise ValueError(f"{where}: {error}") from None
        if target.id in targets:
            raise ValueError(f"{where}: the id is used twice")
        for key, allowed in (("paper", papers), ("certainty", CERTAINTIES), ("weights", WEIGHTS)):
            if getattr(target, key) not in allowed:
                raise ValueError(f"{where}: {key}={getattr(target, key)}: expected one of {', '.join(allowed)}")
        for metric in [*target.values, *target.secondary, *target.inferred]:
            if metric not in METRICS:
                raise ValueError(f"{where}: metric {metric}: expected one of {', '.join(METRICS)}")
        targets[target.id] = target
    return papers, targets
