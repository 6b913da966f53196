"""What ADMM-NN-S leaves in the network: whole structures gone, zeros that stay, survivors on their levels."""

from itertools import pairwise

import pytest
import torch
from plain_loop import run, run_stage
from residual import EXAMPLE, INNER, LAYERS, Residual, images_and_labels, seeded
from torch import nn

from sparsign.compressors.admm import ADMM
from sparsign.compressors.base import Stage
from sparsign.compressors.parts.fixed_levels import FixedLevels
from sparsign.compressors.parts.transforms import WeightMask, attach, encode_layer, find, latent, scaled
from sparsign.compressors.pruning.cut import attach_channel_masks
from sparsign.compressors.pruning.purify import remove_unused_paths
from sparsign.models.channels import removable

QUICK = {"rhos": [1e-2, 1.0], "purify": False}
_seeded = pytest.fixture(seeded, autouse=True)
data = pytest.fixture(images_and_labels)


def filters_alive(layer):
    return layer.weight.flatten(1).ne(0).any(dim=1)


def columns_alive(layer):
    return layer.weight.ne(0).any(dim=0)


def inputs_alive(layer):
    return columns_alive(layer).view(layer.weight.shape[1], -1).any(dim=1)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_masked_retraining_keeps_the_zeros_exactly(data, optimizer):
    model, admm = Residual(), ADMM(structure="irregular", pfr=0.7, quantize="none", **QUICK)
    admm.prepare(model, EXAMPLE)
    for stage in admm.stages(model)[:-1]:
        run_stage(admm, model, stage, *data, epochs=1, lr=0.01)
    stage = admm.stages(model)[-1]
    zeros = {name: getattr(model, name).weight == 0 for name in INNER}
    values = {name: getattr(model, name).weight.clone() for name in INNER}
    for name in INNER:
        assert int(zeros[name].sum()) >= int(0.7 * zeros[name].numel())
        assert not latent(getattr(model, name))[zeros[name]].any()
    trained = optimizer(admm.parameters(model, stage), lr=0.01, weight_decay=0.1)
    for _ in range(5):
        trained.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        admm.before_step(model, stage)
        trained.step()
        admm.after_step(model, stage)
    for name in INNER:
        assert not getattr(model, name).weight[zeros[name]].any()
        assert not torch.equal(getattr(model, name).weight, values[name])


def test_filters_go_whole_their_bn_with_them_and_their_readers_columns(data):
    model, admm = Residual(), ADMM(structure="filter", pfr=0.5, quantize="ternary", **QUICK)
    model, _ = run(admm, model, *data)
    for name, bn in (("conv1a", "bn1a"), ("conv1b", "bn1b"), ("conv2a", "bn2a"), ("conv2b", "bn2b")):
        alive = filters_alive(getattr(model, name))
        assert int(alive.sum()) <= 4
        dead = ~alive
        assert not getattr(model, bn).weight[dead].any() and not getattr(model, bn).bias[dead].any()
    for producer, consumer in (("conv1a", "conv1b"), ("conv2a", "conv2b")):
        read = inputs_alive(getattr(model, consumer))
        assert not read[~filters_alive(getattr(model, producer))].any()
    assert filters_alive(model.fc).all()
    cut = removable(model, EXAMPLE, through_sign=False)  # the exact rule sees the same dead filters
    for name in INNER:
        assert torch.equal(cut[name].rows_removed, ~filters_alive(getattr(model, name)))


def test_columns_and_channels_go_whole_and_the_combination_loses_both(data):
    model, _ = run(ADMM(structure="column", pfr=0.5, quantize="none", **QUICK), Residual(), *data)
    for name in INNER:
        assert int(columns_alive(getattr(model, name)).sum()) <= 36
    model, _ = run(ADMM(structure="channel", pfr=0.25, quantize="none", **QUICK), Residual(), *data)
    for name in INNER:
        assert int(inputs_alive(getattr(model, name)).sum()) <= 6
    model, _ = run(ADMM(structure="column_then_filter", pfr=0.75, quantize="none", **QUICK), Residual(), *data)
    for name in INNER:
        assert int(columns_alive(getattr(model, name)).sum()) <= 36
        assert int(filters_alive(getattr(model, name)).sum()) <= 4


def test_ratios_reach_float_layers_but_never_the_classes(data):
    admm = ADMM(structure="filter", pfr=0.0, ratios={"conv1": 0.5, "fc": 0.9}, quantize="none", **QUICK)
    model, _ = run(admm, Residual(), *data)
    assert int(filters_alive(model.conv1).sum()) == 4 or not filters_alive(model.conv1).all()
    assert filters_alive(model.fc).all()
    assert filters_alive(model.conv1a).all()


def test_purification_removes_what_the_projection_left_weak(data):
    def alive(purify):
        torch.manual_seed(0)
        model, admm = Residual(), ADMM(pfr=0.25, quantize="none", rhos=[1e-2], purify=purify)
        admm.prepare(model, EXAMPLE)
        latent(model.conv1a).data[0] *= 1e-3
        latent(model.conv1a).data[1] *= 1e-3
        latent(model.conv1a).data[2] *= 1e-2
        stage = Stage("prune")
        admm.start(model, stage)
        admm.finish(model, stage)
        return filters_alive(model.conv1a).tolist()

    assert alive(False) == [False, False] + [True] * 6
    assert alive(True) == [False] * 3 + [True] * 5


