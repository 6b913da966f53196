"""The random stream of every epoch, a function of seed, stage and epoch alone."""

from __future__ import annotations


def epoch_seed(seed: int, stage: str, epoch: int) -> int:
    """The torch seed of an epoch: a resumed run draws the same dropout masks as one that never stopped."""
    return (seed * 1_000_003 + sum(ord(c) * 31**i for i, c in enumerate(stage)) * 8191 + epoch) % 2**63
