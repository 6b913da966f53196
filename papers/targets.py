"""The numbers the papers report, as data: `targets.yaml`, loaded and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

TARGETS = Path(__file__).with_name("targets.yaml")
CERTAINTIES = ("paper", "lab code", "inferred")

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
    "packed_bytes": ("size", "bytes"),
    "ratio": ("fp32 size / size", "x"),
    "data_rate": ("fp32 weight bits / kept weight bits, no indices", "x"),
    "wpc_rate": ("16 / (density (1 - s_min))", "x"),
    "speedup_theory": ("theoretical layer speed-up", "x"),
}
"""Every metric a target or a ledger row may hold. Per cent and points, not fractions: as the papers print them."""


@dataclass(frozen=True)
class Target:
    """One row of a paper's table: `values` as reported with `certainty`, `inferred` computed from them."""

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
    inferred: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def numbers(self) -> list[tuple[str, float, str]]:
        """(metric, value, certainty) of every number of the row, in the order of `METRICS`."""
        found = [(m, v, self.certainty) for m, v in self.values.items()]
        found += [(m, v, "inferred") for m, v in self.inferred.items()]
        return sorted(found, key=lambda number: list(METRICS).index(number[0]))


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
        if target.paper not in papers:
            raise ValueError(f"{where}: paper={target.paper}: expected one of {', '.join(papers)}")
        if target.certainty not in CERTAINTIES:
            raise ValueError(f"{where}: certainty={target.certainty}: expected one of {', '.join(CERTAINTIES)}")
        for metric in [*target.values, *target.inferred]:
            if metric not in METRICS:
                raise ValueError(f"{where}: metric {metric}: expected one of {', '.join(METRICS)}")
        targets[target.id] = target
    return papers, targets
