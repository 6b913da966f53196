"""Recipes, learning-rate curves, and one optimisation step of a stage against the formulas written out in numpy."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.wpc import WPC
from sparsign.configs.schema import StageConfig
from sparsign.pipeline import build, optim
from sparsign.pipeline.module import StageModule
from sparsign.pipeline.seeds import epoch_seed
from tests.conftest import TINY_DATA


def factors(recipe: Recipe, steps_per_epoch: int, epochs: int, steps: list[int]) -> list[float]:
    factor = optim.lr_factor(recipe, steps_per_epoch, epochs)
    return [factor(step) for step in steps]


def test_cosine_falls_from_one_to_zero_and_stays_there():
    found = factors(Recipe(2, decay="cosine"), 6, 2, [0, 3, 4, 6, 8, 12, 13])
    assert found == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.75, 0.5, 0.25, 0, 0], abs=1e-12)


def test_multistep_multiplies_by_one_factor_per_milestone_or_by_the_same():
    each = Recipe(20, decay="multistep", milestones=(0.4, 0.6, 0.8), gamma=(0.2, 0.1, 0.5))
    assert factors(each, 10, 20, [0, 79, 80, 119, 120, 159, 160, 199]) == pytest.approx(
        [1, 1, 0.2, 0.2, 0.02, 0.02, 0.01, 0.01]
    )
    same = Recipe(9, decay="multistep", milestones=(1 / 3, 2 / 3), gamma=0.1)
    assert factors(same, 7, 9, [20, 21, 41, 42]) == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cyclic_restarts_after_every_interval_of_epochs():
    found = factors(Recipe(4, decay="cyclic", interval=2), 3, 4, list(range(12)))
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01] * 2)


def test_warm_up_rises_to_the_rate_and_the_rest_falls_to_zero():
    linear = factors(Recipe(4, decay="linear", warmup=1), 5, 4, [0, 1, 4, 5, 10, 20])
    assert linear == pytest.approx([0.2, 0.4, 1, 1, 2 / 3, 0])
    assert factors(Recipe(1, decay="linear", warmup=9), 4, 1, [0, 1, 2, 3]) == pytest.approx([0.5, 1, 1, 0.5])
    cosine = factors(Recipe(3, decay="cosine", warmup=1), 6, 3, [5, 6, 12, 18])
    assert cosine == pytest.approx([1, 1, 0.5, 0], abs=1e-12)


def test_every_field_of_a_recipe_can_be_set_on_the_command_line(configuration):
    words = ["epochs=3", "optimizer=sgd", "lr=0.5", "weight_decay=0.1", "momentum=0.2", "nesterov=false",
             "decay=multistep", "milestones=[0.2,0.6]", "gamma=[0.5,0.1]", "interval=2", "warmup=1",
             "clip=4"]  # fmt: skip
    options = configuration(*(f"schedule.prune.{word}" for word in words)).schedule.prune
    asked = Recipe(3, "sgd", 0.5, 0.1, 0.2, False, "multistep", (0.2, 0.6), (0.5, 0.1), 2, 1.0, 4.0)
    assert optim.merge(Recipe(9), options) == asked
    with pytest.raises(ValueError, match=r"gamma=\(0\.5, 0\.1\): expected a number, or one for each"):
        optim.merge(Recipe(9), StageConfig(decay="multistep", milestones=[0.5], gamma=[0.5, 0.1]))


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_the_whole_gradient_is_clipped_to_its_norm(configuration, clip):
    net = small_net()
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    recipe = Recipe(1, lr=1.0, weight_decay=0.0, momentum=0.0, decay="constant", clip=clip)
    module = StageModule(net, Compressor(), Stage("finetune"), recipe, 0, lambda row: None)
    build.trainer(configuration(*TINY_DATA, "trainer.accelerator=cpu"), 1, []).fit(module, loader())
    moved = (torch.cat([p.detach().flatten() for p in net.parameters()]) - before).norm().item()
    assert moved == pytest.approx(clip, rel=1e-3) if clip < 1 else 0.05 < moved < 1e3


def test_a_diverging_stage_stops_in_one_line_before_its_epoch_is_kept(configuration):
    rows, recipe = [], Recipe(3, lr=1e30, weight_decay=0.0, decay="constant")
    module = StageModule(small_net(), Compressor(), Stage("prune-2"), recipe, 0, rows.append)
    with pytest.raises(ValueError, match=r"^stage prune-2 diverged in epoch 2: .*schedule\.prune\.lr \(now 1e\+30\)"):
        build.trainer(configuration(*TINY_DATA, "trainer.accelerator=cpu"), 3, []).fit(module, loader())
    assert [row["epoch"] for row in rows] == [0]


def test_constant_is_one():
    assert factors(Recipe(3, decay="constant"), 5, 3, [0, 7, 15, 99]) == [1.0] * 4


def test_wpc_steps_where_the_lab_does():
    """0.01 for 80 of 200 epochs, x0.1 at 80 and 120, x0.5 at 160 (lab code)."""
    recipe = WPC().recipe(Stage("quantize"))
    epochs = [0, 79, 80, 120, 160, 199]
    rates = [recipe.lr * f for f in factors(recipe, 391, 200, [391 * e for e in epochs])]
    assert recipe.epochs == 200 and rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 5e-5, 5e-5])


def test_schedule_overrides_and_null_keeps():
    recipe = Recipe(100, optimizer="adam", lr=1e-3, weight_decay=1e-4, decay="multistep", milestones=(0.5,))
    merged = optim.merge(recipe, StageConfig(epochs=3, lr=0.5, weight_decay=0.0))
    assert merged == Recipe(3, optimizer="adam", lr=0.5, weight_decay=0.0, decay="multistep", milestones=(0.5,))
    assert optim.merge(recipe, StageConfig()) == recipe
    everything = StageConfig(epochs=0, optimizer="sgd", momentum=0.0, decay="cosine")
    assert optim.merge(recipe, everything).epochs == 0
    assert (optim.merge(recipe, everything).momentum, optim.merge(recipe, everything).decay) == (0.0, "cosine")


def test_multistep_steps_where_the_method_has_no_milestones_of_its_own():
    merged = optim.merge(Recipe(8, decay="cosine", gamma=(0.5, 0.5)), StageConfig(decay="multistep"))
    assert factors(merged, 10, 8, [0, 39, 40, 59, 60, 79]) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    own = Recipe(8, milestones=(0.25,), gamma=0.5)
    assert factors(optim.merge(own, StageConfig(decay="multistep")), 10, 8, [19, 20, 79]) == [1, 0.5, 0.5]


def test_a_stage_that_trains_nothing_stays_so():
    recipe = Recipe(0, optimizer="adam", lr=1e-3)
    assert optim.merge(recipe, StageConfig(epochs=5, lr=1.0)) == recipe


def test_optimizers_take_the_recipe_and_groups_keep_their_own():
    own, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [own]}, {"params": [other], "lr": 0.5, "weight_decay": 0.0}]
    sgd = optim.optimizer(Recipe(1, optimizer="sgd", lr=0.1, weight_decay=0.2, momentum=0.3, nesterov=False), groups)
    assert isinstance(sgd, torch.optim.SGD)
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in sgd.param_groups] == [(0.1, 0.2, 0.3), (0.5, 0, 0.3)]
    assert isinstance(optim.optimizer(Recipe(1, optimizer="adam"), [{"params": [own]}]), torch.optim.Adam)
    plain = optim.optimizer(Recipe(1, optimizer="sgd", momentum=0.0), [{"params": [own]}])  # no momentum: no Nesterov
    assert plain.param_groups[0]["nesterov"] is False


def test_epochs_of_all_stages_have_seeds_of_their_own():
    kinds = ("pretrain", "prune", "quantize", "finetune")
    stages = [f"{kind}{suffix}" for kind in kinds for suffix in ("", "-2", "-3", "-4", "-10")]
    seeds = [epoch_seed(seed, stage, epoch) for seed in (0, 1, 2) for stage in stages for epoch in range(350)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
    torch.manual_seed(epoch_seed(2**60, "finetune-12", 10**6))


@dataclass
class Pulled(Compressor):
    """Trains the first layer only and pulls it to zero with (3/2) ||W||^2."""

    def parameters(self, model, stage):
        return [{"params": [model[1].weight]}]

    def penalty(self, model, stage):
        return 1.5 * (model[1].weight ** 2).sum()


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 4))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 2, 2, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])


def loader() -> DataLoader:
    """One batch an epoch."""
    return DataLoader(TensorDataset(*batch()), batch_size=6)


def numpy_logits(net: nn.Sequential, images: torch.Tensor) -> tuple[np.ndarray, ...]:
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in net.parameters())
    x = images.flatten(1).double().numpy()
    return x, w1, w2, (x @ w1.T + b1) @ w2.T + b2


@pytest.mark.parametrize("distill", [0.0, 0.3])
def test_one_step_is_cross_entropy_plus_one_penalty_on_the_trained_layer_only(configuration, distill):
    net, teacher, (images, labels), temperature = (
        small_net(),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
        batch(),
        3.0,
    )
    x, w1, w2, logits = numpy_logits(net, images)
    with torch.no_grad():
        told = teacher(images).double().numpy()
    n = len(labels)
    p = softmax(logits)
    gradient = (1 - distill) * (p - np.eye(4)[labels]) / n
    # d/dz of T^2 KL(t || softmax(z / T)) = T (softmax(z / T) - t)
    t, s = softmax(told / temperature), softmax(logits / temperature)
    gradient += distill * temperature * (s - t) / n
    expected = w1 - 0.1 * ((gradient @ w2).T @ x + 3 * w1)
    loss = -(1 - distill) * np.log(p[np.arange(n), labels]).mean()
    loss += distill * temperature**2 * (t * np.log(t / s)).sum(1).mean()

    rows = []
    recipe = Recipe(1, optimizer="sgd", lr=0.1, weight_decay=0.0, momentum=0.0, decay="constant")
    module = StageModule(
        net,
        Pulled(),
        Stage("finetune"),
        recipe,
        0,
        rows.append,
        teacher=teacher,
        distill=distill,
        temperature=temperature,
    )
    before = {k: v.clone() for k, v in net.state_dict().items()}
    trainer = build.trainer(configuration(*TINY_DATA, "trainer.accelerator=cpu"), 1, [])
    trainer.fit(module, loader())

    np.testing.assert_allclose(net[1].weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (name != "1.weight"), name
    assert [p.requires_grad for p in net.parameters()] == [True, False, False, False]
    assert rows[0]["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert rows[0]["penalty"] == pytest.approx(1.5 * (w1**2).sum(), rel=1e-5)
    assert rows[0]["train_top1"] == pytest.approx((logits.argmax(1) == labels.numpy()).mean())
    assert not any("teacher" in key for key in module.state_dict())


def test_a_frozen_parameter_is_trained_again_by_the_next_stage(configuration):
    net, trainer_config = small_net(), configuration(*TINY_DATA, "trainer.accelerator=cpu")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for compressor in (Pulled(), Compressor()):
        module = StageModule(net, compressor, Stage("finetune"), Recipe(1, lr=0.1), 0, lambda row: None)
        build.trainer(trainer_config, 1, []).fit(module, loader())
    assert not any(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_distillation_is_temperature_squared_times_kl():
    net, (images, _), temperature = small_net(), batch(), 4.0
    told = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    module = StageModule(
        net,
        Compressor(),
        Stage("finetune"),
        Recipe(1),
        0,
        print,
        teacher=lambda x: told,
        distill=1,
        temperature=temperature,
    )
    logits = numpy_logits(net, images)[-1]
    t, s = softmax(told.double().numpy() / temperature), softmax(logits / temperature)
    expected = temperature**2 * (t * (np.log(t) - np.log(s))).sum(1).mean()
    assert module._distillation(images, net(images)).item() == pytest.approx(expected, rel=1e-5)
    assert module._distillation(images, told).item() == pytest.approx(0, abs=1e-5)
