"""From the registry names in a packed file to objects: its data set, and the float network to time against.

A packed file may come from a stranger: names are looked up in our registries, which hold what is ours and what plugins
brought that the user has installed or named, and nowhere else. Sizes come from the validated graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sparsign.datamodules import registry as datasets
from sparsign.evaluation.accuracy import Batches
from sparsign.models import registry as models
from sparsign.packing.spec import PackedModel

TEST_BATCH = 256


def part(meta: dict[str, Any], name: str) -> dict[str, Any]:
    """A mapping inside meta, empty where the file lacks it."""
    return meta.get(name, {})


def float_network(packed: PackedModel) -> nn.Module | None:
    """The uncompressed network in its ordinary float form, randomly initialised, in eval mode: only its speed counts.

    None where the file names a network that is not in our registry, or none: everything else can be measured then.

    Raises:
        ValueError: a registered network that cannot be of the packed one's sizes.
    """
    model = part(packed.meta, "model")
    build = models.builder(model.get("name", ""))
    if build is None:
        return None
    channels, size, _ = packed.input_shape
    sizes = {"num_classes": packed.shapes[packed.output][-1], "in_channels": channels, "image_size": size}
    try:
        network = build(**sizes, form="float", **model.get("options", {}))
    except ValueError:  # options such as the kind of binary block, which the float form does not have
        network = build(**sizes, form="float")
    return network.eval()


def test_batches(packed: PackedModel, root: str | Path, download: bool = False, workers: int = 0) -> Batches:
    """The test loader of the data set a packed file was trained on, its files read from `root`.

    Of a run that tested on a part of the images (`dataset.limit_test`) the same part: its proof is of them.

    Raises:
        ValueError: a file that names no data set of our registry, or what that set cannot take.
        FileNotFoundError: the data is not under `root` and may not or cannot be downloaded.
    """
    options = part(packed.meta, "dataset")
    cls = datasets.dataset(options.get("name", ""))
    if cls is None:
        known = ", ".join([*datasets.CLASSES, *datasets.OUTSIDE])
        raise ValueError(f"the packed file's data set {options.get('name', '')!r:.80}: expected one of {known}")
    channels, size, _ = packed.input_shape
    data = cls(
        root=str(root),
        download=download,
        workers=workers,
        seed=0,
        batch_size=TEST_BATCH,
        val_fraction=0.0,
        augment=False,
        channels=channels,
        image_size=size,
        num_classes=packed.shapes[packed.output][-1],
        mean=options.get("mean", [0.0] * channels),
        std=options.get("std", [1.0] * channels),
        limit_test=part(packed.meta, "proof").get("images"),
        options=options.get("options"),
    )
    data.prepare_data()
    data.setup()
    return data.test_dataloader()
