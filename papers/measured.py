"""What a row of the ledger says about a metric of the papers."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from sparsign.papers.ledger import Row
from sparsign.papers.targets import Target, is_accuracy

IN_A_STAGE = {"top1": ("test_top1", 100.0), "group_density": ("group_density", 100.0), "pfr": ("pfr", 100.0),
              "wpc_rate": ("compression_rate", 1.0), "weights_left": ("weights_left", 1.0)}  # fmt: skip
"""metric -> (its name among what a stage logs, factor)."""

LEFT = {"pruning_rate": "weights_left", "conv_pruning_rate": "conv_weights_left"}
"""rate -> what a stage logs of the weights that it leaves."""


def measured(row: Row, metric: str) -> float | None:
    """A row's value of a metric, of the stage that is to be compared or of the file; derived where it follows from
    others; None where the run does not say."""
    if metric == "drop":
        top1 = measured(row, "top1")
        return None if row["top1_before"] is None or top1 is None else row["top1_before"] - top1
    if metric == "drop_top5":
        known = row.get("top5_before") is not None and row.get("top5") is not None
        return row["top5_before"] - row["top5"] if known else None
    if metric in LEFT and row.get("target_stage"):
        return _rate(row, metric)
    if metric != "top1_before" and row.get("target_stage"):
        name, factor = IN_A_STAGE.get(metric, (None, 0.0))
        value = row["stages"][row["target_stage"]].get(name)
        return None if value is None else factor * value
    if row.get(metric) is not None:
        return row[metric]
    if row["pfr"] is not None and row["compressor"].startswith("wpc"):
        if metric == "group_density":
            return 100 - row["pfr"]
        if metric == "wpc_rate" and row["pfr"] < 100:  # the notebooks' s_min is 0 in most runs
            return 16 / (1 - row["pfr"] / 100)
    return None


def _rate(row: Row, metric: str) -> float | None:
    """All weights by those left after the stage that is to be compared: the row's own rate counts the last stage."""
    stage, last = row["stages"][row["target_stage"]], row["stages"][list(row["stages"])[-1]]
    left, finally_left, rate = stage.get(LEFT[metric]), last.get(LEFT[metric]), row.get(metric)
    return rate * finally_left / left if left and finally_left and rate else None


POINTS = 0.5
"""A row reaches an accuracy from so many points below it."""

SHARE = 0.99
"""A row reaches a rate or a pruned ratio from this share of it."""

LESS_IS_BETTER = ("drop", "drop_top5", "ap_drop", "weights_left", "weights_left_after", "packed_bytes", "group_density")


def reached(target: Target, values: dict[str, float]) -> bool | None:
    """Whether accuracies are at most `POINTS` worse and sizes and rates at most 1 % worse than the target's; None where
    nothing of it was measured. The network before pruning and theoretical speed-ups do not count."""
    met = []
    for metric, aim, _ in target.numbers():
        if metric not in values or metric == "top1_before" or metric.startswith("speedup"):
            continue
        better = aim - values[metric] if metric in LESS_IS_BETTER else values[metric] - aim
        met.append(better >= -(POINTS if is_accuracy(metric) else (1 - SHARE) * aim) - 1e-9)
    return all(met) if met else None


def setting(row: Row) -> tuple[str, ...]:
    """What a run and its repetitions under other seeds have in common: the words of the command but for the seed."""
    return tuple(sorted(word for word in shlex.split(row["command"]) if not word.startswith("seed=")))


def by_setting(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that differ in nothing but the seed, together; in the order of their first."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (setting(row), row.get("target"), row.get("target_stage"))
        found.setdefault(key, []).append(row)
    return list(found.values())
