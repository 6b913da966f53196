"""The contract between a compression method and the pipeline: one class, one file, one method."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import weighted
from sparsign.configs.options import check, near_match, option
from sparsign.models.checks import FORMS

Task = Callable[[Tensor], Tensor]
"""logits [N, classes] of the batch -> 0-dim loss: cross-entropy, and the stage's distillation where it has one."""


@dataclass(frozen=True)
class Stage:
    """One `Trainer.fit`: `prune`, or `prune-2` for the second round of the same kind."""

    name: str

    @property
    def kind(self) -> str:
        return self.name.split("-")[0]

    @property
    def round(self) -> int:
        return int(self.name.split("-")[1]) if "-" in self.name else 1


@dataclass(frozen=True)
class Recipe:
    """How a stage is optimised when the schedule does not say otherwise: the paper's own lengths and rates.

    `gamma` multiplies the rate at every milestone (a fraction of the stage); a tuple has one factor per milestone.
    """

    epochs: int
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = True
    decay: str = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float | tuple[float, ...] = 0.1
    interval: int = 1
    """Epochs of one cycle of decay = "cyclic": the rate restarts, then is multiplied by 0.1 after each third."""
    warmup: float = 0.0
    """Epochs over which the rate rises linearly to `lr`."""
    clip: float | None = None
    """The norm of the whole gradient is cut to this."""


def matching(patterns: list[str], names: Iterable[str], where: str) -> set[str]:
    """The names in which a regular expression is found. Raises ValueError naming the option `where` and the pattern."""
    try:
        return {name for name in names if any(re.search(pattern, name) for pattern in patterns)}
    except re.error as error:
        raise ValueError(f"{where}={patterns}: expected regular expressions on layer names ({error})") from None


def check_names(table: dict[str, Any], names: Iterable[str], where: str) -> None:
    """Raises ValueError, in one line with the near match, for a key of the option `where` that is no layer's name."""
    known = list(names)
    for name, value in table.items():
        if name not in known:
            hint = near_match(name, known) or f" (expected one of {', '.join(known)})"
            raise ValueError(f"{where}.{name}={value}: the model has no such layer{hint}")


@dataclass
class Compressor:
    """Base of all methods. A subclass is a dataclass: its fields are its options, its methods its algorithm.

    The pipeline calls, in order: `prepare` once on a fresh model; then for every stage `start`, the training loop with
    `before_epoch`, `loss`, `before_step`, `after_step`, and `finish`. All state must live in the model (parameters,
    buffers and extra state of weight transforms): a run resumed in mid-stage calls `prepare`, loads the state, and goes
    on without `start`.
    """

    _target_: str = ""
    name: str = option("", "the method's config name")
    form: str = option("float", "network form: float, wbin (binary weights), fbin (binary inputs too)", choices=FORMS)
    float_layers: list[str] = option(
        ["first", "last"], "layers left float: first, last, or regular expressions on layer names"
    )

    STAGES: ClassVar[tuple[str, ...]] = ("pretrain", "quantize", "finetune")
    AFTER_PRETRAIN: ClassVar[tuple[str, ...]] = ()
    """Options that say nothing about the pretrain stage: runs that differ in no others can share it."""
    PFR_UNIT: ClassVar[str] = "filter"
    """What the pruned ratio counts in the paper: one of `evaluation.pruned_ratio.UNITS`."""

    def __post_init__(self) -> None:
        check(self, "compressor")

    # -- structure ---------------------------------------------------------------------------------------------------

    def stages(self, model: nn.Module) -> list[Stage]:
        """The stages of this method on this (prepared) model, in order. A method may skip or repeat a kind."""
        return [Stage(name) for name in self.STAGES]

    def recipe(self, stage: Stage) -> Recipe:
        """The paper's optimizer, rate and length of a stage."""
        return Recipe(epochs=200, lr=0.1 if stage.kind == "pretrain" else 0.01)

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The conv and linear layers this method compresses, by name, in model order.

        Raises:
            ValueError: no layer is left to compress.
        """
        found = weighted(model)
        names = list(found)
        patterns = [p for p in self.float_layers if p not in ("first", "last")]
        skip = {names[0]} if "first" in self.float_layers else set()
        skip |= {names[-1]} if "last" in self.float_layers else set()
        skip |= matching(patterns, names, "compressor.float_layers")
        kept = {n: m for n, m in found.items() if n not in skip}
        if not kept:
            raise ValueError(f"compressor.float_layers={self.float_layers}: leaves no layer of the model to compress")
        return kept

    def accounting(self) -> dict[str, Any]:
        """How the pruned ratio is counted, for the packed file: the ratio asked for (None: an outcome) and its unit.

        A unit that needs a size names it too: `group`, the input channels of one group.
        """
        return {"pfr": getattr(self, "pfr", None) or None, "pfr_unit": self.PFR_UNIT}

    # -- the hooks -----------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, example: Tensor) -> None:
        """Attach the weight transforms. `example`: one image [1, C, H, W], for methods that trace the channel graph."""

    def start(self, model: nn.Module, stage: Stage) -> None:
        """What happens at the start of a stage: masks decided, duals initialised, quantizers switched on."""

    def parameters(self, model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        """Parameter groups to optimise in this stage; parameters in no group are frozen. Must not change state."""
        return [{"params": list(model.parameters())}]

    def loss(
        self, model: nn.Module, stage: Stage, batch: tuple[Tensor, Tensor], logits: Tensor, task: Task
    ) -> tuple[Tensor, Tensor | None]:
        """The two terms that a step minimises the sum of: the task's loss and the method's penalty (0-dim, or None).

        A method that looks at the batch, or runs the model on it more than once, overrides this.

        Args:
            batch: images [N, C, H, W] and labels [N].
            logits: [N, classes] of `model` on these images.
            task: rates other logits of the same batch, such as those of another forward pass.
        """
        return task(logits), self.penalty(model, stage)

    def penalty(self, model: nn.Module, stage: Stage) -> Tensor | None:
        """A differentiable 0-dim term added to the loss, or None."""
        return None

    def before_epoch(self, model: nn.Module, stage: Stage, epoch: int, epochs: int) -> None:
        """Before the first step of `epoch` (0-based) of `epochs`: ramps, duals, thresholds."""

    def before_step(self, model: nn.Module, stage: Stage) -> None:
        """After backward and before the optimizer's step: the place to shape gradients."""

    def after_step(self, model: nn.Module, stage: Stage) -> None:
        """After the optimizer's step: the place to project or clip weights."""

    def finish(self, model: nn.Module, stage: Stage) -> None:
        """What is fixed at the end of a stage."""

    def metrics(self, model: nn.Module) -> dict[str, float | list[float]]:
        """Logged every epoch: numbers are plotted as curves, lists (per-layer values, `histogram`s) as heat maps."""
        return {}


def histogram(name: str, values: Tensor, bins: int, low: float, high: float) -> dict[str, list[float]]:
    """A metric `<name>`, which ends in _hist: counts of the values in equal bins; its range beside it."""
    return {name: torch.histc(values, bins=bins, min=low, max=high).tolist(), f"{name}_range": [low, high]}
