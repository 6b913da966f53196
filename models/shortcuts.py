"""Shortcuts of residual networks that hold no weights."""

from torch import Tensor, nn
from torch.nn import functional as F


class PadShortcut(nn.Module):
    """ResNet's parameter-free shortcut (option A of the ResNet paper).

    [N, C, H, W] -> [N, before + C + after, ceil(H / stride), ceil(W / stride)]: every `stride`-th pixel,
    and zeros in the new channels.
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, after={self.after}"
