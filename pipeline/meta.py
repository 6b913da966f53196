"""What a packed file says about the run it comes from: enough to name, feed and judge the network, and no more."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from omegaconf import DictConfig

from sparsign.pipeline import build
from sparsign.pipeline.trained import Trained


def packed_meta(config: DictConfig, run: Trained) -> dict[str, Any]:
    """Plain values for the packed header. `before_top1` is the unpruned network's: the end of a pretrain stage. It is
    the float network's too where the form is float."""
    plain = build.plain(config)
    names = list(run.top1)
    before = run.top1[names[0]] if names[0].startswith("pretrain") else None
    held_out = [row["val_top1"] for row in run.folder.read_metrics() if "val_top1" in row]
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
        "accuracy": {
            "val_top1": held_out[-1] if held_out else None,
            "before_top1": before,
            "float_top1": before if plain["model"]["form"] == "float" else None,
            "trained_top1": run.top1[names[-1]],
        },
    }
