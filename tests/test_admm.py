"""ADMM-NN-S against its equations, and what it leaves in the network."""

import copy
from itertools import pairwise

import pytest
import torch
from plain_loop import run, run_stage
from torch import nn

from sparsign.compressors.admm import ADMM
from sparsign.compressors.base import Stage
from sparsign.compressors.parts.duals import Dual
from sparsign.compressors.parts.fixed_levels import FixedLevels
from sparsign.compressors.parts.transforms import WeightMask, attach, encode_layer, find, latent, scaled
from sparsign.compressors.pruning.cut import attach_channel_masks
from sparsign.compressors.pruning.purify import remove_unused_paths
from sparsign.compressors.pruning.rounds import pruning_steps
from sparsign.models.channels import removable


class Residual(nn.Module):
    """A stem and two basic blocks on one residual stream."""

    def __init__(self, width=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        for i in (1, 2):
            self.add_module(f"conv{i}a", nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.add_module(f"bn{i}a", nn.BatchNorm2d(width))
            self.add_module(f"conv{i}b", nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.add_module(f"bn{i}b", nn.BatchNorm2d(width))
        self.relu, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.bn1b(self.conv1b(self.relu(self.bn1a(self.conv1a(x))))))
        x = self.relu(x + self.bn2b(self.conv2b(self.relu(self.bn2a(self.conv2a(x))))))
        return self.fc(torch.flatten(self.pool(x), 1))


LAYERS = ("conv1", "conv1a", "conv1b", "conv2a", "conv2b", "fc")
INNER = LAYERS[1:-1]
EXAMPLE = torch.zeros(1, 1, 6, 6)
QUICK = {"rhos": [1e-2, 1.0], "purify": False}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def data():
    labels = torch.arange(96) % 4
    patterns = torch.randn(4, 1, 6, 6)
    return patterns[labels] + 0.5 * torch.randn(96, 1, 6, 6), labels


def filters_alive(layer):
    return layer.weight.flatten(1).ne(0).any(dim=1)


def columns_alive(layer):
    return layer.weight.ne(0).any(dim=0)


def inputs_alive(layer):
    return columns_alive(layer).view(layer.weight.shape[1], -1).any(dim=1)


# -- the plan ------------------------------------------------------------------------------------------------------


def test_stages_spell_out_the_method():
    def plan(**options):
        return [stage.name for stage in ADMM(rhos=[1e-3, 1e-2], **options).stages(Residual())]

    assert plan(quantize="none") == ["pretrain", "prune", "prune-2", "finetune"]
    assert plan() == ["pretrain", "prune", "prune-2", "finetune", "quantize", "quantize-2", "finetune-2"]
    assert plan(pfr=0.0) == ["pretrain", "quantize", "quantize-2", "finetune"]
    two_steps = ["pretrain", "prune", "prune-2", "finetune", "prune-3", "prune-4", "finetune-2"]
    gradual = plan(quantize="interval", freeze_rounds=2)
    assert gradual == [*plan(quantize="interval"), "finetune-3", "finetune-4"]
    assert plan(quantize="none", rounds=2) == two_steps
    assert plan(quantize="none", structure="column_then_filter") == two_steps


def test_progressive_and_combined_steps_meet_at_the_final_ratio():
    first, second = (step.ratio(0.9) for step in pruning_steps("filter", 2))
    assert first == pytest.approx(0.8) and second == pytest.approx(0.9)
    assert pruning_steps("filter", 3)[0].ratio(0.5) == 0
    column, filter_ = pruning_steps("column_then_filter", 1)
    assert (column.structure, filter_.structure) == ("column", "filter")
    assert (1 - column.ratio(0.96)) * (1 - filter_.ratio(0.96)) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pfr": 1.0}, r"compressor.pfr=1.0: expected a value in \[0, 1\)"),
        ({"structure": "rows"}, "compressor.structure=rows"),
        ({"ratios": {"conv1": -0.1}}, "compressor.ratios=-0.1"),
        ({"rhos": []}, "compressor.rhos"),
        ({"pfr": 0.0, "quantize": "none"}, "compressor.pfr=0"),
        ({"quantize": "bits", "bits": 1}, "bits=1"),
        ({"freeze_rounds": 2}, "compressor.freeze_rounds=2: expected 0 with quantize=ternary"),
        ({"ratios": {"conv1x": 0.5}}, r"compressor.ratios.conv1x=0.5: .* \(did you mean conv1"),
        ({"layer_bits": {"stem": 3}}, "compressor.layer_bits.stem=3: the model has no such layer"),
    ],
)
def test_bad_options_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ADMM(**options).prepare(Residual(), EXAMPLE)
    assert "\n" not in str(caught.value)


