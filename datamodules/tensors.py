"""A data set that lives on the device as uint8 and is shuffled, augmented and normalised there, a batch at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [N, C, H, W] -> float32 (images / 255 - mean) / std, with one mean and std per channel."""
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    return images.to(torch.float32).mul_(scale).add_(shift)


@lru_cache(maxsize=16)  # copying them to a GPU for each batch would make every step wait for the one before
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, -1, 1, 1)
    return scale, shift


def pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """[N, C, H, W] -> [N, C, H + 2 padding, W + 2 padding], with zeros or mirrored about the edge pixels (reflect).

    Reflection needs padding < H and W.
    """
    if mode == "zero" or padding == 0:
        return F.pad(images, (padding,) * 4)
    rows, columns = (_reflected(size, padding, images.device) for size in images.shape[-2:])
    return images[:, :, rows][:, :, :, columns]


@lru_cache(maxsize=16)
def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    inner = torch.arange(-padding, size + padding, device=device).abs()
    return torch.where(inner < size, inner, 2 * (size - 1) - inner)


def crop(images: Tensor, offsets: Tensor, side: int) -> Tensor:
    """One window of `side` x `side` per image, in one gather: it starts at row, column `offsets[i]` of image i.

    images [N, C, H, W], offsets int64 [N, 2] -> [N, C, side, side].
    """
    windows = images.unfold(2, side, 1).unfold(3, side, 1)
    return windows[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]


@dataclass(frozen=True)
class Draw:
    """The chance of one epoch, for this rank's images: their order, and where given the corners of their crops (of
    full size, and of the smaller first ones) and which are mirrored."""

    order: Tensor
    offsets: Tensor | None
    small: Tensor | None
    mirrored: Tensor | None


class TensorLoader:
    """Iterates (float32 images [B, C, H, W], int64 labels [B]) over uint8 images held in memory.

    Order, crops and flips of epoch e depend on (seed, e) only, so a resumed run sees the batches it would have seen.
    With `shuffle` every one of `world_size` ranks gets equally many images (a few come twice); without it each image
    comes exactly once.

    Args:
        images: uint8 [N, C, H, H]. labels: [N].
        crop_padding: pixels added on each side before a random crop, 0 for no crop; pad_mode says which.
        flip: "random" mirrors half of the images, "alternate" those that the epoch before left, "none" nothing.
        crop_size, crop_epochs: smaller crops for the batches before the epoch (a fraction counts) `crop_epochs`.

    Raises:
        ValueError: nothing would be yielded.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        crop_padding: int = 0,
        pad_mode: str = "zero",
        crop_size: int | None = None,
        crop_epochs: float = 0.0,
        flip: str = "none",
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images.to(device)
        self.labels = labels.to(device, torch.int64)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.mean, self.std = tuple(mean), tuple(std)
        self.crop_padding, self.pad_mode, self.flip = crop_padding, pad_mode, flip
        self.crop_size, self.crop_epochs = crop_size, crop_epochs if crop_size else 0.0
        self.shuffle, self.seed = shuffle, seed
        self.channels_last = channels_last
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._done = 0  # batches handed out in this epoch
        self._start = 0  # first batch of the next pass: not 0 only when a stopped epoch is gone on with
        if len(self) == 0:
            raise ValueError(
                f"dataset.batch_size={batch_size} leaves no full batch of the {len(images)} images there are"
            )

    def __len__(self) -> int:
        count = self._count()
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    batch_sampler = None  # Lightning looks for one on whatever has a sampler

    @property
    def sampler(self) -> "TensorLoader":
        """This loader: Lightning calls `loader.sampler.set_epoch` at the start of every epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass draws; another epoch than the present one starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self._done, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """The place inside the epoch; Lightning keeps it in the checkpoint."""
        return {"epoch": self.epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that were handed out when `state` was taken."""
        self.epoch, self._start = int(state["epoch"]), int(state["done"]) % len(self)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draw = self._draw()
        start, self._start = self._start, 0
        for batch in range(start, len(self)):
            chosen = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            index = draw.order[chosen]
            images = normalise(self._augmented(draw, chosen, batch), self.mean, self.std)
            if self.channels_last:
                images = images.to(memory_format=torch.channels_last)
            self._done = batch + 1
            yield images, self.labels[index]

    def _augmented(self, draw: Draw, chosen: slice, batch: int) -> Tensor:
        images = self.images[draw.order[chosen]]
        early = self.epoch + batch / len(self) < self.crop_epochs
        offsets, side = (draw.small, self.crop_size) if early else (draw.offsets, images.shape[-1])
        if offsets is not None:
            images = crop(pad(images, self.crop_padding, self.pad_mode), offsets[chosen], side)
        if draw.mirrored is not None:
            images = torch.where(draw.mirrored[chosen].view(-1, 1, 1, 1), images.flip(-1), images)
        return images

    def _count(self) -> int:
        """Images this rank yields in an epoch, before `drop_last`."""
        total = len(self.images)
        if self.shuffle:
            return -(-total // self.world_size)
        return len(range(self.rank, total, self.world_size))

    def _draw(self) -> Draw:
        """Drawn on the CPU, so equal on any device."""
        # a large factor, so that (seed, epoch + 1) and (seed + 1, epoch) do not draw the same stream
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        total, side = len(self.images), self.images.shape[-1]
        order = torch.randperm(total, generator=generator) if self.shuffle else torch.arange(total)
        if self.shuffle:
            order = order[torch.arange(self._count() * self.world_size) % total]
        offsets = small = mirrored = None
        if self.crop_padding:
            offsets = torch.randint(2 * self.crop_padding + 1, (len(order), 2), generator=generator)
        if self.flip == "random":
            mirrored = torch.randint(2, (len(order),), generator=generator, dtype=torch.bool)
        elif self.flip == "alternate":
            first = torch.Generator().manual_seed((self.seed * 1_000_003 - 1) % 2**63)
            mirrored = (torch.randint(2, (total,), generator=first) + self.epoch)[order] % 2 == 1
        if self.epoch < self.crop_epochs:
            places = side + 2 * self.crop_padding - self.crop_size + 1
            small = torch.randint(places, (len(order), 2), generator=generator)
        mine, device = slice(self.rank, None, self.world_size), self.images.device
        return Draw(*(part if part is None else part[mine].to(device) for part in (order, offsets, small, mirrored)))
