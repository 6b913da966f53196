"""What every image data set has in common: its options and what a stage asks of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

Batches = Iterable[tuple[Tensor, Tensor]]
FLIPS = ("random", "alternate", "none")
PAD_MODES = ("zero", "reflect")


class ImageData:
    """Options of a data set, checked, and the loaders that subclasses give.

    `datamodules/on_device.py` holds the sets that fit in memory, `datamodules/streamed.py` those that are decoded while
    training goes on. A caller may set `device` and `channels_last` before `setup()`: batches arrive as float32
    [B, channels, H, W], normalised, on that device. The validation part is cut off the training part, stratified and
    the same for every seed; val_fraction 0 means none, and `val_dataloader()` is then an empty list.

    flip: None is the set's own habit (`mirrored`), else random (half of the images), alternate (half of them in one
    epoch, the other half in the next) or none. crop_size, crop_part: in that part of a stage's steps train on crops of
    that side. limit, limit_test: use only so many images. Raises ValueError for options the set cannot take.
    """

    classes: int | None = None
    """How many there are; None where the folders decide."""
    class_names: Sequence[str] | None = None
    crop_padding = 0
    mirrored = False
    own_options: ClassVar[Mapping[str, Any]] = {}
    """What `dataset.options` may hold for this data set, with its defaults; `self.options` has the values."""
    trainer: Any = None
    """Lightning's Trainer while a stage trains: the loaders then have this rank's share, and know the stage's end."""

    def __init__(
        self,
        *,
        seed: int,
        root: str,
        download: bool,
        batch_size: int,
        val_fraction: float,
        augment: bool,
        channels: int,
        image_size: int,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        flip: str | None = None,
        pad_mode: str = "zero",
        crop_size: int | None = None,
        crop_part: float = 0.6,
        workers: int = 0,
        prefetch_factor: int = 4,
        limit: int | None = None,
        limit_test: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.title = type(self).__name__
        self.seed, self.root, self.download = seed, Path(root).expanduser(), download
        self.batch_size, self.val_fraction, self.augment = batch_size, val_fraction, augment
        self.channels, self.image_size, self.num_classes = channels, image_size, num_classes
        self.mean, self.std = tuple(mean), tuple(std)
        self.flip = (flip or ("random" if self.mirrored else "none")) if augment else "none"
        self.pad_mode, self.crop_size, self.crop_part = pad_mode, crop_size, crop_part
        self.workers, self.prefetch_factor = workers, prefetch_factor
        self.limit, self.limit_test = limit, limit_test
        self.options = {**self.own_options, **(options or {})}
        self.device: torch.device | str = "cpu"
        self.channels_last = False
        self._check()

    def prepare_data(self) -> None:
        """Fetch what is absent, where that is possible and allowed."""

    def setup(self, stage: str | None = None) -> None:
        """Read or index the files; afterwards the loaders work."""
        raise NotImplementedError

    def train_dataloader(self) -> Batches:
        """Shuffled, augmented where asked, without the last incomplete batch (unless it is the only one).

        Order and augmentation of epoch e depend on (seed, e) only.
        """
        raise NotImplementedError

    def val_dataloader(self) -> Batches:
        """The held-out part of the training images, plain and in order; [] when val_fraction is 0."""
        raise NotImplementedError

    def test_dataloader(self) -> Batches:
        """The test images, plain and in order."""
        raise NotImplementedError

    def contents(self) -> dict[str, Any]:
        """Tensors and plain values that tell these images and labels from others: runs that share a pretrain stage must
        agree in them. Here those of the first batches; a set that can tells of all.
        """
        loaders = {"train": self.train_dataloader(), "val": self.val_dataloader(), "test": self.test_dataloader()}
        first = {name: next(iter(loader), ()) for name, loader in loaders.items()}
        return {f"{name}.{k}": tensor for name, batch in first.items() for k, tensor in enumerate(batch)}

    def world(self) -> tuple[int, int]:
        """(rank, how many ranks) of this process."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _check(self) -> None:
        for name in self.options:
            if name not in self.own_options:
                known = " | ".join(self.own_options) or "none"
                raise ValueError(f"dataset.options.{name}: {self.title} has no such option; expected {known}")
        expected = self.num_classes if self.classes is None else self.classes
        if self.num_classes != expected:
            raise ValueError(f"dataset.num_classes={self.num_classes} does not suit {self.title}; expected {expected}")
        if self.batch_size < 1:
            raise ValueError(f"dataset.batch_size={self.batch_size}; expected 1 or more")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"dataset.val_fraction={self.val_fraction}; expected a value in [0, 1)")
        for name, count in (("limit", self.limit), ("limit_test", self.limit_test)):
            if count is not None and count < 1:
                raise ValueError(f"dataset.{name}={count}; expected null or 1 or more")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"dataset.{name}={list(values)}; expected {self.channels} values, one per channel")
        if min(self.std) <= 0:
            raise ValueError(f"dataset.std={list(self.std)}; expected values above 0")
        for name, value, choices in (("flip", self.flip, FLIPS), ("pad_mode", self.pad_mode, PAD_MODES)):
            if value not in choices:
                raise ValueError(f"dataset.{name}={value}; expected {' | '.join(choices)}")
        if self.crop_size is not None and not 1 <= self.crop_size <= self.image_size:
            raise ValueError(f"dataset.crop_size={self.crop_size}; expected null or 1 to {self.image_size}")

    def _check_left(self, count: int, of: int) -> None:
        """`count`: the training images that are not held out."""
        if of and not count:
            raise ValueError(f"dataset.val_fraction={self.val_fraction} leaves none of the {of} images to train on")


def fetch_or_explain(fetch: Callable[[], None], title: str, root: Path) -> None:
    """Download; whatever goes wrong becomes one clear FileNotFoundError that names the root and the cause.

    The root is made where only it is missing: a path that goes on from nowhere is a slip of the pen.
    """
    if not root.parent.is_dir():
        raise FileNotFoundError(f"dataset.root={root}: there is no folder {root.parent}")
    made = not root.exists()
    try:
        root.mkdir(exist_ok=True)
        fetch()
    except (OSError, RuntimeError) as error:
        if made:
            with suppress(OSError):
                root.rmdir()  # if nothing came
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"dataset.root={root} holds no {title} and the download failed ({cause}); put the files there by hand"
        ) from error
