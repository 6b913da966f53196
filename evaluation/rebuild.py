"""From a packed file's meta back to Python objects: the data set it was trained on, the float network to time against.

A packed file may come from a stranger, so names are only looked up inside `models` and `datamodules`, and sizes are
compared with the validated graph before anything is built.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from torch import nn

from sparsign.datamodules.base import ImageData
from sparsign.evaluation.accuracy import Batches
from sparsign.packing.spec import PackedModel

TEST_BATCH = 256
DATASET_KEYS = ("channels", "image_size", "num_classes", "mean", "std")


def look_up(target: object, package: str) -> Any:
    """The function or class named `<package>.<file>.<name>` and defined in that very file.

    Raises:
        ValueError: any other name.
    """
    wrong = f"the packed file's _target_={target!r}: expected a name defined in {package}/"
    match = re.fullmatch(rf"({package}\.[a-z][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)", str(target))
    if match is None or not isinstance(target, str):
        raise ValueError(wrong)
    try:
        found = getattr(importlib.import_module(match[1]), match[2], None)
    except ModuleNotFoundError:
        found = None
    if getattr(found, "__module__", None) != match[1]:
        raise ValueError(wrong)
    return found


def section(meta: dict[str, Any], name: str) -> dict[str, Any]:
    """A mapping inside meta. Raises ValueError where the file lacks it."""
    found = meta.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"the packed file's meta has no {name}: it cannot be evaluated")
    return found


def float_network(packed: PackedModel) -> nn.Module:
    """The uncompressed network in its ordinary float form, randomly initialised, in eval mode: only its speed counts.

    Raises:
        ValueError: a meta that names no builder of `models`, or sizes that are not the packed network's.
    """
    model = section(packed.meta, "model")
    build = look_up(model.get("_target_"), "sparsign.models")
    classes = packed.validate()[packed.output][-1]
    sizes = {"num_classes": classes, "in_channels": packed.input_shape[0], "image_size": packed.input_shape[1]}
    for name, value in sizes.items():
        if model.get(name) != value:
            raise ValueError(f"the packed file's model.{name}={model.get(name)!r}: expected {value}")
    if not inspect.isfunction(build):
        raise ValueError(f"the packed file's _target_={model['_target_']!r}: expected a function")
    options = dict(model.get("options") or {})
    try:
        network = build(**sizes, form="float", **options)
    except ValueError:  # options such as the kind of binary block, which the float form does not have
        network = build(**sizes, form="float")
    return network.eval()


def test_batches(meta: dict[str, Any], root: str | Path, download: bool = False, workers: int = 0) -> Batches:
    """The test loader of the data set a packed file was trained on, its files read from `root`.

    Raises:
        ValueError: a meta that names no data set of `datamodules`, or keys it cannot take.
        FileNotFoundError: the data is not under `root` and may not or cannot be downloaded.
    """
    options = section(meta, "dataset")
    cls = look_up(options.get("_target_"), "sparsign.datamodules")
    if not (isinstance(cls, type) and issubclass(cls, ImageData)):
        raise ValueError(f"the packed file's _target_={options['_target_']!r}: expected a data set")
    missing = [key for key in DATASET_KEYS if key not in options]
    if missing:
        raise ValueError(f"the packed file's meta lacks dataset.{missing[0]}")
    plain = {"seed": 0, "batch_size": TEST_BATCH, "val_fraction": 0.0, "augment": False}
    data = cls(root=str(root), download=download, workers=workers, **plain, **{k: options[k] for k in DATASET_KEYS})
    data.prepare_data()
    data.setup()
    return data.test_dataloader()
