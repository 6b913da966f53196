"""Packing a finished run again with today's code, from the checkpoint of its last stage: `evaluate.py repack=true`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from sparsign.configs.schema import TrainConfig
from sparsign.evaluation import proof
from sparsign.packing.file import write
from sparsign.pipeline import build
from sparsign.pipeline.cli import one_line
from sparsign.pipeline.folder import RunFolder, read_mapping
from sparsign.pipeline.pack import packed_model
from sparsign.pipeline.packed_meta import packed_meta
from sparsign.pipeline.stages import load_finished, test_at_last
from sparsign.pipeline.trained import Trained


def write_trained(trained: Trained, path: Path, float_top1: float | None = None) -> None:
    """Cuts the trained network, packs it with the proof of its answers, and writes the file.

    float_top1: of the float network that the run is set beside; None where no other run trained it.
    """
    meta = packed_meta(trained.config, trained) | {"proof": proof.make(trained.logits)}
    if float_top1 is not None:
        meta["accuracy"]["float_top1"] = float_top1
    write(packed_model(trained.config, trained.model, meta), path)


def repack(folder: RunFolder, root: str | None, leftovers: str | None, console: Console) -> Path:
    """Writes a new packed file beside the run's own, which is not touched, and returns its path.

    Args:
        root: the data set's folder; None: as the run's config.yaml says.
        leftovers: precision of what stays float; None: as the run had it.

    Raises:
        FileNotFoundError: no config.yaml, or no checkpoint of the last stage; one line.
        ValueError: a config.yaml that today's code cannot read, or a damaged checkpoint; one line.
    """
    config = todays_config(folder, console)
    config.dataset.root = config.dataset.root if root is None else root
    config.leftovers = config.leftovers if leftovers is None else leftovers
    trained = _trained(config, folder)
    told = trained.top1[list(trained.top1)[-1]]
    test_at_last(trained, console)
    now = trained.top1[list(trained.top1)[-1]]
    if now != told:
        console.print(f"test top-1 {100 * now:.2f} %, {100 * told:.2f} % when it was trained", soft_wrap=True)
    path = folder.packed.with_name(f"repacked-{folder.packed.name}")
    write_trained(trained, path, _float_beside(folder))
    return path


def todays_config(folder: RunFolder, console: Console) -> DictConfig:
    """The run's config.yaml under today's schema; options that came later have their defaults, and are named."""
    where = f"run={folder.path}"
    if not folder.config.is_file():
        raise FileNotFoundError(f"{where}: holds no {folder.config.name}, so it is not a run folder")
    theirs = read_mapping(folder.config)
    try:
        for group in theirs.values():
            if isinstance(group, dict) and "_target_" in group:  # older runs say it without the package
                top = str(group["_target_"]).split(".")[0]
                group["_target_"] = ("sparsign." if (build.ROOT / top).is_dir() else "") + str(group["_target_"])
        today = OmegaConf.structured(TrainConfig)
        today.compressor = OmegaConf.structured(get_class(theirs["compressor"]["_target_"]))
        config = OmegaConf.merge(today, theirs)
        build.validate(config)
    except (OmegaConfBaseException, ImportError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: today's code cannot read its config.yaml: {one_line(error)}") from error
    if later := sorted(_names(build.plain(config)) - _names(theirs)):
        console.print(f"options that came after this run have their defaults: {', '.join(later)}", soft_wrap=True)
    return config


def _names(options: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in options.items():
        found |= _names(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}"}
    return found


def _trained(config: DictConfig, folder: RunFolder) -> Trained:
    """The run's network as its last stage left it; what it was trained from and by is not needed any more."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    data, model, compressor = build.data(config), build.network(config), build.compressor(config)
    compressor.prepare(model, next(iter(data.test_dataloader()))[0][:1])
    trained = Trained(config, model, compressor, data, folder, [])
    stages = [stage.name for stage in compressor.stages(model)]
    if missing := [stage for stage in stages if not folder.boundary(stage).is_file()]:
        path = folder.boundary(missing[-1]).relative_to(folder.path)
        raise FileNotFoundError(f"run={folder.path}: holds no {path}; expected the checkpoint of every finished stage")
    load_finished(trained, stages)
    return trained


def _float_beside(folder: RunFolder) -> float | None:
    """What the run's report says of another run's float network; None where it has no report, or says nothing."""
    try:
        return json.loads(folder.report.read_text(encoding="utf-8"))["accuracy"]["float_top1"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
