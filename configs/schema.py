"""Typed schemas of every config group but the compressors', whose schemas are the methods' own classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from sparsign.configs.help import register_help
from sparsign.configs.options import option
from sparsign.models.checks import FORMS

PRECISIONS = ("fp32", "bf16", "fp16")
OBJECTIVES = ("val_top1", "bytes", "milliseconds")
DECAYS = ("constant", "cosine", "linear", "multistep", "cyclic")


@dataclass
class ModelConfig:
    """A network: builder, form and input; `options` are the builder's own."""

    _target_: str = MISSING
    name: str = option(MISSING, "config name")
    form: str = option("${compressor.form}", "float, wbin or fbin; follows the compressor", choices=FORMS)
    num_classes: int = option("${dataset.num_classes}", "outputs of the last layer", ge=2)
    in_channels: int = option("${dataset.channels}", "channels of an input image", ge=1)
    image_size: int = option("${dataset.image_size}", "height and width of an input image", ge=8)
    pretrained: str | None = option(
        None, "run folder, float weights, or a pruned stage's checkpoint to start from; pretrain is then skipped"
    )
    options: dict[str, Any] = option({}, "the builder's own options, e.g. block, sign_gradient")


@dataclass
class DatasetConfig:
    """A data set: where it lies, how it is split, batched and normalised."""

    _target_: str = MISSING
    name: str = option(MISSING, "config name")
    root: str = option("data", "folder that holds the data set's files")
    download: bool = option(True, "fetch missing files through torchvision")
    batch_size: int = option(128, "images per step", ge=1)
    val_fraction: float = option(0.1, "part of train held out for validation", ge=0, lt=1)
    augment: bool = option(True, "random crop and flip of training images")
    channels: int = option(3, "channels of an image", ge=1)
    image_size: int = option(32, "height and width of an image", ge=8)
    num_classes: int = option(10, "classes", ge=2)
    mean: list[float] = option([0.5], "per-channel mean of images in [0, 1]")
    std: list[float] = option([0.5], "per-channel standard deviation of images in [0, 1]", gt=0)
    flip: str | None = option(
        None, "mirrored training images; null = random where the set's habit", choices=("random", "alternate", "none")
    )
    pad_mode: str = option("zero", "what random crops see beyond the edge", choices=("zero", "reflect"))
    crop_size: int | None = option(None, "side of smaller training crops in a stage's first steps", ge=1)
    crop_part: float = option(0.6, "part of a stage's steps with crop_size", ge=0, le=1)
    workers: int = option(0, "decoding processes, for data sets of image files; at most one a processor", ge=0)
    prefetch_factor: int = option(4, "batches each decoding process keeps in store", ge=1)
    limit: int | None = option(None, "use only that many training images", ge=1)
    limit_test: int | None = option("${schedule.test_images}", "use only that many test images", ge=1)
    options: dict[str, Any] = option({}, "the data set's own options, where it has any")


@dataclass
class StageConfig:
    """How one kind of stage is optimised; null = what the compressor's paper does (its `recipe`)."""

    epochs: int | None = option(None, "passes over the training data", ge=0)
    optimizer: str | None = option(None, "optimizer", choices=("adam", "sgd"))
    lr: float | None = option(None, "initial learning rate", gt=0)
    weight_decay: float | None = option(None, "L2 penalty of the optimizer", ge=0)
    momentum: float | None = option(None, "momentum of SGD", ge=0, lt=1)
    nesterov: bool | None = option(None, "Nesterov's momentum")
    decay: str | None = option(
        None, "rate curve; multistep: the method's own, else x0.1 at 1/2 and 3/4", choices=DECAYS
    )
    milestones: list[float] | None = option(None, "fractions of the stage at which multistep multiplies", gt=0, lt=1)
    gamma: Any = option(None, "factor of multistep, or a list with one for each milestone", gt=0, le=1)
    interval: int | None = option(None, "epochs of one cycle of cyclic", ge=1)
    warmup: float | None = option(None, "epochs of linear rise to lr, at most half of the stage", ge=0)
    clip: float | None = option(None, "largest norm of the whole gradient; null = what the method says, or any", gt=0)
    bn_batches: int = option(16, "batches to re-estimate BN statistics on, in fp32, after the last epoch", ge=0)
    distill: float = option(0.0, "weight of the distillation loss against the teacher's logits", ge=0, le=1)
    cut: bool = option(False, "after the last stage of this kind, rebuild the network without its dead channels")


