"""Put a finished run into the ledger: `python -m sparsign.reports.record RUN --command "python train.py ..."`.

Accuracies and sizes come from the run's report.json, times from timing.json, the schedule from config.yaml; RESULTS.md
is written anew.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import yaml

from sparsign.evaluation.report import read_report
from sparsign.packing.atomic import write_atomic
from sparsign.papers import ledger, tables
from sparsign.reports import curves


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 4)


def pruning_rates(report: dict[str, Any]) -> dict[str, float]:
    """weights / kept weights, of all layers and of convs; kept means nonzero where weights, groups or kernels go one by
    one, and inside kept filters and columns otherwise (zeros that a ternary quantizer made are kept weights there)."""
    single = report["structure"]["pfr_unit"] in ("weight", "group", "kernel")
    rates = {}
    for name, op in (("pruning_rate", None), ("conv_pruning_rate", "conv")):
        layers = [row for row in report["layers"] if op in (None, row["op"])]
        kept = sum(row["nonzero_weights"] if single else math.prod(row["shape"]) for row in layers)
        if kept:
            rates[name] = round(sum(math.prod(row["full_shape"]) for row in layers) / kept, 3)
    return rates


def ledger_row(report: dict[str, Any], timing: dict[str, float], schedule: str, command: str) -> ledger.Row:
    """The ledger's row of a report, without target: per cent where the report has fractions."""
    theory = report["theory"]
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
        "test_images": report["accuracy"]["images"],
        "top1_before": _percent(report["accuracy"]["float_top1"]),
        "top1": _percent(report["accuracy"]["top1"]),
        "pfr": _percent(report["structure"]["pfr"]),
        "packed_bytes": report["size"]["packed_bytes"],
        "ratio": round(report["size"]["compression_ratio"], 3),
        "target": None,
        **pruning_rates(report),
    }
    if report["structure"]["pfr_unit"] == "weight":
        row["weights_left"] = sum(layer["nonzero_weights"] for layer in report["layers"])
    if theory["s1"] > 1 and theory["speedup"] is not None:
        row["speedup_theory"] = round(theory["speedup"], 2)
    return row


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


def keep_plots(run: Path, folder: Path) -> None:
    """<run>_curves.svg and <run>_maps.svg from metrics.jsonl: what was logged by epoch, numbers and lists."""
    rows = curves.read_metrics(run / "metrics.jsonl")
    for name, picture in (("curves", curves.curve_panels(rows)), ("maps", curves.heat_maps(rows))):
        if picture:
            write_atomic(folder / f"{run.name}_{name}.svg", picture)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sparsign.reports.record", description="Add a run to papers/ledger.jsonl."
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--command", required=True, help="the exact command that made it")
    parser.add_argument("--target", help="id in papers/targets.yaml of the row it is to be compared with")
    parser.add_argument("--hardware", help="what it was trained on; default: the processor that measured it")
    parser.add_argument("--note", help="a remark for the table")
    parser.add_argument("--plots", type=Path, help="folder to keep the run's training curves and heat maps in, as SVG")
    options = parser.parse_args(arguments)
    try:
        row = {"run": options.run.resolve().name} | ledger_row(*read_run(options.run), options.command)
        row |= {"target": options.target, "stages": last_numbers(curves.read_metrics(options.run / "metrics.jsonl"))}
        for name in ("hardware", "note"):
            if getattr(options, name):
                row[name] = getattr(options, name)
        ledger.append(row)
        if options.plots:
            keep_plots(options.run, options.plots)
        tables.main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"added to {ledger.LEDGER}; {tables.RESULTS} is up to date")


if __name__ == "__main__":
    main()
