"""The keys of report.json, typed: what users and tools may rely on. `evaluation/README.md` says the same in words."""

from __future__ import annotations

import math
from typing import Any

NUMBER = (int, float)
TEXT = (str,)
NONE = type(None)

KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "version": ((int,), "version of this table"),
    "date": (TEXT, "when it was measured, ISO 8601 with time zone"),
    "packed": (TEXT, "path of the packed file"),
    "model": (TEXT, "name of the network"),
    "form": (TEXT, "float, wbin or fbin"),
    "dataset": (TEXT, "name of the data set"),
    "compressor": (TEXT, "name of the method"),
    "seed": ((int, NONE), "seed of the run"),
    "recipe": (
        (list, NONE),
        "stages as they ran, with every rate and length; null for a file outside a run's folder",
    ),
    "code": ((list, NONE), "commit and versions of all code that ran them, the last at the end; null likewise"),
    "accuracy.top1": (NUMBER, "of the packed file on the test images, fraction"),
    "accuracy.top5": ((*NUMBER, NONE), "the label among its five largest logits, fraction; null up to five classes"),
    "accuracy.val_top1": ((*NUMBER, NONE), "at the end of training, on held-out images: what choices are made by"),
    "accuracy.before_top1": ((*NUMBER, NONE), "of the unpruned network of the same run and form, fraction"),
    "accuracy.float_top1": ((*NUMBER, NONE), "of the float network: this run's, or that of baseline=<run>; fraction"),
    "accuracy.trained_top1": ((*NUMBER, NONE), "of the trained network before packing, fraction"),
    "accuracy.images": ((int,), "test images"),
    "structure.pfr": (NUMBER, "pruned ratio reached, fraction of the method's units; no ternary zeros"),
    "structure.pfr_asked": ((*NUMBER, NONE), "pruned ratio asked, null if the method has none"),
    "structure.pfr_unit": (TEXT, "what it counts: filter, channel, kernel, column, group, matrix or weight"),
    "structure.filter_pfr": (NUMBER, "the same counted in filters, of the coded convs"),
    "structure.kernel_pfr": (NUMBER, "the same counted in 2-D kernels, of the coded convs"),
    "structure.weight_pfr": (
        NUMBER,
        "share of zeros among the weights of the coded layers, a ternary quantizer's zeros included",
    ),
    "size.parameters": ((int,), "kept numbers: weights, biases, BN scale and shift"),
    "size.nonzeros": ((int,), "those that are not zero"),
    "size.original_parameters": ((int,), "numbers of the uncut network"),
    "size.theoretical_bits": (
        (int,),
        "kept weights at ceil(log2(levels)) bits, 32 per scale and float, no entropy coding",
    ),
    "size.float_bytes": ((int,), "the uncut network in fp32"),
    "size.packed_bytes": ((int,), "the file on disk, headers and all"),
    "size.compression_ratio": (NUMBER, "float_bytes / packed_bytes"),
    "size.order0_bytes": (
        (int,),
        "codes and structure at their order-0 entropy, floats in fp32, no headers: no bound, contexts code below it",
    ),
    "size.conv.parameters": ((int,), "the same over conv layers only"),
    "size.conv.nonzeros": ((int,), "the same over conv layers only"),
    "size.conv.original_parameters": ((int,), "the same over conv layers only"),
    "size.conv.theoretical_bits": ((int,), "the same over conv layers only"),
    "size.conv.float_bytes": ((int,), "the same over conv layers only"),
    "size.conv.packed_bytes": ((int,), "the conv layers' bytes in the file"),
    "size.conv.compression_ratio": ((*NUMBER, NONE), "conv float_bytes / conv packed_bytes, null without convs"),
    "size.conv.order0_bytes": ((int,), "the same over conv layers only"),
    "size.codes.packed": ((int,), "all codes at two bits (more above four levels): PTQ's accounting"),
    "size.codes.gzip": ((int,), "those after gzip -9"),
    "size.codes.xz": ((int,), "those after xz -9e"),
    "size.leftovers": ((*TEXT, NONE), "precision that holds every number beside the codes: bf16, fp16 or fp32"),
    "reload.identical_predictions": (
        (bool, NONE),
        "reloaded file and trained network agree wherever the margin is not below epsilon, null without a proof",
    ),
    "reload.epsilon": ((*NUMBER, NONE), "margins of the two largest logits below this are close calls"),
    "reload.bit_equal": ((bool, NONE), "all logits are the same to the bit, null where not all images were run"),
    "reload.max_logit_error": (
        (*NUMBER, NONE),
        "largest absolute difference of the logits kept in the file, the first few of the first image",
    ),
    "reload.compared_images": ((int,), "images whose predictions were compared"),
    "theory.label": (TEXT, "always `theoretical`"),
    "theory.s1": (NUMBER, "STQ-Nets' S1 of the layers counted: 64 binary, 58 with scale factors, 1 with float inputs"),
    "theory.s1_reason": (TEXT, "why that S1"),
    "theory.s2": ((*NUMBER, NONE), "1 / (1 - pfr), by the method's units; 1 where those are single weights"),
    "theory.layer_speedup": ((*NUMBER, NONE), "S1 * S2: layer-wise, as the paper prints it"),
    "theory.s2_macs": ((*NUMBER, NONE), "multiply-accumulates of the same layers, uncut / kept"),
    "theory.layer_speedup_macs": ((*NUMBER, NONE), "S1 * s2_macs"),
    "theory.macs": ((int,), "multiply-accumulates of one image in the uncut convs and linear layers"),
    "theory.kept_macs": ((int,), "those that are left"),
    "theory.network_speedup": (
        (*NUMBER, NONE),
        "macs / sum over layers of kept macs / S1: float layers count with S1 = 1",
    ),
    "theory.source": (TEXT, "where the formula is from"),
    "environment.cpu": (TEXT, "processor"),
    "environment.isa": (TEXT, "instruction set torch uses"),
    "environment.torch": (TEXT, "version"),
    "environment.threads": ((int,), "torch threads during the accuracy part"),
    "layers": ((list,), "one row per conv and linear layer"),
    "speed": ((list,), "one row per engine, batch size and thread count; empty when not measured"),
}

