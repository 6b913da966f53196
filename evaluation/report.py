"""From a packed file and test images to report.json: everything measured on what was read back from disk."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsign.evaluation import latency, proof, report_schema
from sparsign.evaluation.accuracy import Batches, limited, logits, top1, top5
from sparsign.evaluation.layer_rows import layer_rows
from sparsign.evaluation.pruned_ratio import GROUP, pruned_ratio, reached_ratio
from sparsign.evaluation.ran import ran
from sparsign.evaluation.rebuild import float_network, part
from sparsign.evaluation.storage import storage
from sparsign.evaluation.theory import theory
from sparsign.kernels.engine import load_engine
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import read
from sparsign.packing.floats import precision
from sparsign.packing.size import Size, compressed_code_bytes, total_size
from sparsign.packing.spec import PackedModel

VERSION = 2


def evaluate_packed(
    path: str | Path,
    batches: Batches,
    latency_options: Mapping[str, Any],
    limit: int | None = None,
    packed: PackedModel | None = None,
) -> dict[str, Any]:
    """Measure a packed file; the keys of the result are those of `evaluation.report_schema.KEYS`.

    Args:
        packed: what is in the file, if it was read before.
        batches: the test loader of the data set it was trained on, in its order.
        latency_options: `batches`, `threads` and `seconds` of `latency.measure`; 0 seconds leave the latency part out.
        limit: use only the first `limit` test images.

    Raises:
        FileNotFoundError, PackedFileError: no such file, or a damaged one.
        ValueError: a malformed proof.
    """
    path = Path(path)
    packed = read(path) if packed is None else packed
    meta = packed.meta
    # The proof is of the file, so it is made in the trained network's own order of summation.
    answers, labels = logits(ReferenceEngine(packed), limited(batches, limit))
    model, dataset, compressor, accuracy = (part(meta, k) for k in ("model", "dataset", "compressor", "accuracy"))
    unit = compressor.get("pfr_unit") or "filter"
    group = compressor.get("group") or GROUP
    pfr = reached_ratio(packed, unit, group)
    layers = layer_rows(packed, unit, group)
    bits = storage(packed) if unit in ("weight", "matrix") else {}
    report = {
        "version": VERSION,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "packed": str(path),
        "model": model.get("name", ""),
        "form": model.get("form", ""),
        "dataset": dataset.get("name", ""),
        "compressor": compressor.get("name", ""),
        "seed": meta.get("seed"),
        **ran(path.parent),
        "accuracy": {
            "top1": top1(answers, labels),
            "top5": top5(answers, labels),
            "val_top1": accuracy.get("val_top1"),
            "before_top1": accuracy.get("before_top1"),
            "float_top1": accuracy.get("float_top1"),
            "trained_top1": accuracy.get("trained_top1"),
            "images": len(labels),
        },
        "structure": {
            "pfr": pfr,
            "pfr_asked": compressor.get("pfr"),
            "pfr_unit": unit,
            **{f"{u}_pfr": pruned_ratio(packed, u) for u in ("filter", "kernel", "weight")},
        },
        "layers": [{**row, "storage": bits.get(row["name"])} for row in layers],
        "size": _sizes(packed, layers, path.stat().st_size),
        "speed": _speed(packed, latency_options),
        "reload": _reload(meta, answers),
        "theory": theory(packed, unit, pfr, group),
        "environment": environment(),
    }
    report_schema.validate(report)
    return report


def _sizes(packed: PackedModel, layers: list[dict[str, Any]], on_disk: int) -> dict[str, Any]:
    total, conv = total_size(packed), total_size(packed, conv_only=True)
    conv_bytes = sum(row["packed_bytes"] for row in layers if row["op"] == "conv")
    return {
        **_counts(total),
        "packed_bytes": on_disk,
        "compression_ratio": total.float_bytes / on_disk,
        "conv": {
            **_counts(conv),
            "packed_bytes": conv_bytes,
            "compression_ratio": conv.float_bytes / conv_bytes if conv_bytes else None,
        },
        "codes": compressed_code_bytes(packed),
        "leftovers": leftovers(packed),
    }


def leftovers(packed: PackedModel) -> str:
    """The precision that holds every number of the file that is no code: bf16, fp16 or fp32."""
    kinds = set()
    for node in packed.nodes:
        arrays = [a for a in node.tensors.values() if a.dtype == np.float32]
        if node.codes is not None:
            arrays += [*node.codes.values.arrays().values()] if node.codes.coded else [node.codes.codes]
        kinds |= {precision(array) for array in arrays}
    return next(kind for kind in ("fp32", "fp16", "bf16") if kind in kinds or kind == "bf16")


def _counts(size: Size) -> dict[str, int]:
    counts = asdict(size)
    del counts["entropy_bits"]
    return {**counts, "float_bytes": size.float_bytes, "order0_bytes": size.entropy_bound_bytes}


def _speed(packed: PackedModel, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    if options["seconds"] <= 0:
        return []
    timed = latency.candidates(float_network(packed), load_engine(packed))
    return latency.measure(timed, packed.input_shape, **options)


def _reload(meta: dict[str, Any], answers: torch.Tensor) -> dict[str, Any]:
    if not part(meta, "proof"):
        return dict.fromkeys(("identical_predictions", "epsilon", "bit_equal", "max_logit_error")) | {
            "compared_images": 0
        }
    return proof.check(meta["proof"], answers)


def environment() -> dict[str, Any]:
    """Processor, instruction set, torch version and threads of this process."""
    return {
        "cpu": _processor(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_report(path: str | Path) -> dict[str, Any]:
    """A validated report.json. Raises FileNotFoundError or ValueError, one line naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such report")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report, dict):
            raise ValueError("not a JSON object")
        report = {"recipe": None, "code": None} | report  # older ones do not say
        if isinstance(report.get("size"), dict):
            report["size"].setdefault("leftovers", None)
        report_schema.validate(report)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return report
