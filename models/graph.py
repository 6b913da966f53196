"""A model as a torch.fx graph of the few operations that models are built from."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from sparsign.models.react import ChannelShift
from sparsign.models.shortcuts import PadShortcut
from sparsign.models.sign import Sign

KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.Linear: "linear",
    nn.BatchNorm1d: "batchnorm",
    nn.BatchNorm2d: "batchnorm",
    nn.ReLU6: "relu6",  # before Hardtanh, whose subclass it is
    nn.Hardtanh: "hardtanh",
    nn.ReLU: "relu",
    nn.PReLU: "prelu",
    ChannelShift: "shift",
    nn.MaxPool2d: "maxpool",
    nn.AvgPool2d: "avgpool",
    nn.AdaptiveAvgPool2d: "globalavgpool",
    nn.Flatten: "flatten",
    nn.modules.dropout._DropoutNd: "identity",
    nn.Identity: "identity",
    Sign: "sign",
    PadShortcut: "pad_shortcut",
}
FUNCTIONS = {operator.add: "add", operator.iadd: "add", torch.add: "add", torch.cat: "cat", torch.flatten: "flatten"}
WEIGHTED = ("conv", "linear")
ELEMENTWISE = (
    *("batchnorm", "shift", "relu", "prelu", "relu6", "hardtanh", "sign"),
    *("maxpool", "avgpool", "globalavgpool", "identity"),
)
"""Kinds whose output channel c depends on input channel c alone."""


class UntraceableError(ValueError):
    """A network whose forward cannot be traced."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, tuple(KINDS)) or parametrize.is_parametrized(m) or not any(m.children())


def trace(model: nn.Module) -> fx.GraphModule:
    """The model's graph; its modules are shared with the model, layers with weight transforms stay whole.

    Raises:
        UntraceableError: the model's forward branches or loops on what it is given.
    """
    try:
        return fx.GraphModule(model, _Tracer().trace(model))
    except fx.proxy.TraceError as error:
        raise UntraceableError(f"{type(model).__name__}: its forward cannot be traced: {error}") from None


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module a node calls, or None."""
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def kind_of(graph: fx.GraphModule, node: fx.Node) -> str:
    """One of `input`, `output`, `add`, `cat`, `flatten` and the values of KINDS.

    Raises:
        ValueError: an operation that no packed model knows, or one used in a way it does not know.
    """
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "output"
    module = module_of(graph, node)
    if module is not None:
        kind = next((kind for cls, kind in KINDS.items() if isinstance(module, cls)), None)
        if kind is None and isinstance(module, nn.Sequential) and not len(module):
            kind = "identity"
    else:
        kind = FUNCTIONS.get(node.target) if node.op == "call_function" else None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    if kind is None:
        raise ValueError(f"{node.name}: {type(module).__name__ if module else name} is not a known operation")
    problem = _problem(kind, node, module)
    if problem:
        raise ValueError(f"{node.name}: {kind} {problem}")
    return kind


def _problem(kind: str, node: fx.Node, module: nn.Module | None) -> str | None:
    if kind == "globalavgpool" and module.output_size not in (1, (1, 1)):
        return f"with output_size={module.output_size}: expected 1"
    if kind == "conv" and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        return f"with padding={module.padding!r}, padding_mode={module.padding_mode!r}: expected numbers and 'zeros'"
    if kind == "batchnorm" and module.running_mean is None:
        return "without running statistics: expected track_running_stats=True"
    if kind == "add" and (len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args) or node.kwargs):
        return "expected two tensors and nothing else"
    if kind == "cat" and (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) != 1:
        return "expected dim=1"
    if kind == "flatten":
        start = module.start_dim if module else node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        end = module.end_dim if module else node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
        if (start, end) != (1, -1):
            return f"from dimension {start} to {end}: expected 1 to -1"
    return None


@torch.no_grad()
def shapes(graph: fx.GraphModule, example: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Output shape of every node without the batch dimension, from running one image [1, C, H, W] in eval mode."""
    found: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Tensor:
            result = super().run_node(n)
            found[n] = tuple(result.shape[1:])
            return result

    training = [module for module in graph.modules() if module.training]
    graph.eval()
    try:
        Recorder(graph).run(example)
    finally:
        for module in training:
            module.training = True
    return found


@torch.no_grad()
def batchnorm_affine(module: nn.BatchNorm1d | nn.BatchNorm2d | ChannelShift) -> tuple[Tensor, Tensor]:
    """fp32 (scale a, shift b) [C] on the CPU with eval-mode batchnorm(x) == batch_norm(x, mean 0, var 1, a, b, eps 0).

    A learned shift is the same with a = 1 (1 x + b rounds once, fused or not).
    Read off torch's own kernel at x = 1 and x = 0: it fuses multiply and add in b = beta - mean a, which no formula
    written with separate roundings reproduces to the last bit.
    """
    if isinstance(module, ChannelShift):
        shift = module.bias.detach().float().cpu()
        return torch.ones_like(shift), shift
    mean, var = module.running_mean.detach().float().cpu(), module.running_var.detach().float().cpu()
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    gamma = one if module.weight is None else module.weight.detach().float().cpu()
    beta = zero if module.bias is None else module.bias.detach().float().cpu()
    scale = F.batch_norm(one[None], zero, var, gamma, zero, False, 0.0, module.eps)[0]
    shift = F.batch_norm(zero[None], mean, var, gamma, beta, False, 0.0, module.eps)[0]
    return scale, shift


def batchnorm_after(model: nn.Module) -> dict[str, str]:
    """{conv name: BN name} wherever conv -> (ReLU | pool | identity)* -> BN and nothing else reads what is in between.

    All of these pass on a positive factor of the filter, which BN then takes out.
    """
    graph = trace(model)
    found = {}
    for node in graph.graph.nodes:
        if kind_of(graph, node) != "conv":
            continue
        follower = node
        while len(follower.users) == 1:
            follower = next(iter(follower.users))
            kind = kind_of(graph, follower)
            if kind == "batchnorm":
                found[node.target] = follower.target
            if kind not in ("relu", "maxpool", "avgpool", "globalavgpool", "identity"):
                break
    return found