def test_the_unit_of_the_ratio_follows_the_structure():
    units = {s: ADMM(structure=s).PFR_UNIT for s in ("irregular", "filter", "column", "channel", "column_then_filter")}
    assert units == {
        "irregular": "weight",
        "filter": "filter",
        "column": "column",
        "channel": "channel",
        "column_then_filter": "weight",
    }


# -- the iteration -------------------------------------------------------------------------------------------------


def test_penalty_gradient_is_rho_times_the_scaled_residual():
    model, admm = Residual(), ADMM(rhos=[0.3])
    admm.prepare(model, EXAMPLE)
    stage = Stage("prune")
    admm.start(model, stage)
    duals = {name: find(getattr(model, name), Dual) for name in INNER}
    for dual in duals.values():
        dual.U.normal_()
    admm.penalty(model, stage).backward()
    for name, dual in duals.items():
        weight = latent(getattr(model, name))
        expected = 0.3 * (weight.detach().double() - dual.Z.double() + dual.U.double())
        assert torch.allclose(weight.grad.double(), expected, atol=1e-6)
    assert latent(model.conv1).grad is None and latent(model.fc).grad is None


def test_dual_follows_the_iteration_written_out():
    """Z = P(W + U), U += W - Z, rho *= growth, every `interval` epochs but not at epoch 0."""
    model, admm = Residual(), ADMM(structure="irregular", pfr=0.5, rhos=[0.1], rho_growth=1.3, interval=2)
    admm.prepare(model, EXAMPLE)
    layer = model.conv1a
    dual = find(layer, Dual)

    def top_half(v):
        threshold = v.abs().flatten().sort(descending=True).values[v.numel() // 2 - 1]
        return v * (v.abs() >= threshold)

    stage = Stage("prune")
    admm.start(model, stage)
    z, u, rho = top_half(latent(layer).detach().double()), torch.zeros(layer.weight.shape).double(), 0.1
    for epoch in range(6):
        admm.before_epoch(model, stage, epoch, 6)
        if epoch in (2, 4):
            w = latent(layer).detach().double()
            previous, z, rho = z, top_half(w + u), rho * 1.3
            u = u + w - z
            assert float(dual.moved) == pytest.approx(float((z - previous).norm()), rel=1e-5)
        assert torch.allclose(dual.Z.double(), z, atol=1e-6) and torch.allclose(dual.U.double(), u, atol=1e-6)
        assert float(dual.rho) == pytest.approx(rho)
        latent(layer).data += 0.1 * torch.randn_like(latent(layer))


def test_every_rho_starts_z_and_u_afresh():
    model, admm = Residual(), ADMM(rhos=[1e-3, 1e-2])
    admm.prepare(model, EXAMPLE)
    dual = find(model.conv1a, Dual)
    for name, rho in (("prune", 1e-3), ("prune-2", 1e-2)):
        dual.U.normal_()
        admm.start(model, Stage(name))
        assert not dual.U.any() and float(dual.rho) == pytest.approx(rho)


class Watched(ADMM):
    """Notes how far the end of a stage moves the logits, relative to their norm."""

    @torch.no_grad()
    def finish(self, model, stage):
        before = model(self.images)
        super().finish(model, stage)
        self.move = float((model(self.images) - before).norm() / before.norm())


@pytest.mark.parametrize("structure", ["irregular", "column"])
def test_residuals_vanish_by_the_last_rho_and_the_projection_costs_little(data, structure):
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    )
    options = {
        "rhos": [1e-2, 1e-1, 1.0, 4.0],
        "interval": 4,
        "float_layers": [],
        "purify": False,
        "quantize": "ternary",
    }
    admm = Watched(structure=structure, pfr=0.4, **options)
    admm.images = data[0]
    admm.prepare(model, EXAMPLE)
    for stage in admm.stages(model):
        last = stage.name in ("prune-4", "quantize-4")
        epochs, lr = (12, 0.02) if last else (4, 0.05)
        history = run_stage(admm, model, stage, *data, epochs=epochs, lr=lr, batch=8)
        if last:
            assert history[-1]["admm_gap_max"] < 1e-2
            assert history[-1]["admm_gap_max"] == max(history[-1]["admm_gap"]) and len(history[-1]["admm_gap"]) == 3
            assert 0 < admm.move < 3e-2
        elif stage.name in ("prune", "quantize"):
            assert history[-1]["admm_gap_max"] > 5e-2
    assert (model.eval()(data[0]).argmax(1) == data[1]).float().mean() > 0.9


