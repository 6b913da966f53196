"""Mask R-CNN, for counting and compressing detection networks; torchvision's own, without any download."""

from typing import Any

import torchvision
from torch import nn

from sparsign.models.checks import check_form, check_image_size, choose


def maskrcnn_resnet50_fpn(num_classes: int, in_channels: int, image_size: int, form: str, **options: Any) -> nn.Module:
    """Mask R-CNN with a ResNet-50 feature pyramid, randomly initialised.

    Takes a list of images [3, H, W] in 0..1, and targets in training; gives losses or detections as torchvision's does.
    `image_size` bounds the longer side that images are resized to. Its forward cannot be traced: it is packed without a
    graph, by `packing.layers`.
    """
    check_form("maskrcnn_resnet50_fpn", form, ("float", "wbin"), "no reproduced table has it")
    check_image_size("maskrcnn_resnet50_fpn", image_size, minimum=64)
    choose("maskrcnn_resnet50_fpn", options, {})
    if in_channels != 3:
        raise ValueError(f"dataset.channels={in_channels} does not suit maskrcnn_resnet50_fpn; expected 3")
    return torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes,
        min_size=min(800, image_size),
        max_size=image_size,
    )
