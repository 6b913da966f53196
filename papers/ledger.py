"""The ledger of our measured runs: `ledger.jsonl`, one JSON object per line. A number found wrong is taken out or put
right with a word in the row's note; nothing else of a row changes.

| key           | type             | meaning                                                                   |
|---------------|------------------|---------------------------------------------------------------------------|
| run           | str              | name of the run, unique; its metrics are `metrics/<run>.jsonl.xz`         |
| date          | str              | day the run finished, YYYY-MM-DD                                          |
| command       | str              | the exact command                                                         |
| seed          | int              |                                                                           |
| schedule      | str              | name of the schedule, e.g. `paper` or `smoke`                             |
| hardware      | str              | processor or accelerator                                                  |
| wall_clock_s  | number           | training time of all stages, seconds                                      |
| model         | str              |                                                                           |
| dataset       | str              |                                                                           |
| compressor    | str              |                                                                           |
| test_images   | int              | how many test images the accuracies are over                              |
| top1_before   | number or null   | top-1 of the unpruned network of the same run and form, per cent          |
| top1          | number           | top-1 of the packed file, per cent                                        |
| pfr           | number or null   | as the method's paper defines it, per cent                                |
| packed_bytes  | int              | bytes on disk                                                             |
| ratio         | number           | fp32 bytes of the uncut network / packed_bytes                            |
| target        | str or null      | id in `targets.yaml`                                                      |

Any other metric of `papers.targets.METRICS` may be added as a number, and

| key           | type             | meaning                                                                   |
|---------------|------------------|---------------------------------------------------------------------------|
| form          | str              | float, wbin or fbin: what the network before pruning is                   |
| weights       | str              | what the file's weights are, one of `papers.targets.WEIGHTS`              |
| pfr_unit      | str              | what `pfr` counts: weight where single weights go, or a unit of structure |
| val_top1      | number           | top-1 on held-out images, per cent: what choices are made by              |
| float_top1    | number           | top-1 of the float network, where one was trained, per cent               |
| milliseconds  | number           | of the packed engine, batch 1, 1 thread                                   |
| speedup       | number           | torch fp32 of the uncut float network / that                              |
| engine        | str              | which engine and instruction set                                          |
| target_stage  | str              | stage whose numbers are compared with the target, where not the file's    |
| stages        | mapping          | stage -> {metric: number}: logged last in it (accuracies are fractions)   |
| recipe        | list             | the stages as they ran: name, epochs, optimizer, rates, ...               |
| commit        | str              | git commit of the code, `-dirty` where it was changed                     |
| versions      | mapping          | package -> version                                                        |
| note          | str              | a remark                                                                  |
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from sparsign.papers.targets import METRICS, WEIGHTS, is_accuracy, load_targets

LEDGER = Path(__file__).with_name("ledger.jsonl")

NUMBER = (int, float)
REQUIRED: dict[str, tuple[type, ...]] = {
    "run": (str,),
    "date": (str,),
    "command": (str,),
    "seed": (int,),
    "schedule": (str,),
    "hardware": (str,),
    "wall_clock_s": NUMBER,
    "model": (str,),
    "dataset": (str,),
    "compressor": (str,),
    "test_images": (int,),
    "top1_before": (*NUMBER, type(None)),
    "top1": NUMBER,
    "pfr": (*NUMBER, type(None)),
    "packed_bytes": (int,),
    "ratio": NUMBER,
    "target": (str, type(None)),
}
OPTIONAL: dict[str, tuple[type, ...]] = {
    "form": (str,),
    "weights": (str,),
    "pfr_unit": (str,),
    "val_top1": NUMBER,
    "float_top1": NUMBER,
    "milliseconds": NUMBER,
    "speedup": NUMBER,
    "engine": (str,),
    "target_stage": (str,),
    "stages": (dict,),
    "recipe": (list,),
    "commit": (str,),
    "versions": (dict,),
    "note": (str,),
    **{m: NUMBER for m in METRICS if m not in REQUIRED},
}
Row = dict[str, Any]


def validate(row: Row, where: str) -> None:
    """Raises ValueError, one line starting with `where`, unless the row has the keys and types of the table above."""
    missing = [key for key in REQUIRED if key not in row]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    for key, value in row.items():
        kinds = REQUIRED.get(key) or OPTIONAL.get(key)
        if kinds is None:
            raise ValueError(f"{where}: unknown key {key}")
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{where}: {key}={value!r}: expected {' or '.join(kind.__name__ for kind in kinds)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}: {key}={value}: expected a finite number")
    for key in ("top1_before", "top1", "top5", "val_top1", "float_top1", "pfr"):
        if row.get(key) is not None and not 0 <= row[key] <= 100:
            raise ValueError(f"{where}: {key}={row[key]}: expected per cent in [0, 100]")
    try:
        date.fromisoformat(row["date"])
    except ValueError:
        raise ValueError(f"{where}: date={row['date']}: expected YYYY-MM-DD") from None
    if row.get("weights", "float") not in WEIGHTS:
        raise ValueError(f"{where}: weights={row['weights']}: expected one of {', '.join(WEIGHTS)}")
    if row["target"] is not None:
        _validate_target(row, where)


def _validate_target(row: Row, where: str) -> None:
    """A run is compared with its like: ternary with ternary, float with float. A row of the papers that says nothing of
    accuracy is one of structure, which any weights may have."""
    target, stage = load_targets()[1].get(row["target"]), row.get("target_stage")
    if target is None:
        raise ValueError(f"{where}: target={row['target']}: no such id in targets.yaml")
    if stage is not None and stage not in row.get("stages", {}):
        raise ValueError(f"{where}: target_stage={stage}: expected one of {', '.join(row.get('stages', {}))}")
    alike = row.get("weights", target.weights) == target.weights
    if stage is None and not alike and any(is_accuracy(metric) for metric, _, _ in target.numbers()):
        raise ValueError(
            f"{where}: weights={row['weights']}: target {target.id} has {target.weights} weights; "
            "expected another target, or target_stage=<a stage whose weights are like its>"
        )


def load_ledger(path: Path = LEDGER) -> list[Row]:
    """All rows, in order. Raises ValueError naming the file and line of the first bad row."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a ledger: no UTF-8 text") from None
    for number, line in enumerate(lines, start=1):
        where = f"{path.name} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}")
        validate(row, where)
        if row["run"] in (other["run"] for other in rows):
            raise ValueError(f"{where}: run={row['run']}: used twice")
        rows.append(row)
    return rows


def append(row: Row, path: Path = LEDGER) -> None:
    """Adds one validated row; the file is replaced in one rename, so a reader never sees half a line."""
    validate(row, "ledger row")
    if path.exists() and row["run"] in (other["run"] for other in load_ledger(path)):
        raise ValueError(f"ledger row: run={row['run']}: used already in {path.name}")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(before + json.dumps(row) + "\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