@dataclass
class ScheduleConfig:
    """Lengths and rates by kind of stage: pretrain, prune, quantize, finetune; null = as in the method's paper."""

    name: str = option(MISSING, "config name")
    pretrain: StageConfig = field(default_factory=StageConfig)
    prune: StageConfig = field(default_factory=StageConfig)
    quantize: StageConfig = field(default_factory=StageConfig)
    finetune: StageConfig = field(default_factory=StageConfig)
    max_batches: int | None = option(None, "train and validate on at most that many batches an epoch", ge=1)
    test_images: int | None = option(None, "test on at most that many images", ge=1)
    temperature: float = option(4.0, "softmax temperature of distillation", gt=0)
    teacher: str | None = option(None, "run folder or float weights of it; null = this run's own pretrain stage")
    teacher_model: str | None = option(
        None, "the weights' network, a member of model; null = the run folder's or this run's"
    )


@dataclass
class TrainerConfig:
    """Where and in which precision to train."""

    accelerator: str = option("auto", "device kind", choices=("auto", "cpu", "gpu"))
    devices: int = option(1, "GPUs of this machine; N need torchrun --nproc_per_node=N train.py ...", ge=1)
    precision: str = option("auto", "auto = bf16 where the device is fast at it", choices=("auto", "fp32", "bf16"))
    channels_last: bool = option(True, "NHWC memory format")
    compile: bool = option(False, "torch.compile the network")
    kernels: bool = option(True, "our own sums of signs and gradient of PReLU in training, on the CPU")
    deterministic: bool = option(True, "only deterministic operations")
    threads: int | None = option(None, "CPU threads; null = torch's default", ge=1, le=1024)
    progress: bool = option(True, "live progress bar per stage")


@dataclass
class LoggerConfig:
    """Where metrics go besides metrics.jsonl."""

    _target_: str = MISSING
    project: str = option("sparsign", "W&B project, MLflow experiment")
    entity: str | None = option(None, "W&B entity")
    mode: str = option(
        "auto",
        "W&B; auto = WANDB_MODE, else online with an API key",
        choices=("auto", "online", "offline", "disabled"),
    )
    tags: list[str] = option([], "W&B and MLflow tags")
    uri: str | None = option(None, "MLflow server; null = MLFLOW_TRACKING_URI, else mlflow.db here")


@dataclass
class LatencyConfig:
    """The latency part of the final report."""

    batches: list[int] = option([1], "batch sizes", ge=1, le=1024)
    threads: list[int] = option([1], "thread counts", ge=1, le=1024)
    seconds: float = option(6.0, "time budget of the whole latency part", ge=0)


@dataclass
class TrainConfig:
    """The whole of `python train.py`."""

    compressor: Any = MISSING
    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    seed: int = option(0, "seed of initialisation, splits, order and augmentation", ge=0, lt=2**32)
    leftovers: str = option(
        "fp32", "what stays float in the file: weights, scales, BN are rounded to it", choices=PRECISIONS
    )
    baseline: str | None = option(None, "finished run whose float network this one is set beside in the report")
    objective: list[str] = option(["val_top1"], "what a sweeper is told of a job, in this order", choices=OBJECTIVES)
    resume: str | None = option(None, "run folder to go on with")
    cache: str | None = option(
        None, "folder of pretrain stages that runs share; null: in a sweep, one in its own folder"
    )
    sweep: str | None = option(None, "name of the multirun's folder; null = made from the overrides")


def register() -> None:
    """Puts the root schema into the ConfigStore: it types all groups but `compressor` (`compressors.registry`)."""
    register_help()
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
