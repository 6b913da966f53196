"""One spelling for every network: functions, methods and views of a traced forward become the modules of `KINDS`.

Functions become the modules that compute the same numbers; but x / c is x * (1 / c), whose last bit may differ where c
is no power of two. Whatever only moves numbers (view, transpose, chunk, ...) is run on the numbers' own places, and is
taken for what it does to them: a flatten, an order of channels, or nothing. Sizes are those of the
example, and the batch has two images in it, so that nothing that mixes them passes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsign.models.graph import KINDS, check_precision, evaluating, module_of, operation, place, run_error, trace
from sparsign.models.operators import AddNumber, ChannelOrder, MulNumber

Shape = tuple[int, ...]


def canonical(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The model's graph (see `trace`) in modules of `KINDS`, sums, products and concatenations alone.

    Args:
        example: one image [1, C, H, W]; sizes in the forward are taken from it.

    Raises:
        ValueError: what `trace` refuses, and the first operation that cannot be spelled so, by module and name.
    """
    check_precision(model)
    graph = trace(model)
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if module is not None and not isinstance(module, (*KINDS, *MODULES, *MOVING_MODULES)):
            raise ValueError(f"{place(node)}: {type(module).__name__} is not a known operation")
    results = _Results(graph)
    with evaluating(graph), torch.no_grad():
        results.run(example.repeat(2, 1, 1, 1))
    for reader, named, read in results.changed:
        reader.replace_input_with(named, read)
    _Speller(graph, results.found).spell()
    return graph


class _Results(fx.Interpreter):
    """Runs a graph and keeps the shape of every tensor, and every size and number that is no tensor."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.found: dict[fx.Node, Any] = {}
        self.versions: dict[fx.Node, int] = {}
        self.latest: dict[int, fx.Node] = {}
        """Who returned a tensor last, by the tensor's id."""
        self.changed: list[tuple[fx.Node, fx.Node, fx.Node]] = []
        """(reader, what it names, what it reads): where an operation in place lies between the two."""

    def run_node(self, n: fx.Node) -> Any:
        for source in n.all_input_nodes:
            tensor = self.env[source]
            if source in self.versions and tensor._version != self.versions[source]:
                latest = self.latest[id(tensor)]
                if self.versions[latest] != tensor._version:
                    raise ValueError(f"{place(n)}: reads what {place(source)} made after a view of it was changed")
                self.changed.append((n, source, latest))
        try:
            result = super().run_node(n)
        except Exception as error:
            raise run_error(n, error) from None
        self.found[n] = result
        if isinstance(result, Tensor):
            self.found[n], self.versions[n] = _Shape(result.shape), result._version
            self.latest[id(result)] = n
        return result


class _Shape(tuple):
    """Shape of a tensor, in contrast to a tuple that a forward computes with."""


# -- functions ---------------------------------------------------------------------------------------------------------


def _max_pool(kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):  # noqa: ANN001, ANN202
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    if training:
        raise ValueError("is random in eval mode too, expected training=self.training")
    return nn.Identity()


def _leaky(negative_slope: float = 0.01, inplace: bool = False) -> nn.Module:
    return nn.PReLU(1, negative_slope)


def _interpolate(size=None, scale_factor=None, mode="nearest", align_corners=None, **unknown):  # noqa: ANN001, ANN202
    if any(unknown.values()):
        raise ValueError(f"with {', '.join(unknown)} is not a known operation")
    return nn.Upsample(size, scale_factor, mode, align_corners)


def _clamp(min: float, max: float) -> nn.Module:
    return nn.Hardtanh(float(min), float(max))


