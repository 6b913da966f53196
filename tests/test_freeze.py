"""Gradual quantization: weights are frozen on their levels a few at a time while the others train on."""

import pytest
import torch

from sparsign.compressors.parts.fixed_levels import Frozen
from sparsign.compressors.parts.levels import Levels, nearest
from sparsign.compressors.parts.transforms import attach, latent
from sparsign.pipeline.folder import load_plain
from sparsign.train import run
from tests.conftest import TINY_DATA

LAYERS = ("conv1", "conv2", "fc1", "fc2")


def test_ten_weights_are_frozen_in_the_order_of_their_distance():
    """Levels 1, 2, 3 of either sign, ten weights in two rounds; positions 3 and 8 are pruned."""
    weight = torch.tensor([1.05, -2.2, 0.3, 0.0, 3.4, -1.01, 2.15, -0.75, 0.0, 1.3, -2.9, 2.49])
    #        distance      0.05   0.2  0.7  -   0.4   0.01  0.15   0.25  -   0.3   0.1   0.49
    kept = (weight != 0).float()
    layer = torch.nn.Linear(12, 1, bias=False)
    attach(layer, Frozen((1, 12)))
    frozen = layer.parametrizations.weight[0]

    def freeze(values):
        latent(layer).data.copy_(values)
        v = layer.weight.detach()
        frozen.freeze(v, nearest(v, torch.ones(()), Levels(3, zero=False)) * kept, kept, fraction=0.3)
        return [i for i in range(12) if frozen.frozen[0, i] and kept[i]]

    assert freeze(weight) == [0, 5, 10]  # three of ten
    assert layer.weight[0, [0, 3, 5, 8, 10]].tolist() == [1, 0, -1, 0, -3]
    assert layer.weight[0, [1, 2, 4, 6, 7, 9, 11]].equal(weight[[1, 2, 4, 6, 7, 9, 11]])
    moved = weight.clone()
    moved[[0, 10]] = 2.0  # the latent weights below frozen ones do not count
    moved[2], moved[6] = 1.002, 2.45
    assert freeze(moved) == [0, 1, 2, 5, 10]  # two of seven: floor(0.3 * 7)
    assert layer.weight[0, [0, 1, 2, 5, 10]].tolist() == [1, -2, 1, -1, -3]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_momentum_and_weight_decay_leave_frozen_weights_on_their_levels(optimizer):
    layer = torch.nn.Linear(4, 2, bias=False)
    attach(layer, Frozen((2, 4)))
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    trained = optimizer([latent(layer)], lr=0.1, weight_decay=0.1, **options)

    def step():
        trained.zero_grad()
        layer(torch.ones(1, 4)).sum().backward()
        trained.step()

    step()  # builds momentum up
    frozen = layer.parametrizations.weight[0]
    frozen.freeze(layer.weight.detach(), layer.weight.detach().round(), torch.ones(2, 4), 0.5)
    before, held = layer.weight.clone(), frozen.frozen.clone()
    step()
    assert torch.equal(layer.weight[held], before[held]) and int(held.sum()) == 4
    assert (layer.weight[~held] != before[~held]).all()


def test_a_run_freezes_round_by_round_and_ends_on_exact_codes(configuration, tmp_path, plain_page):
    config = configuration(
        "experiment=admm_lenet5_mnist_71x_interval", *TINY_DATA, "dataset.channels=1", "dataset.mean=[0.5]",
        "dataset.std=[0.5]", "dataset.image_size=16", "compressor.rhos=[0.1]", "compressor.freeze_rounds=2",
        "compressor.ratios={conv1: 0.2, conv2: 0.8, fc1: 0.9, fc2: 0.5}", "schedule.max_batches=3",
        *(f"schedule.{kind}.epochs=1" for kind in ("pretrain", "prune", "quantize", "finetune")),
    )  # fmt: skip
    report = run(config, tmp_path / "run")
    assert report["reload"]["identical_predictions"]

    def stage(name, layer):
        """(weight that the network uses, mask, where frozen, latent weight) at the end of a stage."""
        state = load_plain(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")["model"]
        at = f"{layer}.parametrizations.weight"
        mask, original = state[f"{at}.0.mask"].bool(), state[f"{at}.original"]
        frozen, value, codes, scale = (state[f"{at}.{k}"] for k in ("2.frozen", "2.value", "3.codes", "3.scale"))
        if state[f"{at}.3._extra_state"]["active"]:
            assert set(codes.unique().tolist()) <= set(range(-63, 64)) and codes[mask].all() and not codes[~mask].any()
            return codes.float() * scale, mask, None, scale
        return torch.where(frozen, value, original * mask), mask, frozen, scale

    for layer in LAYERS:
        (w0, mask, f0, s0), (w1, _, f1, s1), (w2, _, f2, s2) = (
            stage(name, layer) for name in ("quantize", "finetune-2", "finetune-3")
        )
        n = int(mask.sum())
        first = int(0.3 * n + 1e-6)
        assert int((f0 & mask).sum()) == first
        assert int((f1 & mask).sum()) == first + int(0.3 * (n - first) + 1e-6)
        assert f2 is None and s0 == s1 == s2  # all are on their levels now
        assert (f1 | ~f0).all() and torch.equal(w1[f0], w0[f0]) and torch.equal(w2[f1], w1[f1])
        assert (w1 != w0)[mask & ~f0].float().mean() > 0.9
        assert not w2[~mask].any()
        for weight, held in ((w0, f0), (w1, f1)):
            units = weight[held & mask] / s0
            assert torch.equal(units.round() * s0, weight[held & mask])
