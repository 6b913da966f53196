"""report.html: the report and the run's curves on one self-contained page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from sparsign.kernels.engine import is_ours
from sparsign.reports import curves, figures
from sparsign.reports.table import before_after, fastest, float_network, percent, reload_line, size, speedups, units

CSS = """
:root { color-scheme: light; --ink: #1f2933; --muted: #616e7c; --line: #e4e7eb; --blue: #2f6fae; --red: #b42318; }
* { box-sizing: border-box; }
body { margin: 0; background: #f7f8fa; color: var(--ink); line-height: 1.5;
  font: 15px/1.5 Inter, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 920px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; font-weight: 600; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 17px; font-weight: 600; margin: 0 0 4px; }
p { margin: 0 0 12px; color: var(--muted); }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px; margin-top: 20px; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 24px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 24px; font-weight: 600; letter-spacing: -0.01em; }
.card span { color: var(--muted); font-size: 13px; }
.bad b { color: var(--red); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-top: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 500; }
tr:first-child > * { border-top: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 5px 0 12px; }
summary { cursor: pointer; font-weight: 600; font-size: 17px; }
"""


def page(title: str, body: str, text: str = "") -> str:
    """A whole HTML document; `text` is one line below the title, `body` is HTML already."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    head = f"<!doctype html>\n<html lang=en><head>{head}<style>{CSS}</style></head>"
    return f"{head}<body><main><h1>{escape(title)}</h1><p>{escape(text)}</p>{body}</main></body></html>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], text_columns: int = 1) -> str:
    """An HTML table; columns after the first `text_columns` are numbers, set to the right. Cells are escaped."""
    numeric = ["" if k < text_columns else ' class="n"' for k in range(max(len(head), *map(len, rows), 0))]
    lines = ["".join(f"<th{c}>{escape(h)}</th>" for c, h in zip(numeric, head, strict=False))] if head else []
    lines += ["".join(f"<td{c}>{escape(str(v))}</td>" for c, v in zip(numeric, row, strict=False)) for row in rows]
    return '<div class="scroll"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def section(title: str, content: str, text: str = "") -> str:
    """A titled box; `text` is one line below the title."""
    return f"<section><h2>{escape(title)}</h2>{f'<p>{escape(text)}</p>' if text else ''}{content}</section>"


def cards(entries: Sequence[tuple[str, str, bool]]) -> str:
    """Large numbers on top: (number, what it is, whether something is wrong)."""
    boxes = [
        f'<div class="card{" bad" if bad else ""}"><b>{escape(number)}</b><span>{escape(label)}</span></div>'
        for number, label, bad in entries
    ]
    return f'<div class="cards">{"".join(boxes)}</div>'


def render(report: dict[str, Any], metrics: Sequence[dict[str, Any]] = ()) -> str:
    """The page of one report and the rows of its run's metrics.jsonl (may be empty)."""
    title = f"{report['compressor']} · {report['model']} · {report['dataset']}"
    environment = report["environment"]
    where = f"{environment['cpu']}, {environment['isa']}, torch {environment['torch']}"
    body = cards(_headline(report)) + section("Summary", table([], _summary(report), text_columns=2))
    if report["layers"]:
        body += section(
            "Size by layer", figures.layer_sizes(report["layers"]), "Uncut in fp32 against its share of the file."
        )
        text = "Removed filters are gone from the file; zeros inside kept filters are not."
        body += section("What is kept", figures.kept_filters(report["layers"]), text)
    if report["speed"]:
        body += _speed(report)
    body += _training(metrics) + _recipe(report["recipe"] or [], report["code"] or []) + _layer_table(report["layers"])
    return page(title, body, f"measured {report['date']} on {where}")


def _headline(report: dict[str, Any]) -> list[tuple[str, str, bool]]:
    sizes, structure = report["size"], report["structure"]
    proved, _ = reload_line(report)
    entries = [
        (percent(report["accuracy"]["top1"]), f"top-1: {before_after(report)}", False),
        (f"{sizes['compression_ratio']:.1f}×", f"smaller: {size(sizes['packed_bytes']).split(' (')[0]}", False),
        (percent(structure["pfr"]), f"of the {units(structure['pfr_unit'])} pruned", False),
    ]
    row = fastest(report)
    if row and row["ratio_to_torch_fp32"] is not None:
        entries.append((f"{row['ratio_to_torch_fp32']:.2f}×", f"speed of torch fp32, batch {row['batch']}", False))
    known = {True: "identical", False: "different", None: "no proof"}[proved]
    return [*entries, (known, "predictions after reloading the file", proved is False)]


