"""What a packed file says about the run it comes from: enough to name, feed and judge the network, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from sparsign.compressors.pruning.weights_left import left_with_zeros
from sparsign.datamodules import registry as datasets
from sparsign.datamodules.base import ImageData
from sparsign.models import registry as models
from sparsign.pipeline import build, origin
from sparsign.pipeline.trained import Trained, held_out_top1


def packed_meta(config: DictConfig, run: Trained) -> dict[str, Any]:
    """Plain values for the packed header. `before_top1` is the unpruned network's: the end of a pretrain stage. It is
    the float network's too where the form is float. `val_top1` is measured here, on the network that is packed: the
    rows of the last epoch were before BN was re-estimated, or before what a stage of no epochs did."""
    plain = build.plain(config)
    names = list(run.top1)
    before = run.top1[names[0]] if names[0].startswith("pretrain") else None
    ours = origin.code()["sparsign"]  # None where the checkout is on the path and nothing is installed
    return ({"sparsign": ours} if ours else {}) | {
        "model": {
            "name": _registered(plain["model"], models.path),
            "form": plain["model"]["form"],
            "options": build.given(plain["model"]["options"]),
        },
        "dataset": {
            "name": _registered(plain["dataset"], datasets.path),
            "mean": plain["dataset"]["mean"],
            "std": plain["dataset"]["std"],
        }
        | ({"options": plain["dataset"]["options"]} if plain["dataset"]["options"] else {})
        | _class_names(run.data),
        "compressor": {"name": plain["compressor"]["name"]} | _counted(run),
        "seed": plain["seed"],
        "accuracy": {
            "val_top1": held_out_top1(run),
            "before_top1": before,
            "float_top1": before if plain["model"]["form"] == "float" else None,
            "trained_top1": run.top1[names[-1]],
        },
    }


def _counted(run: Trained) -> dict[str, Any]:
    """How the pruned ratio is counted; of single weights, the file cannot tell a ternary zero from a pruned weight."""
    found = run.compressor.accounting()
    if found["pfr_unit"] != "weight":
        return found
    left = left_with_zeros(run.compressor.layers(run.model).values())
    return found | ({} if left is None else {"left": left})


def _registered(group: dict[str, Any], path: Callable[[str], str | None]) -> str:
    """The group's name, marked where our registry knows another class or function under it, or none."""
    known = path(group["name"]) == group["_target_"]
    return group["name"] if known else f"{group['name']} (unregistered)"


def _class_names(data: ImageData) -> dict[str, list[str]]:
    """The classes' names, of sets whose folders decide them: those of the others go without saying."""
    own = data.class_names is not None and data.class_names is not type(data).class_names
    return {"class_names": list(data.class_names)} if own else {}