LAYER: dict[str, tuple[tuple[type, ...], str]] = {
    "name": (TEXT, "layer"),
    "op": (TEXT, "conv or linear"),
    "full_shape": ((list,), "of the uncut weight"),
    "shape": ((list,), "of the cut weight"),
    "layout": (TEXT, "where codes lie: dense, gathered, groups or irregular"),
    "values": (TEXT, "how they become numbers: float, scale, row_scale, row_group_scale, sign_pair or table"),
    "levels": ((int, NONE), "distinct codes, null for a float layer"),
    "scales": ((int,), "scale factors"),
    "parameters": ((int,), "kept weights and biases"),
    "nonzeros": ((int,), "those that are not zero"),
    "nonzero_weights": ((int,), "weights alone that are not zero"),
    "kept_weights": ((int,), "weights in the units that are left; of filters and columns, nonempty rows x columns"),
    "macs": ((int,), "multiply-accumulates of one image, of what is stored"),
    "float_bytes": ((int,), "of the uncut layer"),
    "packed_bytes": ((int,), "bytes in the file; what is coded together is shared out"),
    "order0_bytes": ((int,), "codes and structure at their order-0 entropy, floats in fp32"),
    "storage": (
        (dict, NONE),
        "dense, structured and irregular storage in bits; only for methods that prune single weights",
    ),
}

SPEED: dict[str, tuple[tuple[type, ...], str]] = {
    "engine": (TEXT, "what ran: a torch baseline of the uncompressed network, or the packed engine"),
    "isa": (TEXT, "instruction set"),
    "threads": ((int,), "threads"),
    "batch": ((int,), "images per call"),
    "milliseconds": (NUMBER, "median per call"),
    "ratio_to_torch_fp32": (
        (*NUMBER, NONE),
        "how many times faster than torch fp32 of the uncompressed network, null where that is not in our registry",
    ),
    "samples": ((int,), "samples behind the median"),
}


def flat(report: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay values."""
    found = {}
    for key, value in report.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def validate(report: dict[str, Any]) -> None:
    """Raises ValueError, one line, for a missing or unknown key, a wrong type, or a number that is not finite."""
    _check(flat(report), KEYS, "report")
    for table, keys in (("layers", LAYER), ("speed", SPEED)):
        for number, row in enumerate(report[table]):
            _check(row, keys, f"report.{table}[{number}]")


def _check(found: dict[str, Any], keys: dict[str, tuple[tuple[type, ...], str]], where: str) -> None:
    for key in keys.keys() ^ found.keys():
        raise ValueError(f"{where}: {'missing' if key in keys else 'unknown'} key {key}")
    for key, (kinds, _) in keys.items():
        value = found[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("null" if kind is NONE else kind.__name__ for kind in kinds)
            raise ValueError(f"{where}: {key}={value!r}: expected {names}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}: {key}={value}: expected a finite number")