# -- what is left ----------------------------------------------------------------------------------------------------


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


# -- resume ----------------------------------------------------------------------------------------------------------


def train(admm, model, stage, optimizer, data, first, last, epochs):
    for epoch in range(first, last):
        admm.before_epoch(model, stage, epoch, epochs)
        optimizer.zero_grad()
        loss, penalty = nn.functional.cross_entropy(model(data[0]), data[1]), admm.penalty(model, stage)
        (loss if penalty is None else loss + penalty).backward()
        admm.before_step(model, stage)
        optimizer.step()
        admm.after_step(model, stage)


@pytest.mark.parametrize("cut", ["prune", "prune-2", "finetune", "quantize", "quantize-2", "finetune-2", "finetune-3"])
def test_a_run_resumed_in_mid_stage_ends_with_the_same_bits(data, cut):
    def sgd(admm, model, stage):
        return torch.optim.SGD(admm.parameters(model, stage), lr=0.01, momentum=0.9)

    def fresh():
        admm = ADMM(pfr=0.5, quantize="interval", bits=3, rhos=[1e-2, 1.0], rho_growth=1.2, freeze_rounds=1)
        torch.manual_seed(1)
        model = Residual()
        admm.prepare(model, EXAMPLE)
        return admm, model

    admm, model = fresh()
    stages = admm.stages(model)
    resumed = None
    for stage in stages:
        if resumed is None:
            admm.start(model, stage)
            optimizer = sgd(admm, model, stage)
            train(admm, model, stage, optimizer, data, 0, 2, 4)
            if stage.name == cut:
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
                other, resumed = fresh()
                resumed.load_state_dict(saved[0])
                other_optimizer = sgd(other, resumed, stage)
                other_optimizer.load_state_dict(saved[1])
                train(other, resumed, stage, other_optimizer, data, 2, 4, 4)
                other.finish(resumed, stage)
            train(admm, model, stage, optimizer, data, 2, 4, 4)
            admm.finish(model, stage)
        else:
            for a, m in ((admm, model), (other, resumed)):
                a.start(m, stage)
                train(a, m, stage, sgd(a, m, stage), data, 0, 2, 4)
                a.finish(m, stage)
    straight, again = model.state_dict(), resumed.state_dict()
    assert straight.keys() == again.keys()
    for key, value in straight.items():
        assert torch.equal(value, again[key]) if isinstance(value, torch.Tensor) else value == again[key], key
