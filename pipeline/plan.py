"""What a run will do, before it does it: every stage with all its numbers, as folder and tracker keep it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.configs.options import STAGE_KINDS
from sparsign.models.pretrained import weights_file
from sparsign.pipeline import build, optim

ONLY_OF = {
    "momentum": ("optimizer", "sgd"), "nesterov": ("optimizer", "sgd"), "milestones": ("decay", "multistep"),
    "gamma": ("decay", "multistep"), "interval": ("decay", "cyclic"),
}  # fmt: skip
"""Fields of a recipe that mean something under one value of another field."""
UNTOLD = ("name", "epochs", "max_batches", "bn_batches", "batch_size", "precision", "teacher", "teacher_model")
"""What the help leaves out of a stage's line: it stands elsewhere."""


@dataclass(frozen=True)
class StagePlan:
    """One stage as it will run: the method's recipe, the schedule's words and the network's cap put together."""

    stage: Stage
    recipe: Recipe
    bn_batches: int
    distill: float
    cut: bool
    """Whether the network is rebuilt without its dead channels when the stage is done."""
    told: dict[str, Any]
    """The same as plain values, without what has no effect: what two runs must agree in to be the same run."""


def resolve(config: DictConfig, compressor: Compressor, net: nn.Module | None) -> list[StagePlan]:
    """All stages of the method on this prepared network, in order; None leaves the network's cap out.

    Raises:
        ValueError: options of the schedule that contradict each other.
    """
    plans = []
    stages = compressor.stages(net) if net is not None else _kinds(compressor)
    cut = _stages_to_cut(config, stages)
    for stage in stages:
        options = config.schedule[stage.kind]
        recipe = compressor.recipe(stage) if net is None else optim.suited(compressor.recipe(stage), net)
        recipe = optim.merge(recipe, options)
        told: dict[str, Any] = {"name": stage.name}
        if stage.kind == "pretrain" and config.model.pretrained:
            recipe = replace(recipe, epochs=0)
            told["weights"] = checksum(config.model.pretrained)
        told |= _told(config, recipe, options)
        told |= {"cut": True} if stage in cut else {}
        plans.append(StagePlan(stage, recipe, options.bn_batches, options.distill, stage in cut, told))
    return plans


def _stages_to_cut(config: DictConfig, stages: list[Stage]) -> list[Stage]:
    """The last stage of every kind that the schedule says `cut` of; a kind that the method lacks is passed over.

    Raises:
        ValueError: a cut before pruning is over, whose ratios are of the uncut network, or one that nothing follows.
    """
    found = []
    for kind in ("pretrain", "prune", "quantize", "finetune"):
        mine = [stage for stage in stages if stage.kind == kind]
        if not mine or not config.schedule[kind].cut:
            continue
        later = stages[stages.index(mine[-1]) + 1 :]
        pruning = next((stage.name for stage in later if stage.kind == "prune"), None)
        reason = "nothing is pruned in it" if kind == "pretrain" else pruning and f"stage {pruning} prunes after it"
        reason = reason or (None if later else "no stage follows, and the packed file is cut anyway")
        if reason:
            raise ValueError(f"schedule.{kind}.cut=true: {reason}; expected false")
        found.append(mine[-1])
    return found


def without_effect(overrides: Sequence[str], compressor: Compressor, plans: list[StagePlan]) -> list[str]:
    """`schedule.prune.epochs=2: twn has no stage prune`, of every such word on the command line.

    No error: a sweep gives all its methods the same words.
    """
    found = [(word, re.match(r"\+*schedule\.(\w+)\.(\w+)=", word)) for word in overrides]
    reasons = [
        (word, _idle(said[2], said[1], [p.recipe for p in plans if p.stage.kind == said[1]], compressor.name))
        for word, said in found
        if said and said[1] in STAGE_KINDS and not (said[2] == "epochs" and word.endswith("=0"))
    ]
    return [f"{word}: has no effect, {reason}" for word, reason in reasons if reason]


def _idle(field: str, kind: str, recipes: list[Recipe], method: str) -> str | None:
    """Why an option of a stage does nothing under these recipes of its stages; None: it does."""
    if not recipes:
        return f"{method} has no stage {kind}"
    if field != "cut" and all(recipe.epochs == 0 for recipe in recipes):
        return f"stage {kind} trains nothing"
    if field in ONLY_OF and not any(_acts(field, asdict(recipe)) for recipe in recipes):
        other, value = ONLY_OF[field]
        return f"it is for {other}={value} and stage {kind} has {other}={getattr(recipes[0], other)}"
    return None


def _kinds(compressor: Compressor) -> list[Stage]:
    """The method's stages as far as they can be known without a network."""
    try:
        return compressor.stages(nn.Identity())
    except (ValueError, IndexError):  # it counts the network's layers
        return [Stage(name) for name in compressor.STAGES]


def _told(config: DictConfig, recipe: Recipe, options: DictConfig) -> dict[str, Any]:
    told: dict[str, Any] = {"epochs": recipe.epochs}
    if recipe.epochs:
        fields = asdict(recipe)
        told |= {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items() if _acts(k, fields)}
        told |= {"precision": "bf16" if build.uses_bf16(config) else "fp32", "batch_size": config.dataset.batch_size}
        told |= {"max_batches": config.schedule.max_batches, "bn_batches": options.bn_batches}
        if options.distill > 0:
            named = config.schedule.teacher
            teacher = checksum(named, "schedule.teacher") if named else "this run's pretrain stage"
            told |= {"distill": options.distill, "temperature": config.schedule.temperature, "teacher": teacher}
            told |= {"teacher_model": other} if (other := config.schedule.teacher_model) else {}
    return told


def _acts(name: str, recipe: dict[str, Any]) -> bool:
    key, value = ONLY_OF.get(name, (name, recipe[name]))
    return recipe[key] == value


def checksum(source: str, option: str = "model.pretrained") -> str:
    """The SHA-256 of a weights file; of a run folder, of the checkpoint that is taken from it."""
    return hashlib.sha256(weights_file(source, option).read_bytes()).hexdigest()


def stages_help(_root_: DictConfig) -> str:
    """`${stages:}` of the help template: what each stage of the chosen method does under the chosen schedule."""
    config = OmegaConf.merge(
        _root_, {"model": {"pretrained": None}, "schedule": {"teacher": None, "teacher_model": None}}
    )
    try:
        plans = resolve(config, build.compressor(config), None)
    except ValueError as error:
        return f"  {error}"
    lines = Counter((plan.stage.kind, ", ".join(_words(plan.told))) for plan in plans)
    names = [f"{kind} x {count}" if count > 1 else kind for (kind, _), count in lines.items()]
    return "\n".join(f"  {name:13}  {text}" for name, (_, text) in zip(names, lines, strict=True))


def _words(told: dict[str, Any]) -> Iterator[str]:
    yield f"{told['epochs']} epochs"
    for name, value in told.items():
        if name == "milestones" and len(value) > 9:
            yield f"{len(value)} milestones"
        elif value and name not in UNTOLD:
            shown = f"{value:g}" if type(value) is float else name if value is True else value
            yield str(shown) if name == "optimizer" or value is True else f"{name} {shown}"
