"""Decide: how many go, and which."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def removed(count: int, ratio: float) -> int:
    """How many of `count` go when the fraction `ratio` is removed: floor(ratio * count).

    The one rule of all methods. Products of floats fall short of what they mean (0.29 * 100 is 28.999999999999996),
    hence the 1e-6.
    """
    return math.floor(ratio * count + 1e-6)


def least(importance: Tensor, ratio: float) -> Tensor:
    """Bool [filters]: the `removed(filters, ratio)` filters of least importance. Ties go to the earlier filter."""
    dead = torch.zeros_like(importance, dtype=torch.bool)
    dead[importance.argsort(stable=True)[: removed(len(importance), ratio)]] = True
    return dead


def choose_filters(
    importance: dict[str, Tensor], exempt: set[str], ratio: float, cap: float, fewest: int, total: int | None = None
) -> dict[str, Tensor]:
    """Which filters go: of all layers' filters together the least important, but at most `cap` of a layer.

    `removed(all, ratio)` of them go; no layer gets below `fewest`. Filters of exempt layers count in `all` and stay.
    What a full layer cannot give up is taken from the next filters in the global order (redistribution, our choice; the
    paper has limits of unknown value). Ties go to the earlier filter.

    Args:
        importance: layer name -> |gamma| [out].
        total: how many filters the ratio is of; None: all that have an importance.
    Returns:
        layer name -> bool [out], True = remove.
    """
    wanted = removed(sum(len(v) for v in importance.values()) if total is None else total, ratio)
    room = {n: max(0, min(len(v) - fewest, removed(len(v), cap))) for n, v in importance.items()}
    order = [(float(g), n, k) for n, v in importance.items() if n not in exempt for k, g in enumerate(v)]
    dead = {n: torch.zeros(len(v), dtype=torch.bool) for n, v in importance.items()}
    for _, name, k in sorted(order, key=lambda item: item[0]):
        if wanted > 0 and room[name] > 0:
            dead[name][k] = True
            room[name] -= 1
            wanted -= 1
    return dead
