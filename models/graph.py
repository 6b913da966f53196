"""A model as a torch.fx graph of the few operations that models are built from."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter, signature

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from sparsign.models.operators import AddNumber, ChannelOrder, MulNumber
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
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.GELU: "gelu",
    AddNumber: "add_scalar",
    MulNumber: "mul_scalar",
    ChannelShift: "shift",
    nn.MaxPool2d: "maxpool",
    nn.AvgPool2d: "avgpool",
    nn.AdaptiveAvgPool2d: "globalavgpool",
    nn.Upsample: "upsample",
    ChannelOrder: "order",
    nn.Flatten: "flatten",
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), "identity"),
    StochasticDepth: "identity",
    nn.Identity: "identity",
    nn.Unflatten: "identity",  # of a gate [N, C]; models.canonical takes all others away
    Sign: "sign",
    PadShortcut: "pad_shortcut",
}
SPELLED = (nn.LeakyReLU, nn.AdaptiveMaxPool2d, nn.ChannelShuffle)
"""Modules that `models.canonical` says with those above."""
FUNCTIONS = {operator.add: "add", operator.mul: "mul", torch.cat: "cat"}
WEIGHTED = ("conv", "linear")
ELEMENTWISE = (
    *("batchnorm", "shift", "relu", "prelu", "relu6", "hardtanh", "sign"),
    *("sigmoid", "silu", "hardswish", "hardsigmoid", "gelu", "add_scalar", "mul_scalar"),
    *("maxpool", "avgpool", "globalavgpool", "upsample", "identity"),
)
"""Kinds whose output channel c depends on input channel c alone."""


METHODS = ("forward", "_conv_forward", "__call__", "_call_impl")
"""What a layer computes with: a subclass that has one of its own is another layer."""


class UntraceableError(ValueError):
    """A network whose forward cannot be traced."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, tuple(KINDS)) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The model's graph in eval mode; its modules are shared with the model, known layers stay whole.

    Raises:
        ValueError: a module that is not what its class says: a forward of its own, hooks, scripted or compiled.
        UntraceableError: the model's forward branches or loops on what it is given.
    """
    for name, module in model.named_modules():
        problem = _disguise(module)
        if problem:
            raise ValueError(f"{name or 'the network'}: {type(module).__name__} {problem}")
    parameters = list(signature(model.forward).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
    with evaluating(model):
        try:
            graph = fx.GraphModule(model, _Tracer().trace(model, defaults or None))
        except Exception as error:  # whatever the model's own code raises when it is given no real images
            reason = " ".join(str(error).split())
            raise UntraceableError(f"{type(model).__name__}: its forward cannot be traced: {reason}") from None
    for node in list(graph.graph.nodes):
        if node.op == "placeholder" and node.name.removesuffix("_1") in defaults and not node.users:
            graph.graph.erase_node(node)
    return graph


def _disguise(module: nn.Module) -> str | None:
    """Why a module does not compute what its class does, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is scripted: pass the network it was made of"
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        return "is compiled: pass the network as it was before torch.compile"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks, which no packed model can hold: remove them first"
    base = next((cls for cls in (*KINDS, *SPELLED) if isinstance(module, cls)), None)
    if base is not None:
        for name in METHODS:
            if name in vars(module) or getattr(type(module), name, None) is not getattr(base, name, None):
                return f"has a {name} of its own, expected that of {base.__name__}"
    elif "forward" in vars(module):
        return "has its forward replaced, expected that of its class"
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; every module is as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def place(node: fx.Node) -> str:
    """Where in the network an operation is, for messages: the module it calls, or the one whose forward calls it."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"{stack[-1][0]}, {node.name}" if stack and stack[-1][0] else node.name


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module a node calls, or None."""
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def _known(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """The kind of a node, or None for an operation that no packed model knows."""
    module = module_of(graph, node)
    return next((kind for cls, kind in KINDS.items() if isinstance(module, cls)), None)


def kind_of(graph: fx.GraphModule, node: fx.Node) -> str:
    """One of `input`, `output`, `add`, `mul`, `cat` and the values of KINDS.

    Raises:
        ValueError: an operation that no packed model knows, or one used in a way it does not know.
    """
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "output"
    module = module_of(graph, node)
    kind = _known(graph, node)
    if node.op == "call_function":
        kind = FUNCTIONS.get(node.target)
    if kind is None:
        raise ValueError(f"{place(node)}: {operation(node, module)} is not a known operation")
    problem = _problem(kind, node, module)
    if problem:
        raise ValueError(f"{place(node)}: {kind} {problem}")
    return kind


def operation(node: fx.Node, module: nn.Module | None) -> str:
    """What a node calls, for messages."""
    if module is not None:
        return type(module).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _problem(kind: str, node: fx.Node, module: nn.Module | None) -> str | None:
    if kind == "globalavgpool" and module.output_size not in (1, (1, 1)):
        return f"with output_size={module.output_size}: expected 1"
    if kind == "conv" and module.padding_mode != "zeros":
        return f"with padding_mode={module.padding_mode!r}: expected 'zeros'"
    if kind == "conv" and module.padding == "same" and not all(k % 2 for k in module.kernel_size):
        return f"with padding='same' and kernel_size={module.kernel_size}: expected odd sizes"
    if kind == "batchnorm" and module.running_mean is None:
        return "without running statistics: expected track_running_stats=True"
    if kind == "maxpool" and module.return_indices:
        return "with return_indices=True: expected False"
    if kind == "flatten" and (module.start_dim, module.end_dim) != (1, -1):
        return f"from dimension {module.start_dim} to {module.end_dim}: expected 1 to -1"
    return None


@torch.no_grad()
def shapes(graph: fx.GraphModule, example: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Output shape of every node without the batch dimension, from running one image [1, C, H, W] in eval mode."""
    found: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Tensor:
            try:
                result = super().run_node(n)
            except Exception as error:
                raise run_error(n, error) from None
            found[n] = tuple(result.shape[1:])
            return result

    with evaluating(graph):
        recorder = Recorder(graph)
        recorder.extra_traceback = False  # it would fill an error with lines of its own
        recorder.run(example)
    for node in found:
        kind, read = kind_of(graph, node), [found[n] for n in node.all_input_nodes]
        if kind == "linear" and len(read[0]) != 1:
            raise ValueError(f"{place(node)}: Linear reads [N, {', '.join(map(str, read[0]))}], expected [N, features]")
    return found


def run_error(node: fx.Node, error: Exception) -> ValueError:
    """What a node raised when it ran, in one line that says where."""
    if isinstance(error, ValueError):
        return error
    return ValueError(f"{place(node)}: cannot run: {next(iter(str(error).splitlines()), type(error).__name__)}")


def check_precision(model: nn.Module) -> None:
    """ValueError naming the first parameter or buffer of another precision than fp32."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected float32 (model.float())")


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
        if _known(graph, node) != "conv":
            continue
        follower = node
        while len(follower.users) == 1:
            follower = next(iter(follower.users))
            kind = _known(graph, follower)
            if kind == "batchnorm":
                found[node.target] = follower.target
            if kind not in ("relu", "maxpool", "avgpool", "globalavgpool", "identity"):
                break
    return found
