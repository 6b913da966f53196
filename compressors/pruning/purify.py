"""What ADMM leaves behind: groups almost without weight (purification) and channels on no path from input to output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import ChannelMask, WeightMask, find, latent, weighted
from sparsign.compressors.pruning.cut import remove_filters
from sparsign.compressors.pruning.projections import group_norms


@torch.no_grad()
def purified(weight: Tensor, emptiness: float, share: float) -> Tensor:
    """0/1 mask of the weight's shape without the groups that hardly count.

    A nonempty filter or column goes when its squared norm is below `share` times the mean of the nonempty ones; an
    input channel goes when at least `emptiness` of its columns are empty and its squared norm is below `share` times
    the mean channel's. The lab code uses absolute thresholds on the norms, tuned per network; the emptiness ratio and
    the norm share are named in the papers' companion notes; these scale-free rules are our choice.

    Args:
        weight: [filters, channels, kh, kw] or [out, in], already pruned.
    """
    mask = torch.ones_like(weight)
    for structure in ("filter", "column"):
        norms = group_norms(weight, structure)
        mask *= norms >= share * norms.sum() / norms.count_nonzero().clamp_min(1)
    norms = group_norms(weight, "channel")
    columns = group_norms(weight, "column").flatten(2) if weight.dim() > 2 else norms[..., None]
    empty = columns.eq(0).float().mean(dim=2).view_as(norms)
    return mask * ~((empty >= emptiness) & (norms < share * norms.mean()))


@torch.no_grad()
def remove_unused_paths(model: nn.Module, example: Tensor) -> None:
    """Empties every filter nobody reads and every input channel nobody writes, to the fixpoint (lab code's rule).

    An empty filter's BN is emptied with it, or it would still emit a constant: retraining makes up for that.

    Args:
        model: prepared by `cut.attach_channel_masks`; the `WeightMask` of its conv and linear layers is brought up to
            date, the latent weights become zero where it is.
        example: one image [1, C, H, W].
    """
    remove_filters(model, example.to(next(model.parameters()).device), {})
    for layer in weighted(model).values():
        mask = find(layer, WeightMask).mask
        mask *= find(layer, ChannelMask).mask
        latent(layer).mul_(mask)
