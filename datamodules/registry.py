"""Data sets by the names that packed files use, which are those of `configs/dataset`."""

from __future__ import annotations

import importlib
from typing import Any

CLASSES = {
    "cifar10": "cifar.Cifar10",
    "cifar100": "cifar.Cifar100",
    "digits": "digits.Digits",
    "fashion_mnist": "idx.FashionMnist",
    "image_folder": "image_folder.ImageFolder",
    "imagenet": "imagenet.ImageNet",
    "mnist": "idx.Mnist",
    "tiny_imagenet": "tiny_imagenet.TinyImageNet",
}
"""{name: file of `datamodules/` and class in it}."""
OUTSIDE: dict[str, str] = {}
"""{name: the Python path of a class that a plugin brings}."""


def path(name: str) -> str | None:
    """The Python path of a registered data set's class, or None."""
    return f"sparsign.datamodules.{CLASSES[name]}" if name in CLASSES else OUTSIDE.get(name)


def dataset(name: str) -> type[Any] | None:
    """The class of a registered data set, or None."""
    module, _, cls = (path(name) or "").rpartition(".")
    return getattr(importlib.import_module(module), cls) if module else None
