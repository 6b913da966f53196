"""Operations on single numbers, some with parameters per channel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsign.models.graph import batchnorm_affine
from sparsign.packing.ops.base import Attrs, Node, Op, Shape, Tensors
from sparsign.packing.weight import check_floats, need


class Affine(Op):
    """scale x + shift per channel: batch norm in eval mode, and learned shifts (scale 1). scale, shift: [C]."""

    name = "affine"
    required = ("scale", "shift")
    channelwise = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        for name in self.required:
            check_floats(name, node.tensors[name], inputs[0][:1])
        return inputs[0]

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        """Through torch's own batch norm, so that it rounds (one fused multiply-add) as the trained network did."""
        mean, var = torch.zeros_like(t["scale"]), torch.ones_like(t["scale"])
        return F.batch_norm(x[0], mean, var, t["scale"], t["shift"], False, 0.0, 0.0)

    def arrays(self, module: nn.Module) -> Tensors:
        return dict(zip(self.required, batchnorm_affine(module), strict=True))


class PReLU(Op):
    """x where x > 0, slope x elsewhere; slope: [C] or [1]."""

    name = "prelu"
    required = ("slope",)
    channelwise = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        slope = node.tensors["slope"].shape
        need(slope in ((1,), inputs[0][:1]), f"slope has shape {list(slope)}, expected [1] or [{inputs[0][0]}]")
        return inputs[0]

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return F.prelu(x[0], t["slope"])

    def arrays(self, module: nn.Module) -> Tensors:
        return {"slope": module.weight.detach().float().cpu()}


class _Function(Op):
    """A function of one number without parameters."""

    channelwise = True

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return self.function(x[0])


class ReLU(_Function):
    name = "relu"
    function = staticmethod(F.relu)


class ReLU6(_Function):
    name = "relu6"
    function = staticmethod(F.relu6)


class Sigmoid(_Function):
    name = "sigmoid"
    function = staticmethod(torch.sigmoid)


class SiLU(_Function):
    name = "silu"
    function = staticmethod(F.silu)


class HardSwish(_Function):
    name = "hardswish"
    function = staticmethod(F.hardswish)


class HardSigmoid(_Function):
    name = "hardsigmoid"
    function = staticmethod(F.hardsigmoid)


class Sign(_Function):
    """+1 where x >= 0, else -1; zero counts as positive."""

    name = "sign"
    keeps_signs = True

    @staticmethod
    def function(x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)


class GELU(Op):
    name = "gelu"
    attrs: ClassVar[Attrs] = {"tanh": False}
    channelwise = True

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return F.gelu(x[0], approximate="tanh" if node.attrs["tanh"] else "none")

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        return {"tanh": module.approximate == "tanh"}


class HardTanh(Op):
    name = "hardtanh"
    attrs: ClassVar[Attrs] = {"min": -1.0, "max": 1.0}
    channelwise = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        need(node.attrs["min"] <= node.attrs["max"], "min is above max")
        return inputs[0]

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return F.hardtanh(x[0], node.attrs["min"], node.attrs["max"])

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        return {"min": float(module.min_val), "max": float(module.max_val)}


class AddScalar(Op):
    name = "add_scalar"
    attrs: ClassVar[Attrs] = {"value": 0.0}
    channelwise = True

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return x[0] + node.attrs["value"]

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        return {"value": module.value}


class MulScalar(Op):
    name = "mul_scalar"
    attrs: ClassVar[Attrs] = {"value": 1.0}
    channelwise = True

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return x[0] * node.attrs["value"]

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        return {"value": module.value}
