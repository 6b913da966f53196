"""From a trained model to a packed one: every dead channel is cut, every weight becomes codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from sparsign.models.canonical import canonical
from sparsign.models.channels import Liveness
from sparsign.models.cutting import numbers, uncut, uncut_numel
from sparsign.models.graph import WEIGHTED, evaluating, module_of, place
from sparsign.models.operators import ChannelOrder
from sparsign.packing.encode import Encode, layer_codes
from sparsign.packing.spec import OPS, LayerCodes, Node, PackedModel

RENAMED = {"batchnorm": "affine", "shift": "affine"}
"""Kinds of torch layers whose operation has another name."""


def to_packed(
    model: nn.Module, encode: Encode, input_shape: tuple[int, int, int], meta: dict[str, Any] | None = None
) -> PackedModel:
    """Pack a trained model; its logits (eval mode, fp32) do not change (of a division by a number: see `canonical`).

    Args:
        encode: layer -> its integer codes and how they become numbers, or None for a layer that stays float; see
            `packing.encode.Encode`.
        input_shape: (C, H, W) of one image.
        meta: plain JSON values to carry along, e.g. class names, mean and std.

    Raises:
        ValueError: an operation no packed model knows, or a layer whose weight is not exactly scale * codes.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = torch.zeros(1, *input_shape, device=device)
    graph = canonical(model, example)
    live = Liveness(graph, example)
    builder = _Builder(live, encode)
    for node in graph.graph.nodes:
        builder.visit(node)
    output = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    original = {"parameters": _parameters(model, _called(model, example)), "dropped": builder.dropped}
    meta = {**(meta or {}), "original": original}
    packed = PackedModel(builder.nodes, tuple(input_shape), builder.name[output], meta)
    packed.validate()
    return packed


def _called(model: nn.Module, example: Tensor) -> set[nn.Module]:
    """The modules that an image in eval mode passes: not the auxiliary heads of training."""
    found: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda m, _: found.add(m)) for module in model.modules()]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _parameters(model: nn.Module, called: set[nn.Module]) -> int:
    """Numbers in a plain checkpoint of the uncut network, of the modules that images pass."""
    return sum(uncut_numel(module, name) for module, name in numbers(model) if module in called)


