"""Equally spaced quantization levels, scale * {-M..M} with or without 0, and the searches for the best scale."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("binary", "ternary", "bits", "interval")


class Levels(NamedTuple):
    """The integers -largest..largest; `zero`: whether 0 is one of them."""

    largest: int
    zero: bool


def levels_of(kind: str, bits: int, one_sided: bool) -> Levels:
    """The levels of a quantization kind.

    binary: {-1, 1}; ternary: {-1, 0, 1}; bits: 0, ±1..±(2^(b-1) - 1), or, `one_sided`, ±1..±2^(b-1) (the lab code goes
    to ±2^b, which takes b + 1 bits; at most 127 here: our choice); interval: ±1..±(2^(b-1) - 1), the 63, 31 and 7 of
    the lab code's 7, 6 and 4 bits. Levels without 0 are for pruned layers, whose zeros the mask holds.

    Raises:
        ValueError: kind or number of bits without levels.
    """
    largest = 2 ** (bits - 1) - 1
    if kind not in KINDS:
        raise ValueError(f"quantize={kind}: expected one of {' | '.join(KINDS)}")
    if kind == "binary":
        return Levels(1, zero=False)
    if kind == "ternary":
        return Levels(1, zero=True)
    if kind == "bits" and one_sided:
        return Levels(min(2 ** (bits - 1), 127), zero=False)
    if largest < 1:
        raise ValueError(f"bits={bits}: {kind} levels need at least 2 bits")
    return Levels(largest, zero=kind == "bits")


def nearest(values: Tensor, scale: Tensor, levels: Levels) -> Tensor:
    """Integer codes (float tensor) of the nearest levels: argmin over codes of |value - scale * code|."""
    units = values / scale.clamp_min(torch.finfo(values.dtype).tiny)
    if levels.zero:
        return units.round().clamp(-levels.largest, levels.largest)
    sign = torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
    return sign * units.abs().round().clamp(1, levels.largest)


def least_squares_scale(values: Tensor, codes: Tensor) -> Tensor:
    """alpha = <V, Q> / <Q, Q>, the minimiser of ||V - alpha Q||; 0 for all-zero codes."""
    return (values * codes).sum() / codes.square().sum().clamp_min(1)


@torch.no_grad()
def alternate(values: Tensor, kept: Tensor, levels: Levels, iterations: int = 50) -> tuple[Tensor, Tensor]:
    """(codes, alpha) of a local minimum of ||V - alpha Q||^2 over the kept positions; codes elsewhere are 0.

    Alternates Q = nearest codes and alpha = <V, Q> / <Q, Q>; neither step increases the error. Starts from mean |V|
    divided by half the largest level (lab code, there mean |W| and 5 or 6 rounds; here until Q stays: our choice).
    With levels {-1, 1} the first round is the optimum: sign(V) and mean |V|.

    Args:
        values: any shape. kept: 0/1, broadcastable to it.
    """
    kept = kept.expand_as(values)
    values = values * kept
    alpha = values.abs().sum() / kept.sum().clamp_min(1) / max(levels.largest / 2, 1.0)
    codes = torch.zeros_like(values)
    for _ in range(iterations):
        previous, codes = codes, nearest(values, alpha, levels) * kept
        alpha = least_squares_scale(values, codes)
        if torch.equal(codes, previous):
            break
    return codes, alpha


@torch.no_grad()
def search_interval(values: Tensor, kept: Tensor, levels: Levels) -> Tensor:
    """The level distance q of least squared error over the kept values (ADMM-NN: lab code).

    Scans q from 0.9 q0 to 1.1 q0 in steps of 0.001 q0, with q0 = max |value| / largest level. The lab code adds the
    error of the pruned zeros, which no level is meant for; they are left out here (our choice).
    """
    survivors = values[kept.expand_as(values) > 0]
    if not survivors.numel():
        return values.new_ones(())
    q0 = survivors.abs().max() / levels.largest
    candidates = [q0 * (0.9 + 0.001 * step) for step in range(201)]
    errors = [(survivors - q * nearest(survivors, q, levels)).square().sum() for q in candidates]
    return candidates[int(torch.stack(errors).argmin())]


def encode(values: Tensor, kept: Tensor, levels: Levels, interval: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(codes, scale) of the quantized weight nearest to the values, zero outside the 0/1 mask `kept`.

    With a fixed `interval` only the codes are sought, else the scale as well.
    """
    return alternate(values, kept, levels) if interval is None else (nearest(values, interval, levels) * kept, interval)
