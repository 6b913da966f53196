"""Every method's schema is its own class: registered in Hydra's ConfigStore before the command line is read.

A new method is one Python file beside this one and one YAML file in `configs/compressor/`.
"""

from __future__ import annotations

import importlib
import pkgutil

from hydra.core.config_store import ConfigStore

from sparsign import compressors
from sparsign.compressors.base import Compressor


def register() -> None:
    """Stores the compressor class of every file of `compressors/` as the schema of that name."""
    store = ConfigStore.instance()
    for module in pkgutil.iter_modules(compressors.__path__, f"{compressors.__name__}."):
        if module.ispkg:
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            defined_here = isinstance(cls, type) and cls.__module__ == module.name
            if defined_here and issubclass(cls, Compressor) and cls is not Compressor:
                name = module.name.rpartition(".")[2]
                store.store(group="compressor/schema", name=name, node=cls, package="compressor")