def test_unused_paths_of_a_residual_stream_follow_the_producer_consumer_rule():
    """A filter goes when every consumer after it is empty there, an input channel when every producer before it is."""
    producers, consumers = ("conv1", "conv1b", "conv2b"), ("conv1a", "conv2a", "fc")
    order = ("conv1", "conv1a", "conv1b", "conv2a", "conv2b", "fc")
    for trial in range(20):
        torch.manual_seed(trial)
        model = Residual()
        for bn in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(bn.bias, 0.5, 1.0)
        for name in LAYERS:
            attach(getattr(model, name), WeightMask(getattr(model, name).weight.shape))
        attach_channel_masks(model)
        for name in LAYERS:
            mask = find(getattr(model, name), WeightMask).mask
            if name != "fc":
                mask[torch.rand(8) < 0.5] = 0
            if name != "conv1":
                mask[:, torch.rand(8) < 0.5] = 0
        rows = {n: filters_alive(getattr(model, n)).clone() for n in LAYERS}
        cols = {n: inputs_alive(getattr(model, n)).clone() for n in LAYERS}

        def spread(rows=rows, cols=cols):
            for _ in range(20):
                for i in (1, 2):  # inside a block: a plain chain
                    alive = rows[f"conv{i}a"] & cols[f"conv{i}b"]
                    rows[f"conv{i}a"], cols[f"conv{i}b"] = alive, alive
                for p in producers:
                    after = [cols[c] for c in consumers if order.index(c) > order.index(p)]
                    rows[p] = rows[p] & torch.stack(after).any(0)
                for c in consumers:
                    before = [rows[p] for p in producers if order.index(p) < order.index(c)]
                    cols[c] = cols[c] & torch.stack(before).any(0)
                for name in INNER:  # a layer without inputs writes nothing, one without outputs reads nothing
                    if not cols[name].any() or not rows[name].any():
                        cols[name], rows[name] = torch.zeros(8) > 0, torch.zeros(8) > 0

        spread()
        remove_unused_paths(model, EXAMPLE)
        for name in LAYERS:
            layer = getattr(model, name)
            if rows[name].any() and cols[name].any():
                assert filters_alive(layer).tolist() == (rows[name].tolist()), (trial, name)
                assert inputs_alive(layer).tolist() == cols[name].tolist(), (trial, name)
            assert torch.equal(latent(layer), layer.weight)  # the zeros reached the latent weights and the first mask
            assert torch.equal(latent(layer), find(layer, WeightMask).mask * latent(layer))


def test_binary_levels_on_all_layers_have_one_scale_each(data):
    admm = ADMM(pfr=0.0, quantize="binary", float_layers=[], rhos=[1e-2, 1.0])
    model, _ = run(admm, Residual(), *data)
    for name in LAYERS:
        codes, scale = encode_layer(getattr(model, name))
        assert scale.dim() == 0 and set(codes.unique().tolist()) == {-1, 1}
        assert torch.equal(scaled(codes, scale), getattr(model, name).weight)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"quantize": "ternary"}, {-1, 0, 1}),
        ({"quantize": "bits", "bits": 3}, set(range(-3, 4))),
        ({"quantize": "bits", "bits": 2, "one_sided": True}, {-2, -1, 1, 2}),
        ({"quantize": "interval", "bits": 3}, {-3, -2, -1, 1, 2, 3}),
    ],
)
def test_quantized_survivors_stand_on_their_levels_through_the_last_finetune(data, options, allowed):
    admm = ADMM(structure="irregular", pfr=0.5, float_layers=["first"], **QUICK, **options)
    admm.prepare(model := Residual(), EXAMPLE)
    *stages, last = admm.stages(model)
    for stage in stages:
        run_stage(admm, model, stage, *data, epochs=2, lr=0.01)
    before = {name: encode_layer(getattr(model, name)) for name in LAYERS[1:]}
    run_stage(admm, model, last, *data, epochs=2, lr=0.01)
    for name, (codes_before, _) in before.items():
        codes, scale = encode_layer(getattr(model, name))
        kept = find(getattr(model, name), WeightMask).mask > 0
        assert set(codes[kept].tolist()) <= allowed and not codes[~kept].any()
        assert torch.equal(scaled(codes, scale), getattr(model, name).weight)
        assert torch.equal(codes, codes_before)
    assert scale != before["fc"][1]  # its scale learned, where no BN undoes it
    assert encode_layer(model.conv1) is None


def test_the_interval_is_chosen_once_from_the_pruned_network(data):
    admm = ADMM(structure="irregular", pfr=0.5, quantize="interval", bits=3, **QUICK)
    admm.prepare(model := Residual(), EXAMPLE)
    chosen = []
    for stage in admm.stages(model)[:-1]:
        run_stage(admm, model, stage, *data, epochs=2, lr=0.01)
        if stage.kind == "quantize":
            chosen.append(float(find(model.conv1a, FixedLevels).scale.detach()))
    assert chosen[0] != 1 and all(a == b for a, b in pairwise(chosen))
