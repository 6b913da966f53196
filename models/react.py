"""ReActNet's two activations, built from a learned shift per channel (Liu et al., ECCV 2020: paper, eqs. 4 and 6)."""

import torch
from torch import Tensor, nn

from sparsign.models.sign import Sign, SignGradient


class ChannelShift(nn.Module):
    """x + b_c, one learned number per channel: [N, channels, ...] -> the same shape and dtype. Starts as the identity.

    Under autocast the shift is rounded to x's dtype, so that the stream stays in it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.to(x.dtype).view(-1, *[1] * (x.dim() - 2))

    def extra_repr(self) -> str:
        return f"{len(self.bias)}"


def rsign(channels: int, gradient: SignGradient) -> nn.Sequential:
    """RSign: sign(x + b_c). Packed, the shift costs a comparison with -b_c instead of 0."""
    return nn.Sequential(ChannelShift(channels), Sign(gradient))


def rprelu(channels: int) -> nn.Sequential:
    """RPReLU: y = PReLU_c(x - g_c) + z_c, with the shift stored as -g_c; slopes start at torch's 0.25."""
    return nn.Sequential(ChannelShift(channels), nn.PReLU(channels), ChannelShift(channels))
