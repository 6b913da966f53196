"""PTQ's four gradients of the ternary weights: what the latent weight is updated by, for G = dL/du_hat.

Each is a function of u [out, ...] (masked filters of unit norm) and of u_hat, the ternary point sign(u) / sqrt(k). It
gives two tensors: a surrogate of u, through which G flows back, and the point to which (lambda / 2) ||u - point||^2
pulls u. The paper names only a refined straight-through estimator with a weight-decay-like term (certain); the four are
our choice. The mask before u makes all of them zero where a weight is pruned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsign.compressors.parts.transforms import UnitNorm

Estimator = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def plain(u: Tensor, hat: Tensor) -> tuple[Tensor, Tensor]:
    """R0: m G + lambda w: the straight-through gradient and ordinary decay, to zero."""
    return u, torch.zeros_like(hat)


def refined(u: Tensor, hat: Tensor) -> tuple[Tensor, Tensor]:
    """R1: m [G + lambda (u - u_hat)]: the straight-through gradient and decay to the ternary point."""
    return u, hat


def tangent(u: Tensor, hat: Tensor) -> tuple[Tensor, Tensor]:
    """R2: m (I - u u') G / ||w|| + lambda (u - u_hat): back through the norm, along the sphere."""
    return UnitNorm()(u), hat


def rescaled(u: Tensor, hat: Tensor) -> tuple[Tensor, Tensor]:
    """R3: m [G |u| / |u_hat| + lambda (u - u_hat)]: small weights move less (soft clip)."""
    size = hat.abs()
    return u * torch.where(size > 0, u.detach().abs() / size, 0.0), hat


ESTIMATORS: dict[str, Estimator] = {"R0": plain, "R1": refined, "R2": tangent, "R3": rescaled}
