"""ADMM-NN-S against its equations: the stages, the iteration, and a run that is resumed in the midst of one."""

import copy

import pytest
import torch
from plain_loop import run_stage
from residual import EXAMPLE, INNER, Residual, images_and_labels, seeded
from torch import nn

from sparsign.compressors.admm import ADMM
from sparsign.compressors.base import Stage
from sparsign.compressors.parts.duals import Dual
from sparsign.compressors.parts.transforms import find, latent
from sparsign.compressors.pruning.rounds import pruning_steps

_seeded = pytest.fixture(seeded, autouse=True)
data = pytest.fixture(images_and_labels)


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
        ({"ratios": {"conv1": -0.1}}, "compressor.ratios.conv1=-0.1"),
        ({"rhos": []}, "compressor.rhos"),
        ({"pfr": 0.0, "quantize": "none"}, "compressor.pfr=0"),
        ({"quantize": "bits", "bits": 1}, "bits=1"),
        ({"freeze_rounds": 2}, "compressor.freeze_rounds=2: expected 0 with quantize=ternary"),
        ({"rounds": 2}, "compressor.rounds=2: the first would remove nothing, for in the end only 0.5 of a layer goes"),
        ({"ratios": {"conv1x": 0.5}}, r"compressor.ratios.conv1x=0.5: .* \(did you mean conv1"),
        ({"layer_bits": {"stem": 3}}, "compressor.layer_bits.stem=3: the model has no such layer"),
        ({"layer_bits": {"conv1": 3}}, "compressor.layer_bits.conv1=3: the layer is left float; expected it"),
        (
            {"pfr": 0.0, "structure": "filter", "ratios": {"fc": 0.5}},
            "compressor.ratios.fc=0.5: the last layer's filters",
        ),
    ],
)
def test_bad_options_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ADMM(**options).prepare(Residual(), EXAMPLE)
    assert "\n" not in str(caught.value)


def test_layers_with_ratios_of_their_own_have_no_one_ratio_asked():
    assert ADMM(pfr=0.4).accounting()["pfr"] == 0.4
    assert ADMM(pfr=0.4, ratios={"conv1": 0.5}).accounting()["pfr"] is None


def test_the_unit_of_the_ratio_follows_the_structure():
    units = {s: ADMM(structure=s).PFR_UNIT for s in ("irregular", "filter", "column", "channel", "column_then_filter")}
    assert units == {
        "irregular": "weight",
        "filter": "filter",
        "column": "column",
        "channel": "channel",
        "column_then_filter": "matrix",
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