FUNCTIONS: dict[str, Callable[..., nn.Module]] = {
    **dict.fromkeys(("relu", "relu_"), nn.ReLU),
    "relu6": nn.ReLU6,
    **dict.fromkeys(("hardtanh", "hardtanh_"), nn.Hardtanh),
    **dict.fromkeys(("clamp", "clamp_", "clip"), _clamp),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), _leaky),
    **dict.fromkeys(("sigmoid", "sigmoid_"), nn.Sigmoid),
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "gelu": nn.GELU,
    "max_pool2d": _max_pool,
    "avg_pool2d": nn.AvgPool2d,
    "interpolate": _interpolate,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout"), _dropout),
}
"""Functions and methods of one tensor, by name: module with the same arguments behind it."""
MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LeakyReLU, nn.Upsample)
"""Modules that stand for others, depending on sizes."""
SUMS = ("add", "add_", "iadd")
PRODUCTS = ("mul", "mul_", "imul", "multiply")
NUMBERS: dict[str, Callable[[float], nn.Module]] = {
    **dict.fromkeys(SUMS, AddNumber),
    **dict.fromkeys(PRODUCTS, MulNumber),
    **dict.fromkeys(("sub", "sub_", "isub"), lambda value: AddNumber(-value)),
    **dict.fromkeys(("truediv", "div", "div_", "itruediv"), lambda value: MulNumber(1 / value)),
    "neg": lambda: MulNumber(-1),
}
CATS = ("cat", "concat", "concatenate")
SIZES = ("size", "dim", "numel", "ndimension", "getattr")
MOVES = (
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "getitem", "expand"),
    *("expand_as", "permute", "transpose", "swapaxes", "chunk", "split", "tensor_split", "narrow", "unbind"),
    "channel_shuffle",
)
"""Operations that compute nothing."""
MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle)


