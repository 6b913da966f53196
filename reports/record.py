"""Put a finished run into the ledger: `python -m sparsign.reports record RUN --command "python train.py ..."`.

Accuracies and sizes come from the run's report.json, times from timing.json, the schedule from config.yaml, the stages
from metrics.jsonl, which is kept, compressed, beside the ledger; RESULTS.md is written anew.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from sparsign.evaluation.report import read_report
from sparsign.kernels.engine import is_ours
from sparsign.papers import ledger

FLOAT_BITS = 32


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 4)


def weights_of(layers: list[dict[str, Any]]) -> str:
    """What the file's weights are: by the coded layer of the most levels; float where none is coded."""
    most = max((row["levels"] or 0 for row in layers), default=0)
    names = {0: "float", 1: "binary", 2: "binary", 3: "ternary"}
    return names.get(most, "8 bit" if most > 64 else "a few levels")


def file_rates(report: dict[str, Any]) -> dict[str, float]:
    """Rates of what is left in the file, dead paths gone: weights / kept weights, of all layers and of convs.

    Kept are the weights in the units that are left. Nothing is said where single weights of coded layers go one by one:
    a file does not tell the quantizer's zeros from the pruned weights (`training_rates` does).
    """
    layers, unit = report["layers"], report["structure"]["pfr_unit"]
    if unit == "weight" and weights_of(layers) != "float":
        return {}
    rates = {}
    for name, op in (("pruning_rate_after", None), ("conv_pruning_rate_after", "conv")):
        mine = [row for row in layers if op in (None, row["op"])]
        kept = sum(row["kept_weights"] for row in mine)
        if kept:
            rates[name] = round(sum(math.prod(row["full_shape"]) for row in mine) / kept, 3)
    rates["weights_left_after"] = sum(row["kept_weights"] for row in layers)
    return rates


def training_rates(report: dict[str, Any], stages: dict[str, dict[str, float]]) -> dict[str, float]:
    """The same before dead paths go, from what the last stage logged of its masks; empty where it did not."""
    last = stages[list(stages)[-1]] if stages else {}
    rates = {}
    for name, key, op in (("pruning_rate", "weights_left", None), ("conv_pruning_rate", "conv_weights_left", "conv")):
        if last.get(key):
            full = sum(math.prod(row["full_shape"]) for row in report["layers"] if op in (None, row["op"]))
            rates[name] = round(full / last[key], 3)
    return rates | ({"weights_left": last["weights_left"]} if "weights_left" in last else {})


def storage_bytes(layers: list[dict[str, Any]]) -> dict[str, int]:
    """Weights of all layers without empty rows and columns, and nonzeros with their indices: bytes, at the file's own
    bits per code (`evaluation.storage`)."""
    rows = [row["storage"] for row in layers if row["storage"]]
    if not rows:
        return {}
    irregular = sum(min(row["irregular_bits"], row["csr_bits"]) for row in rows)
    return {
        "structured_bytes": math.ceil(sum(row["structured_bits"] for row in rows) / 8),
        "irregular_bytes": math.ceil(irregular / 8),
    }


def data_rate(layers: list[dict[str, Any]]) -> float | None:
    """32 N / sum over nonzero weights of their bits, no indices: ADMM-NN's (lab code). Zero needs no level there."""
    bits = 0
    for row in layers:
        levels = row["levels"]
        zero = levels is not None and row["nonzero_weights"] < math.prod(row["shape"])
        width = FLOAT_BITS if levels is None else max(1, math.ceil(math.log2(max(1, levels - zero))))
        bits += width * row["nonzero_weights"]
    return round(FLOAT_BITS * sum(math.prod(row["full_shape"]) for row in layers) / bits, 2) if bits else None


