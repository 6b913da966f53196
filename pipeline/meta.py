"""What a packed file says about the run it comes from: enough to name, feed and judge the network, and no more."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from omegaconf import DictConfig

from sparsign.pipeline import build
from sparsign.pipeline.trained import Trained


def packed_meta(config: DictConfig, run: Trained) -> dict[str, Any]:
    """Plain values for the packed header. `float_top1` is the uncompressed network's: the end of its first stage."""
    plain = build.plain(config)
    names = list(run.top1)
    return {
        "sparsign": version("sparsign"),
        "model": {k: v for k, v in plain["model"].items() if k != "pretrained"}
        | {"options": build.given(plain["model"]["options"])},
        "dataset": {
            k: plain["dataset"][k] for k in ("_target_", "name", "channels", "image_size", "num_classes", "mean", "std")
        }
        | ({"class_names": list(run.data.class_names)} if run.data.class_names else {}),
        "compressor": {"name": plain["compressor"]["name"]} | run.compressor.accounting(),
        "seed": plain["seed"],
        "accuracy": {"float_top1": run.top1[names[0]], "trained_top1": run.top1[names[-1]]},
    }