def _adaptive(module: nn.Module, size: Shape) -> nn.Module:
    """Adaptive pooling of images of a known size: a pool with a window, one pixel repeated, or nothing."""
    asked = module.output_size
    out = tuple(n if o is None else o for o, n in zip((asked,) * 2 if isinstance(asked, int) else asked, size))  # noqa: B905
    if out == (1, 1) and isinstance(module, nn.AdaptiveAvgPool2d):
        return nn.AdaptiveAvgPool2d(1)
    if out == size:
        return nn.Identity()
    if all(n % o == 0 for n, o in zip(size, out, strict=True)):
        window = tuple(n // o for n, o in zip(size, out, strict=True))
        return nn.AvgPool2d(window) if isinstance(module, nn.AdaptiveAvgPool2d) else nn.MaxPool2d(window)
    if all(o % n == 0 for n, o in zip(size, out, strict=True)):
        return nn.Upsample(scale_factor=tuple(o // n for n, o in zip(size, out, strict=True)))
    raise ValueError(f"of {list(size)} pixels to {list(out)}: expected sizes that divide each other")


def _resized(module: nn.Upsample, size: Shape) -> nn.Module:
    if module.size is None:
        return module
    out = (module.size,) * 2 if isinstance(module.size, int) else tuple(module.size)
    if any(o % n for n, o in zip(size, out, strict=True)):
        raise ValueError(f"of {list(size)} pixels to {list(out)}: expected multiples")
    factor = tuple(o // n for n, o in zip(size, out, strict=True))
    return nn.Upsample(scale_factor=factor, mode=module.mode, align_corners=module.align_corners)


# -- the pass ----------------------------------------------------------------------------------------------------------


class _Speller:
    """Rewrites a graph in place. `found`: see `_Results`."""

    def __init__(self, graph: fx.GraphModule, found: dict[fx.Node, Any]) -> None:
        self.graph, self.found = graph, found
        self.moved: dict[fx.Node, tuple[fx.Node, Any]] = {}
        """Where the numbers of a view come from: (a node, places in it in the view's shape)."""

    def spell(self) -> None:
        first = next(iter(self.graph.graph.nodes))
        for node in list(self.graph.graph.nodes):
            if node.op == "placeholder" and node is not first:
                raise ValueError(f"{node.name}: a second input, expected images alone")
            try:
                self._spell(node)
            except (ValueError, TypeError, ArithmeticError, LookupError) as error:  # or arguments no module takes
                reason = " ".join(str(error).split())
                raise ValueError(f"{place(node)}: {operation(node, module_of(self.graph, node))} {reason}") from None
        for node in reversed(self.graph.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.graph.erase_node(node)
        self.graph.recompile()

    def _spell(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            return
        name, module = self._name(node), module_of(self.graph, node)
        reads = [n for n in node.all_input_nodes if isinstance(self.found[n], _Shape)]
        moves = isinstance(module, MOVING_MODULES) if node.op == "call_module" else name in MOVES
        if not moves:
            for source in node.all_input_nodes:
                if source in self.moved and not (name in PRODUCTS and self._gate(source)):
                    raise ValueError(f"reads numbers that {place(source)} moved in a way no packed model knows")
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise ValueError(f"is a {type(node.args[0]).__name__}, expected logits [N, classes]")
            return
        if node.op == "get_attr":
            raise ValueError("is a tensor that the forward reads itself, expected one in a layer")
        if moves and (reads or any(n in self.moved for n in node.all_input_nodes)):
            self._move(node, module)
        elif not isinstance(self.found[node], _Shape):
            if reads and name not in SIZES:
                raise ValueError("is not a known operation")
        elif node.op == "call_module":
            self._module(node, module)
        elif name in CATS:
            self._cat(node)
        elif name in (*SUMS, *PRODUCTS) and self._tensors(node) == 2:
            self._pairwise(node, operator.mul if name in PRODUCTS else operator.add)
        else:
            self._function(node, name)

    def _tensors(self, node: fx.Node) -> int:
        operands = [n for n in (*node.args, *node.kwargs.values()) if isinstance(n, fx.Node)]
        return sum(n in self.moved or isinstance(self.found[n], _Shape) for n in operands)

    def _gate(self, node: fx.Node) -> fx.Node | None:
        """The source [N, C] of numbers that were moved to [N, C, 1, 1] (gates made by linear layers), or None."""
        source, places = self.moved[node]
        shape = self.found[source]
        if not isinstance(places, Tensor) or places.shape != (*shape[:2], 1, 1) or len(shape) != 2:
            return None
        return source if torch.equal(places.flatten(), torch.arange(math.prod(shape))) else None

    @staticmethod
    def _name(node: fx.Node) -> str:
        return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")

    def _values(self, arguments: Any) -> Any:
        """Arguments with sizes and numbers of the example in the place of nodes."""
        return fx.node.map_arg(arguments, lambda n: n if isinstance(self.found[n], _Shape) else self.found[n])

    def _replace(self, node: fx.Node, source: fx.Node, *modules: nn.Module) -> None:
        """The node's result is that of the modules, one after the other, on the source's."""
        for module in modules:
            if not isinstance(module, nn.Identity):
                source = self._insert(node, source, module)
        node.replace_all_uses_with(source)

    def _insert(self, node: fx.Node, source: fx.Node, module: nn.Module) -> fx.Node:
        """A call of the module on the source, before the node and named after it."""
        name = node.name if node.op != "call_module" else f"{node.name}_spelled"
        while hasattr(self.graph, name):
            name += "_"
        self.graph.add_submodule(name, module.eval())
        with self.graph.graph.inserting_before(node):
            new = self.graph.graph.call_module(name, (source,))
        new.meta = dict(node.meta)
        self.found[new] = self.found[node]
        return new

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        source = node.args[0]
        if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
            spelled = _adaptive(module, self.found[source][2:])
        elif isinstance(module, nn.Upsample):
            spelled = _resized(module, self.found[source][2:])
        elif isinstance(module, nn.LeakyReLU):
            spelled = nn.PReLU(1, module.negative_slope)
        else:
            return
        if repr(spelled) != repr(module):
            self._replace(node, source, spelled)

    def _function(self, node: fx.Node, name: str) -> None:
        args, kwargs = self._values(node.args), dict(self._values(node.kwargs))
        source = args[0] if args else kwargs.pop("input", None)
        rest = args[1:]
        if not isinstance(source, fx.Node):
            if name not in (*SUMS, *PRODUCTS) or not isinstance(args[1], fx.Node):
                raise ValueError("is not a known operation")
            source, rest = args[1], args[:1]  # 2 * x
        if name == "mean":
            return self._mean(node, source, *rest, **kwargs)
        if name in NUMBERS:
            if kwargs or not all(isinstance(value, (int, float)) for value in rest):
                raise ValueError("with more than a number or a tensor")
            spelled = NUMBERS[name](*rest)
        elif name in FUNCTIONS:
            spelled = FUNCTIONS[name](*rest, **kwargs)
        else:
            raise ValueError("is not a known operation")
        size = self.found[source][2:]
        if isinstance(spelled, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
            spelled = _adaptive(spelled, size)
        elif isinstance(spelled, nn.Upsample):
            spelled = _resized(spelled, size)
        self._replace(node, source, spelled)

    def _mean(self, node: fx.Node, source: fx.Node, dim: Any = None, keepdim: bool = False) -> None:
        rank = len(self.found[source])
        dims = sorted(d % rank for d in ((dim,) if isinstance(dim, int) else dim or ()))
        if rank != 4 or dims != [2, 3]:
            raise ValueError(f"over dimensions {dim}, expected 2 and 3")
        self._replace(node, source, nn.AdaptiveAvgPool2d(1), nn.Identity() if keepdim else nn.Flatten())

    def _cat(self, node: fx.Node) -> None:
        args, kwargs = self._values(node.args), dict(self._values(node.kwargs))
        parts = args[0] if args else kwargs.pop("tensors")
        dim = args[1] if len(args) > 1 else kwargs.pop("dim", kwargs.pop("axis", 0))
        if dim % len(self.found[node]) != 1 or kwargs:
            raise ValueError(f"along dimension {dim}, expected 1")
        self._call(node, torch.cat, (list(parts), 1))

    def _pairwise(self, node: fx.Node, function: Callable[..., Any]) -> None:
        """Sums of equal shapes; products of equal ones, or of [N, C, H, W] and a gate [N, C, 1, 1], in this order."""
        args = [*node.args, *(v for k, v in node.kwargs.items() if k != "alpha")]
        if self._values(node.kwargs).get("alpha", 1) != 1:
            raise ValueError("with alpha is not a known operation")
        whole, product = self.found[node], function is operator.mul
        args.sort(key=lambda n: self.found[n] != whole)
        gate = (*whole[:2], *[1] * (len(whole) - 2))
        if args[1] in self.moved and args[0] not in self.moved and self.found[args[0]] == whole:
            args[1] = self._insert(node, self._gate(args[1]), nn.Unflatten(1, (whole[1], 1, 1)))
        elif self.found[args[0]] != whole or self.found[args[1]] not in ((whole, gate) if product else (whole,)):
            shapes = [list(self.found[n]) for n in args]
            raise ValueError(f"of shapes {shapes}: expected equal ones{', or [N, C, 1, 1] beside one' * product}")
        self._call(node, function, tuple(args))

    def _call(self, node: fx.Node, function: Callable[..., Any], args: tuple) -> None:
        with self.graph.graph.inserting_before(node):
            new = self.graph.graph.call_function(function, args)
        new.meta = dict(node.meta)
        self.found[new] = self.found[node]
        node.replace_all_uses_with(new)

    def _move(self, node: fx.Node, module: nn.Module | None) -> None:
        """Runs the node on the places of its source's numbers, and says what it does to them."""
        first = node.args[0] if node.args else node.kwargs["input"]
        if not isinstance(first, fx.Node):
            raise ValueError("of more than one tensor is not a known operation")
        if first in self.moved:
            source, places = self.moved[first]
        else:
            shape = self.found[first]
            source, places = first, torch.arange(math.prod(shape)).view(shape)
        if self._name(node) in ("expand", "expand_as"):  # taken back by the product, and by nothing else
            self.moved[node], self.found[node] = (source, places), None
            return
        args, kwargs = self._values((*node.args[1:],)), dict(self._values(node.kwargs))
        kwargs.pop("input", None)
        if any(isinstance(v, fx.Node) for v in (*args, *kwargs.values())):
            raise ValueError("by a tensor is not a known operation")
        if module is not None:
            moved = module(places)
        elif node.op == "call_method":
            moved = getattr(places, node.target)(*args, **kwargs)
        else:
            moved = node.target(places, *args, **kwargs)
        spelled = _movement(moved, self.found[source])
        if spelled is None:
            self.moved[node] = source, moved
            self.found[node] = None
        else:
            self._replace(node, source, spelled)


def _movement(moved: Any, shape: Shape) -> nn.Module | None:
    """The module that puts the numbers of a tensor of this shape, counted in C order, into these places; None: none."""
    if not isinstance(moved, Tensor):
        return None
    places = torch.arange(math.prod(shape)).view(shape)
    if moved.shape == shape and torch.equal(moved, places):
        return nn.Identity()
    if torch.equal(moved, places.flatten(1)):
        return nn.Flatten()
    if moved.dim() != len(shape) or moved.shape[2:] != shape[2:] or not moved.numel():
        return None
    order = moved[0].flatten(1)[:, 0] // math.prod(shape[2:]) if len(shape) > 2 else moved[0]
    if order.max() >= shape[1] or len(order.unique()) != len(order) or not torch.equal(moved, places[:, order]):
        return None
    return ChannelOrder(order)