def speed(report: dict[str, Any]) -> dict[str, Any]:
    """The packed engine at batch 1 and one thread: milliseconds, times torch fp32 where known, which engine."""
    rows = [r for r in report["speed"] if (r["batch"], r["threads"]) == (1, 1) and is_ours(r["engine"])]
    if not rows:
        return {}
    best = min(rows, key=lambda row: row["milliseconds"])
    found = {"milliseconds": round(best["milliseconds"], 4)}
    if best["ratio_to_torch_fp32"] is not None:  # of a network that cannot be built here
        found["speedup"] = round(best["ratio_to_torch_fp32"], 3)
    return found | {"engine": f"{best['engine']}, {best['isa']}"}


def code_of(ran: list[dict[str, Any]] | None) -> dict[str, Any]:
    """`commit`, with `-dirty` where the code was changed, and `versions`, of the code that ran last; {} if not told."""
    if not ran:
        return {}
    last = ran[-1]
    commit = last.get("commit") and f"{last['commit']}{'-dirty' if last.get('dirty') else ''}"
    versions = {k: v for k, v in last.items() if k not in ("since", "commit", "dirty") and v is not None}
    return {"commit": commit, "versions": versions}


def ledger_row(
    report: dict[str, Any],
    timing: dict[str, float],
    schedule: str,
    command: str,
    stages: dict[str, dict[str, float]],
) -> ledger.Row:
    """The ledger's row of a report, without target: per cent where the report has fractions."""
    theory, accuracy = report["theory"], report["accuracy"]
    row = {
        "date": report["date"][:10],
        "command": command,
        "seed": report["seed"],
        "schedule": schedule,
        "hardware": report["environment"]["cpu"],
        "wall_clock_s": round(sum(timing.values()), 1),
        "model": report["model"],
        "dataset": report["dataset"],
        "compressor": report["compressor"],
        "form": report["form"],
        "weights": weights_of(report["layers"]),
        "test_images": accuracy["images"],
        "top1_before": _percent(accuracy["before_top1"]),
        "top1": _percent(accuracy["top1"]),
        "top5": _percent(accuracy["top5"]),
        "val_top1": _percent(accuracy["val_top1"]),
        "pfr": _percent(report["structure"]["pfr"]),
        "pfr_unit": report["structure"]["pfr_unit"],
        "packed_bytes": report["size"]["packed_bytes"],
        "ratio": round(report["size"]["compression_ratio"], 3),
        "data_rate": data_rate(report["layers"]),
        "target": None,
        **file_rates(report),
        **training_rates(report, stages),
        **storage_bytes(report["layers"]),
        **speed(report),
        "stages": stages,
        "recipe": report["recipe"],
        **code_of(report["code"]),
    }
    if report["form"] != "float":
        row["float_top1"] = _percent(accuracy["float_top1"])
    if theory["s1"] > 1:
        row["speedup_theory"] = theory["layer_speedup"] and round(theory["layer_speedup"], 2)
        row["speedup_network"] = theory["network_speedup"] and round(theory["network_speedup"], 2)
    return {k: v for k, v in row.items() if v is not None or k in ledger.REQUIRED}


def last_numbers(metrics: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """stage -> {metric: what was logged last in it}, numbers only, six significant digits."""
    stages: dict[str, dict[str, float]] = {}
    for line in metrics:
        numbers = {k: float(f"{v:.6g}") for k, v in line.items() if type(v) in (int, float) and math.isfinite(v)}
        stages.setdefault(line["stage"], {}).update(numbers)
    return stages


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, float], str]:
    """(report, seconds by stage, schedule's name) of a run folder. Raises FileNotFoundError or ValueError, one line."""
    report = read_report(folder / "report.json")
    for name in ("timing.json", "config.yaml"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file, so {folder} is not the folder of a finished run")
    try:
        timing = json.loads((folder / "timing.json").read_text(encoding="utf-8"))
        schedule = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["schedule"]["name"]
        return report, {stage: float(seconds) for stage, seconds in timing.items()}, str(schedule)
    except (ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: timing.json or config.yaml is malformed ({error})") from None
