"""A stage stopped after its first epoch and continued in a fresh model must end with the same bits."""

import copy
from functools import partial

import torch
from torch import Tensor, nn


def _epoch(compressor, model, stage, optimizer, images: Tensor, labels: Tensor, epoch: int, epochs: int) -> None:
    compressor.before_epoch(model, stage, epoch, epochs)
    for x, y in zip(images.split(16), labels.split(16), strict=True):
        loss, penalty = compressor.loss(model, stage, (x, y), model(x), partial(nn.functional.cross_entropy, target=y))
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        compressor.before_step(model, stage)
        optimizer.step()
        compressor.after_step(model, stage)


def _optimizer(compressor, model, stage) -> torch.optim.Optimizer:
    return torch.optim.Adam(compressor.parameters(model, stage), lr=1e-2)


def _trained(compressor, model, stage) -> set[int]:
    return {id(p) for group in compressor.parameters(model, stage) for p in group["params"]}


def assert_resumes(make_compressor, make_model, images: Tensor, labels: Tensor) -> None:
    """Stops every stage of the method in the middle and compares the continued run with the one that never stopped."""
    torch.manual_seed(0)
    compressor, model = make_compressor(), make_model()
    compressor.prepare(model, images[:1])
    for stage in compressor.stages(model):
        model.train()
        compressor.start(model, stage)
        optimizer = _optimizer(compressor, model, stage)
        _epoch(compressor, model, stage, optimizer, images, labels, 0, 2)
        stopped = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        _epoch(compressor, model, stage, optimizer, images, labels, 1, 2)
        compressor.finish(model, stage)

        torch.manual_seed(1)
        other, resumed = make_compressor(), make_model()
        other.prepare(resumed, images[:1])
        asked = _trained(other, resumed, stage)  # as a resumed run asks: before the stage's state is back
        resumed.load_state_dict(stopped[0])
        assert asked == _trained(other, resumed, stage), f"{stage.name}: what is trained depends on the state"
        resumed.train()
        optimizer = _optimizer(other, resumed, stage)
        optimizer.load_state_dict(stopped[1])
        _epoch(other, resumed, stage, optimizer, images, labels, 1, 2)
        other.finish(resumed, stage)
        for key, value in model.state_dict().items():
            same = torch.equal(value, resumed.state_dict()[key]) if isinstance(value, Tensor) else True
            assert same, f"{stage.name}: {key} differs after resuming"
            assert isinstance(value, Tensor) or value == resumed.state_dict()[key], f"{stage.name}: {key} differs"
