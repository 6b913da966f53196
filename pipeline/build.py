"""From the config to objects: data, network, compressor, Trainer."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_class, get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparsign.compressors.base import Compressor
from sparsign.configs.members import targets
from sparsign.configs.options import check, near_match
from sparsign.configs.schema import PRECISIONS
from sparsign.datamodules.base import ImageData
from sparsign.models.checks import check_takes
from sparsign.models.pretrained import load_pretrained
from sparsign.pipeline import objective

if TYPE_CHECKING:  # it takes seconds to import: only what trains does
    import pytorch_lightning as pl

ROOT = Path(__file__).parent.parent
warnings.filterwarnings("ignore", module="pytorch_lightning")
warnings.filterwarnings("ignore", message="The `srun` command")  # a sweep on SLURM starts its own jobs
warnings.filterwarnings("ignore", message="Grad strides")  # DDP, of channels-last 1x1 kernels: a matter of speed


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers: only those reach files and checkpoints."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def validate(config: DictConfig) -> None:
    """Checks every option of every typed group; ValueError names the option, its value and the allowed range."""
    OmegaConf.resolve(config)
    _check_known(config, OmegaConf.get_type(config), "")
    check(compressor(config), "compressor")  # first: its form is the model's
    for name in ("model", "dataset", "trainer", "logger", "schedule", "latency"):
        _check_known(config[name], OmegaConf.get_type(config[name]), f"{name}.")
        check(OmegaConf.to_object(config[name]), name)
    if config.model.form != config.compressor.form:
        raise ValueError(
            f"model.form={config.model.form}: expected {config.compressor.form}, compressor.form of "
            f"compressor={config.compressor.name}; change the form there"
        )
    if config.leftovers not in PRECISIONS:
        raise ValueError(f"leftovers={config.leftovers}: expected a value in {' | '.join(PRECISIONS)}")
    objective.check(config)
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed={config.seed}: expected a value in [0, {2**32})")
    for mine, theirs in (("num_classes", "num_classes"), ("in_channels", "channels"), ("image_size", "image_size")):
        if config.model[mine] != config.dataset[theirs]:
            raise ValueError(
                f"model.{mine}={config.model[mine]}: expected {config.dataset[theirs]}, dataset.{theirs} of "
                f"dataset={config.dataset.name}"
            )
    for group in ("compressor", "model", "dataset"):
        _check_name(group, config[group].name, config[group]._target_)


def _check_known(group: DictConfig, schema: type, prefix: str) -> None:
    """`+option=value` adds what nothing reads."""
    known = [f.name for f in fields(schema)] if is_dataclass(schema) else list(group)
    for name in group:
        if name not in known and name != "_target_":
            raise ValueError(f"{prefix}{name}: no such option{near_match(name, known)}")


def _check_name(group: str, name: str, target: str) -> None:
    """Files and reports name a member: `dataset.name=mnist` on another set of ours would be believed."""
    members = targets(group)
    if name in members and members[name] != target and target in members.values():
        right = next(member for member, its in members.items() if its == target)
        raise ValueError(f"{group}.name={name}: expected {right}; to change the {group}, say {group}={name}")


def compressor(config: DictConfig) -> Compressor:
    """The method, its options checked."""
    _check_known(config.compressor, get_class(config.compressor._target_), "compressor.")
    return instantiate(config.compressor, _convert_="all")


def data(config: DictConfig, device: torch.device | str = "cpu") -> ImageData:
    """The data set, set up on the device where it will be used."""
    options = {k: v for k, v in plain(config.dataset).items() if k not in ("_target_", "name")}
    module = get_class(config.dataset._target_)(seed=config.seed, **options)
    module.device = device
    module.channels_last = config.trainer.channels_last
    module.prepare_data()
    module.setup()
    return module


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not null: null means the builder's default."""
    return {k: v for k, v in options.items() if v is not None}


def network(config: DictConfig) -> nn.Module:
    """The network, initialised from the seed."""
    m = plain(config.model)
    torch.manual_seed(config.seed)
    builder = get_method(m["_target_"])
    net = builder(m["num_classes"], m["in_channels"], m["image_size"], m["form"], **given(m["options"]))
    if config.dataset.crop_size:
        check_takes(net, config.dataset.channels, config.dataset.crop_size, "dataset.crop_size")
    return net


def model(config: DictConfig) -> nn.Module:
    """The network, initialised from the seed or from `model.pretrained`."""
    net = network(config)
    if config.model.pretrained:
        load_pretrained(net, config.model.pretrained)
    return net


def device(config: DictConfig) -> torch.device:
    """Where this process trains.

    Raises:
        ValueError: trainer.accelerator=gpu without a GPU, or fewer GPUs than trainer.devices.
    """
    has_gpu = torch.cuda.is_available()
    if config.trainer.accelerator == "gpu" and not has_gpu:
        raise ValueError("trainer.accelerator=gpu: no CUDA device is visible; expected auto or cpu on this machine")
    if config.trainer.accelerator == "cpu" or not has_gpu:
        return torch.device("cpu")
    devices, visible = config.trainer.devices, torch.cuda.device_count()
    if devices > visible:
        raise ValueError(f"trainer.devices={devices}: expected at most {visible}, the CUDA devices that are visible")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def uses_bf16(config: DictConfig) -> bool:
    """True when stages train under bf16 autocast: asked for, or `auto` on a device that is fast at it."""
    if config.trainer.precision != "auto":
        return config.trainer.precision == "bf16"
    if device(config).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def trainer(config: DictConfig, epochs: int, callbacks: list[pl.Callback]) -> pl.Trainer:
    """A fresh Trainer for one stage. It logs and checkpoints nothing by itself: the callbacks do."""
    import pytorch_lightning as pl

    from sparsign.pipeline.checkpoints import AtomicCheckpointIO

    # Its notices are about itself, not about the run; importing it sets the level anew.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    t = config.trainer
    torch.utils.deterministic.fill_uninitialized_memory = False
    return pl.Trainer(
        accelerator=t.accelerator,
        devices=t.devices,
        strategy="ddp_find_unused_parameters_true" if t.devices > 1 else "auto",
        use_distributed_sampler=False,  # the loaders know their rank
        precision="bf16-mixed" if uses_bf16(config) else "32-true",
        deterministic=t.deterministic,
        max_epochs=epochs,
        limit_train_batches=config.schedule.max_batches,
        limit_val_batches=config.schedule.max_batches,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        inference_mode=False,
    )
