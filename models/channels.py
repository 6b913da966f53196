"""Which channels of a network are dead: constantly zero, or read by no one.

One forward sweep finds channels that are constant, one backward sweep finds channels that some consumer needs. The
two sweeps reach the fixpoint: whether a value is zero depends only on what comes before it, and a channel that nobody
needs changes nothing after it. The unused-path rule of residual streams (ADMM-NN-S, lab code: a producer's filter may
go when the channel is empty in every consumer after it, a consumer's input channel when it is empty in every producer
before it) is a consequence, not a special case.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsign.models.canonical import canonical
from sparsign.models.graph import (
    ELEMENTWISE,
    WEIGHTED,
    batchnorm_affine,
    batchnorm_after,
    kind_of,
    module_of,
    shapes,
)

__all__ = ["Liveness", "RowsCols", "batchnorm_after", "removable"]

VARYING = float("nan")


@dataclass(frozen=True)
class RowsCols:
    """What of a layer can go. `rows_removed` [out channels], `cols_removed` [in channels], bool on the CPU.

    For a BN the two are equal: its dead channels.
    """

    rows_removed: Tensor
    cols_removed: Tensor


class Liveness:
    """Liveness of every channel of every node of a model.

    Args:
        graph: from `canonical`. Effective (parametrized) weights are read now; later changes are not seen.
        example: one image [1, C, H, W], for shapes.
        through_sign: False is exact: everything it removes can be cut without changing the network's function, so
            sign(0) = +1 and a BN's shift on an empty channel are values like any other. True is what a pruning method
            declares: an empty filter stays dead through its bias, BN and Sign.

    Attributes (per fx node, bool [channels] on the CPU):
        zero: constantly zero whatever the image.
        keep: has to be there physically. Its complement can be cut. A zero channel is kept where an operation needs
            its place: the network's outputs, or a BN or Sign that makes a nonzero value of it.
        reads: for conv and linear nodes, the input channels that any kept row reads.
    """

    def __init__(self, graph: fx.GraphModule, example: Tensor, through_sign: bool = False) -> None:
        self.graph, self.through_sign = graph, through_sign
        self.shapes = shapes(graph, example)
        self.kinds = {node: kind_of(graph, node) for node in graph.graph.nodes}
        self.weights = {n: _nonzero(module_of(graph, n)) for n, kind in self.kinds.items() if kind in WEIGHTED}
        self.constant: dict[fx.Node, Tensor] = {}
        for node in graph.graph.nodes:
            self.constant[node] = self._forward(node)
        self.zero = {node: value == 0 for node, value in self.constant.items()}
        self.keep = {node: torch.zeros_like(zero) for node, zero in self.zero.items()}
        self.reads: dict[fx.Node, Tensor] = {}
        for node in reversed(graph.graph.nodes):
            self._backward(node)

    def _forward(self, node: fx.Node) -> Tensor:
        """Per channel: the constant value, or NaN where it varies."""
        kind, module = self.kinds[node], module_of(self.graph, node)
        inputs = [self.constant[n] for n in node.all_input_nodes]
        if kind == "input":
            return torch.full((self.shapes[node][0],), VARYING)
        x = inputs[0]
        if kind in WEIGHTED:
            alive = (self.weights[node] & (x != 0).view(module_groups(module), 1, -1)).any(dim=2).flatten()
            bias = torch.zeros(len(alive)) if module.bias is None or self.through_sign else module.bias.detach().cpu()
            return bias.float().masked_fill(alive, VARYING)
        if kind in ("batchnorm", "shift"):
            scale, shift = batchnorm_affine(module)
            declared = self.through_sign & (x == 0)
            return shift.masked_fill((scale != 0) & (x != 0), VARYING).masked_fill(declared, 0.0)
        if kind == "relu":
            return x.relu()
        if kind == "prelu":
            return F.prelu(x[None], module.weight.detach().float().cpu())[0]
        if kind in ("relu6", "hardtanh"):
            return F.hardtanh(x, module.min_val, module.max_val)
        if kind == "sign":
            return torch.where((x == 0) & self.through_sign, 0.0, VARYING)
        if kind in ("avgpool", "globalavgpool", "upsample", "silu", "hardswish", "gelu", "mul_scalar"):
            return torch.where(x == 0, 0.0, VARYING)  # a mean is rounded, and smaller where the zero padding counts
        if kind in ("sigmoid", "hardsigmoid"):
            return torch.full_like(x, VARYING)
        if kind == "add_scalar":
            return x + module.value
        if kind == "order":
            return x[module.order.cpu()]
        if kind == "mul":
            return torch.where(torch.stack([self.constant[n] for n in node.args]).eq(0).any(0), 0.0, VARYING)
        if kind == "add":
            first, second = (self.constant[n] for n in node.args)
            return first + second
        if kind == "cat":
            return torch.cat([self.constant[n] for n in node.args[0]])
        if kind == "flatten":
            return x.repeat_interleave(self._area(node))
        if kind == "pad_shortcut":
            return F.pad(x, (module.before, module.after))
        return x  # maxpool, identity, output

    def _area(self, flatten: fx.Node) -> int:
        return self.shapes[flatten][0] // self.shapes[flatten.args[0]][0]

    def _backward(self, node: fx.Node) -> None:
        """Tell the node's inputs what this node needs of them."""
        kind, module, keep = self.kinds[node], module_of(self.graph, node), self.keep[node]
        if kind == "output":
            keep.fill_(True)
            self.keep[node.args[0]].fill_(True)
        elif kind in WEIGHTED:
            self._backward_weighted(node)
        elif kind in ELEMENTWISE:
            self.keep[node.args[0]] |= keep
        elif kind == "add":
            first, second = node.args
            self.keep[first] |= keep & ~(self.zero[first] & ~self.zero[second])
            self.keep[second] |= keep & ~self.zero[second]
        elif kind == "mul":
            for n in node.args:
                self.keep[n] |= keep
        elif kind == "order":
            self.keep[node.args[0]][module.order.cpu()[keep]] = True
        elif kind == "cat":
            for part, n in zip(keep.split([len(self.zero[n]) for n in node.args[0]]), node.args[0], strict=True):
                self.keep[n] |= part
        elif kind == "flatten":
            self.keep[node.args[0]] |= keep.view(-1, self._area(node)).any(dim=1)
        elif kind == "pad_shortcut":
            self.keep[node.args[0]] |= keep[module.before : len(keep) - module.after]

    def _backward_weighted(self, node: fx.Node) -> None:
        module, keep, source = module_of(self.graph, node), self.keep[node], node.args[0]
        groups = module_groups(module)
        if groups > 1:  # a group stays or goes as a whole
            keep.copy_(keep.view(groups, -1).any(dim=1, keepdim=True).expand(-1, len(keep) // groups).flatten())
            reads = keep.view(groups, -1)[:, :1].expand(-1, len(self.zero[source]) // groups).flatten()
        else:
            reads = (self.weights[node][0] & keep[:, None]).any(dim=0) & ~self.zero[source]
            if keep.any() and not reads.any():  # a layer of bare biases still needs an image to write on
                reads[int(torch.where(self.zero[source], 0, 1).argmax())] = True
        self.reads[node] = reads
        self.keep[source] |= reads


def module_groups(module: nn.Module) -> int:
    """Groups of a conv, 1 for a linear layer."""
    return getattr(module, "groups", 1)


@torch.no_grad()
def _nonzero(module: nn.Module) -> Tensor:
    """Bool [groups, rows per group, columns per group]: where any tap of the effective weight is nonzero."""
    weight = module.weight.detach().cpu()
    taps = weight.flatten(2).ne(0).any(dim=2) if weight.dim() > 2 else weight.ne(0)
    return taps.view(module_groups(module), -1, taps.shape[1])


def removable(model: nn.Module, example: Tensor, through_sign: bool) -> dict[str, RowsCols]:
    """What can go of every conv, linear and BN module, by module name.

    Args:
        example: one image [1, C, H, W] on the model's device.
        through_sign: see `Liveness`: False for an exact cut, True to spread a pruning method's masks.

    Raises:
        ValueError: the model holds an operation the analysis does not know.
    """
    live = Liveness(canonical(model, example), example, through_sign)
    found: dict[str, RowsCols] = {}
    for node, kind in live.kinds.items():
        if kind not in (*WEIGHTED, "batchnorm"):
            continue
        rows = ~live.keep[node]
        cols = ~live.reads[node] if kind in WEIGHTED else rows
        if node.target in found:  # a shared module: only what goes at every call
            rows, cols = rows & found[node.target].rows_removed, cols & found[node.target].cols_removed
        found[node.target] = RowsCols(rows, cols)
    return found
