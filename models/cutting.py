"""Cutting a network for real: dead channels leave the weights, BN, and whatever a weight goes through, in place.

What is cut is what no operation has to be added for: channels that are dead in all that shares their places. An inner
channel of a residual block goes when its filter is dead, a channel of a residual stream when nobody writes it any more.
A filter that ends in a live stream stays, as a filter of zeros; packing cuts it and adds by index.

Every live channel is computed from the same numbers as before. Sums of signs are integers: the same to the bit. Sums of
floats may be taken in another order where a kernel is chosen by its number of channels: the same within fp32 rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from sparsign.models.canonical import canonical
from sparsign.models.channels import Liveness, module_groups
from sparsign.models.graph import ELEMENTWISE, WEIGHTED, module_of
from sparsign.models.react import ChannelShift

Kept = dict[str, tuple[Tensor, Tensor]]
"""Module name -> (rows, columns) that are kept: increasing int64 indices of the uncut layer; equal ones for BN."""
TOLERANCE = 1e-5
"""Largest change, relative to a layer's largest weight, that counts as another order of summation (of its scale)."""


@dataclass(frozen=True)
class Uncut:
    """Where a layer was cut from: its uncut shape, and the kept indices (int64) of its first two axes.

    Of a grouped conv the columns are those of one group, which stay.
    """

    shape: tuple[int, ...]
    rows: Tensor
    cols: Tensor


def uncut(module: nn.Module) -> Uncut:
    """What the layer was cut from; itself where it was not."""
    if "uncut" in vars(module):
        return module.uncut
    shape = tuple(_sized(module).shape)
    return Uncut(shape, torch.arange(shape[0]), torch.arange(shape[1] if len(shape) > 1 else shape[0]))


def numbers(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, "weight" or "bias") of whatever a plain checkpoint holds: weights, biases, BN's scale and shift, slopes
    and learned shifts, but no quantizer's numbers."""
    layers = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU, ChannelShift)
    every = [(m, name) for m in model.modules() if isinstance(m, layers) for name in ("weight", "bias")]
    return [(m, name) for m, name in every if getattr(m, name, None) is not None]


def uncut_numel(module: nn.Module, name: str) -> int:
    """Numbers in the layer's `weight` or `bias` before it was cut."""
    shape = uncut(module).shape
    return math.prod(shape) if name == "weight" else shape[0]


def cuts(model: nn.Module) -> Kept:
    """What is kept of every layer that was cut: what `cut` needs to cut a fresh network alike."""
    cut_modules = ((name, module.uncut) for name, module in model.named_modules() if "uncut" in vars(module))
    return {name: (whole.rows, whole.cols) for name, whole in cut_modules}


# -- which channels go -------------------------------------------------------------------------------------------------


def cuttable(model: nn.Module, example: Tensor) -> Kept:
    """What is kept of every layer that loses something; empty where nothing can go.

    Args:
        example: one image [1, C, H, W] on the model's device.

    Raises:
        ValueError: an operation that the analysis of channels does not know.
    """
    live = Liveness(canonical(model, example), example)
    kept = _agreed(live)
    modules, found = dict(model.named_modules()), {}
    for node, rows in kept.items():
        module = module_of(live.graph, node)
        if module is None or modules.get(node.target) is not module or not _tensors(module):
            continue
        cols = kept[node.args[0]] if live.kinds[node] in WEIGHTED else rows
        if (rows.all() and cols.all()) or len(_sized(module)) != len(rows):  # (one slope for all channels)
            continue
        whole = uncut(module)
        grouped = module_groups(module) > 1
        found[node.target] = whole.rows[rows], whole.cols if grouped else whole.cols[cols]
    return found


def _agreed(live: Liveness) -> dict[fx.Node, Tensor]:
    """Bool per channel of every node: at least what has to be there, the same in all that shares places; never none."""
    kept = {node: keep.clone() for node, keep in live.keep.items()}
    calls: dict[str, list[fx.Node]] = {}
    for node in kept:
        if (module := module_of(live.graph, node)) and _tensors(module) and len(_sized(module)) == len(kept[node]):
            calls.setdefault(node.target, []).append(node)
    while True:
        before = sum(int(keep.sum()) for keep in kept.values())
        for node in kept:
            _agree(live, node, kept)
        for first, *others in calls.values():  # a module that is called several times
            for node in others:
                _share(kept, first, node)
                _share(kept, first.args[0], node.args[0])
        if before == sum(int(keep.sum()) for keep in kept.values()):
            empty = [keep for keep in kept.values() if not keep.any()]
            if not empty:
                return kept
            empty[0][0] = True  # torch has no layers of nothing: a dead branch keeps one channel