class _Builder:
    """Emits nodes in order. `present[node]`: bool per original channel, what the emitted node `name[node]` carries."""

    def __init__(self, live: Liveness, encode: Encode) -> None:
        self.live, self.encode = live, encode
        self.nodes: list[Node] = []
        self.name: dict[fx.Node, str] = {}
        self.present: dict[fx.Node, np.ndarray] = {}
        self.dropped: list[list[Any]] = []

    def visit(self, node: fx.Node) -> None:
        kind, module = self.live.kinds[node], module_of(self.live.graph, node)
        if kind == "output":
            return
        if kind == "input":
            self._emit("input", node, [], np.ones(len(self.live.keep[node]), bool))
        elif kind in WEIGHTED:
            self._weighted(kind, node, module)
        elif kind == "add":
            self._add(node)
        elif kind == "mul":
            self._mul(node)
        elif kind == "order":
            self._order(node, module)
        elif kind == "cat":
            parts = [n for n in node.args[0] if self.present[n].any()]
            self._emit_or_alias("cat", node, parts, np.concatenate([self.present[n] for n in node.args[0]]))
        elif not self.present[node.args[0]].any() or not self.live.keep[node].any():
            self.present[node] = np.zeros(len(self.live.keep[node]), bool)
        elif kind == "identity":
            self._alias(node, node.args[0])
        elif kind == "flatten":
            source = self.present[node.args[0]]
            self._emit(kind, node, [node.args[0]], np.repeat(source, len(self.live.keep[node]) // len(source)))
        elif kind == "pad_shortcut":
            self._pad_shortcut(node, module)
        else:
            op = OPS[RENAMED.get(kind, kind)]
            try:
                attrs = op.attributes(module)
            except ValueError as error:
                raise ValueError(f"{place(node)}: {error}") from None
            present = self.present[node.args[0]]
            tensors = {name: _channels(tensor, present) for name, tensor in op.arrays(module).items()}
            self._emit(op.name, node, [node.args[0]], present, attrs, tensors)

    def _emit(
        self,
        op: str,
        node: fx.Node,
        inputs: list[fx.Node],
        present: np.ndarray,
        attrs: dict[str, Any] | None = None,
        tensors: dict[str, np.ndarray] | None = None,
        codes: LayerCodes | None = None,
        sources: list[str] | None = None,
    ) -> None:
        name = node.target if node.op == "call_module" else node.name
        if any(n.name == name for n in self.nodes):  # a module that is called twice
            name = node.name
        sources = [self.name[n] for n in inputs] if sources is None else sources
        self.nodes.append(Node(op, name, tuple(sources), attrs or {}, tensors or {}, codes))
        self.name[node], self.present[node] = name, present

    def _alias(self, node: fx.Node, source: fx.Node) -> None:
        self.name[node], self.present[node] = self.name[source], self.present[source]

    def _emit_or_alias(self, op: str, node: fx.Node, parts: list[fx.Node], present: np.ndarray) -> None:
        if len(parts) > 1:
            self._emit(op, node, parts, present)
            return
        self.present[node] = present
        if parts:
            self.name[node] = self.name[parts[0]]

    def _select(self, source: fx.Node, wanted: np.ndarray, reader: fx.Node) -> str:
        """Name of a node that carries just the wanted channels of `source`."""
        present = self.present[source]
        if np.array_equal(wanted, present):
            return self.name[source]
        name = f"{reader.target if reader.op == 'call_module' else reader.name}.select{reader.args.index(source)}"
        if any(n.name == name for n in self.nodes):  # x + x
            return name
        index = np.flatnonzero(wanted[present])
        self.nodes.append(Node("select", name, (self.name[source],), tensors={"index": index}))
        return name

    def _weighted(self, kind: str, node: fx.Node, module: nn.Conv2d | nn.Linear) -> None:
        keep, reads = self.live.keep[node].numpy(), self.live.reads[node].numpy()
        encoded = self.encode(module)
        if not keep.any():
            self.present[node] = keep
            self.dropped.append([node.target, list(uncut(module).shape), encoded is not None])
            return
        op, groups = OPS[kind], getattr(module, "groups", 1)
        attrs, cols = op.attributes(module), np.flatnonzero(reads)
        if groups > 1:
            attrs["groups"] = groups * int(reads.sum()) // len(reads)  # they go whole
            cols = np.arange(module.weight.shape[1])
        codes = layer_codes(node.target, module, encoded, np.flatnonzero(keep), cols)
        tensors = {name: tensor.numpy()[keep] for name, tensor in op.arrays(module).items()}
        source = self._select(node.args[0], reads, node)
        self._emit(kind, node, [node.args[0]], keep, attrs, tensors, codes, [source])

    def _add(self, node: fx.Node) -> None:
        """Operands land in their places of the kept output channels: y = shortcut; y[:, keep] += branch."""
        keep = self.live.keep[node].numpy()
        carried = {n: self.present[n] & keep for n in node.args}
        parts = [n for n in node.args if carried[n].any()]
        if len(parts) < 2:
            self.present[node] = carried[parts[0]] if parts else keep
            if parts:
                self.name[node] = self._select(parts[0], carried[parts[0]], node)
            return
        sources = [self._select(n, carried[n], node) for n in parts]
        tensors = {f"index{k}": np.flatnonzero(carried[n][keep]) for k, n in enumerate(parts)}
        tensors = {name: index for name, index in tensors.items() if len(index) < keep.sum()}
        attrs = {"channels": int(keep.sum())} if tensors else {}
        self._emit("add", node, parts, keep, attrs, tensors, sources=sources)

    def _mul(self, node: fx.Node) -> None:
        keep = self.live.keep[node].numpy()
        if not keep.any():
            self.present[node] = keep
            return
        self._emit("mul", node, list(node.args), keep, sources=[self._select(n, keep, node) for n in node.args])

    def _order(self, node: fx.Node, module: ChannelOrder) -> None:
        """A select of the channels that are kept, in their old order, and the new order of those."""
        keep, source = self.live.keep[node].numpy(), node.args[0]
        if not keep.any():
            self.present[node] = keep
            return
        wanted = module.order.cpu().numpy()[keep]
        kept = np.zeros(len(self.present[source]), bool)
        kept[wanted] = True
        name, ranks = self._select(source, kept, node), np.cumsum(kept)[wanted] - 1
        if (np.diff(ranks) > 0).all():
            self.name[node], self.present[node] = name, keep
        else:
            self._emit("permute", node, [source], keep, tensors={"order": ranks}, sources=[name])

    def _pad_shortcut(self, node: fx.Node, module: nn.Module) -> None:
        keep, source = self.live.keep[node].numpy(), self.present[node.args[0]]
        before, after = keep[: module.before], keep[module.before + len(source) :]
        attrs = {"stride": module.stride, "before": int(before.sum()), "after": int(after.sum())}
        self._emit("pad_shortcut", node, [node.args[0]], np.concatenate([before, source, after]), attrs)


def _channels(tensor: Tensor, present: np.ndarray) -> np.ndarray:
    """A parameter per channel, of the channels that are there; one for all stays."""
    return tensor.numpy()[present] if len(tensor) == len(present) else tensor.numpy()
