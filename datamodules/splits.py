"""What a data set is once read, and how images are split, limited and fitted; all before any training seed counts."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

SPLIT_SEED = 20_240  # fixed, so that every run of every seed holds out the same images


@dataclass(frozen=True)
class Split:
    """A data set in memory: images uint8 [N, C, H, W], labels int64 [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def stratified(labels: Tensor, count: int, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Split indices into (rest, picked): `picked` holds `count` indices, each class in its share (largest remainder).

    Both come sorted and are disjoint. Raises ValueError when there are not `count` labels.
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"cannot pick {count} of {len(labels)} images")
    classes, sizes = labels.unique(return_counts=True)
    shares = sizes.double() * count / len(labels)
    quota = shares.floor().long()
    short = count - int(quota.sum())
    quota[(quota - shares).argsort(stable=True)[:short]] += 1
    generator = torch.Generator().manual_seed(seed)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label, wanted in zip(classes.tolist(), quota.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        taken[members[torch.randperm(len(members), generator=generator)[:wanted]]] = True
    return (~taken).nonzero().flatten(), taken.nonzero().flatten()


def subset(labels: Tensor, limit: int | None) -> Tensor:
    """Sorted indices of all labels, or of `limit` of them with each class in its share."""
    return stratified(labels, limit)[1] if limit is not None and limit < len(labels) else torch.arange(len(labels))


def fit_images(images: Tensor, channels: int, image_size: int, dataset: str) -> Tensor:
    """Zero-pad [N, C, H, H] evenly to `image_size` and repeat one grey channel `channels` times where asked.

    Raises ValueError for a size below the images' own, or a channel count they cannot give.
    """
    native, size = images.shape[1], images.shape[-1]
    if channels != native and native != 1:
        raise ValueError(f"dataset.channels={channels} does not suit {dataset}; expected {native}")
    if image_size < size:
        raise ValueError(f"dataset.image_size={image_size} does not suit {dataset}; expected {size} or more")
    before = (image_size - size) // 2
    after = image_size - size - before
    return F.pad(images, (before, after, before, after)).expand(-1, channels, -1, -1).contiguous()


def missing(root: str | Path, wanted: str) -> FileNotFoundError:
    """The error for a data set that is not under its root: one line with option, value and the files looked for."""
    return FileNotFoundError(f"dataset.root={root} holds no {wanted} (set dataset.download=true to fetch them)")
