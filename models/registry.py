"""Networks by the names that packed files use, which are those of `configs/model`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

FILES = {
    "alexnet": "alexnet",
    "lenet5": "lenet",
    "mobilenet_v2": "mobilenet",
    "nin": "nin",
    "resnet18": "resnet",
    "resnet20": "resnet",
    "resnet32": "resnet",
    "resnet34": "resnet",
    "resnet44": "resnet",
    "resnet50": "resnet",
    "resnet56": "resnet",
    "vgg11": "vgg",
    "vgg16": "vgg",
}
"""{name: the file of `models/` that defines the function of that name}."""
OUTSIDE: dict[str, str] = {}
"""{name: the Python path of a builder that a plugin brings}."""


def path(name: str) -> str | None:
    """The Python path of a registered network's builder, or None."""
    return f"sparsign.models.{FILES[name]}.{name}" if name in FILES else OUTSIDE.get(name)


def builder(name: str) -> Callable[..., nn.Module] | None:
    """The builder of a registered network, or None."""
    module, _, function = (path(name) or "").rpartition(".")
    return getattr(importlib.import_module(module), function) if module else None
