"""ADMM's auxiliary variable and scaled dual of one layer, carried by the layer's weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import WeightTransform

Projection = Callable[[Tensor], Tensor]


class Dual(WeightTransform):
    """Identity in the forward pass; while active, pulls the weight W to the constraint set S.

    Buffers: Z [weight's shape], the nearest member of S so far; U, the scaled dual; rho; `moved` = ||Z_new - Z_old||.
    U is not rescaled when rho grows, as in the authors' code (strict scaled ADMM would).

    Once an interval solves the W-step, U is -grad loss / rho where Z is zero. An interval too short for its rho
    (rho * sum of lr / (1 - momentum) << 1) hardly moves W: U winds up and Z's support changes at every update; a gap
    around 1 shows it.
    """

    def __init__(self, shape: torch.Size, active: bool = False) -> None:
        super().__init__(active)
        self.register_buffer("Z", torch.zeros(shape))
        self.register_buffer("U", torch.zeros(shape))
        self.register_buffer("rho", torch.zeros(()))
        self.register_buffer("moved", torch.zeros(()))

    def transform(self, weight: Tensor) -> Tensor:
        return weight

    @torch.no_grad()
    def begin(self, weight: Tensor, project: Projection, rho: float) -> None:
        """U = 0, Z = project(W)."""
        self.U.zero_()
        self._move(project(weight))
        self.rho.fill_(rho)
        self.active = True

    @torch.no_grad()
    def update(self, weight: Tensor, project: Projection, growth: float) -> None:
        """rho = growth * rho, then Z = project(W + U), then U = U + W - Z (lab code's order)."""
        self.rho.mul_(growth)
        self._move(project(weight + self.U))
        self.U.add_(weight - self.Z)

    def _move(self, target: Tensor) -> None:
        self.moved.copy_((target - self.Z).norm())
        self.Z.copy_(target)

    def penalty(self, weight: Tensor) -> Tensor:
        """rho/2 ||W - Z + U||_F^2, with gradient rho (W - Z + U)."""
        return self.rho / 2 * (weight - self.Z + self.U).square().sum()

    @torch.no_grad()
    def gap(self, weight: Tensor) -> float:
        """||W - Z|| / ||W||, the relative primal residual."""
        return float((weight - self.Z).norm() / weight.norm().clamp_min(1e-12))


def convergence(duals: list[tuple[nn.Module, Dual]]) -> dict[str, float | list[float]]:
    """How far ADMM is, per layer: ||W - Z|| / ||W|| and ||Z_new - Z_old||; and its rho. Empty without a dual."""
    if not duals:
        return {}
    gaps = [dual.gap(layer.weight) for layer, dual in duals]
    return {
        "admm_gap": gaps,
        "admm_gap_max": max(gaps),
        "admm_dual_residual": [float(dual.moved) for _, dual in duals],
        "admm_rho": float(duals[0][1].rho),
    }