def _summary(report: dict[str, Any]) -> list[tuple[str, str]]:
    accuracy, sizes, structure, theory = (report[k] for k in ("accuracy", "size", "structure", "theory"))
    conv = sizes["conv"]
    rows = [
        ("Test images", f"{accuracy['images']:,}"),
        ("Top-1", before_after(report)),
        ("Top-1 of the float network", float_network(report) or "–"),
        ("Top-1 in memory, on held-out images", _pair(accuracy, "trained_top1", "val_top1")),
        ("Top-5", percent(accuracy["top5"])),
        ("Pruned", f"{percent(structure['pfr'])} of the {units(structure['pfr_unit'])}, asked {_asked(structure)}"),
        (
            "Filters, kernels without weights; zero weights",
            ", ".join(percent(structure[f"{unit}_pfr"]) for unit in ("filter", "kernel", "weight")),
        ),
        ("Parameters", f"{sizes['parameters']:,} kept of {sizes['original_parameters']:,}"),
        ("Nonzeros", f"{sizes['nonzeros']:,}"),
        ("Bytes, fp32", size(sizes["float_bytes"])),
        ("Bytes on disk", size(sizes["packed_bytes"])),
        ("Numbers beside the codes", sizes["leftovers"] or "–"),
        ("fp32 / on disk", f"{sizes['compression_ratio']:.2f}"),
        ("Codes at order-0 entropy, floats in fp32", size(sizes["order0_bytes"])),
        ("Theoretical bits", f"{sizes['theoretical_bits']:,}"),
        ("Conv layers only", f"{size(conv['float_bytes'])} in fp32, {size(conv['packed_bytes'])} on disk"),
        ("Codes at 2 bits, gzip, xz", ", ".join(f"{sizes['codes'][k]:,}" for k in ("packed", "gzip", "xz"))),
        ("Reload", reload_line(report)[1]),
    ]
    rows += [(f"Theoretical speed-up, {of}", text) for of, text in speedups(theory)]
    rows.append(("S1", f"{theory['s1']}: {theory['s1_reason']}"))
    return [*rows, ("Packed file", report["packed"])]


def _speed(report: dict[str, Any]) -> str:
    """The engine beside what else could run the network, and what was measured beside the theory."""
    rows, here, theory, best = report["speed"], report["environment"], report["theory"], fastest(report)
    text = (
        f"{here['cpu']}, torch {here['torch']} ({here['isa']}), {min(row['samples'] for row in rows)} samples or more "
    )
    text += (
        "of each, in turns in one process. Blue is this file in our engine, grey the uncut float network in libraries."
    )
    content = figures.speeds(rows)
    if best and best["ratio_to_torch_fp32"] is not None:
        beside = [r for r in rows if (r["batch"], r["threads"]) == (best["batch"], best["threads"])]
        rival = min((r for r in beside if not is_ours(r["engine"])), key=lambda row: row["milliseconds"])
        names = dict.fromkeys(("torch fp32", rival["engine"]))
        measured = [
            (f"measured over {r['engine']}, batch {best['batch']}", r["milliseconds"] / best["milliseconds"])
            for r in beside
            if r["engine"] in names
        ]
        counted = [
            ("theory, whole network", theory["network_speedup"]),
            ("theory, pruned layers by multiply-accumulates", theory["layer_speedup_macs"]),
            ("theory, pruned layers by units", theory["layer_speedup"]),
        ]
        content += figures.speedups(measured, [(name, times) for name, times in counted if times is not None])
    return section("Speed", content, text)


def _pair(numbers: dict[str, Any], *keys: str) -> str:
    return ", ".join(percent(numbers[key]) for key in keys)


def _asked(structure: dict[str, Any]) -> str:
    return "nothing" if structure["pfr_asked"] is None else percent(structure["pfr_asked"])


def _training(metrics: Sequence[dict[str, Any]]) -> str:
    present = dict.fromkeys(curves.kind(row["stage"]) for row in metrics)
    legend = "".join(
        f'<span class="key" style="background:{curves.KIND_COLORS.get(kind, figures.INK)}"></span>{escape(kind)}'
        for kind in present
    )
    lines, maps = curves.curve_panels(metrics), curves.heat_maps(metrics)
    parts = section("Training", f"<p>{legend}</p>{lines}") if lines else ""
    return parts + (section("Lists over epochs", maps, "Histograms and values by layer, as logged.") if maps else "")


def _recipe(stages: Sequence[dict[str, Any]], code: Sequence[dict[str, Any]]) -> str:
    """The stages as they ran, one option after the other, and the code that ran them."""
    if not stages:
        return ""
    rows = [[s.get("name", ""), ", ".join(f"{k} {v}" for k, v in s.items() if k != "name")] for s in stages]
    rows += [["code", ", ".join(f"{k} {v}" for k, v in entry.items() if v is not None)] for entry in code]
    return f"<section><details><summary>What ran</summary>{table([], rows, text_columns=2)}</details></section>"


def _layer_table(layers: Sequence[dict[str, Any]]) -> str:
    head = [
        "Layer",
        "Uncut",
        "Kept",
        "Levels",
        "Scales",
        "Nonzeros",
        "fp32",
        "On disk",
        "Order-0",
        "Cheapest storage",
    ]
    with_storage = any(row["storage"] for row in layers)
    rows = []
    for row in layers:
        shapes = ["×".join(map(str, row[key])) for key in ("full_shape", "shape")]
        levels = "float" if row["levels"] is None else row["levels"]
        counts = [f"{row[k]:,}" for k in ("nonzeros", "float_bytes", "packed_bytes", "order0_bytes")]
        best = [row["storage"]["best"] if row["storage"] else ""] if with_storage else []
        rows.append([row["name"], *shapes, levels, row["scales"], *counts, *best])
    content = table(head if with_storage else head[:-1], rows, text_columns=3)
    return f"<section><details><summary>Layers</summary>{content}</details></section>"
