"""Logits and top-1 of anything that maps normalised images to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]
"""fp32 normalised images [N, C, H, W] -> logits [N, classes]."""

Batches = Iterable[tuple[Tensor, Tensor]]
"""(normalised images fp32 [B, C, H, W], labels int64 [B]) in a fixed order: a data set's test loader."""


def limited(batches: Batches, count: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `count` images of the batches; all of them for None."""
    left = count
    for images, labels in batches:
        if left is None:
            yield images, labels
            continue
        yield images[:left], labels[:left]
        left -= len(labels[:left])
        if left <= 0:
            return


@torch.no_grad()
def logits(network: Network, batches: Batches, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """(fp32 logits [N, classes], labels [N]), both on the CPU. Raises ValueError when there are no images."""
    answers, truth = [], []
    for images, labels in batches:
        # As the trained network is tested: another layout of the images is another order of summation.
        answers.append(network(images.to(device, memory_format=torch.contiguous_format)).float().cpu())
        truth.append(labels.cpu())
    if not answers:
        raise ValueError("no test images to measure on")
    return torch.cat(answers), torch.cat(truth)


def top5(logits: Tensor, labels: Tensor) -> float | None:
    """Fraction of images whose label is among the five largest logits; None where there are no more than five."""
    if logits.shape[1] <= 5:
        return None
    return (logits.topk(5, dim=1).indices == labels[:, None]).any(1).double().mean().item()


def top1(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose largest logit is the label's."""
    return (logits.argmax(1) == labels).double().mean().item()
