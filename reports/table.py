"""What a person sees at the end of train.py and evaluate.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from sparsign.kernels.engine import is_ours


def percent(value: float | None) -> str:
    """`86.56 %` of a fraction; a dash for None."""
    return "–" if value is None else f"{100 * value:.2f} %"


def size(count: int) -> str:
    """`44.7 MB (44,701,016 bytes)`, in powers of ten."""
    for unit, step in (("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.1f} {unit} ({count:,} bytes)"
    return f"{count:,} bytes"


UNITS = {"matrix": "weights outside kept rows and columns"}
"""What a unit of `evaluation.pruned_ratio` is called among people, where that is not its plural."""

BEFORE = {"float": "float", "wbin": "binary weights, unpruned", "fbin": "binary weights and inputs, unpruned"}
"""What a network is before its method prunes and quantizes it, by form."""


def units(unit: str) -> str:
    """`filters`; what a pruned ratio counts."""
    return UNITS.get(unit, f"{unit}s")


def before_after(report: dict[str, Any]) -> str:
    """`91.73 % (float) → 84.14 %`: a binary network is never called float."""
    accuracy = report["accuracy"]
    before = f"{percent(accuracy['before_top1'])} ({BEFORE.get(report['form'], report['form'])}) → "
    return (before if accuracy["before_top1"] is not None else "") + percent(accuracy["top1"])


def float_network(report: dict[str, Any]) -> str | None:
    """Top-1 of the float network that a binary one is set beside; None where there is none, or nothing else to say."""
    top1 = report["accuracy"]["float_top1"]
    return None if top1 is None or report["form"] == "float" else percent(top1)


def speedups(theory: dict[str, Any]) -> list[tuple[str, str]]:
    """(of what, `106.7 (S1 = 64, S2 = 1.67 by filters)`) of every theoretical speed-up that there is."""
    found = []
    if theory["layer_speedup"] is not None:
        found.append(("by units", f"{theory['layer_speedup']:.1f} = {theory['s1']} × {theory['s2']:.2f}"))
    if theory["layer_speedup_macs"] is not None:
        product = f"{theory['s1']} × {theory['s2_macs']:.2f}"
        found.append(("by multiply-accumulates", f"{theory['layer_speedup_macs']:.1f} = {product}"))
    if theory["network_speedup"] is not None:
        found.append(("network, float layers too", f"{theory['network_speedup']:.1f}"))
    return found


def reload_line(report: dict[str, Any]) -> tuple[bool | None, str]:
    """(proved, sentence) of the comparison with the trained network; proved is None for a file without a proof."""
    reload = report["reload"]
    if reload["identical_predictions"] is None:
        return None, "the file carries no proof"
    same = "identical" if reload["identical_predictions"] else "DIFFERENT"
    text = f"{same} predictions on {reload['compared_images']:,} images"
    if reload["bit_equal"] is None:
        return reload["identical_predictions"], f"{text}, the first of those it was proved on"
    close = report["accuracy"]["images"] - reload["compared_images"]
    text += f" ({close} too close to call)" if close else ""
    error = f"the first image's logits differ by at most {reload['max_logit_error']:.2g}"
    return reload["identical_predictions"], f"{text}, {'logits equal to the bit' if reload['bit_equal'] else error}"


def fastest(report: dict[str, Any]) -> dict[str, Any] | None:
    """The speed row of the packed engine with the largest ratio to torch fp32; None when speed was not measured."""
    rows = [row for row in report["speed"] if is_ours(row["engine"])]
    return max(rows, key=lambda row: row["ratio_to_torch_fp32"] or 0, default=None)


def near(path: str | Path) -> str:
    """The path as seen from here, when it lies below."""
    return os.path.relpath(path) if Path(path).resolve().is_relative_to(Path.cwd()) else str(path)


def summary(report: dict[str, Any], folder: str | Path) -> Table:
    """The report on one screen; `folder` is where report.html was written."""
    structure, sizes = report["structure"], report["size"]
    title = f"{report['compressor']} · {report['model']} · {report['dataset']}"
    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("top-1", before_after(report))
    if float_network(report):
        table.add_row("float network", float_network(report))
    asked = percent(structure["pfr_asked"])
    table.add_row("pruned", f"{percent(structure['pfr'])} of the {units(structure['pfr_unit'])} (asked {asked})")
    kept = f"{sizes['parameters']:,} of {sizes['original_parameters']:,}, {sizes['nonzeros']:,} not zero"
    table.add_row("parameters kept", kept)
    table.add_row("fp32", size(sizes["float_bytes"]))
    table.add_row("on disk", f"{size(sizes['packed_bytes'])}, {sizes['compression_ratio']:.1f} times smaller")
    proved, text = reload_line(report)
    table.add_row("reloaded", f"[red]{text}[/]" if proved is False else text)
    row = fastest(report)
    if row:
        where = f"batch {row['batch']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}, {row['isa']}"
        times = row["ratio_to_torch_fp32"]
        ratio = "the uncut network is not in our registry" if times is None else f"{times:.2f} times torch fp32"
        table.add_row("fastest", f"{row['engine']}: {row['milliseconds']:.2f} ms, {ratio} ({where})")
    bounds = "\n".join(f"{text} ({of})" for of, text in speedups(report["theory"]))
    if bounds:
        table.add_row("theoretical speed-up", bounds)
    table.add_row("files", f"{near(report['packed'])}\n{near(Path(folder) / 'report.html')}")
    return table
