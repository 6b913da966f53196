"""What a person sees at the end of train.py and evaluate.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table


def percent(value: float | None) -> str:
    """`86.56 %` of a fraction; a dash for None."""
    return "–" if value is None else f"{100 * value:.2f} %"


def size(count: int) -> str:
    """`44.7 MB (44,701,016 bytes)`, in powers of ten."""
    for unit, step in (("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.1f} {unit} ({count:,} bytes)"
    return f"{count:,} bytes"


def reload_line(reload: dict[str, Any]) -> tuple[bool | None, str]:
    """(proved, sentence) of the comparison with the trained network; proved is None for a file without a proof."""
    if reload["identical_predictions"] is None:
        return None, "the file carries no proof"
    same = "identical" if reload["identical_predictions"] else "DIFFERENT"
    text = f"{same} predictions on {reload['compared_images']:,} images"
    return reload["identical_predictions"], f"{text}, logits differ by at most {reload['max_logit_error']:.2g}"


def fastest(report: dict[str, Any]) -> dict[str, Any] | None:
    """The speed row of the packed engine with the largest ratio to torch fp32; None when speed was not measured."""
    rows = [row for row in report["speed"] if not row["engine"].startswith("torch ")]
    return max(rows, key=lambda row: row["ratio_to_torch_fp32"] or 0, default=None)


def near(path: str | Path) -> str:
    """The path as seen from here, when it lies below."""
    return os.path.relpath(path) if Path(path).resolve().is_relative_to(Path.cwd()) else str(path)


def summary(report: dict[str, Any], folder: str | Path) -> Table:
    """The report on one screen; `folder` is where report.html was written."""
    accuracy, structure, sizes = report["accuracy"], report["structure"], report["size"]
    title = f"{report['compressor']} · {report['model']} · {report['dataset']}"
    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("top-1 before, after", f"{percent(accuracy['float_top1'])} → {percent(accuracy['top1'])}")
    asked = percent(structure["pfr_asked"])
    table.add_row(f"{structure['pfr_unit']}s pruned", f"{percent(structure['pfr'])} (asked {asked})")
    kept = f"{sizes['parameters']:,} of {sizes['original_parameters']:,}, {sizes['nonzeros']:,} not zero"
    table.add_row("parameters kept", kept)
    table.add_row("fp32", size(sizes["float_bytes"]))
    table.add_row("on disk", f"{size(sizes['packed_bytes'])}, {sizes['compression_ratio']:.1f} times smaller")
    proved, text = reload_line(report["reload"])
    table.add_row("reloaded", f"[red]{text}[/]" if proved is False else text)
    row = fastest(report)
    if row:
        where = f"batch {row['batch']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}, {row['isa']}"
        times = row["ratio_to_torch_fp32"]
        ratio = "the uncut network is not in our registry" if times is None else f"{times:.2f} times torch fp32"
        table.add_row("fastest", f"{row['engine']}: {row['milliseconds']:.2f} ms, {ratio} ({where})")
    theory = report["theory"]
    if theory["speedup"] is not None:
        table.add_row("theoretical speed-up", f"{theory['speedup']:.1f} (S1 = {theory['s1']}, S2 = {theory['s2']:.2f})")
    table.add_row("files", f"{near(report['packed'])}\n{near(Path(folder) / 'report.html')}")
    return table
