"""The numbers that stay float beside the codes, in fewer bits: rounded before the trained network is tested for good,
so that the file, which keeps every number at the lowest precision that holds it, answers as that network."""

from __future__ import annotations

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsign.compressors.parts.transforms import Mask, Quantizer, attach, encode_layer, scaled, transforms
from sparsign.models.graph import batchnorm_affine
from sparsign.models.react import ChannelShift
from sparsign.pipeline.memory_format import lay_out
from sparsign.pipeline.trained import Trained, held_out_top1

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class OnCodes(Quantizer):
    """The weight is scale * codes, whatever it was; scale: one number, one per filter, or a pair for the two signs."""

    def __init__(self, codes: Tensor, scale: Tensor | tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        for k, part in enumerate(scale if isinstance(scale, tuple) else (scale,)):
            self.register_buffer(f"scale{k}", part)

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        return self.codes, (self.scale0, self.scale1) if hasattr(self, "scale1") else self.scale0

    def transform(self, weight: Tensor) -> Tensor:
        return scaled(*self.encode(weight))


def round_leftovers(run: Trained, console: Console) -> None:
    """Rounds what `leftovers=` says, in place, and prints what it costs on held-out images, where there are any.

    Raises:
        ValueError: a number that the precision does not hold.
    """
    kind = run.config.leftovers
    if kind == "fp32":
        return
    lay_out(run.model.cpu().eval(), torch.contiguous_format)  # where and how a resumed run will round
    before = held_out_top1(run)
    to_precision(run.model, kind)
    after = held_out_top1(run)
    told = "no images are held out to measure it on"
    if before is not None and after is not None:
        told = f"held-out top-1 {100 * before:.2f} % before, {100 * after:.2f} % after"
    console.print(f"leftovers in {kind}: {told}", soft_wrap=True)


@torch.no_grad()
def to_precision(model: nn.Module, kind: str) -> None:
    """The network as it will be packed, in place: weights without their transforms, BN as one scale and one shift.

    kind: one of DTYPES. Float weights, scales of codes, biases, BN's scale and shift, slopes and learned shifts are
    rounded to it; codes stay.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            _round_layer(name, module, kind)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            _round_norm(name, module, kind)
        elif isinstance(module, nn.PReLU):
            module.weight = _parameter(name, module.weight, kind)
        elif isinstance(module, ChannelShift):
            module.bias = _parameter(name, module.bias, kind)


def _round_layer(name: str, layer: nn.Module, kind: str) -> None:
    encoded, weight = encode_layer(layer), layer.weight.detach()
    masks = [t for t in transforms(layer) if isinstance(t, Mask) and t.active]  # they tell what pruning left
    _bare(layer)
    if encoded is None:
        layer.weight = _parameter(name, weight, kind)
    else:
        codes, scale = encoded
        scale = tuple(rounded(name, s, kind) for s in scale) if isinstance(scale, tuple) else rounded(name, scale, kind)
        attach(layer, *masks, OnCodes(codes, scale))
    if layer.bias is not None:
        layer.bias = _parameter(name, layer.bias, kind)


def _round_norm(name: str, norm: nn.BatchNorm1d | nn.BatchNorm2d, kind: str) -> None:
    scale, shift = (tensor.to(norm.running_mean.device) for tensor in batchnorm_affine(norm))
    _bare(norm)
    norm.affine = True
    norm.weight, norm.bias = _parameter(name, scale, kind), _parameter(name, shift, kind)
    norm.running_mean, norm.running_var, norm.eps = torch.zeros_like(scale), torch.ones_like(scale), 0.0


def _bare(module: nn.Module) -> None:
    """Takes the transforms off, values kept."""
    for tensor in list(getattr(module, "parametrizations", {})):
        parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)


def _parameter(name: str, tensor: Tensor, kind: str) -> nn.Parameter:
    return nn.Parameter(rounded(name, tensor, kind), requires_grad=False)


def rounded(name: str, tensor: Tensor, kind: str) -> Tensor:
    """The fp32 tensor of the nearest numbers of that precision, ties to even. ValueError where one is out of range."""
    near = tensor.detach().float().to(DTYPES[kind]).float()
    if not near.isfinite().all():
        worst = tensor.abs().max().item()
        raise ValueError(f"leftovers={kind}: {name} holds {worst:.3g}, which {kind} does not; expected bf16 or fp32")
    return near