def _agree(live: Liveness, node: fx.Node, kept: dict[fx.Node, Tensor]) -> None:
    """Keeps, of the node and of what it reads, what it cannot do without."""
    kind, module, own = live.kinds[node], module_of(live.graph, node), kept[node]
    sources = [kept[n] for n in node.all_input_nodes]
    if kind in ("input", "output", "order", "pad_shortcut") or isinstance(module, nn.Unflatten):
        for keep in (own, *sources):  # their sizes stand in the network's own code
            keep.fill_(True)
    elif kind in WEIGHTED:
        if (groups := module_groups(module)) > 1:
            whole = (own.view(groups, -1).any(1) | sources[0].view(groups, -1).any(1))[:, None]
            for keep in (own, sources[0]):
                keep.view(groups, -1).logical_or_(whole)
    elif kind in (*ELEMENTWISE, "add", "mul"):
        for source in node.all_input_nodes:
            _share(kept, node, source)
    elif kind == "cat":
        own |= torch.cat([kept[n] for n in node.args[0]])
        for part, n in zip(own.split([len(kept[n]) for n in node.args[0]]), node.args[0], strict=True):
            kept[n] |= part
    elif kind == "flatten":
        source = sources[0]
        source |= own.view(len(source), -1).any(1)
        own.view(len(source), -1).logical_or_(source[:, None])


def _share(kept: dict[fx.Node, Tensor], first: fx.Node, second: fx.Node) -> None:
    kept[first] |= kept[second]
    kept[second] |= kept[first]


# -- the cut -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def cut(model: nn.Module, kept: Kept, trained: bool = True) -> None:
    """Cuts the layers in place. Parameters stay the same objects; an optimizer's state does not fit them any more.

    Args:
        kept: from `cuttable`, or the `cuts` of a network of the same structure. What is gone already stays gone.
        trained: False for a network that is given its weights afterwards: then they are not checked.

    Raises:
        ValueError: a layer without these channels, or one whose weight would change: it is made of all of a filter or
            layer, of what goes too. One line that names the layer.
    """
    model.zero_grad(set_to_none=True)
    modules = dict(model.named_modules())
    for name, (rows, cols) in kept.items():
        if name not in modules or not _tensors(modules[name]):
            raise ValueError(f"{name}: cannot be cut, the network has no such layer")
        try:
            _cut(modules[name], rows, cols, trained)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _cut(module: nn.Module, rows: Tensor, cols: Tensor, trained: bool) -> None:
    whole, device = uncut(module), _sized(module).device
    row, col = (_places(k, w).to(device) for k, w in ((rows, whole.rows), (cols, whole.cols)))
    weight = module.weight.detach().clone() if trained and len(whole.shape) > 1 else None
    for name in _tensors(module):
        shape = getattr(module, name).shape
        for part in _parts(module, name):
            if part.dim() == len(shape):
                part.data = _selected(part.data, shape, row, col if len(shape) > 1 else None)
            elif part.dim() and len(part) == len(whole.rows):
                raise ValueError(f"{list(part.shape)} beside a {name} {list(shape)} cannot be cut for sure")
    _set_sizes(module, len(whole.rows), len(row), len(col))
    module.uncut = Uncut(whole.shape, rows.cpu(), cols.cpu())
    if weight is not None:
        expected = weight[row][:, col]
        change = float((module.weight - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not change <= TOLERANCE:
            raise ValueError(
                f"what is left of its weight would change by {100 * change:.2g} % with the cut: "
                "its scale or threshold is taken over channels that go"
            )


def _places(kept: Tensor, present: Tensor) -> Tensor:
    """Where the kept indices are among those that are still there."""
    kept = kept.cpu()
    where = torch.searchsorted(present, kept).clamp_max(len(present) - 1)
    if not len(kept) or not torch.equal(present[where], kept):
        raise ValueError("the channels to keep are not all there")
    return where


def _parts(module: nn.Module, name: str) -> list[Tensor]:
    """The tensor, or what it is made of where it is parametrized: latent values, masks, duals, scales, codes."""
    if not parametrize.is_parametrized(module, name):
        return [getattr(module, name)]
    held = module.parametrizations[name]
    return [*held.parameters(), *held.buffers()]


def _selected(tensor: Tensor, shape: torch.Size, row: Tensor, col: Tensor | None) -> Tensor:
    """Rows and columns of a tensor that broadcasts to `shape`."""
    selected = tensor
    for axis, index in enumerate((row, col)):
        if index is None or tensor.shape[axis] == 1 != shape[axis]:
            continue
        if tensor.shape[axis] != shape[axis]:
            raise ValueError(f"{list(tensor.shape)} beside a weight {list(shape)} cannot be cut by channel")
        selected = selected.index_select(axis, index)
    return selected.contiguous()


def _tensors(module: nn.Module) -> list[str]:
    """Names of the layer's own tensors of one value or more per channel, its weight first."""
    names = ("weight", "bias", "running_mean", "running_var")
    return [name for name in names if isinstance(getattr(module, name, None), Tensor)]


def _sized(module: nn.Module) -> Tensor:
    return getattr(module, _tensors(module)[0])


def _set_sizes(module: nn.Module, present: int, rows: int, cols: int) -> None:
    """What the layer says of itself. Groups go whole, so that as large a part of them is left as of the rows."""
    sizes: dict[str, Any] = {}
    if isinstance(module, nn.Conv2d):
        groups = module.groups * rows // present if module.groups > 1 else 1
        sizes = {"out_channels": rows, "in_channels": cols * groups, "groups": groups}
    elif isinstance(module, nn.Linear):
        sizes = {"out_features": rows, "in_features": cols}
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        sizes = {"num_features": rows}
    elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
        sizes = {"num_parameters": rows}
    for name, value in sizes.items():
        setattr(module, name, value)
