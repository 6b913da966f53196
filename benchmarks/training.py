"""Images per second of every stage against a plain PyTorch loop of the bare network in the same precision.

    python benchmarks/training.py compressor=stq_a model=resnet18 dataset=digits +steps=20 +rounds=3

Takes the same overrides as train.py. `plain` is the network of the same form without any weight transform, trained by
a dozen lines of PyTorch; `stage` is the Lightning module with the method's transforms, penalty and hooks. Both see the
same loader, optimizer and precision and run in turn; the ratio is the median over the rounds of ratios of neighbours.

With `+compare=kernels` each stage is run with the compiled engine off and on (`trainer.kernels`), in turn, in place of
plain and stage; that needs `trainer.precision=fp32` where the CPU is fast at bf16.
"""

from __future__ import annotations

import statistics
import time
from itertools import islice
from pathlib import Path

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import nn

from sparsign.compressors import registry
from sparsign.compressors.base import Recipe, Stage
from sparsign.configs import schema
from sparsign.configs.screen import screen
from sparsign.evaluation.report import environment
from sparsign.kernels.engine import native
from sparsign.kernels.training import training_kernels
from sparsign.pipeline import build, optim
from sparsign.pipeline.cli import fails_in_one_line, run_cli
from sparsign.pipeline.module import StageModule
from sparsign.pipeline.naming import register_resolvers


def plain_images_per_s(config: DictConfig, net: nn.Module, data: pl.LightningDataModule, recipe: Recipe) -> float:
    """The plain loop: forward, cross-entropy, backward, step."""
    device = build.device(config).type
    optimizer = optim.optimizer(recipe, [{"params": list(net.parameters())}])
    net.train()
    started, images = time.perf_counter(), 0
    for x, y in islice(data.train_dataloader(), config.steps):
        with torch.autocast(device, torch.bfloat16, enabled=build.uses_bf16(config)):
            loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        images += len(y)
    return images / (time.perf_counter() - started)


def stage_images_per_s(config: DictConfig, module: StageModule, data: pl.LightningDataModule, kernels: bool) -> float:
    """The same through Lightning and the compressor's hooks; kernels: convs of signs by the compiled engine."""
    rows = []
    module.on_epoch = rows.append
    trainer = build.trainer(config, 1, [])
    trainer.limit_train_batches = config.steps
    with training_kernels(kernels and build.device(config).type == "cpu"):
        trainer.fit(module, data.train_dataloader())
    return rows[0]["images_per_s"]


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
@fails_in_one_line
def main(config: DictConfig) -> None:
    build.validate(config)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    data = build.data(config, build.device(config))
    compressor = build.compressor(config)
    bare, net = build.model(config), build.model(config)
    for model in (bare, net):
        model.to(build.device(config), memory_format=torch.channels_last)
    compressor.prepare(net, next(iter(data.test_dataloader()))[0][:1])
    base, what = ("off", "on") if compares_kernels(config) else ("plain", "stage")
    columns = ("stage", f"{base} images/s", f"{what} images/s", f"{what} / {base}")
    table = Table(*columns, title=config.compressor.name + (", trainer.kernels" if base == "off" else ""))
    stages = compressor.stages(net)
    for stage in stages:
        compressor.start(net, stage)
        recipe = optim.replace(optim.merge(compressor.recipe(stage), config.schedule[stage.kind]), epochs=1)
        if compressor.recipe(stage).epochs:
            measure(config, table, stage, recipe, (bare, net), compressor, data)
        compressor.finish(net, stage)
    screen().print(table)
    print(where(config))


def compares_kernels(config: DictConfig) -> bool:
    """Whether `+compare=kernels` was asked for; ValueError for anything else, and where nothing would differ."""
    compared = config.get("compare", "plain")
    if compared not in ("plain", "kernels"):
        raise ValueError(f"compare={compared}: expected plain or kernels")
    if compared == "kernels" and native() is None:
        raise ValueError("compare=kernels: the compiled engine was not built")
    return compared == "kernels"


def where(config: DictConfig) -> str:
    """What was trained, and on what, for a table's last line."""
    precision = "bf16" if build.uses_bf16(config) else "fp32"
    engine = f"engine {native().isas()[0]}" if native() is not None else "no compiled engine"
    net = f"{config.model.name} ({config.model.form}), {config.dataset.name}, batch {config.dataset.batch_size}"
    taken = f"{config.steps} steps, {config.rounds} rounds, seed {config.seed}"
    machine = f"{torch.get_num_threads()} thread(s), torch {torch.backends.cpu.get_cpu_capability()}, {engine}"
    return f"{net}, {precision}, {taken}; {machine}, {environment()['cpu']}"


def measure(config, table, stage: Stage, recipe: Recipe, nets: tuple, compressor, data) -> None:  # noqa: ANN001
    """Rounds of the two in turn; one row of the table."""

    def staged(kernels: bool) -> float:
        module = StageModule(nets[1], compressor, stage, recipe, config.seed, print)
        return stage_images_per_s(config, module, data, kernels)

    pairs = []
    for _ in range(config.rounds + 1):
        first = staged(False) if compares_kernels(config) else plain_images_per_s(config, nets[0], data, recipe)
        pairs.append((first, staged(config.trainer.kernels or compares_kernels(config))))
    table.add_row(stage.name, *cells(pairs[1:]))  # the first round warms up


def cells(pairs: list[tuple[float, float]]) -> list[str]:
    """Medians of both rates, and of the ratios of neighbours, second over first."""
    first, second = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    return [f"{first:.1f}", f"{second:.1f}", f"{statistics.median(b / a for a, b in pairs):.3f}"]


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent))
    schema.register()
    registry.register()
    register_resolvers()
    sys.argv += ["hydra.run.dir=.", "~hydra.callbacks.summary"]
    run_cli(main, "train")
