"""A report on a run that never was, whole to the last key, and what its training logged."""


def layer(name="conv1", op="conv", kept=6, **change):
    return {
        "name": name,
        "op": op,
        "full_shape": [8, 3, 3, 3],
        "shape": [kept, 3, 3, 3],
        "levels": 2,
        "scales": 0,
        "parameters": kept * 27,
        "nonzeros": kept * 27,
        "nonzero_weights": kept * 27,
        "kept_weights": kept * 27,
        "layout": "dense",
        "values": "scale",
        "macs": kept * 27,
        "float_bytes": 864,
        "packed_bytes": 21,
        "order0_bytes": 21,
        "storage": None,
        **change,
    }


def speed(engine, milliseconds, ratio, batch=1):
    row = {"engine": engine, "isa": "AVX2", "threads": 1, "batch": batch, "milliseconds": milliseconds}
    return {**row, "ratio_to_torch_fp32": ratio, "samples": 9}


def a_report(top1=0.9, packed_bytes=1000, unit="filter", compressor="stq_a", val_top1=None, **accuracy):
    counts = {"parameters": 162, "nonzeros": 162, "original_parameters": 216, "theoretical_bits": 162}
    counts |= {"float_bytes": 864, "packed_bytes": packed_bytes, "order0_bytes": 21}
    counts["compression_ratio"] = 864 / packed_bytes
    return {
        "version": 2,
        "date": "2025-03-01T10:00:00+00:00",
        "packed": "runs/a/model.sparsign",
        "model": "nin",
        "form": "fbin",
        "dataset": "cifar10",
        "compressor": compressor,
        "seed": 0,
        "recipe": [{"name": "pretrain", "epochs": 1}],
        "code": [{"commit": "a" * 40, "dirty": True, "torch": "2.14.0"}],
        "accuracy": {
            "top1": top1,
            "top5": 0.99,
            "val_top1": top1 if val_top1 is None else val_top1,
            "before_top1": 0.95,
            "float_top1": None,
            "trained_top1": top1,
            "images": 10000,
            **accuracy,
        },
        "structure": {
            "pfr": 0.25,
            "pfr_asked": None,
            "pfr_unit": unit,
            **{f"{u}_pfr": 0.25 for u in ("filter", "kernel", "weight")},
        },
        "layers": [layer(), layer("conv2", kept=0, packed_bytes=0, levels=None)],
        "size": {**counts, "conv": counts, "codes": {"packed": 40, "gzip": 30, "xz": 60}, "leftovers": "fp32"},
        "speed": [speed("torch fp32", 4.0, 1.0), speed("torch bf16", 2.0, 2.0), speed("native", 0.5, 8.0)],
        "reload": {
            "identical_predictions": True,
            "epsilon": 1e-3,
            "bit_equal": True,
            "max_logit_error": 0.0,
            "compared_images": 10000,
        },
        "theory": {
            "label": "theoretical",
            "s1": 64,
            "s1_reason": "binary",
            "s2": 4 / 3,
            "layer_speedup": 256 / 3,
            "s2_macs": 1.25,
            "layer_speedup_macs": 80.0,
            "macs": 1000,
            "kept_macs": 800,
            "network_speedup": 12.5,
            "source": "STQ-Nets",
        },
        "environment": {"cpu": "a CPU", "isa": "AVX2", "torch": "2", "threads": 1},
    }


METRICS = [
    {"stage": stage, "epoch": e, "train_loss": 1 / (e + 1), "val_top1": 0.1 * e, "hist": [e, 1, 2], "flat": 3.0}
    for stage in ("pretrain", "prune", "prune-2")
    for e in range(2)
]
