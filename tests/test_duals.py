"""The dual against ADMM written in numpy, with a loss whose W-step can be solved exactly."""

import numpy as np
import pytest
import torch

from sparsign.compressors.parts.duals import Dual
from sparsign.compressors.pruning.projections import project

SIZE, KEPT = 12, 4


def quadratic(seed):
    """w -> 1/2 w'Hw - b'w with eigenvalues of H in [0.2, 4]."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
    return basis @ np.diag(np.linspace(0.2, 4, SIZE)) @ basis.T, rng.normal(size=SIZE)


def reference(h, b, rho, growth, updates):
    """(W, Z, U) after every W-step; the augmented Lagrangian's minimiser in closed form."""
    w = np.linalg.solve(h, b)
    z, u = np.zeros(SIZE), np.zeros(SIZE)
    z[np.argsort(-np.abs(w))[:KEPT]] = w[np.argsort(-np.abs(w))[:KEPT]]
    for k in range(updates + 1):
        if k:
            rho, v = rho * growth, w + u
            z = np.where(np.abs(v) >= np.sort(np.abs(v))[-KEPT], v, 0.0)
            u = v - z
        w = np.linalg.solve(h + rho * np.eye(SIZE), b + rho * (z - u))
        yield w, z, u


@pytest.mark.parametrize(("rho", "growth"), [(0.1, 1.0), (0.3, 1.3), (8.0, 1.0)])
def test_iterates_equal_admm_with_exact_w_steps(rho, growth):
    for seed in range(3):
        h, b = quadratic(seed)
        hessian, linear = torch.tensor(h), torch.tensor(b)
        w = torch.linalg.solve(hessian, linear).requires_grad_()
        dual = Dual((SIZE,)).double()

        def best(v):
            return project(v, 1 - KEPT / SIZE, "irregular")

        dual.begin(w.detach(), best, rho)
        for k, expected in enumerate(reference(h, b, rho, growth, 15)):
            if k:
                dual.update(w.detach(), best, growth)
            loss = 0.5 * w @ hessian @ w - linear @ w + dual.penalty(w)
            (gradient,) = torch.autograd.grad(loss, w)
            w.data -= torch.linalg.solve(hessian + dual.rho * torch.eye(SIZE, dtype=torch.float64), gradient)
            for mine, theirs in zip((w, dual.Z, dual.U), expected, strict=True):
                np.testing.assert_allclose(mine.detach().numpy(), theirs, atol=1e-9)


def test_a_rho_above_the_curvature_ends_in_a_stationary_point_of_the_sparse_problem():
    h, b = quadratic(0)
    *_, (w, z, u) = reference(h, b, 16.0, 1.0, 400)
    assert np.abs(w - z).max() < 1e-9  # feasible
    support = z != 0
    assert np.allclose((h @ z - b)[support], 0, atol=1e-8)  # nothing to gain on the support
    assert np.allclose(u, -(h @ z - b) / 16.0, atol=1e-8)  # elsewhere the dual holds the loss's pull, and no more
